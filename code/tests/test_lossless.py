"""The never-JPEG control: pairs that are pairs, JPEG that is Pillow's, and paired numbers from elsewhere."""
import io
import lzma

import numpy as np
import pytest
import torch
from conftest import jpeg, make_tree
from PIL import Image
from scipy import stats

import checkpoints
import lossless
import scoring
from classes import build
from datasets import load
from files import TellError, folder, read_csv

NAMES = [f"{split}/REAL/{i // 10:04d}{f' ({i % 10 + 1})' if i % 10 else ''}.jpg"
         for split, n in (("train", 40), ("test", 20)) for i in range(n)]


def make_pairs(**changed) -> None:
    """CIFAKE's tree and the archive of originals under the data root."""
    tree, random = make_tree(folder("data") / "CIFAKE", train=40, test=20), np.random.default_rng(1)
    small = random.integers(40, 216, (60, 8, 8, 3))
    images = np.kron(small, np.ones((1, 4, 4, 1))).astype(np.uint8)
    for name, image in zip(NAMES, images, strict=True):
        (tree / name).write_bytes(jpeg(image))
    content = {"images": images, "labels": np.arange(60) % 10, "cifake_name": np.array(NAMES)} | changed
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    (folder("data") / lossless.ARCHIVE).write_bytes(lzma.compress(buffer.getvalue(), preset=0))


def save_model(name: str = "base_model") -> None:
    torch.manual_seed(0)
    checkpoints.write(checkpoints.path_of(name), checkpoints.pack(
        build("CIFAKE_CNN"), "CIFAKE_CNN", {"attn": False}, threshold=0.5, threshold_source="a test",
        data="none", seed=0))


def test_pairs_are_the_same_pictures_before_and_after_jpeg():
    make_pairs()
    originals, theirs = lossless.open_pairs(load("cifake"))
    assert originals.paths.tolist() == theirs.paths.tolist() == NAMES
    assert not np.array_equal(originals.pixels, theirs.pixels[theirs.rows])
    again = lossless.as_jpeg(originals, 75)  # Pillow made CIFAKE's files here, at 75 as well
    assert np.abs(again.pixels.astype(int) - theirs.pixels[theirs.rows]).max() <= 1
    assert (np.array_equal(again.sha256, theirs.sha256), len(again)) == (True, 60)


def test_as_jpeg_is_pillows():
    make_pairs()
    data = load("cifake").head(7)
    for quality in (30, 90):
        ours = lossless.as_jpeg(data, quality)
        for picture, pixels in zip(data.pixels[data.rows], ours.pixels[ours.rows], strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality, subsampling=2)
            theirs = np.asarray(Image.open(io.BytesIO(buffer.getvalue())), int)
            assert np.abs(theirs - pixels.transpose(1, 2, 0)).max() <= 1


@pytest.mark.parametrize(("change", "reason"), [
    ({"cifake_name": np.roll(NAMES, 1)}, "another class"),
    ({"cifake_name": np.roll(NAMES, 10)}, "another picture"),
    ({"cifake_name": np.array(["train/REAL/9999.jpg", *NAMES[1:]])}, "9999.jpg is not in CIFAKE"),
    ({"images": np.zeros((60, 32, 32, 3), np.float32)}, "do not go with"),
    ({"images": np.array([None] * 60)}, "not an archive")])
def test_what_is_no_pair_is_one_clear_line(change, reason):
    make_pairs(**change)
    with pytest.raises(TellError, match=reason):
        lossless.open_pairs(load("cifake"))


def test_a_missing_or_broken_archive_is_one_clear_line(tmp_path):
    with pytest.raises(TellError, match="not there"):
        lossless.read_originals(tmp_path / "nothing.npz.xz")
    for content in (b"", b"no archive", lzma.compress(b"no archive")):
        (tmp_path / "bad.npz.xz").write_bytes(content)
        with pytest.raises(TellError, match=r"bad\.npz\.xz"):
            lossless.read_originals(tmp_path / "bad.npz.xz")


def test_paired_numbers_agree_with_scipy():
    random = np.random.default_rng(3)
    reference = random.normal(-2, 2, 800).astype(np.float32)
    logits = reference + random.normal(0.3, 0.5, 800).astype(np.float32)
    row = lossless.paired(logits, reference, threshold=0.5)
    here, there = logits >= 0, reference >= 0
    only = int((here & ~there).sum()), int((there & ~here).sum())
    assert (row["only_here_fake"], row["only_cifake_fake"]) == only
    assert row["mcnemar_p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    change = here.astype(float) - there
    for name, values in (("difference", change), ("logit_change", logits - reference)):
        theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
        ends = theirs.confidence_interval
        assert row[name] == pytest.approx(values.mean())
        assert [row[f"{name}_low"], row[f"{name}_high"]] == pytest.approx([ends.low, ends.high], abs=0.006)


def test_the_command_line_reports_every_part_and_version():
    make_pairs()
    save_model()
    rows = lossless.main([])["rows"]
    table = read_csv(folder("results") / "lossless.csv")
    assert len(table) == len(rows) == 3 * (2 + len(lossless.QUALITIES))
    assert {(row["part"], int(row["n"])) for row in table} == {("train", 30), ("val", 10), ("test", 20)}
    data = load("cifake")
    network, _ = checkpoints.load("base_model")
    part = data.take((data.splits == "test") & (data.labels == 0))
    row = next(row for row in rows if (row["part"], row["version"]) == ("test", "cifake"))
    assert row["false_alarm"] == (scoring.predict(network, part) >= 0.5).mean()
    assert (row["difference"], row["mcnemar_p"]) == (0, 1)
    assert lossless.plot_versions(table, "test").axes[0].get_title() == "base_model (n = 20)"
    save_model("attn_model")
    lossless.main(["-mf", "attn_model"])  # beside those that are there
    both = read_csv(folder("results") / "lossless.csv")
    assert both[:len(table)] == table
    assert {row["model"] for row in both[len(table):]} == {"attn_model"}
    lossless.main(["-mf", "attn_model"])
    assert read_csv(folder("results") / "lossless.csv") == both
    lossless.main(["--smoke"])
    assert read_csv(folder("results") / "lossless.csv") == both
