"""What the networks look at: masks, shares and exchanges against networks whose reasons are known."""
import numpy as np
import pytest
from conftest import make_tree
from test_explain import Linear, checkpoint, compact, some  # noqa: F401 (a fixture)

import looks
import looks_figures
from datasets import load
from files import TellError, folder, read_csv


def scene(noise: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a dark ground, and where the ground is."""
    rows, columns = np.mgrid[:32, :32] - 16
    ground = rows**2 + columns**2 > 100
    speckle = np.random.default_rng(0).integers(0, noise, (3, 32, 32))
    return np.where(ground, 40 + speckle, 200 + speckle).astype(np.uint8), ground


def test_the_background_is_what_edges_part_from_the_middle():
    picture, ground = scene()
    assert (looks.background(picture) == ground).mean() > 0.98
    assert (looks_figures.covered(picture[None])[0] == picture).all(axis=0)[~ground].mean() > 0.98


def test_the_border_is_the_outer_ring_of_cells():
    found = looks.border(some(2))
    assert found.shape == (2, 32, 32)
    assert found.mean() == 28 / 64
    assert not found[:, 4:28, 4:28].any()


def test_an_exchange_finds_what_a_linear_network_adds_there_and_no_seam():
    network, reals, fakes = Linear(), some(6, seed=1), some(6, seed=2)
    part = looks.border(reals)
    value, whole, seam = looks.swapped(network, reals, fakes, part)
    truth = (network.shares(fakes, reals) * part).sum(axis=(1, 2))
    assert np.allclose(value, truth, atol=1e-3)
    assert abs(seam).max() < 1e-3
    assert np.allclose(whole, network.shares(fakes, reals).sum(axis=(1, 2)), atol=1e-3)


class Seams(Linear):
    """A linear network that also adds 5 wherever the picture jumps at the inner edge of the border."""

    def forward(self, x):
        jump = (x[:, :, 3] - x[:, :, 4]).abs().mean(dim=(1, 2)) > 0.1
        return super().forward(x) + 5 * jump[:, None]


def test_what_a_seam_adds_cancels_out_of_an_exchange():
    flat = [np.full((3, 3, 32, 32), level, np.uint8) for level in (60, 180)]
    part, plain, seeing = looks.border(flat[0]), Linear(), Seams()
    expected, found = (looks.swapped(network, *flat, part) for network in (plain, seeing))
    assert np.allclose(found[:2], expected[:2], atol=1e-3)
    assert np.allclose(found[2], 5, atol=1e-3)


def test_the_value_of_a_part_and_of_the_rest_add_up():
    network = compact()
    reals, fakes, part = some(4, seed=3), some(4, seed=4), looks.border(some(4))
    one, rest = (looks.swapped(network, reals, fakes, where) for where in (part, ~part))
    assert np.allclose(one[0] + rest[0], one[1], atol=1e-4)
    assert np.allclose(one[2], rest[2], atol=1e-4)


def test_mass_sums_to_one_and_the_verdicts_side_leaves_out_the_other():
    maps = np.array([[1.0, -3.0, 0.0], [-1.0, -1.0, -2.0]])
    assert np.allclose(looks.mass(maps, "both signs"), [[0.25, 0.75, 0], [0.25, 0.25, 0.5]])
    found = looks.mass(maps, "for the verdict")
    assert np.allclose(found[0], [1, 0, 0])
    assert np.isnan(found[1]).all()


def test_pairs_are_alike_in_classes_and_cases_are_what_they_are_called(tmp_path):
    data = load(str(make_tree(tmp_path / "tree", train=40, test=30))).split("test")
    real, fake = looks.pairs(data, 2)
    assert data.labels[real].max() == 0
    assert data.labels[fake].min() == 1
    assert (data.objects[real] == data.objects[fake]).all()
    assert (np.unique(data.objects[real], return_counts=True)[1] == 2).all()
    with pytest.raises(TellError, match="both real and fake"):
        looks.pairs(data.take(data.labels == 1), 2)
    scores = np.random.default_rng(0).random(len(data))
    index = looks_figures.cases(data.labels, scores, 0.6, 3)
    assert data.labels[index].tolist() == [0] * 6 + [1] * 6
    assert (scores[index] >= 0.6).tolist() == ([False] * 3 + [True] * 3) + ([True] * 3 + [False] * 3)


def test_the_command_writes_shares_that_a_look_at_the_maps_confirms(checkpoint, tmp_path):  # noqa: F811
    tree = make_tree(tmp_path / "tree", train=40, test=20)
    found = looks.main(["-mf", "one", "--data", str(tree), "--pictures", "1"])["models"]["one"]
    stem = "one-tree.csv"
    rows = read_csv(folder("results") / f"looks-{stem}")
    assert len(rows) == len(found["looks"]) == 3 * 2 * 2 * 13
    means = read_csv(folder("results") / f"mean-maps-{stem}")
    for method in looks.METHODS:
        mean = np.mean([np.array(row["mass"].split(), float) for row in means
                        if (row["method"], row["weights"]) == (method, "trained")], axis=0).reshape(8, 8)
        share = next(float(row["share"]) for row in rows if row["method"] == method and
                     (row["region"], row["mass"], row["label"], row["object"]) ==
                     ("border", "both signs", "all", "all"))
        assert share == pytest.approx(1 - mean[1:-1, 1:-1].sum(), abs=1e-3)
    swaps = read_csv(folder("results") / f"swaps-{stem}")
    assert {row["part"] for row in swaps} == {"border", "background of the real", "background of the fake"}
