"""The ablation: every variant runs and is one change; a second start does not repeat what is there."""
import numpy as np
import pytest
import torch
from conftest import CODE, make_tree

import ablation
from files import TellError, folder, read_csv


@pytest.mark.parametrize("name", list(ablation.VARIANTS))
def test_every_variant_is_a_network_that_learns(name):
    variant = ablation.VARIANTS[name]
    network = variant.network(**variant.arguments)
    variant.change(network)
    if name != "learned-first":
        network.whitening.fit(torch.randn(40, 3, 32, 32))
    else:
        assert not hasattr(network.whitening, "kernels")
    output = network(torch.randn(4, 3, 32, 32))
    output.sum().backward()
    assert output.shape == (4, 1)
    assert network.head.weight.grad.abs().sum() > 0


def test_runs_are_written_one_by_one_and_not_repeated(tmp_path, monkeypatch, capsys):
    tree = str(make_tree(tmp_path / "tree", train=150, test=10))
    flags = ["--only", "base", "no-mirror", "--seeds", "2", "--data", tree]
    rows = ablation.main(flags)["rows"]
    assert {(row["variant"], int(row["seed"])) for row in rows} == {
        (name, seed) for name in ("base", "no-mirror") for seed in (0, 1)}
    by = {(row["variant"], int(row["seed"])): float(row["val_loss"]) for row in rows}
    assert by["base", 0] != by["base", 1]
    assert by["base", 0] != by["no-mirror", 0]  # the same weights, one view
    before = (folder("results") / "ablation.csv").read_bytes()
    monkeypatch.setattr(ablation, "run", lambda *_: pytest.fail("run again"))
    ablation.main(flags)
    assert (folder("results") / "ablation.csv").read_bytes() == before
    assert len(read_csv(folder("results") / "ablation.csv")) == 4


def test_rows_of_other_pictures_or_recipes_are_not_mixed(tmp_path):
    flags = ["--only", "no-mirror", "--seeds", "1", "--data"]
    one, other = (str(make_tree(tmp_path / name, train=150, test=10)) for name in ("one", "other"))
    ablation.main([*flags, one])
    with pytest.raises(TellError, match="ablation.csv: of other pictures than other, or of another recipe"):
        ablation.main([*flags, other])


def test_ideas_against_base_with_the_same_seed():
    """By hand: differences 1 and 3, mean 2, sd sqrt(2), t(0.975; 1) = 12.706, half 12.706."""
    runs = {"base": (0.90, 0.80), "noise": (0.91, 0.83), "spectrum": (0.85,), "deep": ()}
    rows = [{"variant": name, "seed": str(seed), "val_accuracy": str(value)}
            for name, values in runs.items() for seed, value in enumerate(values)]
    rows.append({"variant": "deep", "seed": "7", "val_accuracy": "0.99"})  # base has no such seed
    worst, best = ablation.table(rows)
    assert worst["what"] == ablation.VARIANTS["spectrum"].what
    assert (worst["points"], worst["seeds"]) == (pytest.approx(-5), 1)
    assert np.isnan([worst["low"], worst["high"]]).all()
    assert (best["points"], best["seeds"]) == (pytest.approx(2), 2)
    assert [best["low"], best["high"]] == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)


def test_an_idea_kept_or_dropped_against_its_sign_says_why():
    rows = read_csv(CODE.parent / "paper/results/ablation.csv")
    verdicts = {row["what"]: row for row in ablation.table(rows)}
    assert len(verdicts) == len(ablation.VARIANTS) - 1
    for variant in list(ablation.VARIANTS.values())[1:]:
        row = verdicts[variant.what]
        # Each run lacks what was kept, or adds what was dropped: either way it should be the worse.
        assert row["points"] < 0 or ": " in variant.idea, variant.what
