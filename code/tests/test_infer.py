"""infer.py, gather.py, rows.py: a row for every file, whatever it is, whatever stops the run."""
import csv
import http.server
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import CODE, assert_one_line, encoded, jpeg, make_tree, run_tell
from PIL import Image
from test_tiles import FACTS, network, noise

import calibration
import checkpoints
import explain
import gather
import infer
import overlays
import rows
import scoring
import test
import tiles
from decode import decode
from files import TellError, write_csv


@pytest.fixture
def model(own_folders):
    checkpoints.write(checkpoints.path_of("one"), checkpoints.pack(network(), "CIFAKE_CNN", {}, **FACTS))
    return "one"


def flags_of(source, output, *flags) -> list[str]:
    return ["--input", str(source), "--output", str(output), "-mf", "one", *flags]


def judged(source, output, *flags, workers=0) -> list[dict]:
    infer.main(flags_of(source, output, "--workers", str(workers), *flags))
    return json.loads(output.read_text())


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return encoded(picture, "JPEG", exif=exif)


BIG = Image.fromarray(noise(64, 96))
DEEP = Image.fromarray(noise(64, 96)[..., 0].astype(np.uint16) * 257)
MOVING = encoded(BIG, "GIF", save_all=True, append_images=[BIG.rotate(90)])
ZOO = {  # name: (content, words of the treatment, or of the error)
    "a plain.jpg": (jpeg(noise(32, 32)), "whole", ""),
    "animated.gif": (MOVING, "first of 2 frames", ""),
    "bomb.png": (bomb(60_000), "", "giant: 3600000000 pixels, the limit is 100,000,000"),
    "cmyk.jpg": (encoded(BIG.convert("CMYK"), "JPEG"), "CMYK to RGB", ""),
    "deep.png": (encoded(DEEP, "PNG"), "16-bit grey to RGB", ""),
    "empty.jpg": (b"", "", "empty file"),
    "giant.png": (bomb(12_000), "", "giant: 12000x12000"),
    "palette.png": (encoded(BIG.convert("P"), "PNG"), "palette to RGB", ""),
    "pixel.png": (encoded(BIG.crop((0, 0, 1, 1)), "PNG"), "enlarged", ""),
    "see through.png": (encoded(BIG.convert("RGBA"), "PNG"), "transparent colour to RGB", ""),
    "text.jpg": (b"<html>no picture</html>", "", "not a readable picture"),
    "truncated.jpg": (jpeg(noise(64, 96))[:900], "", "damaged JPEG"),
    "truncated.png": (encoded(BIG, "PNG")[:900], "", "not a readable picture"),
    "turned.jpg": (turned(BIG), "6 of 6 tiles", ""),
    "two\nlines.png": (encoded(BIG, "PNG"), "6 of 6 tiles", ""),
    "\udcff bytes.webp": (encoded(BIG, "WEBP"), "6 of 6 tiles", ""),
}


@pytest.fixture
def zoo(tmp_path):
    for name, (content, *_) in ZOO.items():
        (tmp_path / "zoo" / "inner").mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / "inner" / name).write_bytes(content)
    os.mkfifo(tmp_path / "zoo" / "pipe.jpg")
    (tmp_path / "zoo" / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "zoo" / ".hidden").write_bytes(b"the file manager's")
    return tmp_path / "zoo"


# --- verdicts ----------------------------------------------------------------------------------

def test_verdicts_are_test_pys(model, tree, tmp_path):
    found = judged(tree / "test", tmp_path / "v.json", workers=2)
    numbers = test.main(["-mf", model, "--data", str(tree)])["models"][0]
    paths, labels, logits = scoring.read_scores(tmp_path / "results" / "scores-one-tree-test.csv")
    assert ["test/" + row["path"] for row in found] == paths.tolist()
    assert [np.float32(row["logit"]) for row in found] == logits.tolist()
    said = np.array([row["verdict"] == "FAKE" for row in found])
    assert (said == labels).mean() == numbers["accuracy"]
    np.testing.assert_allclose([row["probability"] for row in found], scoring.sigmoid(logits), atol=6e-7)
    assert all((row["margin"] >= 0) == (row["verdict"] == "FAKE") for row in found)
    assert {(row["threshold"], row["treatment"], *row["warnings"]) for row in found} == {
        (0.4, "whole", "not calibrated")}


def test_calibrated_verdicts_probabilities_and_threshold():
    pictures = [noise(32, 32, seed) // (1 + seed % 3) for seed in range(60)]
    made = network()
    logits = np.array([row["logit"] for row in infer.judge(made, FACTS, pictures)])
    middle, spread = np.median(logits), logits.std()
    rule = {"temperature": 2 * spread, "bias": middle, "real_bound": middle + spread / 3,
            "fake_bound": middle - spread / 3}
    facts = FACTS | {"calibration": rule, "threshold": float(scoring.sigmoid(np.array([middle]))[0])}
    found = infer.judge(made, facts, pictures, names=[f"{i}.png" for i in range(60)])
    assert [row["verdict"] for row in found] == calibration.verdicts(logits, rule).tolist()
    assert {row["verdict"] for row in found} == {"FAKE", "REAL", "cannot tell"}
    probabilities = [row["probability"] for row in found]
    np.testing.assert_allclose(probabilities, calibration.calibrated(logits, rule), atol=1e-6)
    assert found[0]["threshold"] == pytest.approx(0.5)  # the bias is at the median
    assert (found[7]["path"], found[7]["warnings"]) == ("7.png", [])


@pytest.mark.parametrize(("cut", "expected"), [(0.0, 0), (1.0, 1), (np.nextafter(1, 2), 1)])
def test_thresholds_at_the_ends_stay_there(cut, expected):
    rule = {"temperature": 1.0, "bias": 0.0, "real_bound": 0, "fake_bound": 0}
    assert infer.said_of(np.array([0.3]), cut, rule)[2] == expected


def test_warnings_say_what_the_verdict_cannot_rest_on():
    black = np.zeros((64, 64, 3), np.uint8)
    large, small, flat = infer.judge(network(), FACTS, [noise(64, 64), noise(20, 90), black])
    assert "trained on pictures of 32x32 pixels only (noise)" in large["warnings"]
    assert any(text.startswith("small") for text in small["warnings"])
    assert (flat["verdict"], infer.BLANK in flat["warnings"]) == ("cannot tell", True)
    assert infer.BLANK not in large["warnings"] + small["warnings"]
    assert (large["views"], large["share"] * 4 % 1, small["views"]) == (4, 0, 1)
    long, = infer.judge(network("Natural"), FACTS, [noise(64, 200)])
    assert "long: less than half of it was seen" in long["warnings"]
    assert infer.judge(network(), FACTS, []) == []


@pytest.mark.parametrize("name", ["CIFAKE_CNN", "Natural"])
@pytest.mark.parametrize("file", [
    encoded(Image.new("RGB", (32, 32)), "PNG"), encoded(Image.new("RGB", (48, 48), "red"), "JPEG"),
    encoded(Image.new("RGB", (32, 32), "red"), "JPEG"), encoded(Image.new("RGB", (20, 20), "white"), "PNG"),
    encoded(Image.new("RGB", (1, 1)), "PNG"), encoded(Image.new("RGB", (300, 200), "blue"), "PNG")])
def test_a_picture_without_detail_has_no_verdict(name, file, tmp_path):
    (tmp_path / "flat").write_bytes(file)
    made = network(name)
    row, views, _ = infer.Reader(str(tmp_path), infer.Eye.of(made, FACTS), False).one("flat")
    assert row["warnings"].count(infer.BLANK) == 1
    assert infer.decide(made, FACTS, views, [row])[0]["verdict"] == "cannot tell"
    for way in tiles.WAYS:
        assert infer.judge(made, FACTS, [decode(file)[0]], way=way)[0]["verdict"] == "cannot tell"


def test_the_faintest_detail_is_enough():
    picture = np.full((32, 32, 3), 90, np.uint8)
    picture[:, ::2, 2] = 110  # in blue alone
    assert infer.BLANK not in infer.judge(network(), FACTS, [picture])[0]["warnings"]


def test_how_right_the_network_is_at_natural_size_stands_in_each_such_row(model, tmp_path):
    for name, side in (("large", 96), ("small", 32)):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(noise(side, side)).save(tmp_path / "in" / name / "1.png")
    large, small = judged(tmp_path / "in", tmp_path / "v.json")
    assert "nobody has measured how right this network is on pictures of natural size" in large["warnings"]
    row = {"model": "one", "data": "wild", "n": 334, "accuracy": 0.5, "accuracy_low": 0.447,
           "accuracy_high": 0.553, "majority": 0.521}
    rows_of_tiles = [row | {"way": "squash", "accuracy": 0.6}, row | {"way": "tiles"}]
    write_csv(tmp_path / "results" / "tiles-one-wild.csv", rows_of_tiles)
    large, small = judged(tmp_path / "in", tmp_path / "w.json")
    said = ("on 334 pictures of natural size this network was right on 50 % (95 % interval 45 to 55 %, set: "
            "wild), no better than always saying the same: 52 %")
    assert said in large["warnings"]
    assert not any("natural size" in text for text in small["warnings"])
    large, _ = judged(tmp_path / "in", tmp_path / "x.json", "--way", "squash")
    assert any("was right on 60 %" in text for text in large["warnings"])


def test_the_share_that_was_looked_at_is_said_where_it_is_small(model, tmp_path):
    Image.fromarray(noise(320, 320)).save(tmp_path / "in.png")
    few, = judged(tmp_path / "in.png", tmp_path / "v.json", "--tiles", "3")
    assert "only 3 % of the picture was looked at" in few["warnings"]
    most, = judged(tmp_path / "in.png", tmp_path / "w.json")
    assert not any("looked at" in text for text in most["warnings"])
    assert infer.percent(64 * 1024 / 48e6) == "0.14 %"


def test_a_network_that_never_decides_says_so():
    rule = {"temperature": 1, "bias": 0, "real_bound": np.inf, "fake_bound": -np.inf}
    row, = infer.judge(network(), FACTS | {"calibration": rule}, [noise(32, 32)])
    assert (row["verdict"], row["warnings"]) == ("cannot tell", [infer.SILENT])


def saved(quality: int, side: int = 32) -> bytes:
    return encoded(Image.fromarray(noise(side, side)), "JPEG", quality=quality)


@pytest.mark.parametrize(("made", "data", "file", "expected"), [
    ("CIFAKE_CNN", "cifake", saved(75), None),
    ("CIFAKE_CNN", "cifake", saved(80), None),
    ("CIFAKE_CNN", "cifake", saved(95), "trained on JPEG files of quality 75"),
    ("CIFAKE_CNN", "cifake", encoded(Image.fromarray(noise(32, 32)), "PNG"), "trained on JPEG files"),
    ("CIFAKE_CNN", "a set", saved(95), None),
    ("CIFAKE_CNN", "a set", saved(40), "heavily compressed: JPEG quality 40"),
    ("CIFAKE_CNN", "sample", saved(75), "for smoke runs, not for conclusions"),
    ("Natural", "cifake", saved(75, 64), "trained on pictures of 32x32 pixels only (cifake)"),
    ("Natural", "a set", saved(75, 64), None)])
def test_each_warning_is_in_the_row_of_its_file_and_in_no_other(made, data, file, expected, tmp_path):
    rule = {"temperature": 1, "bias": 0, "real_bound": 0, "fake_bound": 0}
    facts = FACTS | {"data": data, "calibration": rule}
    (tmp_path / "in.jpg").write_bytes(file)
    eye = infer.Eye.of(network(made), facts)
    row, _, _ = infer.Reader(str(tmp_path), eye, False).one("in.jpg")
    picture, _ = decode(file)
    judged_row, = infer.judge(network(made), facts, [picture], files=[file])
    assert judged_row["warnings"] == row["warnings"]  # the page gives the same
    assert len(row["warnings"]) == (expected is not None)
    assert expected is None or expected in row["warnings"][0]


@pytest.mark.parametrize("quality", [20, 35, 50, 69, 75, 90, 100])
def test_jpeg_quality_is_the_one_it_was_saved_with(quality):
    more = {"exif": b"Exif\0\0MM\0*" * 9}
    plain, with_exif = (encoded(BIG, "JPEG", quality=quality, **options) for options in ({}, more))
    assert infer.jpeg_quality(plain) == pytest.approx(quality, abs=1.5)
    assert infer.jpeg_quality(with_exif) == infer.jpeg_quality(plain)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", MOVING, jpeg(noise(8, 8))[:30]])
def test_what_is_no_whole_jpeg_has_no_quality(data):
    assert infer.jpeg_quality(data) is None


# --- files -------------------------------------------------------------------------------------

def test_every_file_has_a_row_and_every_failure_its_reason(model, zoo, tmp_path):
    found = {row["path"]: row for row in judged(zoo, tmp_path / "v.json", workers=1)}
    assert len(found) == len(ZOO) + 2
    for name, (_, treatment, error) in ZOO.items():
        row = found["inner/" + name.encode(errors="backslashreplace").decode()]
        assert error in (row["error"] or ""), name
        assert treatment in (row["treatment"] or ""), name
        assert bool(row["verdict"]) == (not error) == (row["probability"] is not None), name
    assert (found["inner/turned.jpg"]["width"], found["inner/turned.jpg"]["height"]) == (64, 96)
    assert "not a regular file" in found["pipe.jpg"]["error"] or "Invalid" in found["pipe.jpg"]["error"]
    assert "No such file" in found["nowhere.jpg"]["error"]


def test_all_formats_hold_the_same_rows(model, zoo, tmp_path):
    expected = judged(zoo, tmp_path / "v.json")
    for ending in (".jsonl", ".csv", ".parquet"):
        infer.main(flags_of(zoo, tmp_path / f"v{ending}", "--workers", "0"))
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert pq.read_table(tmp_path / "v.parquet").to_pylist() == expected
    with open(tmp_path / "v.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, one in zip(table, expected, strict=True):
        texts = one | {"warnings": "; ".join(one["warnings"] or ())}
        assert row == {key: "" if value is None else str(value) for key, value in texts.items()}
    assert not list(tmp_path.glob("*.partial"))


def test_a_list_of_files_keeps_its_order_and_its_duplicates(model, zoo, tmp_path):
    names = ["zoo/inner/turned.jpg", "zoo/inner/a plain.jpg", "zoo/none.png", "zoo/inner/a plain.jpg",
             "zoo/\0.png", "ftp://127.0.0.1/a.png", "file:///etc/hostname"]
    (tmp_path / "some.txt").write_text("\ufeff" + "\r\n\r\n".join(names))
    found = judged(tmp_path / "some.txt", tmp_path / "v.json")
    assert [row["path"] for row in found] == names
    assert [bool(row["error"]) for row in found] == [False, False, True, False, True, True, True]
    assert all("unknown url type" in row["error"] for row in found[5:])


def test_output_and_maps_inside_the_input_are_not_judged(model, zoo, tmp_path):
    (zoo / "maps").mkdir()
    for earlier in ("v.json", "maps/000000-old.png"):
        (zoo / earlier).write_bytes(b"of an earlier run")
    found = judged(zoo, zoo / "v.json", "--explain", str(zoo / "maps"))
    assert len(found) == len(ZOO) + 2
    maps = [path for path in (zoo / "maps").iterdir() if path.name != "000000-old.png"]
    assert len(maps) == sum(not error for _, _, error in ZOO.values())
    assert Image.open(next(path for path in maps if "a_plain" in path.name)).size == (512, 512)


@pytest.mark.parametrize(("flags", "method"), [
    ((), explain.integrated_gradients), (("--method", "grad-cam"), explain.grad_cam)])
def test_heat_maps_are_of_the_pictures_as_judged(model, tmp_path, flags, method):
    (tmp_path / "in").mkdir()
    pictures = [noise(32, 32, seed) for seed in range(3)]
    for i, picture in enumerate(pictures):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded(Image.fromarray(picture), "PNG"))
    judged(tmp_path / "in", tmp_path / "v.json", "--explain", str(tmp_path / "maps"), *flags)
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").iterdir())]
    maps = method(network(), np.stack(pictures).transpose(0, 3, 1, 2))  # together: the last bits differ
    for picture, heat, found in zip(pictures, maps, drawn, strict=True):
        shown, boxes = overlays.sketch(picture, np.array([[0, 0, 32, 32]]))
        assert (found == np.asarray(overlays.overlay(shown, boxes, heat[None]))).all()


def test_a_picture_seen_in_tiles_has_them_in_the_colours_of_their_scores(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    pictures = noise(32, 32), noise(64, 96), noise(32, 32, seed=1)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "in" / f"{i}.png")
    done = infer.main(flags_of(tmp_path / "in", tmp_path / "v.json", "--workers", "0", "--explain",
                               str(tmp_path / "maps")))
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").iterdir())]
    seen = tiles.see(pictures[1], 32, "tiles")
    expected = overlays.sheet(*overlays.sketch(pictures[1], seen.boxes, overlays.SHEET),
                           tiles.view_logits(network(), seen.pixels))
    assert (drawn[1] == np.asarray(expected)).all()
    heat = explain.integrated_gradients(network(), pictures[2].transpose(2, 0, 1))
    shown, boxes = overlays.sketch(pictures[2], np.array([[0, 0, 32, 32]]))
    assert (drawn[2] == np.asarray(overlays.overlay(shown, boxes, heat[None]))).all()
    assert 0 < done["drawing"] < done["seconds"]
    assert f"heat maps {done['drawing']:.1f} s" in capsys.readouterr().out


def test_every_method_of_explain_is_offered():
    assert set(infer.METHODS) == set(explain.METHODS)


def test_without_a_name_the_best_network_here_judges(own_folders):
    assert infer.preferred() == "base_model"
    for name in infer.PREFERRED[::-1]:
        checkpoints.write(checkpoints.path_of(name), checkpoints.pack(network(), "CIFAKE_CNN", {}, **FACTS))
        assert infer.preferred() == name


# --- URLs --------------------------------------------------------------------------------------

class Server(http.server.BaseHTTPRequestHandler):
    good = jpeg(noise(32, 32))

    def do_GET(self):
        status, length, body, more = {
            "/good.jpg": (200, len(self.good), self.good, {}),
            "/umlaut-%C3%A4.jpg": (200, len(self.good), self.good, {}),
            "/moved": (302, 0, b"", {"Location": "/good.jpg"}),
            "/trap": (302, 0, b"", {"Location": "file:///etc/hostname"}),
            "/ftp": (302, 0, b"", {"Location": "ftp://127.0.0.1/x.png"}),
            "/short.jpg": (200, len(self.good) + 9, self.good, {}),
            "/large.jpg": (200, 10**12, b"", {}),
            "/endless.jpg": (200, None, b"x" * 200_000, {}),
            "/page.html": (200, 5, b"<html", {}),
        }.get(self.path, (404, 0, b"", {}))
        self.send_response(status)
        for key, value in (more | ({} if length is None else {"Content-Length": str(length)})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.path == "/slow.jpg":
            time.sleep(2)
        self.wfile.write(body)

    def log_message(self, *text):
        """Quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_each_url_has_a_row_and_only_http_is_opened(model, server, tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "MAX_DOWNLOAD", 100_000)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    expected = {"good.jpg": "", "umlaut-ä.jpg": "", "moved": "", "none": "Not Found", "trap": "file",
                "ftp": "unknown url type: ftp", "short.jpg": "cut short", "large.jpg": "more than",
                "endless.jpg": "more than", "page.html": "not a readable picture"}
    (tmp_path / "urls.txt").write_text("\n".join(f"{server}/{name}" for name in expected))
    found = judged(tmp_path / "urls.txt", tmp_path / "v.json")
    for row, (name, error) in zip(found, expected.items(), strict=True):
        assert bool(row["error"]) == bool(error), row
        assert error in (row["error"] or ""), (name, row["error"])
    alone = judged(f"{server}/good.jpg", tmp_path / "one.json")[0]["logit"]
    assert alone == pytest.approx(found[0]["logit"], abs=1e-6)  # some CPUs add up a batch of one otherwise


# --- interruptions -----------------------------------------------------------------------------

def test_a_killed_run_goes_on_to_the_same_result(model, tmp_path):
    tree = make_tree(tmp_path / "many", train=450, test=1)
    (tree / "train" / "FAKE" / "broken.jpg").write_bytes(b"broken")
    expected = judged(tree, tmp_path / "whole.json")
    output = tmp_path / "v.json"
    slow = f"""
import sys, time
sys.path.insert(0, {str(CODE)!r})
import infer
whole = infer.Run.judged
infer.Run.judged = lambda *given: (time.sleep(0.3), whole(*given))[1]
infer.main({flags_of(tree, output, "--workers", "1")!r})"""
    child = subprocess.Popen([sys.executable, "-c", slow])
    partial = rows.partial_of(output)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 2 * scoring.BATCH_SIZE:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not output.exists()
    with open(partial, "ab") as file:
        file.write(b'{"path": "torn')
    lines = partial.read_bytes().count(b"\n") - 1
    done = infer.main(flags_of(tree, output, "--workers", "0"))
    assert json.loads(output.read_text()) == expected
    assert done["judged"] == len(expected) - lines // scoring.BATCH_SIZE * scoring.BATCH_SIZE < len(expected)
    assert not partial.exists()


def test_another_run_is_not_gone_on_with(model, tree, tmp_path):
    output = tmp_path / "v.csv"
    flags = flags_of(tree, output, "--workers", "0")
    run = infer.Run(infer.parser().parse_args(flags))
    names = list(run.names())
    kept = rows.Rows(output, infer.COLUMNS, run.key())
    kept.add([{"path": name} for name in names])
    assert_one_line(run_tell("infer.py", *flags), "v.csv.partial: another run is writing it")
    kept.file.close()
    with pytest.raises(TellError, match="with another model, other flags or files"):
        infer.main([*flags, "--way", "squash"])
    first = tree / names[0]
    first.rename(first.with_name("renamed.jpg"))
    with pytest.raises(TellError, match="the files changed"):
        infer.main(flags)
    assert not output.exists()


def test_a_killed_worker_is_one_clear_line(model, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(infer.Reader, "one", lambda self, name: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TellError, match="a decoding process was killed"):
        judged(tree, tmp_path / "v.json", workers=1)


def test_memory_does_not_grow_with_the_number_of_files(model, tmp_path):
    peaks = []
    for n in (500, 4000):
        folder = tmp_path / str(n)
        folder.mkdir()
        first = folder / "0.jpg"
        first.write_bytes(jpeg(noise(32, 32)))
        for i in range(1, n):
            os.link(first, folder / f"{i}.jpg")
        tracemalloc.start()
        infer.main(flags_of(folder, tmp_path / f"{n}.csv", "--workers", "0"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 400 * 3500  # bytes: a name in its folder's listing; no pixels, no rows


@pytest.mark.parametrize(("flags", "words"), [
    (["--input", "none", "--output", "v.csv"], ["none", "no such file or folder"]),
    (["--input", "here", "--output", "v.xls"], ["v.xls", ".csv", ".parquet"]),
    (["--input", "here", "--output", "v.csv", "-mf", "two"], ["two.pth", "no such checkpoint"]),
    (["--input", "empty", "--output", "v.csv"], ["empty", "no files there"]),
    (["--input", "here", "--output", "here/0.jpg/v.csv"], ["0.jpg", "cannot be created", "--output"]),
    (["--input", "here/bad.jpg", "--output", "v.csv"], ["bad.jpg", "none of its 1 files", "v.csv"]),
    (["--input", "here", "--output", "v.csv", "--way", "guess"], ["--way", "tiles"]),
])
def test_a_mistake_is_one_line(model, tmp_path, flags, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "here" / "0.jpg").write_bytes(jpeg(noise(32, 32)))
    (tmp_path / "here" / "bad.jpg").write_bytes(b"bad")
    flags = [*flags, "--workers", "0", *(() if "-mf" in flags else ("-mf", "one"))]
    with pytest.raises((TellError, SystemExit)) as caught:
        infer.main(flags)
    line = capsys.readouterr().err.strip() or str(caught.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []


def test_command_line_as_a_process(model, tree, tmp_path):
    done = run_tell("infer.py", "--input", tree, "--output", "v.jsonl", "-mf", "one", "--smoke", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "100 files: " in done.stdout
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 100
