"""The web page: what it says, what its server lets through and keeps, and the page itself in a browser."""
import asyncio
import csv
import gc
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from conftest import CODE, SETTINGS, encoded, jpeg
from PIL import Image

import app
import checkpoints
import explain
import page
import tiles
from classes import build
from files import TellError, read_csv
from infer import PREFERRED, judge
from turns import MAX_BYTES, WAITING, Gone, Turns

CALIBRATION = {"temperature": 1.0, "bias": 0.0, "n": 1000, "source": "made here", "alpha": 0.05,
               "real_bound": 0.03, "fake_bound": -0.03, "false_alarm_bounds": {0.01: 1.0, 0.05: 0.5}}


def picture(seed: int, size: int = 32) -> np.ndarray:
    """Squares of plain colours: pictures that differ in more than noise."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(squares).resize((size, size), Image.Resampling.BICUBIC))


def write_model() -> str:
    torch.manual_seed(0)
    network = build("CIFAKE_CNN")
    network.fc3.weight.data *= 20  # else every picture has about the same score
    checkpoints.write(checkpoints.path_of("tiny"), checkpoints.pack(
        network, "CIFAKE_CNN", {}, threshold=0.5, threshold_source="made here", data="nothing", seed=0,
        calibration=CALIBRATION))
    return "tiny"


@pytest.fixture
def examiner(own_folders):
    return app.Examiner(write_model(), "cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page as `make app` starts it, in a process and folders of its own."""
    root = tmp_path_factory.mktemp("server")
    folders = {f"TELL_{name}": str(root / name.lower()) for name in SETTINGS}
    environment = os.environ | folders | {"TMPDIR": str(root / "temporary")}
    (root / "temporary").mkdir()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TELL_MODELS", folders["TELL_MODELS"])
        write_model()
        errors = stack.enter_context(open(root / "errors.txt", "w"))
        process = stack.enter_context(subprocess.Popen(
            [sys.executable, str(CODE / "app.py"), "-mf", "tiny", "--port", "0"], cwd=root, text=True,
            stdout=subprocess.PIPE, stderr=errors, env=environment))
        lines = [process.stdout.readline() for _ in range(2)]
        assert "http://" in lines[1], (root / "errors.txt").read_text()
        url = lines[1].split()[1]
        yield SimpleNamespace(url=url, host=url.removeprefix("http://"), root=root, process=process)
        process.send_signal(signal.SIGINT)
        process.wait(20)


def ask(server, method: str, path: str, body=None, **headers) -> tuple[int, bytes, dict]:
    """One request as it is written here: no client tidies its path."""
    connection = http.client.HTTPConnection(server.host, timeout=60)
    try:
        connection.request(method, path, body, {key.replace("_", "-"): text for key, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def found_by(server, path: str, data: bytes) -> dict:
    status, body, _ = ask(server, "POST", path, data)
    assert status == 200, body
    return json.loads(body)


def examined(server, data: bytes) -> dict:
    """The record of everything that the page shows of a picture."""
    shown, heat, changed = (found_by(server, path, data)["record"]
                            for path in ("/examine", "/map?method=grad-cam", "/under"))
    return shown | {"map": heat, "changed": changed}


def nobody_waits() -> None:
    """A pause in which nothing happens."""


# --- what the page says ------------------------------------------------------------------------

def test_words_claim_no_certainty_and_no_calibration_that_is_not_there():
    row = {"verdict": "FAKE", "probability": 0.9999}
    assert "not been calibrated" in page.in_words(row, calibrated=False)
    doubtful = page.in_words({"verdict": "cannot tell", "probability": 0.4}, calibrated=True)
    assert "cannot decide" in doubtful
    assert "Of 100 pictures that the network rates like this one, about 60 are real" in doubtful
    assert "more than 99 are generated" in page.in_words(row, calibrated=True)
    said = [page.percent(share) for share in (0.5, 0.005, 0.992)]
    assert said == ["50\u00a0%", "under 1\u00a0%", "over 99\u00a0%"]


@pytest.mark.parametrize("name", PREFERRED)
def test_the_page_says_what_its_networks_are_worth_at_natural_size(name, monkeypatch):
    monkeypatch.setenv("TELL_RESULTS", str(CODE.parent / "paper" / "results"))
    assert "of natural size this network was right on" in tiles.in_words(tiles.record(name, "tiles"))


def test_a_picture_of_another_size_gets_the_doubt_and_one_of_32_pixels_does_not(examiner):
    large, small = (examiner.examine(encoded(Image.fromarray(picture(3, side)), "PNG"))
                    for side in (100, 32))
    unmeasured = tiles.in_words(None)[1:]
    assert unmeasured in large["html"]["verdict"]
    assert unmeasured not in small["html"]["verdict"]
    palette = encoded(Image.fromarray(picture(3, 32)).quantize(16), "PNG")
    assert unmeasured not in examiner.examine(palette)["html"]["verdict"]


def test_a_picture_that_is_too_long_for_jpeg_is_one_line(examiner):
    with pytest.raises(TellError, match="70000 x 10 pixels are too long for this page"):
        examiner.examine(encoded(Image.new("RGB", (70_000, 10)), "PNG"))


def test_the_quiz_and_the_examples_are_other_pictures(examiner):
    labels = [one["label"] for one in examiner.questions]
    assert (len(examiner.examples), len(labels), sum(labels)) == (8, 40, 20)


def test_the_map_has_its_colours_where_its_values_are():
    heat = np.zeros((10, 10))
    heat[2, 3], heat[7, 1], heat[0, 0] = 1, -1, np.nan
    colours = np.asarray(page.coloured(heat))
    found = ["#" + bytes(colours[place][:3]).hex().upper() for place in ((2, 3), (7, 1))]
    assert found == [page.FAKE, page.REAL]
    assert colours[2, 3, 3] == colours[7, 1, 3] == 255
    assert (colours[..., 3] > 0).sum() == 2


def test_the_map_of_a_large_picture_lies_where_the_network_looked(examiner):
    pixels = np.full((64, 96, 3), 128, np.uint8)
    pixels[32:, 64:] = picture(1)
    heat, note = page.heat_map(examiner.network, pixels, "grad-cam")
    looked = tiles.see(pixels, 32, "tiles").boxes
    assert (heat.shape, note) == ((64, 96), "")
    assert looked.tolist() == [[32, 64, 32, 32]]
    assert np.isfinite(heat[32:, 64:]).all()
    assert np.isnan(heat[:32]).all()
    alone, _ = page.heat_map(examiner.network, pixels[32:, 64:].copy(), "grad-cam")
    np.testing.assert_allclose(heat[32:, 64:], alone, rtol=1e-4, atol=1e-6)


def test_a_large_network_explains_only_the_tiles_that_vote_most_strongly(examiner, monkeypatch):
    """Of 3 x 3 tiles, by a method that is told to take two: those whose logits are furthest from 0."""
    monkeypatch.setattr(page, "ELSE", 2)
    pixels = picture(2, 96)
    assert page.heat_map(examiner.network, pixels, "lime")[1] == ""  # a small network
    monkeypatch.setattr(page, "SMALL", 0)
    heat, note = page.heat_map(examiner.network, pixels, "lime")
    seen = tiles.see(pixels, 32, "tiles")
    strength = abs(tiles.view_logits(examiner.network, seen.pixels))
    strongest = {tuple(box[:2]) for box in seen.boxes[np.argsort(-strength)[:2]]}
    with_map = {(top, left) for top in (0, 32, 64) for left in (0, 32, 64)
                if np.isfinite(heat[top:top + 32, left:left + 32]).all()}
    assert with_map == strongest
    assert note == f"the 2 of {len(seen.boxes)} tiles that vote most strongly"
    assert np.isnan(heat).sum() == 7 * 32 * 32
    assert note in page.map_html("lime", note)
    assert "Only" not in page.map_html("lime", "")


def test_a_method_has_a_readable_name():
    names = [page.label(method) for method in ("grad-cam", "lime", "lime, mean colour", "occlusion")]
    assert names == ["Grad-CAM", "LIME", "LIME, mean colour", "Occlusion"]


def test_the_page_offers_the_methods_that_there_are(examiner, monkeypatch):
    monkeypatch.setitem(explain.METHODS, "lime of tomorrow", explain.METHODS["grad-cam"])
    choices = [part["props"]["choices"] for part in app.layout(examiner).config["components"]
               if part["props"].get("elem_id") == "tell-method"]
    assert choices == [[(page.label(method), method) for method in explain.METHODS]]
    assert ("LIME of tomorrow", "lime of tomorrow") in choices[0]
    data = jpeg(picture(1))
    record = examiner.map(data, "lime of tomorrow", nobody_waits)["record"]
    assert record["values"] == examiner.map(data, "grad-cam", nobody_waits)["record"]["values"]


def test_the_quiz_says_how_often_its_network_is_right():
    questions = [{"label": label, "machine": said} for label, said in
                 ((1, 1), (0, 0), (1, 1), (1, 0), (0, None), (0, None))]
    said = page.machine_html("<b>", questions)
    assert "<code>&lt;b&gt;</code> network calls 3 rightly and 1 wrongly; on 2 it says" in said
    assert "all 6 pictures" in said


def test_all_maps_come_as_one_archive(examiner):
    data = jpeg(picture(1))
    with urlopen(examiner.maps(data, nobody_waits)["zip"]) as file:
        archive = zipfile.ZipFile(io.BytesIO(file.read()))
    assert archive.namelist() == [f"map-{method}.png" for method in explain.METHODS]
    with urlopen(examiner.map(data, "occlusion", nobody_waits)["map"]) as file:
        assert archive.read("map-occlusion.png") == file.read()


def test_html_of_what_a_file_says_is_text():
    row = {"verdict": "REAL", "probability": 0.2, "threshold": 0.5, "warnings": ["<b>w</b>"], "width": 1,
           "height": 1, "treatment": "<i>t</i>"}
    html = page.verdict_html(row, True, "<script>", "<u>")
    assert not any(tag in html for tag in ("<b>w", "<i>t", "<script>", "<u>"))


# --- one picture after another -----------------------------------------------------------------

def test_the_page_and_the_command_line_give_one_verdict(examiner):
    pixels = picture(3, 100)
    file = encoded(Image.fromarray(pixels), "PNG")
    found, changed = examiner.examine(file), examiner.under(file, nobody_waits)["record"]
    row = judge(examiner.network, examiner.facts, [pixels], files=[file])[0]
    assert found["record"]["verdict"] == row
    assert f'data-verdict="{row["verdict"]}"' in found["html"]["verdict"]
    assert len(changed) == 12
    again = jpeg(pixels)  # quality 75, one of those shown
    shown = next(row for row in changed if (row["kind"], row["strength"]) == ("JPEG", 75))
    expected = judge(examiner.network, examiner.facts, [app.opened(again)[0]])[0]
    assert shown["probability"] == pytest.approx(expected["probability"], abs=0.02)  # another encoder


def test_a_picture_is_gone_when_its_answer_is_there(examiner, monkeypatch):
    kept = []

    def watched(data):
        pixels = picture(5).copy()
        kept.append(weakref.ref(pixels))
        return pixels, ""

    monkeypatch.setattr(app, "opened", watched)
    answers = [examiner.examine(b"any"), examiner.verdict(b"any"), examiner.maps(b"any", nobody_waits),
               examiner.map(b"any", "grad-cam", nobody_waits), examiner.under(b"any", nobody_waits)]
    gc.collect()
    assert len(kept) == len(answers) == 5
    assert [reference() for reference in kept] == [None] * 5


class Client:
    """A request as turns.py sees it: a body that is there, and whether its sender has hung up."""

    def __init__(self):
        self.gone = False

    async def receive(self) -> dict:
        return {"type": "http.request", "body": b"picture"}

    async def is_disconnected(self) -> bool:
        return self.gone


def passes(n: int, log: list, name: str):
    """Slow work of n passes through a network; each tells `log`."""
    def work(data, pause):
        for i in range(n):
            pause()
            log.append((name, i))
            time.sleep(0.05)
        return name
    return work


def test_a_verdict_waits_for_one_pass_of_a_map_and_maps_take_turns():
    log = []

    async def day():
        turns = Turns()
        maps = [asyncio.create_task(turns.slow(Client(), passes(20, log, name))) for name in "ab"]
        while len(log) < 6:
            await asyncio.sleep(0.01)
        before = len(log)
        said = await turns.quick(Client(), lambda data: log.append(("verdict", 0)) or data)
        return said, before, await asyncio.gather(*maps)

    said, before, names = asyncio.run(day())
    assert (said, names) == (b"picture", ["a", "b"])
    assert log.index(("verdict", 0)) - before <= 1
    order = [name for name, _ in log[2:30] if name != "verdict"]
    assert max(len(list(group)) for _, group in groupby(order)) <= 2  # else one user's map starves another's


def test_work_for_a_client_that_hung_up_stops():
    log = []

    async def day():
        turns, client, late = Turns(), Client(), Client()
        job = asyncio.create_task(turns.slow(client, passes(1000, log, "a")))
        waiting = asyncio.create_task(turns.quick(late, lambda data: log.append(("verdict", 0))))
        late.gone = True
        while len(log) < 2:
            await asyncio.sleep(0.01)
        client.gone = True
        for task in (job, waiting):
            with pytest.raises(Gone):
                await task
        return await turns.slow(Client(), passes(1, log, "next"))

    assert asyncio.run(day()) == "next"
    assert ("verdict", 0) not in log
    assert len(log) < 10


def test_too_many_at_once_are_told_so_and_maps_take_no_place_of_verdicts():
    async def day():
        turns, held = Turns(), ExitStack()
        for _ in range(WAITING):
            held.enter_context(turns.place("slow"))
        with pytest.raises(TellError, match="too many pictures at once"):
            await turns.slow(Client(), passes(1, [], "a"))
        verdict = await turns.quick(Client(), len)
        held.close()
        return verdict, await turns.slow(Client(), passes(1, [], "a"))

    assert asyncio.run(day()) == (7, "a")


def test_a_picture_too_large_for_a_page_is_refused(examiner, monkeypatch):
    monkeypatch.setattr(app, "MAX_PIXELS", 50 * 50)
    with pytest.raises(TellError, match="60 x 60 pixels are too many"):
        examiner.verdict(jpeg(picture(0, 60)))


# --- the server --------------------------------------------------------------------------------

def test_users_at_the_same_time_get_their_own_answers(server):
    """Grad-CAM hooks into its network: on one for all, maps of one user would hold another's picture."""
    pictures = [jpeg(picture(seed)) for seed in range(8)]
    alone = [examined(server, data) for data in pictures]
    with ThreadPoolExecutor(8) as users:
        together = list(users.map(lambda i: examined(server, pictures[i % 8]), range(24)))
    assert len({json.dumps(found) for found in alone}) == 8
    for i, found in enumerate(together):
        assert found == alone[i % 8]


def test_two_hundred_bad_files_in_a_row_and_the_page_still_answers(server):
    random, good = np.random.default_rng(0), jpeg(picture(0, 64))
    broken = [b"", b"GIF89a", b"\xff\xd8\xff", good[:40], b"<svg onload=alert(1)>", b"%PDF-1.7", good[100:]]
    paths = ("/examine", "/verdict", "/map", "/under", "/maps")
    for i in range(200):
        data = broken[i] if i < len(broken) else random.bytes(int(random.integers(1, 4000)))
        status, body, _ = ask(server, "POST", paths[i % len(paths)], data)
        assert status == 400, (data[:20], body)
        assert "\n" not in json.loads(body)["error"]
        assert "object at 0x" not in json.loads(body)["error"]
    assert examined(server, good)["verdict"]["width"] == 64


def test_a_verdict_does_not_wait_for_the_map_of_another_and_that_of_a_client_gone_stops(server):
    """64 tiles by SHAP take this network seconds; 16 such maps, hung up, leave every place free."""
    large, small = jpeg(picture(0, 512), subsampling=0), jpeg(picture(1))
    start = time.monotonic()
    found_by(server, "/map?method=shap", large)
    whole = time.monotonic() - start
    waiting = [http.client.HTTPConnection(server.host, timeout=60) for _ in range(WAITING)]
    for each in waiting:
        each.request("POST", "/map?method=shap", large)
    time.sleep(whole / 4)  # the first are in work
    start = time.monotonic()
    found_by(server, "/examine", small)
    assert time.monotonic() - start < whole / 2
    for each in waiting:
        each.close()
    time.sleep(whole / 4)
    start = time.monotonic()
    found_by(server, "/map?method=grad-cam", small)
    assert time.monotonic() - start < whole


@pytest.mark.parametrize("path", ["/", "/tell.js", "/tell.css", "/theme.css"])
def test_head_is_get_without_the_body(server, path):
    (status, body, headers), (_, whole, _) = (ask(server, method, path) for method in ("HEAD", "GET"))
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(whole) > 0
    assert "default-src 'none'" in headers["content-security-policy"]


def test_head_shows_nothing_that_get_does_not(server):
    hidden = ("/examine", "/docs", "/config", "/tell.py")
    assert [ask(server, "HEAD", path)[0] for path in hidden] == [404] * 4


def test_wrong_requests_get_one_line(server):
    wrong = {"/map?method=magic": [jpeg(picture(0))], "/quiz?n=99": [None], "/quiz?n=-1": [None],
             "/answers": [b"no json", b'[{"label": 7}]', b"[]", b"[1]"],
             "/examine": [bytes(MAX_BYTES + 1)], "/map": [bytes(MAX_BYTES + 1)]}
    for path, body in ((path, body) for path, bodies in wrong.items() for body in bodies):
        status, answer, _ = ask(server, "POST", path, body)
        assert status == 400, (path, answer)
        assert len(json.loads(answer)["error"].splitlines()) == 1


@pytest.mark.parametrize("path", [
    "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd",
    "/gradio_api/file/etc/passwd", "/static/../../../../../../etc/passwd", "/assets/../../../routes.py",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/assets//etc/passwd", "/static/....//....//etc/passwd", "/tell.%2e%2e/code/app.py", "/tell.py",
    "/tell.js/../../code/app.py", "//etc/passwd", "/models/tiny.pth", "/gradio_api/proxy=http://127.0.0.1/",
    "/svelte/../../routes.py", "/gradio_api/custom_component/1/client/component/../../x", "/assets/%00",
    "/gradio_api/runs", "/monitoring", "/gradio_api/info", "/config", "/docs", "/openapi.json",
    "/gradio_api/vibe-code", "/gradio_api/deep_link"])
def test_no_file_and_no_route_of_gradio_can_be_reached(server, path):
    status, body, _ = ask(server, "GET", path)
    assert status == 404, body[:200]
    assert b"root:" not in body
    assert b"import" not in body


@pytest.mark.parametrize("path", ["upload", "queue/join", "run/predict", "api/predict", "call/x",
                                  "process_recording", "vibe-edit/", "component_server", "reset",
                                  "cancel", "run-history/connect"])
def test_nothing_is_kept_by_gradio(server, path):
    for address in (f"/gradio_api/{path}", f"/{path}"):
        assert ask(server, "POST", address, b"{}", content_type="application/json")[0] == 404


def test_other_sites_cannot_use_the_page(server):
    data, port = jpeg(picture(0)), server.host.split(":")[1]
    assert ask(server, "GET", "/", host="evil.example")[0] == 404
    assert ask(server, "GET", "/", host=f"evil.example:{port}")[0] == 404
    assert ask(server, "POST", "/verdict", data, origin="https://evil.example")[0] == 404
    assert ask(server, "POST", "/verdict", data, origin="null")[0] == 404
    assert ask(server, "POST", "/verdict", data, origin=server.url)[0] == 200
    assert ask(server, "POST", "/verdict", data, host=f"localhost:{port}")[0] == 200


def test_every_answer_forbids_other_addresses_and_caching(server):
    for method, path in (("GET", "/"), ("GET", "/tell.js"), ("GET", "/nothing"), ("POST", "/verdict")):
        headers = ask(server, method, path)[2]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
    html = ask(server, "GET", "/")[1].decode()
    assert "fonts.googleapis.com" not in html
    assert '"analytics_enabled":false' in html.replace(" ", "")


def test_a_taken_port_and_a_missing_network_are_one_line(server, capsys):
    with pytest.raises(TellError, match="port .*--port"):
        app.main(["--port", server.host.split(":")[1]])
    with pytest.raises(TellError, match="no such checkpoint"):
        app.main(["--port", "0", "-mf", "none"])
    with pytest.raises(SystemExit):
        app.main(["--port", "99999"])
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- the page in a browser ---------------------------------------------------------------------

def chromium() -> str:
    """The path of the system's Chromium. Without one tests are skipped; with TELL_NEED_BROWSER they fail."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path:
        return path
    stop = pytest.fail if os.environ.get("TELL_NEED_BROWSER") else pytest.skip
    return stop("no Chromium on this machine; on Debian: apt install chromium")


@pytest.mark.parametrize(("needed", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_fails_where_it_is_needed(monkeypatch, tmp_path, needed, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TELL_NEED_BROWSER", needed)
    with pytest.raises(outcome, match="no Chromium"):
        chromium()


@pytest.fixture
def browser():
    """Chromium of the system, driven headless."""
    path = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser, server, width: int) -> SimpleNamespace:
    """The page at a width, with everything that it asked for and complained of."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda line: line.type == "error" and "400 (Bad" not in line.text
           and complaints.append(line.text))
    tab.goto(server.url)
    tab.wait_for_selector("#tell-drop")
    return SimpleNamespace(tab=tab, asked=asked, complaints=complaints)


def assert_local(opened, server) -> None:
    assert [url for url in opened.asked if not url.startswith((server.url + "/", "data:", "blob:"))] == []
    assert opened.complaints == []


def saved(tab, text: str) -> str:
    with tab.expect_download() as download:
        tab.click(f"text={text}")
    return Path(download.value.path())


@pytest.mark.parametrize("width", [1100, 390])
def test_one_picture_in_the_browser(browser, server, tmp_path, width):
    opened = open_page(browser, server, width)
    tab, path = opened.tab, tmp_path / "mine.png"
    path.write_bytes(encoded(Image.fromarray(picture(7, 96)), "PNG"))
    tab.set_input_files("#tell-file", path)
    tab.wait_for_selector("[data-verdict]")
    expected = examined(server, path.read_bytes())["verdict"]
    assert tab.get_attribute("h2[data-verdict]", "data-verdict") == expected["verdict"]
    tab.wait_for_function("document.querySelector('.tell-map')?.naturalWidth > 0")
    tab.fill(".tell-slider input", "10")
    assert tab.evaluate("getComputedStyle(document.querySelector('.tell-map')).opacity") == "0.1"
    before = tab.get_attribute(".tell-map", "src")
    tab.get_by_label("LIME", exact=True).check()
    tab.wait_for_function("before => document.querySelector('.tell-map').src !== before", arg=before)
    assert "LIME" in tab.inner_text("#tell-said")
    assert tab.evaluate("getComputedStyle(document.querySelector('.tell-map')).opacity") == "0.1"
    tab.wait_for_selector("#tell-under table")
    record = json.loads(saved(tab, "Save the numbers").read_text())
    assert record["verdict"] == expected
    assert record["map"]["method"] == "lime"
    assert len(record["changed"]) == 12
    with zipfile.ZipFile(saved(tab, "Save all maps")) as archive:
        assert len(archive.namelist()) == len(explain.METHODS)
    assert Image.open(saved(tab, "Save the map")).size == (96, 96)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    path.write_text("no picture")
    tab.set_input_files("#tell-file", path)
    tab.wait_for_selector("[role=alert]")
    assert "not a readable picture" in tab.inner_text("[role=alert]")
    tab.click(".tell-example >> nth=2")
    tab.wait_for_selector("[data-verdict]")
    assert_local(opened, server)


def test_the_verdict_is_there_before_map_and_table_and_another_picture_ends_them(browser, server, tmp_path):
    opened = open_page(browser, server, 390)
    tab, held, failed = opened.tab, [], []
    tab.on("requestfailed", lambda request: failed.append(request.url.split("/")[-1].split("?")[0]))
    tab.route(re.compile("/map|/under"), lambda route: held.append(route))  # they never answer
    tab.click(".tell-example >> nth=1")
    tab.wait_for_selector("[data-verdict]")
    assert tab.query_selector(".tell-map") is None
    said = tab.evaluate("getComputedStyle(document.querySelector('#tell-said'), '::before').content")
    assert "drawing the map" in said
    assert len(held) == 2
    tab.click(".tell-example >> nth=2")
    tab.wait_for_function("document.querySelectorAll('[data-verdict]').length == 1")
    while len(held) < 4:
        tab.wait_for_timeout(50)
    assert sorted(failed) == ["map", "under"]
    assert_local(opened, server)


def test_a_batch_in_the_browser_names_what_it_cannot_read(browser, server, tmp_path):
    opened = open_page(browser, server, 390)
    tab, files = opened.tab, [tmp_path / "a.jpg", tmp_path / "=b,\".jpg", tmp_path / "c.jpg"]
    for i, file in enumerate(files):
        file.write_bytes(jpeg(picture(i)) if i != 1 else b"no picture")
    tab.get_by_role("tab", name="Batch").click()
    tab.set_input_files("#tell-files", files)
    with open(saved(tab, "Save the table"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.jpg", "'=b,\".jpg", "c.jpg"]
    assert "not a readable picture" in rows[1]["error"]
    expected = examined(server, files[2].read_bytes())["verdict"]
    assert float(rows[2]["probability"]) == expected["probability"]
    assert "1 unreadable" in tab.inner_text("#tell-batch [role=status]")
    assert_local(opened, server)


def test_the_quiz_in_the_browser_gives_a_file_that_can_be_analysed(browser, server, tmp_path):
    import quiz
    opened = open_page(browser, server, 390)
    tab = opened.tab
    tab.get_by_role("tab", name="Quiz").click()
    tab.fill("#tell-person", "p1")
    tab.click("[data-start='32']")
    for i in range(32):
        tab.wait_for_selector(f"text=Picture {i + 1} of 32")
        tab.click("[data-cell='9']")
        tab.click(f"[data-answer='{i % 2}']")
    tab.wait_for_selector("text=Your result")
    file = tmp_path / "answers.csv"
    shutil.copy(saved(tab, "Save my answers"), file)
    rows = read_csv(file)
    assert [row["answer"] for row in rows] == ["0", "1"] * 16
    assert sum(row["explained"] == "1" for row in rows) == sum(row["label"] == "1" for row in rows) == 16
    answers = quiz.read_answers([file])
    assert set(answers.person) == {"p1"}
    assert any(row["map"].startswith("-") for row in rows)  # taken for a formula by some
    assert answers.marks.sum(axis=0)[1, 1] == answers.marks.sum() == 32
    assert f"{answers.right[answers.explained == 1].sum()} of 16" in tab.inner_text("#tell-quiz")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert_local(opened, server)


def test_nothing_was_left_on_disk(server):
    """After all of the above: the folders of the process hold what was there before, and an empty log."""
    files = {str(path.relative_to(server.root)) for path in server.root.rglob("*") if path.is_file()}
    assert files <= {"models/tiny.pth", "errors.txt"}
    assert (server.root / "errors.txt").read_text() == ""
    assert threading.active_count() < 50
