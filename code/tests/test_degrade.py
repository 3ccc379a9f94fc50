"""Degradations: what each does to pixels, that labels play no part, the curves' numbers, and training."""
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_one_line, encoded, make_tree, run_tell
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut
from sklearn.metrics import roc_auc_score
from torch import nn

import checkpoints
import robustness
import test as scorer
import train
from classes import Batches, build, feed
from datasets import load
from degrade import AUGMENTED, DEGRADATIONS, SHARE, augmented, degrade
from files import TellError, folder, read_csv
from robustness import curves, degraded, measure, squashed
from trust import auc_interval

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
HASH = np.arange(32, dtype=np.uint8)
PHOTO = np.ascontiguousarray(astronaut()[60:188, 160:288])
STRENGTHS = [(kind, strength) for kind, one in DEGRADATIONS.items() for strength in one.strengths]


def pillow(pixels, size=None, quality=None):
    """Pillow alone: to this size (width, height), or through a JPEG file."""
    picture = Image.fromarray(pixels)
    if size:
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    return np.asarray(Image.open(io.BytesIO(encoded(picture, "JPEG", quality=quality, subsampling="4:2:0"))))


# --- one picture -------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(32, 32), (33, 17), (1, 40), (1, 1)])
def test_every_degradation_keeps_shape_and_leaves_its_input_alone(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    pixels.setflags(write=False)
    for kind, strength in STRENGTHS:
        found = degrade(pixels, kind, np.float64(strength), 0, HASH)
        assert (found.shape, found.dtype) == (pixels.shape, np.uint8), kind


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS.keys() - {"larger", "screenshot"}))
def test_strengths_run_from_mild_to_strong(kind):
    losses = [abs(degrade(PHOTO, kind, strength, 0, HASH).astype(int) - PHOTO).mean()
              for strength in DEGRADATIONS[kind].strengths]
    assert losses == sorted(losses)
    assert losses[0] > 0


def test_numbers_agree_with_pillow_scipy_and_closed_forms():
    for quality in (95, 75, 30):
        assert (degrade(PHOTO, "JPEG", quality, 0, HASH) == pillow(PHOTO, quality=quality)).all()
    for sigma in (0.5, 1, 2):
        wanted = gaussian_filter(PHOTO.astype(float), (sigma, sigma, 0), mode="nearest")
        assert abs(degrade(PHOTO, "blur", sigma, 0, HASH) - wanted).mean() < 1.5  # grey levels
    for kind, factor in (("darker", 0.6), ("brighter", 1.5)):
        off = degrade(PHOTO, kind, factor, 0, HASH) - np.minimum(PHOTO * factor, 255)
        assert abs(off).max() <= 0.5 + 1e-9  # rounded
    grey = np.full((200, 200, 3), 128, np.uint8)
    added = degrade(grey, "noise", 8, 0, HASH) - 128.0
    assert added.std() == pytest.approx((8**2 + 1 / 12)**0.5, rel=0.01)  # rounding adds 1/12
    assert added.mean() == pytest.approx(0, abs=0.1)
    white = np.full((32, 32, 3), 255, np.uint8)
    assert degrade(white, "noise", 24, 0, HASH).min() > 100  # clipped, not wrapped


def test_chains_are_their_steps():
    half, whole = (64, 64), (128, 128)
    sent = pillow(pillow(pillow(PHOTO, half), quality=70), quality=60)
    assert (degrade(PHOTO, "messenger", 0.5, 0, HASH) == pillow(sent, whole)).all()
    shown = np.rint(255 * 1.03 * (pillow(PHOTO, (96, 96)) / 255) ** 1.05).clip(0, 255).astype(np.uint8)
    assert (degrade(PHOTO, "screenshot", 0.75, 0, HASH) == pillow(pillow(shown, whole), quality=90)).all()


def test_a_crop_is_a_part_of_the_picture_and_its_place_is_random():
    ramp = np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 100, 3))
    tops = set()
    for i in range(60):
        rows = degrade(ramp, "crop", 0.5, i, HASH)[:, 50, 0].astype(float)
        assert rows[-1] - rows[0] == pytest.approx(49, abs=1)
        tops.add(rows[0])
    assert min(tops) < 10
    assert max(tops) > 40


def test_noise_depends_on_seed_and_content_alone():
    first, again = (degrade(PHOTO, "noise", 8, 3, HASH) for _ in range(2))
    assert (first == again).all()
    assert (degrade(PHOTO, "noise", 8, 4, HASH) != first).mean() > 0.5
    assert (degrade(PHOTO, "noise", 8, 3, HASH[::-1]) != first).mean() > 0.5


# --- sets --------------------------------------------------------------------------------------

@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "small", train=30, test=12)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_picture_fares_alike_whatever_its_label_company_and_container(tree, kind):
    strength = DEGRADATIONS[kind].strengths[1]
    data, natural = load(str(tree)).split("test"), load(str(tree), natural=True).split("test")
    whole = degraded(data, kind, strength, 5)
    swapped = degraded(replace(data, labels=1 - data.labels), kind, strength, 5)
    assert (swapped.pixels == whole.pixels).all()
    assert (degraded(data.take(np.arange(7, 11)), kind, strength, 5).pixels == whole.pixels[7:11]).all()
    other = degraded(natural, kind, strength, 5)
    assert (other.take(np.arange(3, 9)).pixels(0).transpose(2, 0, 1) == whole.pixels[3]).all()
    assert (squashed(other).pixels == whole.pixels).all()
    assert (whole.pixels != data.pixels[data.rows]).any(axis=(1, 2, 3)).all()


def test_natural_pictures_are_degraded_before_they_are_squashed(tmp_path):
    for label in ("real", "fake"):
        (tmp_path / "wild" / label).mkdir(parents=True)
        (tmp_path / "wild" / label / "a.png").write_bytes(encoded(Image.fromarray(PHOTO), "PNG"))
    data = degraded(load(str(tmp_path / "wild"), natural=True), "noise", 24)
    noisy = degrade(PHOTO, "noise", 24, 0, data.sha256[0])
    assert (data.pixels(0) == noisy).all()
    assert (squashed(data).pixels[0].transpose(1, 2, 0) == pillow(noisy, (32, 32))).all()
    assert len(squashed(data)) == 2


def test_unknown_degradations_and_strengths_are_refused(tree):
    data = load(str(tree))
    with pytest.raises(TellError, match="no degradation is called 'jpg'; there are JPEG, WebP"):
        degraded(data, "jpg", 75)
    for strength in (0, 101, "75", float("nan"), None):
        with pytest.raises(TellError, match=r"JPEG: the strength .* is not a number from 30 to 95, quality"):
            degraded(data, "JPEG", strength)


def test_a_picture_that_cannot_be_degraded_is_named(tmp_path):
    for label in ("real", "fake"):
        (tmp_path / "long" / label).mkdir(parents=True)
        (tmp_path / "long" / label / "a.png").write_bytes(encoded(Image.new("RGB", (16_400, 2)), "PNG"))
    data = degraded(load(str(tmp_path / "long"), natural=True), "WebP", 75)
    with pytest.raises(TellError, match=r"long: test/FAKE/a.png cannot be degraded by WebP 75"):
        data.pixels(0)


# --- curves ------------------------------------------------------------------------------------

def test_areas_and_their_intervals_are_those_of_every_pair():
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], (70, 40))
    scores = (random.normal(labels, 1.2)).round(1)  # with ties
    pairs = np.sign(scores[labels == 1][:, None] - scores[labels == 0]) / 2 + 0.5
    row = measure(labels, scores, 0.5)
    area, low, high = row["auc"], row["auc_low"], row["auc_high"]
    assert area == pytest.approx(roc_auc_score(labels, scores)) == pytest.approx(pairs.mean())
    sd = (pairs.mean(1).var(ddof=1) / 40 + pairs.mean(0).var(ddof=1) / 70) ** 0.5
    assert (low, high) == pytest.approx((area - 1.959964 * sd, area + 1.959964 * sd))


def test_the_interval_of_the_area_covers_what_is_true():
    random, labels, inside = np.random.default_rng(2), np.repeat([0, 1], 60), 0
    for _ in range(1000):
        found = auc_interval(labels, random.normal(labels))
        inside += found["roc_auc_low"] <= 0.7602 <= found["roc_auc_high"]  # P(N(1, 2) > 0)
    assert 0.93 < inside / 1000 < 0.97


def test_own_threshold_and_oracle_stand_side_by_side():
    labels, scores = np.array([0, 0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.55, 0.7, 0.8, 0.9])
    row = measure(labels, scores, 0.5)
    assert (row["accuracy"], row["false_alarm"], row["miss"]) == (4 / 6, 0.5, 0)
    assert (row["oracle_accuracy"], row["oracle_false_alarm"], row["oracle_threshold"]) == (1, 0, 0.75)
    assert (row["n"], row["majority"], row["auc"]) == (6, pytest.approx(4 / 6), 1)


class Mean(nn.Module):
    """Dark is FAKE, at natural size: a network that one can reckon with."""
    heads, size, normalisation = {"fake": 1}, 48, HALF

    def forward(self, x):
        return -x.mean((1, 2, 3))[:, None]


def test_curves_of_natural_pictures(tree):
    rows = list(curves(Mean(), 0.5, load(str(tree), natural=True).split("test"), kinds=("darker",)))
    assert [row["strength"] for row in rows] == ["", 0.9, 0.8, 0.7, 0.6, 0.45, 0.3]
    assert [rows[0]["accuracy"], rows[0]["auc"], rows[-1]["auc"]] == [1, 1, 1]
    assert rows[-1]["false_alarm"] == 1  # all are darker than grey now
    assert rows[-1]["oracle_false_alarm"] == 0


def test_curves_need_both_classes(tree):
    data = load(str(tree))
    fakes = np.flatnonzero(data.labels == 1)
    for rows in (fakes, np.append(fakes, 0)):
        with pytest.raises(TellError, match="curves need real and fake pictures, at least two of each"):
            next(curves(build("CIFAKE_CNN"), 0.5, data.take(rows)))


# --- command line ------------------------------------------------------------------------------

def test_the_command_measures_and_draws_again(tree, capsys):
    train.main(["-ep", "1", "-mf", "one", "--data", str(tree)])
    clean = scorer.main(["-mf", "one", "--data", str(tree)])["models"][0]
    first = robustness.main(["-mf", "one", "--data", str(tree)])
    assert "CIFAKE_CNN" not in capsys.readouterr().err
    rows = read_csv(folder("results") / "degradation-one-small-test.csv")
    assert [(row["degradation"], row["strength"]) for row in rows] == [
        ("clean", ""), *((kind, str(strength)) for kind, strength in STRENGTHS)]
    assert float(rows[0]["accuracy"]) == clean["accuracy"]
    assert float(rows[0]["auc"]) == pytest.approx(clean["roc_auc"])
    assert rows[0]["fingerprint"] == clean["fingerprint"]
    for row in rows:
        assert float(row["oracle_accuracy"]) >= float(row["accuracy"]) >= 0
        assert float(row["threshold"]) == clean["threshold"]
    pictures = {path.name: path.read_bytes() for path in folder("figures").iterdir()}
    assert pictures.keys() == {f"degradation-small-test{end}.png" for end in ("", "-false-alarm", "-auc")}
    again = robustness.main(["--data", str(tree)])
    assert again == first
    assert {path.name: path.read_bytes() for path in folder("figures").iterdir()} == pictures


def test_a_changed_cifake_is_measured_under_its_own_name():
    make_tree(folder("data") / "CIFAKE", train=2, test=4)
    torch.manual_seed(0)
    checkpoints.write(checkpoints.path_of("new"), checkpoints.pack(
        build("CIFAKE_CNN"), "CIFAKE_CNN", {}, threshold=0.5, threshold_source="none", data="x", seed=0))
    rows = robustness.main(["-mf", "new", "--pictures", "4"])["rows"]
    assert {row["data"] for row in rows} == {"cifake-changed"}
    assert (folder("results") / "degradation-new-cifake-changed-test.csv").exists()


def test_wrong_use_is_one_line(tree):
    assert_one_line(run_tell("degrade.py", "--data", tree), "nothing measured yet; name checkpoints with -mf")
    torch.manual_seed(0)
    network = build("CIFAKE_CNN")
    checkpoints.write(checkpoints.path_of("new"), checkpoints.pack(
        network, "CIFAKE_CNN", {}, threshold=0.5, threshold_source="none", data="x", seed=0))
    with pytest.raises(TellError, match="--split val is of CIFAKE or the sample"):
        robustness.main(["-mf", "new", "--data", str(tree), "--split", "val"])


# --- training ----------------------------------------------------------------------------------

def test_half_of_the_training_pictures_are_degraded_in_every_way():
    random = np.random.default_rng(0)
    found = [augmented(PHOTO[:32, :32], random) for _ in range(2000)]
    kept = sum((picture == PHOTO[:32, :32]).all() for picture in found)
    assert kept / 2000 == pytest.approx(1 - SHARE, abs=0.04)
    assert {"WebP", "messenger", "screenshot"} == DEGRADATIONS.keys() - set(AUGMENTED)


def epoch(data, number, **options):
    batches = Batches(data, 8, HALF, seed=3, **options)
    return torch.cat([pixels for pixels, _ in batches.epoch(number)]), batches.order(number)


def test_what_becomes_of_a_picture_depends_on_seed_epoch_and_picture(tree):
    data = load(str(tree)).split("train")
    plain, order = epoch(data, 1)
    one, _ = epoch(data, 1, augment=("degrade",))
    changed = (one != plain).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.8
    assert torch.equal(epoch(data, 1, augment=("degrade",))[0], one)
    halves = [epoch(data, 1, augment=("degrade",), part=(i, 2)) for i in (0, 1)]
    by_picture = {int(i): picture for pixels, rows in halves for i, picture in zip(rows, pixels, strict=True)}
    assert all(torch.equal(by_picture[int(i)], picture) for i, picture in zip(order, one, strict=True))
    two, later = epoch(data, 2, augment=("degrade",))
    assert not torch.equal(two[later.argsort()][:20], one[order.argsort()][:20])


def test_degradation_comes_before_normalisation_and_moves(tree):
    data = load(str(tree)).split("train")
    pixels, _ = epoch(data, 1, augment=("degrade",))
    levels = (pixels + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3  # whole grey levels, as a file holds
    plain, _ = epoch(data, 1, augment=("flip", "shift"))
    both, _ = epoch(data, 1, augment=("flip", "shift", "degrade"))
    untouched = (both == plain).flatten(1).all(1)  # the same moves with and without
    assert 0.2 < untouched.float().mean() < 0.8


def test_the_robust_recipe_is_refused_at_natural_size(tree):
    with pytest.raises(TellError, match="--recipe robust is for pictures of 32 pixels"):
        feed(load(str(tree), natural=True), Mean(), 8, "cpu", seed=0, augment=train.RECIPES["robust"].augment)


def test_the_robust_recipe_is_the_strong_one_and_degrades(tree):
    robust, strong = train.RECIPES["robust"], train.RECIPES["strong"]
    assert robust == replace(strong, augment=(*strong.augment, "degrade"))
    reached = train.main(["-ep", "1", "-bs", "16", "--data", str(tree), "--recipe", "robust"])
    assert 0 < reached["val_loss"] < 2
