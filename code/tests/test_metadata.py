"""What files tell without their pixels: read right, found where it is, not found where it is not."""
import io
import tarfile

import numpy as np
import pytest
import torch
from conftest import encoded, jpeg
from PIL import Image

import checkpoints
import metadata
import test
from classes import build
from datasets import load
from files import folder, read_csv
from natural import open_pictures
from scoring import wilson


def picture(seed: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side))


def write_all(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def set_of(root, n: int = 40, real: str = "JPEG", fake: str = "JPEG"):
    """n real and n fake pictures, drawn alike, in two folders a class."""
    return write_all(root, {f"{label}/{'ab'[i % 2]}/{i}": encoded(picture(2 * i + k), kind)
                            for k, (label, kind) in enumerate((("real", real), ("fake", fake)))
                            for i in range(n)})


def test_headers_say_what_the_files_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate: the header's width is not the picture's
    grey = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) % 251)
    quarter = picture(1, 64).resize((64, 16))
    files = {"real/1.png": encoded(grey, "PNG"),
             "real/2.jpg": encoded(quarter, "JPEG", quality=60, exif=exif),
             "fake/sub/3.webp": encoded(picture(2), "WEBP"), "fake/4.jpg": encoded(grey, "JPEG", quality=60)}
    data = open_pictures(str(write_all(tmp_path / "set", files)))
    headers = metadata.read_headers(data)
    found = {path.split("/")[-1][:1]: i for i, path in enumerate(data.paths)}
    order = [found[key] for key in "1234"]
    assert headers.formats[order].tolist() == ["PNG", "JPEG", "WEBP", "JPEG"]
    assert headers.modes[order].tolist() == ["L", "RGB", "RGB", "L"]
    assert headers.sizes[order].tolist() == [len(content) for content in files.values()]
    assert headers.widths[order].tolist() == [30, 64, 40, 30]
    assert headers.heights[order].tolist() == [20, 16, 40, 20]
    assert headers.sources[order].tolist() == ["", "", "sub", ""]
    tables = Image.open(io.BytesIO(files["real/2.jpg"])).quantization
    assert headers.tables[found["2"]].tolist() == [*tables[0], *tables[1]]
    assert np.isnan(headers.tables[found["1"]]).all()
    assert np.isnan(headers.tables[found["4"]]).tolist() == [False] * 64 + [True] * 64  # grey: one table


def test_what_pillow_cannot_open_is_a_kind_of_its_own(tmp_path):
    assert metadata.header(b"no picture")[:5] == ("unknown", "", 10, 0, 0)


@pytest.mark.parametrize("natural", [False, True])
def test_every_form_gives_the_same_headers(tmp_path, natural):
    root = set_of(tmp_path / "set", 6, fake="PNG")
    (root / "manifest.tsv").write_text("path\tset\n" + "".join(f"real/a/{i}\tcamera\n" for i in range(6)))
    (root / "fake/a/cut").write_bytes(jpeg(np.zeros((40, 40, 3), np.uint8))[:90])
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(root, "set")
    plain, packed = (metadata.read_headers(load(str(path), natural)) for path in (root, tmp_path / "set.tar"))
    for name in vars(plain):
        np.testing.assert_array_equal(getattr(plain, name), getattr(packed, name), err_msg=name)
    assert len(plain.formats) == 12
    assert sorted(set(plain.sources)) == ["a", "b", "camera"]


@pytest.mark.parametrize(("fake", "least", "most"), [("PNG", 0.99, 1), ("JPEG", 0.3, 0.7)])
def test_the_format_gives_the_label_away_and_nothing_else_does(tmp_path, fake, least, most):
    data = open_pictures(str(set_of(tmp_path / "set", 60, "JPEG", fake)))
    rows = {row["folds"]: row for row in metadata.baseline(data, metadata.read_headers(data))}
    assert set(rows) == {"picture", "source"}
    for row in rows.values():
        assert least <= row["roc_auc"] <= most
        assert row["n"] == 120
        assert row["majority"] == 0.5


def test_quantisation_tables_alone_give_it_away():
    """Reals of quality 75, fakes of 76; nothing else differs."""
    tables = {quality: metadata.header(encoded(picture(0), "JPEG", quality=quality))[5]
              for quality in (75, 76)}
    labels = np.arange(80) % 2 == 1
    same = np.ones(80, int)
    headers = metadata.Headers(*(np.full(80, "x") for _ in range(2)), same, same, same,
                               np.array([tables[75 + label] for label in labels]), *[np.full(80, "")] * 2)
    found = metadata.cross_validated(labels, headers.features(), np.arange(80))
    assert metadata.numbers(labels, found)["accuracy"] == 1
    alike = metadata.Headers(*list(vars(headers).values())[:5], np.full((80, 128), np.nan), headers.sources,
                             headers.generators)
    assert metadata.numbers(labels, metadata.cross_validated(labels, alike.features(), np.arange(80)))[
        "roc_auc"] == 0.5


def test_nothing_is_learnt_from_a_copy_or_from_the_own_source(tmp_path):
    """The label is the source's alone, and shows in the size: known within sources, unknown across them."""
    files = {f"{('real', 'fake')[s % 2]}/s{s}/{i}.png": encoded(picture(100 * s + i, 20 + 7 * s), "PNG")
             for s in range(8) for i in range(12)}
    data = open_pictures(str(write_all(tmp_path / "set", files)))
    rows = {row["folds"]: row for row in metadata.baseline(data, metadata.read_headers(data))}
    assert rows["picture"]["accuracy"] > 0.95
    assert rows["source"]["accuracy"] < 0.7
    assert rows["source"]["sources"] == 8


@pytest.fixture
def net():
    torch.manual_seed(0)
    checkpoints.write(checkpoints.path_of("net"), checkpoints.pack(
        build("CIFAKE_CNN"), "CIFAKE_CNN", {"attn": False}, threshold=0.5, threshold_source="a test",
        data="nothing", fingerprint="none", seed=0))


def test_test_py_says_it_beside_the_accuracy_and_measures_once(net, tmp_path, capsys, monkeypatch):
    root = set_of(tmp_path / "set", 20, fake="PNG")
    row = test.main(["-mf", "net", "--data", str(root)])["models"][0]
    said = capsys.readouterr().out
    assert row["metadata_accuracy"] == row["metadata_accuracy_by_source"] == 1
    assert "metadata only      100.00%" in said
    assert "by source" in said
    assert [found["source"] for found in read_csv(folder("results") / "sources-net-set-test.csv")] == [
        "a", "b", "AVG"]
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "cross_validated", None)  # would fail
        again = test.main(["-mf", "net", "--data", str(root)])["models"][0]
    assert again["metadata_roc_auc"] == 1
    (root / "real/a/0").write_bytes(encoded(picture(0), "PNG"))  # a real picture that looks like a fake
    anew = test.main(["-mf", "net", "--data", str(root)])["models"][0]
    assert anew["metadata_accuracy"] == 39 / 40


def test_one_class_and_small_pictures_need_no_classifier(net, tmp_path, tree, monkeypatch, capsys):
    monkeypatch.setattr(metadata, "cross_validated", None)  # would fail
    row = test.main(["-mf", "net", "--data", str(write_all(
        tmp_path / "only", {f"real/{i}.png": encoded(picture(i), "PNG") for i in range(5)}))])["models"][0]
    assert row["n"] == 5
    assert "metadata_accuracy" not in row
    test.main(["-mf", "net", "--data", str(tree)])  # all of 32 pixels, one format and one set of tables
    assert capsys.readouterr().out.count("metadata only      not measured") == 2


def test_a_manifests_generators_have_a_row_each(net, tmp_path, capsys):
    root, makers = set_of(tmp_path / "set", 6), ["StyleGAN", "unknown", "gan"]
    lines = [f"{label}/{'ab'[i % 2]}/{i}\t{makers[i % 3] if label == 'fake' else 'camera'}"
             for label in ("real", "fake") for i in range(6)]
    (root / "manifest.tsv").write_text("\n".join(["path\tgenerator", *lines]) + "\n")
    row = test.main(["-mf", "net", "--data", str(root), "-thr", "0"])["models"][0]
    said = capsys.readouterr().out
    found = read_csv(folder("results") / "generators-net-set-test-thr0.csv")
    assert [(one["generator"], one["n"], one["called_fake"]) for one in found] == [
        ("StyleGAN", "2", "1.0"), ("gan", "2", "1.0")]
    assert float(found[0]["called_fake_low"]) == wilson(2, 2)[0]
    assert said.index("by generator") < said.index("generators:")
    assert row["fake_recall"] == 1
    assert [one["source"] for one in read_csv(folder("results") / "sources-net-set-test-thr0.csv")] == [
        "a", "b", "AVG"]


@pytest.mark.parametrize(("kinds", "options"), [(("JPEG", "PNG"), [{}, {}]),
                                                (("JPEG", "JPEG"), [{"quality": 75}, {"quality": 76}])])
def test_small_pictures_whose_files_differ_are_measured(net, tmp_path, monkeypatch, capsys, kinds, options):
    files = {f"{label}/{i}": encoded(picture(2 * i + k, 32), kinds[k], **options[k])
             for k, label in enumerate(("real", "fake")) for i in range(12)}
    root = write_all(tmp_path / "set", files)
    row = test.main(["-mf", "net", "--data", str(root)])["models"][0]
    assert row["metadata_accuracy"] == 1
    assert "metadata only      100.00%" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "read_headers", None)  # would fail
        again = test.main(["-mf", "net", "--data", str(root)])["models"][0]
    assert again["metadata_roc_auc"] == 1


def test_of_many_small_pictures_some_show_whether_files_differ(net, tree, monkeypatch):
    monkeypatch.setattr(metadata, "LOOK", 7)
    read, sizes = metadata.read_headers, []
    monkeypatch.setattr(metadata, "read_headers", lambda data: sizes.append(len(data)) or read(data))
    test.main(["-mf", "net", "--data", str(tree)])
    assert sizes == [7]
    monkeypatch.setattr(metadata, "CIFAKE_FINGERPRINT", load(str(tree)).fingerprint)
    test.main(["-mf", "net", "--data", str(tree)])  # known to be alike
    assert sizes == [7]


def test_the_command_measures_any_set_and_test_py_repeats_it(net, tree, capsys):
    found = metadata.main(["--data", str(tree)])["rows"]
    assert [row["folds"] for row in found] == ["picture"]
    row = test.main(["-mf", "net", "--data", str(tree)])["models"][0]
    assert row["metadata_roc_auc"] == found[0]["roc_auc"]
