"""The web page: what it says, what its server lets through and keeps, and the page itself in a browser."""
import csv
import gc
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CODE, SETTINGS, encoded, jpeg
from PIL import Image

import app
import checkpoints
import page
import tiles
from classes import build
from files import TellError, read_csv
from infer import PREFERRED, judge

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


def examined(server, data: bytes, method: str = "grad-cam") -> dict:
    status, body, _ = ask(server, "POST", f"/examine?method={method}", data)
    assert status == 200, body
    return json.loads(body)


# --- what the page says ------------------------------------------------------------------------

def test_words_claim_no_certainty_and_no_calibration_that_is_not_there():
    row = {"verdict": "FAKE", "probability": 0.9999}
    assert "over 99" in page.in_words(row, calibrated=True)
    assert "not been calibrated" in page.in_words(row, calibrated=False)
    doubtful = page.in_words({"verdict": "cannot tell", "probability": 0.4}, calibrated=True)
    assert "cannot decide" in doubtful
    assert "60\u00a0% were real" in doubtful
    said = [page.percent(share) for share in (0.5, 0.005, 0.992)]
    assert said == ["50\u00a0%", "under 1\u00a0%", "over 99\u00a0%"]


def test_a_network_without_measured_worth_elsewhere_does_not_claim_any():
    assert page.elsewhere([]) == ""
    row = {"way": "tiles", "accuracy": "0.476", "accuracy_low": "0.42", "accuracy_high": "0.53", "n": "334",
           "data": "wild", "majority": "0.521"}
    assert page.elsewhere([row]).endswith("no better than always saying the same, 52\u00a0%")
    assert "no better" in page.elsewhere([row | {"accuracy": "0.6", "accuracy_low": "0.51"}])
    assert "no better" not in page.elsewhere([row | {"accuracy": "0.8", "accuracy_low": "0.75"}])
    assert page.elsewhere([row | {"way": "squash"}]) == ""  # not as the page sees pictures


@pytest.mark.parametrize("name", PREFERRED)
def test_the_page_says_what_its_networks_are_worth_at_natural_size(name):
    rows = [row for row in read_csv(CODE.parent / "paper/results/agiri-wild.csv") if row["model"] == name]
    assert "of natural size this network was right on" in page.elsewhere(rows)


def test_a_picture_of_another_size_gets_the_doubt_and_one_of_32_pixels_does_not(examiner):
    large, small = (examiner.examine(encoded(Image.fromarray(picture(3, side)), "PNG"), "grad-cam")
                    for side in (100, 32))
    assert page.UNMEASURED in large["html"]["verdict"]
    assert page.UNMEASURED not in small["html"]["verdict"]
    palette = encoded(Image.fromarray(picture(3, 32)).quantize(16), "PNG")
    assert page.UNMEASURED not in examiner.examine(palette, "grad-cam")["html"]["verdict"]


def test_a_picture_that_is_too_long_for_jpeg_is_one_line(examiner):
    with pytest.raises(TellError, match="70000 x 10 pixels are too long for this page"):
        examiner.examine(encoded(Image.new("RGB", (70_000, 10)), "PNG"), "grad-cam")


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
    heat = page.heat_map(examiner.network, pixels, "grad-cam")
    looked = tiles.see(pixels, 32, "tiles").boxes
    assert heat.shape == (64, 96)
    assert looked.tolist() == [[32, 64, 32, 32]]
    assert np.isfinite(heat[32:, 64:]).all()
    assert np.isnan(heat[:32]).all()
    alone = page.heat_map(examiner.network, pixels[32:, 64:].copy(), "grad-cam")
    np.testing.assert_allclose(heat[32:, 64:], alone, rtol=1e-4, atol=1e-6)


def test_html_of_what_a_file_says_is_text():
    row = {"verdict": "REAL", "probability": 0.2, "threshold": 0.5, "warnings": ["<b>w</b>"], "width": 1,
           "height": 1, "treatment": "<i>t</i>"}
    html = page.verdict_html(row, True, "<script>", "<u>")
    assert not any(tag in html for tag in ("<b>w", "<i>t", "<script>", "<u>"))


# --- one picture after another -----------------------------------------------------------------

def test_the_page_and_the_command_line_give_one_verdict(examiner):
    pixels = picture(3, 100)
    file = encoded(Image.fromarray(pixels), "PNG")
    found = examiner.examine(file, "grad-cam")
    row = judge(examiner.network, examiner.facts, [pixels], files=[file])[0]
    assert found["record"]["verdict"] == row
    assert f'data-verdict="{row["verdict"]}"' in found["html"]["verdict"]
    assert len(found["record"]["changed"]) == 12
    again = jpeg(pixels)  # quality 75, one of those shown
    shown = next(row for row in found["record"]["changed"] if (row["kind"], row["strength"]) == ("JPEG", 75))
    expected = judge(examiner.network, examiner.facts, [app.opened(again)[0]])[0]
    assert shown["probability"] == pytest.approx(expected["probability"], abs=0.02)  # another encoder


def test_a_picture_is_gone_when_its_answer_is_there(examiner, monkeypatch):
    kept = []

    def watched(data):
        pixels = picture(5).copy()
        kept.append(weakref.ref(pixels))
        return pixels, ""

    monkeypatch.setattr(app, "opened", watched)
    answers = [examiner.examine(b"any", "grad-cam"), examiner.verdict(b"any")]
    gc.collect()
    assert len(kept) == len(answers) == 2
    assert [reference() for reference in kept] == [None, None]


def test_too_many_at_once_are_told_so(examiner):
    with ExitStack() as stack:
        for _ in range(app.WAITING):
            examiner.places.acquire()
            stack.callback(examiner.places.release)
        with pytest.raises(TellError, match="too many pictures at once"):
            examiner.verdict(jpeg(picture(0)))
    assert examiner.verdict(jpeg(picture(0)))["verdict"]


def test_a_picture_too_large_for_a_page_is_refused(examiner, monkeypatch):
    monkeypatch.setattr(app, "MAX_PIXELS", 50 * 50)
    with pytest.raises(TellError, match="60 x 60 pixels are too many"):
        examiner.verdict(jpeg(picture(0, 60)))


# --- the server --------------------------------------------------------------------------------

def test_users_at_the_same_time_get_their_own_answers(server):
    """Grad-CAM hooks into the one network: without a lock, maps of one user hold another's picture."""
    pictures = [jpeg(picture(seed)) for seed in range(8)]
    alone = [examined(server, data) for data in pictures]
    with ThreadPoolExecutor(8) as users:
        together = list(users.map(lambda i: examined(server, pictures[i % 8]), range(24)))
    assert len({json.dumps(found["record"]) for found in alone}) == 8
    for i, found in enumerate(together):
        assert found == alone[i % 8]


def test_two_hundred_bad_files_in_a_row_and_the_page_still_answers(server):
    random, good = np.random.default_rng(0), jpeg(picture(0, 64))
    broken = [b"", b"GIF89a", b"\xff\xd8\xff", good[:40], b"<svg onload=alert(1)>", b"%PDF-1.7", good[100:]]
    for i in range(200):
        data = broken[i] if i < len(broken) else random.bytes(int(random.integers(1, 4000)))
        status, body, _ = ask(server, "POST", "/examine" if i % 2 else "/verdict", data)
        assert status == 400, (data[:20], body)
        assert "\n" not in json.loads(body)["error"]
        assert "object at 0x" not in json.loads(body)["error"]
    assert examined(server, good)["record"]["verdict"]["width"] == 64


def test_wrong_requests_get_one_line(server):
    wrong = {"/examine?method=magic": [jpeg(picture(0))], "/quiz?n=99": [None], "/quiz?n=-1": [None],
             "/answers": [b"no json", b'[{"label": 7}]', b"[]", b"[1]"],
             "/examine": [bytes(app.MAX_BYTES + 1)]}
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

@pytest.fixture
def browser():
    """Chromium of the system, driven headless."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine; on Debian: apt install chromium")
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
    expected = examined(server, path.read_bytes())["record"]["verdict"]
    assert tab.get_attribute("h2[data-verdict]", "data-verdict") == expected["verdict"]
    tab.wait_for_function("document.querySelector('.tell-map').naturalWidth > 0")
    tab.fill(".tell-slider input", "10")
    assert tab.evaluate("getComputedStyle(document.querySelector('.tell-map')).opacity") == "0.1"
    before = tab.get_attribute(".tell-map", "src")
    tab.get_by_label("lime").check()
    tab.wait_for_function("before => document.querySelector('.tell-map').src !== before", arg=before)
    record = json.loads(saved(tab, "Save the numbers").read_text())
    assert record["verdict"] == expected
    assert record["map"]["method"] == "lime"
    assert Image.open(saved(tab, "Save the map")).size == (96, 96)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    path.write_text("no picture")
    tab.set_input_files("#tell-file", path)
    tab.wait_for_selector("[role=alert]")
    assert "not a readable picture" in tab.inner_text("[role=alert]")
    tab.click(".tell-example >> nth=2")
    tab.wait_for_selector("[data-verdict]")
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
    expected = examined(server, files[2].read_bytes())["record"]["verdict"]
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
