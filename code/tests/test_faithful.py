"""Measures of maps: against the packages and brute force, and on a network whose reasons are known."""
import numpy as np
import pytest
import torch
from conftest import make_tree
from pandas import DataFrame
from scipy.stats import spearmanr
from test_explain import Linear, checkpoint, compact, some  # noqa: F401 (a fixture)

import faithful
import lime_shap
import planted
from datasets import load
from figures import read_table
from files import TellError, folder, read_csv


def test_imputation_is_that_of_grad_cam():
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    random = np.random.default_rng(0)
    x, weights = random.random((3, 20, 24)).astype(np.float32), faithful.neighbours(20, 24)
    for share in (0.1, 0.5, 0.9):
        hidden = random.random((20, 24)) < share
        theirs = NoisyLinearImputer(noise=0)(torch.from_numpy(x), torch.from_numpy(~hidden).float())
        assert np.allclose(faithful.imputed(x, hidden, weights), theirs, atol=1e-5)


def test_deletion_is_what_taking_cells_away_one_after_another_gives():
    network, (picture,) = compact(), some(1)
    support = np.random.default_rng(1).standard_normal(64)
    curve, one = [], picture.copy()
    for step in range(17):
        for cell in np.argsort(-support)[4 * step - 4:4 * step] if step else []:
            row, column = divmod(cell, 8)
            one[:, 4 * row:4 * row + 4, 4 * column:4 * column + 4] = picture.mean(axis=(1, 2)).astype(
                np.uint8)[:, None, None]
        curve.append(lime_shap.score_all(network, lime_shap.normalised(network, one[None]))[0])
    deletion, _ = faithful.areas(network, picture, faithful.ranks_of(support[None]))
    assert deletion[0] == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 16, abs=1e-4)


def test_removal_prefers_the_true_map_to_noise_and_noise_to_its_opposite():
    network, pictures = Linear(), some(8)
    true = faithful.in_cells(network.shares(pictures, lime_shap.mean_colour(pictures)))
    noise = np.random.default_rng(0).standard_normal(true.shape)
    found = faithful.removal(network, pictures, np.stack((true, noise, -true)))
    best, middle, worst = found["deletion"].mean(axis=1)
    assert best < middle < worst
    for measure in ("insertion", "road"):
        best, middle, worst = found[measure].mean(axis=1)
        assert best > middle > worst


def test_the_sign_of_a_map_is_that_of_its_sum_beside_the_verdicts():
    network, pictures = Linear(), some(6)
    logits = lime_shap.score_all(network, lime_shap.normalised(network, pictures))
    assert 0 < (logits > 0).sum() < 6
    true = np.repeat(logits[:, None], 64, axis=1)
    true[:, 0] *= -9  # one cell may say otherwise
    assert faithful.signs(network, pictures, np.stack((true, -true, np.ones_like(true)))).mean(
        axis=1).tolist() == [1, 0, (logits > 0).mean()]


def test_a_table_written_before_a_method_or_measure_came_is_still_read():
    rows = [{"method": "lime", "measure": "road", "mean": 1.0, "mean_low": 0.5, "mean_high": 1.5}]
    assert faithful.wide(DataFrame(rows)).to_dict() == {"road": {"lime": "1.00 [0.50, 1.50]"}}


def test_rank_correlation_is_spearmans():
    one, two = np.random.default_rng(0).integers(0, 9, (2, 5, 64)).astype(float)  # with ties
    wanted = [spearmanr(*pair).statistic for pair in zip(one, two, strict=True)]
    assert np.allclose(faithful.rank_correlation(one, two), wanted)
    assert np.isnan(faithful.rank_correlation(np.ones((1, 64)), two[:1])).all()


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    network = compact()
    before = [weights.clone() for weights in network.parameters()]
    other = list(faithful.shuffled(network).parameters())
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert all(torch.equal(one.flatten().sort()[0], two.flatten().sort()[0])
               for one, two in zip(before, other, strict=True))
    assert not torch.equal(before[0], other[0])


def test_maps_are_moved_back_onto_the_picture(monkeypatch):
    pictures = some(2)
    moved = faithful.moved(pictures)
    assert (moved[..., 1:, 1:] == pictures[..., :-1, :-1]).all()
    grey = {"grey": lambda network, pixels: pixels.mean(axis=1).astype(np.float32)}
    monkeypatch.setattr(faithful, "ALL", grey)
    here, there = faithful.cell_maps(None, pictures), faithful.cell_maps(None, moved, back=1)
    inner = np.arange(64).reshape(8, 8)[:-1, :-1].ravel()
    assert np.allclose(here[..., inner], there[..., inner])
    means = pictures.reshape(2, 3, 8, 4, 8, 4).mean(axis=(1, 3, 5))
    assert np.allclose(here[0], means.reshape(2, 64), atol=1e-3)


def test_a_random_map_changes_with_network_and_picture_only():
    network, pictures = compact(), some(3)
    maps = faithful.random_map(network, pictures)
    assert (maps == faithful.random_map(network, pictures)).all()
    assert not (maps == faithful.random_map(Linear(), pictures)).any()
    assert not (maps[0] == faithful.random_map(network, some(3, seed=1))[0]).any()


def test_the_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [planted.interval(random.standard_normal(100), seed=i) for i in range(300)]
    assert 0.90 < np.mean([row["mean_low"] < 0 < row["mean_high"] for row in found]) < 0.99
    assert planted.interval(np.array([np.nan, 1.0]))["mean"] == 1
    assert np.isnan(planted.interval(np.array([np.nan]))["mean"])


def test_patches_hits_and_overlaps():
    random = np.random.default_rng(0)
    inside = planted.patches(4000, 3, random)
    assert (inside.sum(axis=1) == 9).all()
    corners = {divmod(int(cells.argmax()), 8) for cells in inside}
    assert corners == {(row, column) for row in (0, 2, 4) for column in (0, 2, 4)}
    noise = random.standard_normal(inside.shape)
    assert planted.hits(noise, inside).mean() == pytest.approx(9 / 64, abs=0.02)
    assert planted.overlaps(noise, inside).mean() == pytest.approx(9 / 119, abs=0.01)
    assert planted.hits(inside.astype(float), inside).all()
    assert (planted.overlaps(inside.astype(float), inside) == 1).all()
    assert (planted.overlaps(-inside.astype(float), inside) == 0).all()
    one, other = some(4000, 8), some(4000, 8, seed=1)
    spliced = planted.splice(one, other, inside)  # 8 pixels: a cell each
    where = np.broadcast_to(inside.reshape(-1, 1, 8, 8), one.shape)
    assert (spliced[where] == other[where]).all()
    assert (spliced[~where] == one[~where]).all()


def test_donors_share_the_object_and_are_another_picture(tmp_path):
    data = load(str(make_tree(tmp_path / "set", test=30))).split("test")
    pool = data.take(data.labels == 0)
    found = planted.donors(pool, pool, np.random.default_rng(0))
    assert (pool.objects[found] == pool.objects).all()
    assert (found != np.arange(len(pool))).all()


def test_a_planted_patch_is_found_in_a_network_that_sees_brightness(tmp_path):
    data = load(str(make_tree(tmp_path / "set", test=20))).split("test")  # fake is dark
    network = Linear()
    torch.nn.init.constant_(network.weights, -0.05)

    def cell_maps(network, pixels):
        true = network.shares(pixels, np.zeros_like(pixels))
        return np.stack([faithful.in_cells(maps) for maps in (true, np.ones_like(true))])

    rows = planted.rows_of(network, data, 20, cell_maps, ["true", "blind"])
    found = {(row["kind"], row["side"], row["method"]): row for row in rows}
    for kind in ("fake in real", "real in fake"):
        assert found[kind, 0.375, "true"]["moved"] == 1
        assert found[kind, 0.375, "true"]["hit"] == 1
        assert found[kind, 0.375, "true"]["iou"] > 0.95
        assert found[kind, 0.375, "true"]["iou_chance"] == pytest.approx(9 / (64 + 64 - 9))
        assert found[kind, 0.375, "blind"]["hit_gain"] == 0
    assert found["real in real, taken for fake", 0.5, "true"]["pictures"] == 20


def test_the_command_line_writes_both_tables(checkpoint, tmp_path):  # noqa: F811
    tree = make_tree(tmp_path / "set", test=20)
    flags = ["-mf", "one", "--data", str(tree), "--pictures", "2", "--hosts", "2"]
    found = faithful.main(flags)["models"]["one"]
    rows = read_csv(folder("results") / "faithful-one-set.csv")
    assert len(rows) == len(found["faithful"]) == len(faithful.ALL) * len(faithful.MEASURES)
    assert {row["method"] for row in rows} == set(faithful.ALL)
    centre = {row["measure"]: row for row in rows if row["method"] == "centre"}
    assert float(centre["randomised"]["mean"]) == pytest.approx(1)
    written = read_table("faithful-one-set")
    row = max((row for row in rows if row["measure"] == "road" and row["method"] not in faithful.BASELINES),
              key=lambda row: float(row["mean"]))
    assert faithful.ranking(written).loc["road", "best method"] == row["method"]
    assert faithful.wide(written).loc[row["method"], "road"].startswith(f"{float(row['mean']):.2f} [")
    kinds = {row["kind"] for row in read_csv(folder("results") / "planted-one-set.csv")}
    assert kinds == {"fake in real", "real in fake", "real in real, taken for fake",
                     "real in real, unnoticed"}


def test_the_sanity_check_is_best_near_zero_on_either_side():
    means = dict.fromkeys(faithful.ALL, 0.5) | {"grad-cam": -0.24, "lime": 0.02, "centre": 1.0}
    found = DataFrame([{"method": method, "measure": measure, "mean": value}
                       for measure in faithful.BADNESS for method, value in means.items()])
    row = faithful.ranking(found).loc["randomised"]
    assert (row["best method"], row["best"], row["grad-cam is number"]) == ("lime", 0.02, 2)


def test_too_few_pictures_for_a_control_is_one_line(checkpoint, tmp_path):  # noqa: F811
    tree = make_tree(tmp_path / "set", test=10)
    with pytest.raises(TellError, match="no other picture has the object class"):
        faithful.main(["-mf", "one", "--data", str(tree), "--pictures", "2", "--hosts", "2"])
