"""What verdicts are worth: against scikit-learn and SciPy, and the command on pictures made here."""
import contextlib
import io

import numpy as np
import pytest
from conftest import CODE, SETTINGS, encoded, make_tree, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats.contingency import relative_risk
from sklearn.metrics import precision_score

import calibration
import checkpoints
import test as scorer
import worth
import worth_figures
from datasets import load
from files import TellError, folder, read_csv

BASE = CODE.parent / "models/base_model.pth"
RULE = {"real_bound": 1.0, "fake_bound": -1.0}
PAIRS = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=60).filter(
    lambda pairs: 0 < sum(label for label, _ in pairs) < len(pairs))


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_shares_are_those_of_coverage_and_precision_that_of_scikit_learn(pairs):
    labels, logits = (np.array(column) for column in zip(*pairs, strict=True))
    found = worth.shares(labels, logits, RULE)
    assert found["right"] + found["cannot_tell"] + found["wrong"] == pytest.approx(1)
    real, fake = calibration.coverage(labels, logits, RULE)
    assert (found["false_alarm"], found["miss"]) == (real["wrong"], fake["wrong"])
    told = calibration.verdicts(logits, RULE)
    weights = np.where(labels, 1 / labels.sum(), 1 / (~labels).sum())
    for word, name, truth in (("FAKE", "fake_right", labels), ("REAL", "real_right", ~labels)):
        wanted = precision_score(truth, told == word, sample_weight=weights, zero_division=np.nan)
        assert found[name] == pytest.approx(wanted, nan_ok=True)
        rare = np.where(truth, 0.02 * weights, 1.98 * weights)  # one picture in a hundred is of the class
        assert worth.at_prior(found[name], 0.01) == pytest.approx(
            precision_score(truth, told == word, sample_weight=rare, zero_division=np.nan), nan_ok=True)
        assert np.isnan(wanted) or found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_the_interval_of_a_verdict_is_that_of_the_likelihood_ratio():
    found = worth.at_even_odds("x", 40, 50, 6, 80)
    ends = relative_risk(40, 50, 6, 80).confidence_interval(0.95)
    assert found["x_low"] == pytest.approx(ends.low / (1 + ends.low))
    assert found["x_high"] == pytest.approx(ends.high / (1 + ends.high))


@pytest.mark.parametrize(("p", "n", "q", "m"), [(0.8, 60, 0.1, 60), (0.5, 160, 0.5, 174), (0.5, 60, 0.02, 9)])
def test_the_interval_holds_the_truth_as_often_as_it_says(p, n, q, m):
    random, truth = np.random.default_rng(0), p / (p + q)
    rows = [worth.at_even_odds("x", int(random.binomial(n, p)), n, int(random.binomial(m, q)), m)
            for _ in range(1000)]
    assert np.mean([row["x_low"] <= truth <= row["x_high"] for row in rows]) > 0.92


def test_one_class_gives_no_precision():
    found = worth.shares(np.zeros(5), np.array([-3.0, -2, 0, 2, 3]), RULE)
    assert (found["right"], found["cannot_tell"], found["wrong"]) == (0.4, 0.2, 0.4)
    assert np.isnan([found["fake_right"], found["miss"]]).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The committed base network on pictures made here: the folder of results, and what was printed."""
    root, printed, random = tmp_path_factory.mktemp("worth"), io.StringIO(), np.random.default_rng(0)
    tree, wild = make_tree(root / "tree", train=2, test=30), root / "wild"
    for label in ("REAL", "FAKE"):
        (wild / label.lower()).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(pixels(label, random)).resize((70, 50), Image.Resampling.NEAREST)
            (wild / label.lower() / f"{i}.png").write_bytes(encoded(picture, "PNG"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name in SETTINGS:
            patch.setenv(f"TELL_{name}", str(root / name.lower()))
        photographs = load(str(tree)).split("train")
        patch.setattr(worth, "open_photographs", lambda: photographs.take(photographs.labels == 0))
        checkpoints.write(checkpoints.path_of("base_model"), checkpoints.read(BASE))
        scorer.main(["-mf", "base_model", "--data", str(tree)])
        worth.main(["--data", str(tree), "--natural", str(wild)])
    return root / "results", printed.getvalue()


@pytest.fixture
def measured(run, monkeypatch):
    """Rows by kind, and what was printed."""
    monkeypatch.setenv("TELL_RESULTS", str(run[0]))
    rows = read_csv(folder("results") / "worth-base_model.csv")
    return {row["kind"]: row for row in rows}, run[1]


def test_rows_are_what_test_py_found_and_what_is_missing_is_named(measured):
    rows, printed = measured
    wanted = read_csv(folder("results") / "metrics-base_model-tree-test.csv")[0]
    for key in ("n", "accuracy", "accuracy_oracle", "roc_auc", "false_alarm_val_1"):
        assert rows["CIFAKE's test half"][key] == wanted[key]
    assert rows["CIFAKE's test half"]["right"] != rows["sent by messenger, 0.75"]["right"]
    assert set(worth.KINDS) - set(rows) == {"real, never JPEG"}
    assert "left out: real, never JPEG (" in printed
    assert {row["n"] for kind, row in rows.items() if kind.startswith("natural")} == {"8"}


def test_figures_show_all_of_each_kind(measured, capsys):
    models = worth.measured("worth-{}", ["base_model", "gone"])
    assert "not measured yet: $TELL_RESULTS/worth-gone.csv" in capsys.readouterr().out
    ends = {}
    for bar in worth_figures.plot_worth(models).axes[0].patches:
        ends[bar.get_y()] = ends.get(bar.get_y(), 0) + bar.get_width()
    np.testing.assert_allclose(list(ends.values()), 1)
    assert len(ends) == len(models["base_model"])
    drawn = worth_figures.plot_coverage(models).axes[0].containers[1].lines[0].get_xdata()
    wanted = [float(row["coverage_fake"]) for row in models["base_model"] if row["fakes"] != "0"]
    np.testing.assert_array_equal(drawn, wanted)
    assert len(worth.worth_at(models["base_model"], (0.5,))) == len(wanted) < len(models["base_model"])
    with pytest.raises(TellError, match=r"no degradation-NAME.csv"):
        worth.measured("degradation-{}", ["base_model"])


def test_priors_show_a_line_a_model_and_no_band_where_nothing_was_observed():
    rows = [{"kind": kind, "fake_right": share, "fake_right_low": low, "fake_right_high": high}
            for kind, share, low, high in (("a", "0.9", "0.8", "0.95"), ("b", "1.0", "0.98", "1.0"),
                                           ("c", "0.0", "0.0", "0.3"), ("d", "nan", "nan", "nan"))]
    figure = worth_figures.plot_priors({"one": rows, "two": [rows[0], *rows[2:]]})
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert [(name, len(ax.lines), len(ax.collections)) for name, ax in panels.items()] == [
        ("a", 2, 2), ("b", 1, 0), ("c", 2, 0)]
    for name, end in (("a", 0.9), ("b", 0.98), ("c", 0.3)):
        drawn = panels[name].lines[0].get_ydata()
        np.testing.assert_allclose(drawn, worth.at_prior(end, worth_figures.PRIORS))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["one", "two", "one: at least (95 %)", "one: at most (95 %)", "two: at most (95 %)"]


def test_scores_that_are_there_are_read(measured):
    found = worth.scored_sets("base_model", ("tree", "gone"))
    labels, _ = found.pop("tree")
    assert (len(labels), labels.sum(), found) == (60, 30, {})


def test_unseen_sources_are_those_of_the_first_method():
    rows = [{"method": method, "pictures": pictures, "source": source, "n_real": 3, "n_fake": 4,
             "roc_auc": auc, "roc_auc_low": 0.4, "roc_auc_high": 0.9}
            for method, auc in (("one", 0.7), ("two", 0.6))
            for pictures in ("as they are", "re-saved") for source in ("a", "b", "MEAN")]
    means, sources = worth_figures.plot_unseen(rows).axes
    names = [[text.get_text() for text in ax.get_yticklabels()] for ax in (means, sources)]
    assert names == [["one", "two"], ["a (3 real, 4 fake)", "b (3 real, 4 fake)"]]
    np.testing.assert_array_equal(means.containers[0].lines[0].get_xdata(), [0.7, 0.6])
    np.testing.assert_array_equal(sources.containers[0].lines[0].get_xdata(), [0.7, 0.7])


def test_a_network_without_calibration_is_refused(tree):
    content = checkpoints.read(BASE)
    del content["calibration"]
    path = folder("models") / "m.pth"
    checkpoints.write(path, content)
    with pytest.raises(TellError, match=r"code/calibration.py adds one"):
        worth.main(["-mf", "m", "--data", str(tree)])
