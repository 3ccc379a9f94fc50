"""Calibration and abstention: against scikit-learn, closed forms and simulation; kept in checkpoints."""
import numpy as np
import pytest
import torch
from conftest import CODE, make_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

import calibration
import checkpoints
import train
from classes import build
from datasets import load
from files import TellError
from scoring import logits, sigmoid


def draw(reals: int, fakes: int, seed: int = 0, temperature: float = 1.0, bias: float = 0.0):
    """Labels and logits of which sigmoid((logits - bias) / temperature) is the true P(fake) at even odds.

    Normal with means -2 and 2 and variance 4: the log of the densities' ratio is the value itself.
    """
    labels = np.repeat([0, 1], [reals, fakes])
    values = np.random.default_rng(seed).normal(4 * labels - 2.0, 2.0)
    return labels, values * temperature + bias


# --- errors ------------------------------------------------------------------------------------

def test_errors_equal_scikit_learns():
    labels, values = draw(700, 300, temperature=1.7)
    weights = np.where(labels == 1, 1 / 300, 1 / 700)
    found, p = calibration.errors(labels, values), sigmoid(values)
    assert found["balanced_nll"] == pytest.approx(metrics.log_loss(labels, p, sample_weight=weights))
    assert found["balanced_brier"] == pytest.approx(
        metrics.brier_score_loss(labels, p, sample_weight=weights))
    labels, values = draw(500, 500, temperature=1.7)  # as many of each: every picture weighs the same
    p = sigmoid(values)
    shares, means = calibration_curve(labels, p, n_bins=calibration.BINS)
    n = np.histogram(p, calibration.BINS, (0, 1))[0]
    expected = (n[n > 0] * abs(shares - means)).sum() / 1000
    assert calibration.errors(labels, values)["balanced_ece"] == pytest.approx(expected)


def test_the_diagram_shows_the_error_at_even_odds():
    labels, values = draw(900, 100, temperature=2.0)
    p = sigmoid(values)
    rows = calibration.reliability(labels, p)
    assert sum(row["n"] for row in rows) == 1000
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    gap = sum(row["weight"] * abs(row["probability"] - row["fakes"]) for row in rows)
    assert gap == pytest.approx(calibration.errors(labels, values)["balanced_ece"])
    assert all(row["fakes_low"] <= row["fakes"] <= row["fakes_high"] for row in rows)


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (1.5, 0.5)])
def test_intervals_hold_the_true_error(temperature, bias):
    names = ("balanced_ece", "balanced_nll", "balanced_brier")
    truth = calibration.errors(*draw(300_000, 300_000, 99, temperature, bias))
    found = [calibration.errors(*draw(500, 300, seed, temperature, bias)) for seed in range(60)]
    for name in names:
        held = np.mean([row[f"{name}_low"] - 0.001 <= truth[name] <= row[f"{name}_high"] for row in found])
        assert held >= 0.83, (name, held)


# --- temperature -------------------------------------------------------------------------------

def test_temperature_is_logistic_regression_with_platts_targets():
    labels, values = draw(400, 150, seed=1, temperature=2.5, bias=-1.0)
    target = np.where(labels == 1, 151 / 152, 1 / 402)
    weight = np.where(labels == 1, 0.5 / 150, 0.5 / 400)
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
        np.tile(values, 2)[:, None], np.repeat([1, 0], len(values)),
        np.concatenate((weight * target, weight * (1 - target))) * 1e4)
    rule = calibration.fit(labels, values, "a test")
    np.testing.assert_allclose(calibration.calibrated(values, rule),
                               reference.predict_proba(values[:, None])[:, 1], atol=1e-5)


def test_a_known_temperature_and_bias_are_found_whatever_the_shares_of_the_classes():
    rule = calibration.fit(*draw(200_000, 20_000, 2, 3.0, -4.0), "a test")
    assert rule["temperature"] == pytest.approx(3, rel=0.03)
    assert rule["bias"] == pytest.approx(-4, abs=0.1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_classes_that_do_not_overlap_have_a_finite_temperature(scale):
    values = scale * np.array([-3, -2, -1.5, 1, 2, 3])
    rule = calibration.fit(np.array([0, 0, 0, 1, 1, 1]), values, "a test")
    assert 0 < rule["temperature"] < 10 * scale
    assert calibration.calibrated(values, rule)[-1] < 0.99  # three pictures cannot say more


@pytest.mark.parametrize(("labels", "values", "words"), [
    ([0, 0, 1, 1], [2, 1, -1, -2], "do not rise"), ([0, 0, 1, 1], [1, 1, 1, 1], "do not rise"),
    ([1, 1], [1, 2], "0 real and 2 fake"), ([0, 1], [1, np.nan], "1 of 2 scores are not finite"),
    ([0, 1], [1, 2, 3], "as many labels")])
def test_what_cannot_be_calibrated(labels, values, words):
    with pytest.raises(TellError, match=words):
        calibration.fit(np.array(labels), np.array(values, float), "a test")


# --- cannot tell -------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (50, 0.05), (333, 0.05), (99, 0.01), (7, 0.3)])
def test_the_bound_is_exceeded_as_often_as_promised(n, alpha):
    """Of uniform values the bound is the k-th least of n, above which lie 1 - k / (n + 1) on average."""
    random = np.random.default_rng(0)
    above = [1 - calibration.upper_bound(random.random(n), alpha) for _ in range(4000)]
    expected = np.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    assert np.mean(above) == pytest.approx(expected, abs=4 * np.std(above) / 4000 ** 0.5)
    assert expected <= alpha + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.5]))
def test_the_bound_holds_with_ties_and_few_pictures(values, alpha):
    """Each value in turn plays the new one: at most alpha of them lie above the bound of all the others."""
    values = np.array(values, float)
    bounds = [calibration.upper_bound(np.delete(values, i), alpha) for i in range(len(values))]
    assert (values > bounds).mean() <= alpha + 1e-9


def test_three_verdicts_and_what_they_cover():
    rule = {"real_bound": 1.0, "fake_bound": -1.0}
    values, labels = np.array([-2.0, -1, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 0])
    assert calibration.verdicts(values, rule).tolist() == ["REAL", *["cannot tell"] * 3, "FAKE", "FAKE"]
    real, fake = calibration.coverage(labels, values, rule)
    names = ("n", "coverage", "cannot_tell", "wrong")
    assert [real[name] for name in names] == pytest.approx([3, 2 / 3, 1 / 3, 1 / 3])
    assert [fake[name] for name in names] == pytest.approx([3, 1, 2 / 3, 0])
    apart = {"real_bound": -1.0, "fake_bound": 1.0}  # neither class is possible in between
    assert calibration.verdicts(np.array([-1.0, 0.0, 1.0]), apart).tolist() == ["REAL", "cannot tell", "FAKE"]
    assert calibration.coverage(np.array([1]), np.zeros(1), apart)[1]["coverage"] == 0


def test_few_validation_pictures_tell_nothing():
    rule = calibration.fit(*draw(10, 10), "a test")
    assert set(calibration.verdicts(np.linspace(-9, 9, 50), rule)) == {"cannot tell"}
    assert rule["false_alarm_bounds"] == {0.01: np.inf, 0.05: np.inf}


def test_new_pictures_like_validations_are_covered():
    rule = calibration.fit(*draw(10_000, 10_000, 3), "a test")
    for row in calibration.coverage(*draw(10_000, 10_000, 4), rule):
        assert row["coverage"] == pytest.approx(0.95, abs=0.01)
    shifted = calibration.coverage(*draw(10_000, 10_000, 5, bias=2.0), rule)
    assert shifted[0]["coverage"] < 0.9  # which is why it is measured on every set


# --- in checkpoints ----------------------------------------------------------------------------

@pytest.fixture
def trained(tmp_path):
    tree = make_tree(tmp_path / "easy", train=200, test=20)
    train.main(["-ep", "3", "-mf", "one", "--data", str(tree), "-lr", "0.02"])
    return tree


def test_a_new_checkpoint_is_calibrated_on_its_kept_epoch(trained):
    network, facts = checkpoints.load("one")
    val = load(str(trained)).split("val")
    expected = calibration.fit(val.labels, logits(network, val), f"{len(val)} validation pictures of easy")
    assert facts["calibration"] == expected


def test_the_command_adds_a_calibration_and_nothing_else(trained, capsys):
    path = checkpoints.path_of("one")
    whole = checkpoints.read(path)
    calibrated = whole.pop("calibration")
    checkpoints.write(path, whole)
    assert "calibration" not in checkpoints.load("one")[1]
    row = calibration.main(["-mf", "one", "--data", str(trained)])["models"][0]
    found = checkpoints.read(path)
    assert found.pop("calibration") == calibrated
    weights, expected = found.pop("weights"), whole.pop("weights")
    assert found == whole
    assert all(torch.equal(weights[key], expected[key]) and weights[key].stride() == expected[key].stride()
               for key in expected)
    assert weights.keys() == expected.keys()
    assert row["after"]["balanced_nll"] <= row["before"]["balanced_nll"]
    assert "before   ECE" in capsys.readouterr().out
    checkpoints.add("one", calibration={"stale": 1.0}, seed=5)  # what is there is replaced
    facts = checkpoints.load("one")[1]
    assert (facts["calibration"], facts["seed"]) == ({"stale": 1.0}, 5)


def test_pictures_that_it_was_not_trained_on_are_refused(trained, tmp_path):
    other = make_tree(tmp_path / "other", train=20, test=5, seed=5)
    before = checkpoints.path_of("one").read_bytes()
    with pytest.raises(TellError, match="one was trained on easy, and .*other is not that set; give it as"):
        calibration.main(["-mf", "one", "--data", str(other)])
    assert checkpoints.path_of("one").read_bytes() == before


def test_the_course_projects_files_stay_as_they_are(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save(build("CIFAKE_CNN").state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(TellError, match="nothing can be added"):
        checkpoints.add(str(path), calibration={})
    assert path.read_bytes() == before


def test_training_without_success_says_that_there_is_no_calibration(tmp_path, capsys, monkeypatch):
    tree = make_tree(tmp_path / "easy", train=100, test=5)
    monkeypatch.setattr(train, "logits", lambda network, val, device: np.zeros(len(val), np.float32))
    train.main(["-ep", "1", "-mf", "flat", "--data", str(tree)])
    assert "no calibration: the logits of validation do not rise" in capsys.readouterr().out
    assert "calibration" not in checkpoints.load("flat")[1]


@pytest.mark.parametrize("name", ["base_model", "mini_model", "attn_model"])
def test_the_committed_rules_follow_from_validation(name, real_cifake, monkeypatch):
    """Another machine may round the last bits of the logits otherwise."""
    monkeypatch.setenv("TELL_MODELS", str(CODE.parent / "models"))
    network, facts = checkpoints.load(name)
    val = load(str(real_cifake)).split("val")
    again = calibration.fit(val.labels, logits(network, val), "10,000 validation pictures of cifake")
    bounds, kept = again.pop("false_alarm_bounds"), dict(facts["calibration"])
    assert kept.pop("false_alarm_bounds") == pytest.approx(bounds, abs=1e-2)
    assert (kept.pop("source"), kept.pop("n")) == (again.pop("source"), again.pop("n"))
    assert kept == pytest.approx(again, abs=1e-2)
