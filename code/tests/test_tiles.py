"""tiles.py: what a network gets of a picture of any size, and what its tiles' votes add up to."""
import numpy as np
import pytest
import torch
from conftest import encoded, make_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics
from torch import nn

import checkpoints
import overlays
import scoring
import test as scoring_test
import tiles
from classes import build
from datasets import load
from decode import resize
from files import TellError, read_csv
from natural import open_pictures

FACTS = {"threshold": 0.4, "threshold_source": "a test", "data": "noise", "seed": 0}


class Natural(nn.Module):
    """A network for pictures of natural size."""

    heads, size, mirror = {"generator": 3}, 48, True
    normalisation = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 5, 3)

    def forward(self, x):
        return self.layer(x).square().mean(dim=(2, 3))


def network(name: str = "CIFAKE_CNN") -> nn.Module:
    torch.manual_seed(0)
    made = build(name) if name != "Natural" else Natural()
    for module in made.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.uniform_(-0.1, 0.1)
    if name == "Compact":
        nn.init.normal_(made.head.weight)
        made.whitening.fit(torch.randn(8, 3, 32, 32))
    return made.eval()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tree_of_sizes(root, sizes=((70, 90), (64, 40), (200, 64), (20, 31))):
    """real/ and fake/ PNGs of these sizes, fakes darker."""
    for label, dim in (("real", 1), ("fake", 2)):
        (root / label).mkdir(parents=True)
        for i, size in enumerate(sizes):
            picture = Image.fromarray(noise(*size, seed=i) // dim)
            (root / label / f"{i}.png").write_bytes(encoded(picture, "PNG"))
    return root


@settings(max_examples=60, deadline=None)
@given(st.integers(32, 300), st.integers(32, 300), st.integers(1, 30))
def test_tiles_are_untouched_parts_of_the_grid(height, width, limit):
    picture = noise(height, width)
    seen = tiles.see(picture, 32, "tiles", limit)
    assert len(seen.pixels) == min(limit, (height // 32) * (width // 32))
    assert len({tuple(box) for box in seen.boxes}) == len(seen.boxes)
    for pixels, (top, left, h, w) in zip(seen.pixels, seen.boxes, strict=True):
        assert (top % 32, left % 32, h, w) == (0, 0, 32, 32)
        np.testing.assert_array_equal(pixels, picture[top:top + 32, left:left + 32])
    again = tiles.see(noise(height, width, seed=1), 32, "tiles", limit)
    np.testing.assert_array_equal(seen.boxes, again.boxes)  # places do not depend on content


def test_flat_tiles_do_not_vote_unless_there_is_nothing_else():
    picture = np.full((128, 96, 3), 90, np.uint8)
    picture[96:, 64:] = noise(32, 32)
    picture[:32, :32, 0] = noise(32, 32)[..., 0]  # in red only: green decides
    seen = tiles.see(picture, 32, "tiles")
    assert (seen.boxes.tolist(), seen.blank) == ([[96, 64, 32, 32]], False)
    assert seen.treatment == "1 of 12 tiles, 11 flat"
    empty = tiles.see(np.zeros((128, 96, 3), np.uint8), 32, "tiles", limit=5)
    assert (len(empty.pixels), empty.blank) == (5, True)


@pytest.mark.parametrize("way", tiles.WAYS)
def test_a_picture_of_the_networks_size_is_scored_as_test_py_does(way, tree):
    data = load(str(tree)).split("test")
    pictures = list(data.pixels[data.rows].transpose(0, 2, 3, 1))
    found = [vote.logit for vote in tiles.vote(network(), pictures, way)]
    assert found == scoring.logits(network(), data).tolist()


@pytest.mark.parametrize("name", ["CIFAKE_CNN", "Compact", "Natural"])
def test_the_logit_is_the_mean_of_tiles_judged_one_by_one(name):
    made, size = network(name), 48 if name == "Natural" else 32
    pictures = [noise(size * 2 + 5, size * 3), noise(size, size + 9), noise(size * 4, size)]
    for picture, vote in zip(pictures, tiles.vote(made, pictures, "tiles"), strict=True):
        mean, std = (np.array(made.normalisation[key]) for key in ("mean", "std"))
        expected = []
        for top, left, h, w in vote.boxes:
            tile = (picture[top:top + h, left:left + w] / 255 - mean) / std
            x = torch.tensor(tile.transpose(2, 0, 1)[None])
            views = [x, x.flip(3)] if getattr(made, "mirror", False) else [x]
            columns = np.mean([made(view.float()).detach().numpy()[0] for view in views], axis=0)
            expected.append(columns[0] if len(columns) == 1 else np.logaddexp(*columns[1:]) - columns[0])
        np.testing.assert_allclose(vote.logits, expected, atol=1e-5)
        assert vote.logit == pytest.approx(np.mean(expected), abs=1e-5)
        assert vote.share(0.5) == np.mean(np.array(expected) > 0)


def test_squash_is_the_whole_picture_and_fit_is_natural_pys_view(tmp_path):
    picture = noise(50, 130)
    np.testing.assert_array_equal(tiles.see(picture, 32, "squash").pixels[0], resize(picture, 32))
    data, made = open_pictures(str(tree_of_sizes(tmp_path / "set"))), network("Natural")
    pictures = [data.pixels(i) for i in range(len(data))]
    expected = scoring.logits(made, data)
    np.testing.assert_array_equal([vote.logit for vote in tiles.vote(made, pictures)], expected)
    assert tiles.own_way(made) == "fit"


@pytest.mark.parametrize(("size", "way"), [((20, 500), "tiles"), ((1, 1), "fit"), ((1, 4000), "squash")])
def test_small_and_thin_pictures_are_seen_whole(size, way):
    seen = tiles.see(noise(*size), 32, way)
    assert seen.pixels.shape == (1, 32, 32, 3)
    assert (seen.height, seen.width) == size


def test_numbers_equal_scikit_learns_and_a_way_does_not_differ_from_itself():
    random = np.random.default_rng(0)
    labels = (random.random(80) < 0.3).astype(int)
    scores = np.round(random.random(80) * 0.6 + labels * 0.3, 2)
    one, same, difference = tiles.table(labels, {"one": (scores, 0.5), "same": (scores, 0.5)})
    assert one["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, scores >= 0.5))
    assert one["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert (one["accuracy_low"], one["accuracy_high"]) == scoring.wilson(round(one["accuracy"] * 80), 80)
    # Hanley and McNeil, Radiology 143, 1982, as another way to the same width
    a, fakes = one["roc_auc"], labels.sum()
    variance = (a * (1 - a) + (fakes - 1) * (a / (2 - a) - a**2)
                + (80 - fakes - 1) * (2 * a**2 / (1 + a) - a**2)) / (fakes * (80 - fakes))
    width = 2 * scoring.Z95 * variance**0.5
    assert one["roc_auc_high"] - one["roc_auc_low"] == pytest.approx(width, rel=0.35)
    assert difference["way"] == "same minus one"
    assert difference["roc_auc"] == difference["roc_auc_low"] == difference["accuracy_high"] == 0


def test_a_map_lies_where_its_tile_lies_and_has_its_sides_colour():
    picture = np.full((128, 128, 3), 128, np.uint8)
    drawn, boxes = overlays.sketch(picture, np.array([[0, 32, 32, 32], [96, 96, 32, 32]]))
    assert drawn.shape == (512, 512, 3)
    maps = np.stack((np.ones((32, 32)), -np.ones((32, 32)))).astype(np.float32)
    heat = np.asarray(overlays.overlay(drawn, boxes, maps))
    towards_fake, towards_real, unseen = heat[64, 192].astype(int), heat[450, 450].astype(int), heat[300, 100]
    assert towards_fake[0] > towards_fake[2] + 50
    assert towards_real[2] > towards_real[0] + 50
    assert len(set(unseen.tolist())) == 1
    assert unseen[0] > 200
    large, _ = overlays.sketch(noise(300, 2000), np.array([[0, 0, 300, 2000]]))
    assert large.shape == (77, 512, 3)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (2000, 3000), (32, 9000)])
def test_a_tile_is_a_cell_that_can_be_seen_in_the_colour_of_its_logit(height, width):
    top, left = height - 32, width // 2
    drawn, boxes = overlays.sketch(np.full((height, width, 3), 90, np.uint8),
                                np.array([[0, 0, 32, 32], [top, left, 32, 32]]), overlays.SHEET)
    sheet = np.asarray(overlays.sheet(drawn, boxes, np.array([4.0, -4.0]))).astype(int)
    fake, real = (sheet == overlays.FAKE_COLOUR).all(axis=2), (sheet == overlays.REAL_COLOUR).all(axis=2)
    side = min(overlays.CELL_MIN, len(sheet))
    for outline in (fake, real):
        rows, columns = np.nonzero(outline)
        assert min(np.ptp(rows) + 1, np.ptp(columns) + 1) >= side
    assert fake[0, 0]
    middle = sheet[rows.min() + side // 2, columns.min() + side // 2]  # of the second
    assert middle[2] > middle[0] + 50
    assert len(set(sheet[0, -1])) == 1  # unseen: pale grey
    assert sheet[0, -1, 0] >= 200


def test_a_surer_tile_has_a_fuller_colour():
    drawn, boxes = overlays.sketch(noise(32, 96), np.array([[0, 0, 32, 32], [0, 64, 32, 32]]), overlays.SHEET)
    sheet = np.asarray(overlays.sheet(drawn, boxes, np.array([0.2, 5.0]))).astype(int)
    unsure, sure = (np.ptp(sheet[9:-9, columns], axis=2).mean() for columns in (
        slice(9, 300), slice(-300, -9)))
    assert sure > 3 * unsure


def test_maps_of_several_tiles_are_means_of_cells_and_one_view_keeps_its_pixels():
    maps = np.random.default_rng(0).normal(size=(3, 32, 32))
    found = overlays.legible(maps)
    assert found.shape == (3, 4, 4)
    assert found[1, 0, 3] == pytest.approx(maps[1, :8, 24:].mean())
    assert (overlays.legible(maps[:1]) == maps[:1]).all()
    assert overlays.legible(np.ones((2, 50, 50))).shape == (2, 6, 6)


def test_test_py_compares_squashing_with_tiles_where_sizes_differ(tmp_path, capsys):
    checkpoints.write(checkpoints.path_of("one"), checkpoints.pack(network(), "CIFAKE_CNN", {}, **FACTS))
    tree = tree_of_sizes(tmp_path / "set")
    squashed = scoring_test.main(["-mf", "one", "--data", str(tree)])["models"][0]
    rows = {row["way"]: row for row in read_csv(tmp_path / "results" / "tiles-one-set.csv")}
    assert float(rows["squash"]["accuracy"]) == squashed["accuracy"]
    assert "tiles minus squash" in capsys.readouterr().out
    scoring_test.main(["-mf", "one", "--data", str(make_tree(tmp_path / "small", test=3))])
    assert not (tmp_path / "results" / "tiles-one-small.csv").exists()


def test_command_line(tmp_path):
    checkpoints.write(checkpoints.path_of("one"), checkpoints.pack(network(), "CIFAKE_CNN", {}, **FACTS))
    found = tiles.main(["-mf", "one", "--data", str(tree_of_sizes(tmp_path / "set")), "--tiles", "4"])
    rows, pictures = read_csv(tmp_path / "results" / "tiles-one-set.csv"), read_csv(
        tmp_path / "results" / "tiles-scores-one-set.csv")
    assert [row["way"] for row in rows] == ["squash", "tiles' share", "tiles", "tiles minus squash"]
    assert (rows[0]["n"], len(pictures), found["rows"][0]["majority"]) == ("8", 8, 0.5)
    scores = scoring.sigmoid(np.array([float(row["tiles_logit"]) for row in pictures]))
    labels = np.array([int(row["label"]) for row in pictures])
    assert float(rows[2]["accuracy"]) == ((scores >= 0.4) == labels).mean()
    cuts = [((scores >= cut) == labels).mean() for cut in [0, *scores, 2]]
    assert float(rows[2]["accuracy_oracle"]) == max(cuts) >= float(rows[2]["accuracy"])
    assert rows[3]["accuracy_oracle"] == ""  # of a difference
    with pytest.raises(TellError, match="no such file or folder"):
        tiles.main(["-mf", "one", "--data", str(tmp_path / "none")])
