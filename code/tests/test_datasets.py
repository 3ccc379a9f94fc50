"""From files to the cache: the same pictures from any form, and one clear line for each mishap."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import CODE, assert_one_line, encoded, jpeg, make_tree, run_tell
from hypothesis import given, settings
from PIL import Image

import cache
import datasets
import leaks
from files import TellError, command_line, folder
from sources import files_of

NOTHING_BUT_DATASETS = f"import sys; sys.path.insert(0, {str(CODE)!r}); import datasets; "


def pack(tree: Path, target: Path) -> Path:
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(tree.rglob("*.jpg")):
                archive.write(path, Path("some/prefix") / path.relative_to(tree))
        return target
    with tarfile.open(target, "w:" + target.suffix[1:].replace("tar", "")) as archive:
        archive.add(tree, "CIFAKE")
    return target


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
def test_every_form_gives_the_same_set(tree, tmp_path, ending):
    plain = datasets.load(str(tree))
    packed = datasets.load(str(pack(tree, tmp_path / f"packed.{ending}")))
    assert packed.fingerprint == plain.fingerprint
    assert packed.paths.tolist() == plain.paths.tolist()
    assert packed.splits.tolist() == plain.splits.tolist()
    np.testing.assert_array_equal(packed.pixels[packed.rows], plain.pixels[plain.rows])


@pytest.mark.parametrize("natural", [False, True])
def test_a_set_is_found_by_its_name_under_the_data_root(tree, tmp_path, monkeypatch, natural):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    pack(tree, shelf / "mine.tar.xz")
    monkeypatch.setenv("TELL_DATA", str(shelf))
    assert len(datasets.load("mine", natural)) == len(datasets.load(str(tree), natural))
    with pytest.raises(TellError, match="no_such"):
        datasets.load("no_such", natural)


def test_table_says_what_the_files_say(tree):
    data = datasets.load(str(tree))
    # 4 pictures an object and label, of which a tenth, but at least one, goes to validation
    assert datasets.describe(data) == {"train REAL": 30, "train FAKE": 30, "val REAL": 10, "val FAKE": 10,
                                       "test REAL": 10, "test FAKE": 10}
    i = data.paths.tolist().index("train/FAKE/0002 (7).jpg")
    assert data.labels[i] == 1
    assert cache.OBJECTS[data.objects[i]] == "frog"
    pixels = np.asarray(Image.open(tree / "train/FAKE/0002 (7).jpg"))
    np.testing.assert_array_equal(data.pixels[data.rows[i]].transpose(1, 2, 0), pixels)


@pytest.mark.parametrize(("name", "expected"), [
    ("0000.jpg", 0), ("12 (2).jpg", 1), ("5999 (10).jpg", 9), ("3 (8).jpg", 7), ("3 (11).jpg", -1),
    ("3 (0).jpg", -1), ("cat.jpg", -1), ("12 (2).png", -1), ("12(2).jpg", -1)])
def test_object_class_comes_from_the_name(name, expected):
    assert cache.object_class(name) == expected


def test_validation_is_a_stratified_tenth_chosen_by_content():
    random = np.random.default_rng(0)
    n = 20_000
    sha256 = random.integers(0, 256, (n, 32), dtype=np.uint8)
    sha256[1::50] = sha256[::50]  # pairs of identical files
    labels, objects = random.integers(0, 2, n).astype(np.uint8), random.integers(0, 10, n).astype(np.int8)
    splits = np.where(np.arange(n) % 6 == 0, "test", "train")
    carved = cache.carve_validation(splits, labels, objects, sha256)
    assert ((carved == "test") == (splits == "test")).all()
    for label in (0, 1):
        for obj in range(10):
            stratum = (labels == label) & (objects == obj) & (splits == "train")
            assert 0.09 < (carved[stratum] == "val").mean() < 0.13
    sides = {}
    for digest, split in zip(map(bytes, sha256), carved, strict=True):
        if split != "test":
            sides.setdefault(digest, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    order = random.permutation(n)  # the choice depends on the content, not on the order
    again = cache.carve_validation(splits[order], labels[order], objects[order], sha256[order])
    assert (again == carved[order]).all()


def test_a_validation_split_of_the_source_is_kept(tree):
    (tree / "train").rename(tree / "val")
    make_tree(tree.parent / "more", seed=1)
    (tree.parent / "more/train").rename(tree / "train")
    counts = datasets.describe(datasets.load(str(tree)))
    assert (counts["train REAL"], counts["val REAL"]) == (40, 40)


def test_second_load_decodes_nothing(tree, monkeypatch):
    first = datasets.load(str(tree))
    monkeypatch.setattr(cache, "decode_all", lambda *_: pytest.fail("decoded again"))
    again = datasets.load(str(tree))
    assert again.fingerprint == first.fingerprint


def test_a_changed_source_is_decoded_again(tree):
    before = datasets.load(str(tree))
    (tree / "test/REAL/0000.jpg").write_bytes(jpeg(np.zeros((32, 32, 3), np.uint8)))
    after = datasets.load(str(tree))
    assert after.fingerprint != before.fingerprint
    assert after.pixels[after.rows[after.paths.tolist().index("test/REAL/0000.jpg")]].max() == 0
    assert len([path for path in folder("cache").iterdir() if path.is_dir()]) == 1  # the old one is gone


def test_a_damaged_cache_is_built_again(tree):
    datasets.load(str(tree))
    built = next(path for path in folder("cache").iterdir() if path.is_dir())
    for name, content in (("pixels.u8", b"short"), ("meta.json", b"{"), ("paths.npy", b"\x93NUMPY"),
                          ("rows.npy", b""), ("labels.npy", (built / "labels.npy").read_bytes()[:-1]),
                          ("meta.json", b"[]"), ("meta.json", b"")):
        (built / name).write_bytes(content)
        assert len(datasets.load(str(tree))) == 100


def test_two_processes_at_once_share_one_cache(tree):
    code = NOTHING_BUT_DATASETS + f"print(datasets.load({str(tree)!r}).fingerprint)"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == {datasets.load(str(tree)).fingerprint + "\n"}


def test_kill_while_the_cache_is_built(tree):
    code = NOTHING_BUT_DATASETS + f"""
import cache, time
whole = cache.decode_all
def slow(*paths):
    for entry in whole(*paths):
        time.sleep(0.5)
        yield entry
cache.CHUNK, cache.decode_all = 10, slow
datasets.load({str(tree)!r})"""
    process = subprocess.Popen([sys.executable, "-c", code])
    building = lambda: list(folder("cache").glob(".building-*"))  # noqa: E731
    deadline = time.time() + 30
    while not building() and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert building()
    assert not [p for p in folder("cache").iterdir() if p.is_dir() and not p.name.startswith(".")]
    assert len(datasets.load(str(tree))) == 100
    assert not building()


def test_bad_files_among_good_ones_are_named_and_the_rest_goes_on(tree, capsys):
    where = tree / "test/REAL"
    black = np.zeros((32, 32, 3), np.uint8)
    bad = {"empty.jpg": b"", "text.jpg": b"no picture", "cut.jpg": jpeg(black)[:300]}
    odd = {"palette.png": encoded(Image.new("P", (32, 32)), "PNG"),
           "grey.png": encoded(Image.new("L", (8, 8)), "PNG"),
           "cmyk.jpg": encoded(Image.new("CMYK", (32, 32)), "JPEG"),
           "rgba.png": encoded(Image.new("RGBA", (64, 9)), "PNG"),
           "deep.png": encoded(Image.fromarray(np.zeros((32, 32), np.uint16)), "PNG"),
           "moving.gif": encoded(Image.new("P", (32, 32)), "GIF", save_all=True,
                                 append_images=[Image.new("P", (32, 32), 9)])}
    for name, content in {**bad, **odd}.items():
        (where / name).write_bytes(content)
    (where / "bomb.png").write_bytes(encoded(Image.new("1", (20_000, 20_000)), "PNG"))
    (where / ".hidden.jpg").write_bytes(b"the file manager's")
    data = datasets.load(str(tree))
    assert len(data) == 100 + len(odd)
    assert {path.split("/")[-1] for path, _ in data.unreadable} == {*bad, "bomb.png"}
    for row, path in zip(data.rows, data.paths, strict=True):  # none took another's place
        assert (data.pixels[row] == cache.decode_file(path, str(tree / path))[2].transpose(2, 0, 1)).all()
    datasets.banner(data)
    said = capsys.readouterr().out
    assert "unreadable: test/REAL/empty.jpg: empty file" in said
    assert "4 of 110 files" in said
    assert "resized from NxN" in said


@pytest.mark.parametrize(("damage", "words"), [
    ("missing", "no such file"), ("empty", "no file under a REAL or FAKE folder"),
    ("layout", "expected {train,test}/{REAL,FAKE}"), ("pictures", "is a readable picture"),
    ("ending", "neither a folder nor a .zip or .tar"), ("one class", "this needs REAL and FAKE")])
def test_a_folder_that_is_no_data_set(tmp_path, damage, words):
    path = tmp_path / "set"
    if damage == "layout":
        (path / "cats").mkdir(parents=True)
        (path / "cats/1.jpg").write_bytes(b"x")
    elif damage == "pictures":
        (path / "REAL").mkdir(parents=True)
        (path / "REAL/1.jpg").write_bytes(b"x")
    elif damage == "ending":
        path.write_text("x")
    elif damage == "one class":
        shutil.rmtree(make_tree(path) / "train/FAKE")
    elif damage == "empty":
        path.mkdir()
    with pytest.raises(TellError, match=words.replace("{", r"\{").replace("}", r"\}")):
        datasets.load(str(path)).split("train").require_both_classes()


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_half_downloaded_archive(tree, tmp_path, ending):
    path = pack(tree, tmp_path / f"half.{ending}")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(TellError, match="not a whole archive"):
        datasets.load(str(path))
    assert not list(folder("cache").glob("half*"))
    assert not list(folder("cache").glob(".building-*"))


def count_or_refusal(path: Path) -> int | str:
    try:
        return len(list(files_of(path)))
    except TellError as error:
        return "refused" if "not a whole archive" in str(error) else str(error)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_a_cut_or_damaged_tar_never_loses_pictures_in_silence(tree, tmp_path, ending):
    whole, path = pack(tree, tmp_path / f"whole.{ending}").read_bytes(), tmp_path / f"bad.{ending}"
    cuts, flips = [], []
    for at in np.linspace(0.01, 0.99, 40) * len(whole):
        path.write_bytes(whole[:int(at) // 512 * 512])  # between tar's blocks: the hardest place
        cuts.append(count_or_refusal(path))
        path.write_bytes(whole[:int(at)] + bytes([whole[int(at)] ^ 0x55]) + whole[int(at) + 1:])
        flips.append(count_or_refusal(path))
    assert set(cuts[:30]) == {"refused"}
    assert set(cuts + flips) <= {"refused", 100}  # the last blocks of a plain tar are padding


def test_a_damaged_zip_is_one_clear_line(tree, tmp_path):
    path = pack(tree, tmp_path / "bad.zip")
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(TellError, match="not a whole archive"):
        datasets.load(str(path))


def test_a_tar_of_the_current_folder(tree, tmp_path):
    subprocess.run(["tar", "-C", tree, "-cf", tmp_path / "dot.tar", "."], check=True)
    assert datasets.load(str(tmp_path / "dot.tar")).fingerprint == datasets.load(str(tree)).fingerprint


def test_links_pipes_and_odd_names_among_the_pictures(tree, capsys):
    where = tree / "test/REAL"
    (where / "nowhere.jpg").symlink_to(tree / "gone.jpg")
    (where / "loop").symlink_to(tree)
    os.mkfifo(where / "pipe.jpg")
    (where / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no picture")
    (where / "two\nlines.jpg").write_bytes(b"no picture")
    data = datasets.load(str(tree))
    assert len(data) == 100
    reasons = dict(data.unreadable)
    assert reasons["test/REAL/pipe.jpg"] == "cannot be read: not a regular file"
    assert "cannot be read" in reasons["test/REAL/nowhere.jpg"]
    assert len(reasons) == 5
    datasets.report_unreadable(data)
    assert sum(line.startswith("unreadable:") for line in capsys.readouterr().out.splitlines()) == 5


def test_archives_of_large_pictures_go_through_in_small_portions():
    portions = list(cache.chunks((f"{i}", b"x" * 3_000_000) for i in range(10)))
    assert [len(portion) for portion in portions] == [3, 3, 3, 1]
    assert [len(portion) for portion in cache.chunks((f"{i}", "path") for i in range(600))] == [256, 256, 88]


def test_our_names_are_not_a_users_folders(tree):
    for name in ("cifake", "sample"):
        tree.rename(tree.parent / name)
        assert datasets.load(str(tree.parent / name)).name == f"{name}_folder"
        (tree.parent / name).rename(tree)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "nul\0byte"])
def test_what_cannot_be_a_path(name):
    with pytest.raises(TellError, match="cannot be a path|no such file"):
        datasets.load(name)


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_a_zip_that_zipfile_cannot_read_is_one_clear_line(tree, tmp_path, place, value):
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tree))
    content = bytearray(packed.read_bytes())
    at = content.rindex(b"PK\x01\x02") + place  # the last member's entry in the zip's directory
    content[at:at + 2] = value.to_bytes(2, "little")
    packed.write_bytes(content)
    with pytest.raises(TellError, match="packed.zip: not a whole archive"):
        datasets.load(str(packed))


def test_the_same_picture_claimed_twice(tree):
    shutil.copytree(tree / "train", tree / "copy/train")
    with pytest.raises(TellError, match="two files claim the place train/FAKE/0000"):
        datasets.load(str(tree))


@pytest.mark.parametrize(("loaded", "kept"), [("json", True), ("triton", False)])
def test_commands_end_without_a_search_for_garbage(loaded, kept):
    code = NOTHING_BUT_DATASETS + f"""
import atexit, gc, sys
from files import command_line
sys.modules.setdefault({loaded!r}, sys)
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the first one registered comes last
command_line(lambda: None)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{kept}\n", done.stderr


def test_command_lines_say_no_in_one_line(tree, tmp_path):
    assert_one_line(run_tell("datasets.py", "verify", tmp_path / "nowhere"), "no such file", "nowhere")
    assert_one_line(run_tell("datasets.py", "verify"), "CIFAKE is not under", "fetch cifake", "import")
    assert_one_line(run_tell("datasets.py", "unpack"), "invalid choice")
    assert_one_line(run_tell("datasets.py", "list", TELL_CACHE="/proc/nowhere"), "TELL_CACHE")


def test_full_disk_while_the_cache_is_written(tree):
    code = NOTHING_BUT_DATASETS + f"""
import resource
from files import command_line
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
command_line(lambda: datasets.load({str(tree)!r}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert_one_line(done, "cannot be written", "TELL_CACHE")
    assert len(datasets.load(str(tree))) == 100


def test_fetch_without_network_says_what_to_do(monkeypatch):
    import kagglehub

    def offline(*args, **options):
        raise ConnectionError("Failed to resolve 'api.kaggle.com'")
    monkeypatch.setattr(kagglehub, "dataset_download", offline)
    with pytest.raises(TellError, match="could not be downloaded .*resolve.*by hand.*import THE.zip"):
        datasets.main(["fetch", "cifake"])


def kaggle_error(status):
    from kagglehub.exceptions import KaggleApiHTTPError
    return KaggleApiHTTPError(f"{status} Client Error.\n\nYou don't have permission",
                              response=SimpleNamespace(status_code=status, request=None))


@pytest.mark.parametrize(("error", "words"), [
    (lambda: OSError(errno.ENOSPC, "No space left on device"), ("no room for CIFAKE", "set TELL_DATA")),
    (lambda: OSError(errno.EDQUOT, "Disk quota exceeded"), ("no room for CIFAKE (Disk quota", "free some")),
    (lambda: PermissionError(errno.EACCES, "Permission denied", "x"), ("cannot be written", "denied: 'x'")),
    (lambda: OSError(errno.EROFS, "Read-only file system"), ("cannot be written", "set TELL_DATA")),
    (lambda: kaggle_error(401), ("401 Client Error.): Kaggle refused", "~/.kaggle", "import THE.zip")),
    (lambda: kaggle_error(500), ("500 Client Error.); on a machine with a network",))])
def test_a_failed_fetch_says_what_failed_and_what_to_do(error, words, monkeypatch, capsys):
    import kagglehub

    def failing(*args, **options):
        raise error()
    monkeypatch.setattr(kagglehub, "dataset_download", failing)
    with pytest.raises(SystemExit) as caught:
        command_line(lambda: datasets.main(["fetch", "cifake"]))
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(said.splitlines()) == 1
    assert not [word for word in words if word not in said], said
    assert ("machine with a network" in said) == ("500" in said)
    assert (str(folder("data")) in said) == ("Client Error" not in said)


def test_kagglehub_is_imported_only_by_fetch():
    code = NOTHING_BUT_DATASETS + "print('kagglehub' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n"


@pytest.fixture
def small_cifake(tree, tmp_path, monkeypatch):
    """A tree that counts as CIFAKE, because the manifest is its own."""
    import lzma
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.setenv("TELL_LIBRARY", str(library))
    entries = sorted(entry[:2] for entries in cache.decode_all(tree) for entry in entries)
    with lzma.open(library / "cifake_manifest.txt.xz", "wt") as file:
        file.write("".join(f"{name} {digest.hex()[:8]}\n" for name, digest in entries))
    monkeypatch.setattr(datasets, "CIFAKE_FINGERPRINT", cache.fingerprint_of(entries))
    return tree


def test_verify_names_every_difference(small_cifake):
    assert datasets.verify(small_cifake) == []
    (small_cifake / "test/REAL/0000.jpg").unlink()
    (small_cifake / "test/REAL/9999.jpg").write_bytes(jpeg(np.zeros((32, 32, 3), np.uint8)))
    (small_cifake / "test/FAKE/0000.jpg").write_bytes(jpeg(np.zeros((32, 32, 3), np.uint8)))
    (small_cifake / "train/FAKE/0000.jpg").write_bytes(b"")
    (small_cifake / "train/REAL/0000.jpg").write_bytes(jpeg(np.zeros((16, 16, 3), np.uint8)))
    assert datasets.verify(small_cifake) == [
        "test/FAKE/0000.jpg: other content", "test/REAL/0000.jpg: missing",
        "test/REAL/9999.jpg: not a file of CIFAKE", "train/FAKE/0000.jpg: empty file",
        "train/REAL/0000.jpg: not 32x32 RGB (resized from 16x16)"]


@pytest.mark.parametrize("ending", ["", ".zip", ".tar.xz"])
def test_import_takes_any_form_and_is_found_afterwards(small_cifake, tmp_path, ending):
    source = pack(small_cifake, tmp_path / f"download{ending}") if ending else small_cifake
    datasets.main(["import", str(source)])
    assert datasets.load("cifake").fingerprint == datasets.CIFAKE_FINGERPRINT
    assert datasets.load("cifake").name == datasets.load("auto", natural=True).name == "cifake"
    assert datasets.set_name("auto") == "cifake"


@pytest.mark.usefixtures("sample_is_made")
def test_a_cifake_that_is_not_as_published_has_another_name(tmp_path, monkeypatch, capsys):
    tree = make_tree(folder("data") / "CIFAKE")
    (tree / "test/REAL/0000.jpg").unlink()
    data = datasets.load("cifake")
    assert data.name == datasets.load("auto").name == datasets.load("auto", natural=True).name
    assert data.name == "cifake-changed"
    assert datasets.load(str(tree)).name == "CIFAKE"  # by its path it is a folder like any other
    datasets.banner(data)
    said = capsys.readouterr().out
    assert "data: cifake-changed, 99 pictures" in said
    assert "NOT CIFAKE as published: 99 readable pictures, where that has 120,000" in said
    assert "datasets.py verify` names the differences" in said
    assert datasets.main(["list"]).keys() == {"cifake-changed", "sample"}
    with pytest.raises(TellError, match="the audit is of CIFAKE as published"):
        leaks.main([])
    monkeypatch.setattr(datasets, "CIFAKE_FINGERPRINT", data.fingerprint)
    assert datasets.load("cifake").name == "cifake"


def test_import_refuses_another_set(small_cifake, tmp_path):
    other = make_tree(tmp_path / "other", seed=5)
    with pytest.raises(TellError, match=f"not CIFAKE as published, 100 differences, the first: .*; "
                                        f"`python code/datasets.py verify {other}` names all"):
        datasets.main(["import", str(other)])
    assert datasets.find_cifake() is None
    assert not list(folder("data").glob(".partial*"))


def test_the_committed_manifest_is_cifake():
    names = datasets.read_manifest()
    assert len(names) == 120_000
    for split, n in (("train", 50_000), ("test", 10_000)):
        for label in ("REAL", "FAKE"):
            mine = [name for name in names if name.startswith(f"{split}/{label}/")]
            assert len(mine) == n
            objects = np.bincount([cache.object_class(name.split("/")[-1]) for name in mine], minlength=10)
            assert objects.tolist() == [n // 10] * 10


def test_the_complete_cifake_verifies(real_cifake):
    assert datasets.verify(real_cifake) == []


def test_head_keeps_both_classes(tree):
    part = datasets.load(str(tree)).split("test").head(7)
    assert len(part) == 7
    assert 0 < part.labels.sum() < 7


def test_meta_is_plain_json(tree):
    datasets.load(str(tree))
    meta = next(folder("cache").glob("tree-*/meta.json"))
    assert set(json.loads(meta.read_text())) == {"n", "fingerprint", "unreadable"}
    assert os.access(meta, os.R_OK)


def test_some_pictures_are_of_every_class_though_names_go_round():
    n = 20_000
    objects = (np.arange(n) % 10).astype(np.uint8)  # as CIFAKE's table has them
    columns = dict.fromkeys(("paths", "splits", "sha256", "notes"), np.zeros(n))
    whole = datasets.ImageSet(name="x", source="x", fingerprint="x", pixels=np.zeros(n), rows=np.arange(n),
                              labels=np.arange(n) >= n // 2, objects=objects, unreadable=(), **columns)
    some = whole.head(4000)
    assert (np.diff(some.rows) > 0).all()
    assert (len(some), int(some.labels.sum())) == (4000, 2000)
    assert np.bincount(some.objects).min() > 350
    assert whole.head(n + 1).rows.tolist() == list(range(n))


def test_numbered_pictures_are_no_airplanes(tmp_path):
    """CIFAKE's names carry the class; among them "12.jpg" is an airplane."""
    for label in ("real", "fake"):
        (tmp_path / "mine/test" / label).mkdir(parents=True)
        for i in range(12):
            (tmp_path / f"mine/test/{label}/{i:04d}.jpg").write_bytes(jpeg(np.full((32, 32, 3), i, np.uint8)))
    assert set(datasets.load(str(tmp_path / "mine")).objects.tolist()) == {-1}
    assert set(datasets.load(str(make_tree(tmp_path / "named"))).objects.tolist()) == set(range(10))


def test_the_name_in_results_is_that_of_the_pictures(tmp_path):
    assert datasets.name_in_results("auto") == "sample"
    make_tree(folder("data") / "cifake")
    assert datasets.name_in_results("cifake") == datasets.name_in_results("auto") == "cifake-changed"


def test_a_mistyped_data_root_is_not_replaced_by_the_sample(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "sample_archive", lambda: pytest.fail("took the sample"))
    monkeypatch.setenv("TELL_DATA", str(tmp_path / "typo"))
    for asked in (lambda: datasets.load("auto"), lambda: datasets.load("cifake"),
                  lambda: datasets.main(["list"]), lambda: datasets.main(["verify"])):
        with pytest.raises(TellError, match="typo: no such folder, though TELL_DATA names it"):
            asked()
    assert len(datasets.load(str(tree))) == 100  # what is given by its path needs no root
    assert not (tmp_path / "typo").exists()
    assert_one_line(run_tell("train.py", "--smoke"), "typo: no such folder")


def test_import_makes_the_data_root(small_cifake, tmp_path, monkeypatch):
    monkeypatch.setenv("TELL_DATA", str(tmp_path / "new"))
    datasets.main(["import", str(small_cifake)])
    assert datasets.find_cifake() == tmp_path / "new/CIFAKE"


def test_an_empty_name_is_not_the_current_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    for natural in (False, True):
        with pytest.raises(TellError, match="an empty name is no path; is a variable of the shell unset"):
            datasets.load("", natural)
    assert len(datasets.load(".")) == 100


def test_the_sample_says_what_it_is_for_and_where_cifake_was_looked_for(capsys, monkeypatch):
    with tarfile.open(folder("data") / "made.tar", "w") as made:
        made.add(make_tree(folder("data") / "pictures"), "x")
    monkeypatch.setattr(datasets.sample, "make_sample",
                        lambda path: shutil.copy(folder("data") / "made.tar", path))
    data = datasets.load("sample")
    assert capsys.readouterr().out.startswith("making the built-in sample, once")
    datasets.banner(data)
    said = capsys.readouterr().out
    assert "BUILT-IN SAMPLE: for smoke runs, not for conclusions. For real results," in said
    assert f"(CIFAKE is looked for under {folder('data')})" in said
    datasets.main(["list"])
    said = capsys.readouterr().out
    assert "BUILT-IN SAMPLE: for smoke runs, not for conclusions" in said
    assert "making" not in said


MUTATION = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.floats(0, 1))
GOOD = [encoded(Image.fromarray(np.random.default_rng(9).integers(0, 256, (9, 7, 3)).astype(np.uint8)), kind)
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]


def mutated(data: bytes, change: tuple[float, int, float]) -> bytes:
    """One byte replaced, and the end cut off."""
    at, value, kept = int(change[0] * len(data)), change[1], change[2]
    return (data[:at] + bytes([value]) + data[at + 1:])[:round(kept * len(data))]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(GOOD), MUTATION), min_size=1, max_size=30))
def test_whatever_the_files_hold_the_good_and_the_unreadable_are_all_of_them(files):
    with tempfile.TemporaryDirectory() as place:
        where = Path(place) / "set/real"
        where.mkdir(parents=True)
        (where / "whole.png").write_bytes(GOOD[1])
        for i, (data, change) in enumerate(files):
            (where / f"{i}.jpg").write_bytes(mutated(data, change))
        data = datasets.load(str(where.parent))
        names = [*data.paths.tolist(), *(path for path, _ in data.unreadable)]
        assert sorted(names) == sorted(f"test/REAL/{path.name}" for path in where.iterdir())
        assert all(reason for _, reason in data.unreadable)
        assert data.pixels[data.rows].shape == (len(data), 3, 32, 32)
        for row, path in zip(data.rows, data.paths, strict=True):  # none took another's place
            expected = cache.decode_file(path, str(where / Path(path).name))[2]
            assert (data.pixels[row] == expected.transpose(2, 0, 1)).all()
