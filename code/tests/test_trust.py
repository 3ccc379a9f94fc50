"""Thresholds, detection, sources: against scikit-learn, plain loops and plain bootstraps; and the command."""
import numpy as np
import pytest
from conftest import CODE, make_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_curve

import calibration
import checkpoints
import scoring
import test
import train
import trust
from files import TellError, folder, read_csv

PAIRS = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=4, max_size=60).filter(
    lambda pairs: 2 <= sum(label for label, _ in pairs) <= len(pairs) - 2)


def columns(pairs):
    labels, values = zip(*pairs, strict=True)
    return np.array(labels), np.array(values, float)


def draw(reals: int, fakes: int, seed: int = 0):
    labels = np.repeat([False, True], [reals, fakes])
    return labels, np.random.default_rng(seed).normal(np.where(labels, 1.0, -1.0), 1.5)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_balanced_accuracy_and_its_interval(pairs):
    labels, values = columns(pairs)
    found = trust.balanced_accuracy(labels, (values >= 0) == labels)
    middle, low, high = (found[f"balanced_accuracy{end}"] for end in ("", "_low", "_high"))
    assert middle == pytest.approx(balanced_accuracy_score(labels, values >= 0))
    assert -1e-12 <= low <= middle <= high <= 1 + 1e-12
    assert high > low


def test_the_balanced_interval_holds_the_truth():
    random, held = np.random.default_rng(0), 0
    labels = np.repeat([False, True], [120, 30])
    for _ in range(400):
        right = random.random(150) < np.where(labels, 0.9, 0.6)
        found = trust.balanced_accuracy(labels, right)
        held += found["balanced_accuracy_low"] <= 0.75 <= found["balanced_accuracy_high"]
    assert 0.91 <= held / 400 <= 0.99


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_auc_interval_is_delongs(pairs):
    labels, values = columns(pairs)
    wins = np.sign(values[labels][:, None] - values[~labels]) / 2 + 0.5  # every fake against every real
    variance = wins.mean(1).var(ddof=1) / labels.sum() + wins.mean(0).var(ddof=1) / (~labels).sum()
    half = 1.959963984540054 * variance ** 0.5
    found = trust.auc_interval(labels, values)
    if half:
        assert found["roc_auc_low"] == pytest.approx(max(0, wins.mean() - half))
        assert found["roc_auc_high"] == pytest.approx(min(1, wins.mean() + half))


def test_a_perfect_auc_is_no_certainty():
    found = trust.auc_interval(np.repeat([False, True], [50, 10]), np.arange(60.0))
    assert found == pytest.approx({"roc_auc_low": scoring.wilson(10, 10)[0], "roc_auc_high": 1.0})
    found = trust.auc_interval(np.repeat([True, False], [10, 50]), np.arange(60.0))
    assert found == pytest.approx({"roc_auc_low": 0.0, "roc_auc_high": scoring.wilson(0, 10)[1]})


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.sampled_from([0.01, 0.05, 0.25]))
def test_detection_is_the_roc_curves(pairs, false_alarm):
    labels, values = columns(pairs)
    alarms, found, _ = roc_curve(labels, values, drop_intermediate=False)
    expected = found[alarms <= false_alarm + 1e-12].max()
    assert trust.detection(labels, values, false_alarm)["pd"] == pytest.approx(expected)


@pytest.mark.parametrize("false_alarm", [0.01, 0.05])
def test_detections_interval_is_the_bootstraps(false_alarm):
    labels, values = draw(300, 200)
    random = np.random.default_rng(1)
    plain = []
    for _ in range(3000):
        reals, fakes = (random.choice(part, len(part)) for part in (values[~labels], values[labels]))
        allowed = int(false_alarm * len(reals))
        plain.append((fakes > np.sort(reals)[len(reals) - allowed - 1]).mean())
    found = trust.detection(labels, values, false_alarm)
    np.testing.assert_allclose([found["pd_low"], found["pd_high"]], np.quantile(plain, (0.025, 0.975)),
                               atol=0.04)
    assert found["pd_low"] < found["pd"] < found["pd_high"]


@pytest.mark.parametrize(("fakes_at", "pd", "low", "high"), [
    (-9.0, 0, 0, scoring.wilson(0, 12)[1]), (9.0, 1, scoring.wilson(12, 12)[0], 1)])
@pytest.mark.parametrize("false_alarm", [0.01, 0.05])
def test_no_fake_found_or_every_one_is_no_certainty(fakes_at, pd, low, high, false_alarm):
    labels = np.repeat([False, True], [40, 12])
    values = np.where(labels, fakes_at, np.random.default_rng(0).normal(size=52))
    found = trust.detection(labels, values, false_alarm)
    assert found == pytest.approx({"pd": pd, "pd_low": low, "pd_high": high}, abs=1e-12)


def test_none_found_keeps_what_the_bootstrap_gives_beyond_wilson():
    labels, values = draw(40, 200)
    values[0] = 99  # a real above all fakes, which a resample may lack
    found = trust.detection(labels, values, 0.01)
    assert (found["pd"], found["pd_low"]) == (0, 0)
    assert found["pd_high"] > 0.1 > scoring.wilson(0, 200)[1]


def test_the_oracle_of_an_unbalanced_set_is_not_the_majority():
    labels, values = draw(2000, 20, 3)
    row = trust.report(labels, values, 0.5, None)
    scores = scoring.sigmoid(values)
    assert row["accuracy_oracle"] <= (~labels).mean() + 0.001
    assert row["balanced_accuracy_oracle"] < 0.55  # the plain one calls next to all REAL
    balanced = [balanced_accuracy_score(labels, scores >= t) for t in [*scores, 2.0]]
    assert row["best_balanced_accuracy"] == pytest.approx(max(balanced))
    assert row["best_balanced_accuracy"] > 0.75
    called = scores >= row["threshold_balanced_oracle"]
    assert row["best_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, called))
    low, high = (row[f"best_balanced_accuracy_{end}"] for end in ("low", "high"))
    assert low < row["best_balanced_accuracy"] < high


def test_the_balanced_oracle_is_printed_beside_the_transferred_accuracy(capsys):
    labels, values = draw(300, 30, 3)
    row = scoring.score(labels, scoring.sigmoid(values), 0.3) | trust.report(labels, values, 0.3, None)
    trust.print_report(row, None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("thresholds"))
    assert f"{row['balanced_accuracy']:.2%} at 0.3000, transferred" in line
    assert f"{trust.percent(row, 'best_balanced_accuracy')} at {row['threshold_balanced_oracle']:.4f}" in line


def test_a_source_of_both_classes_is_printed_with_intervals(capsys):
    labels, values = draw(60, 40)
    sources = np.where(np.arange(100) < 50, "one", "two")  # "one" has reals alone
    rows = trust.by_source(labels, scoring.sigmoid(values), 0.5, sources)
    trust.print_sources(rows)
    one, two, mean = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert one[-2:] == ["-", "-"]
    assert " ".join(two[5:]) == f"{trust.percent(rows[1], 'balanced_accuracy')} {trust.area(rows[1])}"
    assert mean[-1] == f"{rows[1]['roc_auc']:.4f}"


def test_the_report_agrees_with_the_verdicts_and_the_thresholds():
    labels, values = draw(400, 300)
    rule = calibration.fit(*draw(500, 500, 7), "a test")
    row = trust.report(labels, values, 0.3, rule)
    scores = scoring.sigmoid(values)
    assert row["accuracy_oracle"] == max(((scores >= t) == labels).mean() for t in [*scores, 2.0])
    assert row["accuracy_oracle"] == ((scores >= row["threshold_oracle"]) == labels).mean()
    above = values > rule["false_alarm_bounds"][0.05]
    assert (row["false_alarm_val_5"], row["pd_val_5"]) == (above[~labels].mean(), above[labels].mean())
    assert row["wrong_real"] == row["false_alarm_val_5"]  # alpha is 5 %: FAKE is above real_bound
    told = calibration.verdicts(values, rule)
    assert row["decided"] == (told != "cannot tell").sum()
    assert row["decided_accuracy"] == pytest.approx(
        ((told == "FAKE") & labels | (told == "REAL") & ~labels).sum() / row["decided"])
    assert row["calibrated_balanced_nll"] == pytest.approx(
        calibration.errors(labels, calibration.scaled(values, rule))["balanced_nll"])


@pytest.mark.parametrize("label", [0, 1])
def test_pictures_of_one_class_have_a_coverage_and_no_nonsense(label, capsys):
    rule = calibration.fit(*draw(500, 500, 7), "a test")
    labels, values = np.full(40, label), np.linspace(-3, 3, 40)
    row = scoring.score(labels, scoring.sigmoid(values)) | trust.report(labels, values, 0.5, rule)
    own, other = ("real", "fake")[::1 - 2 * label]
    assert row[f"coverage_{own}"] > 0
    assert np.isnan(row[f"coverage_{other}"])
    assert not {"balanced_ece", "pd_at_1", "threshold_oracle"} & row.keys()
    trust.print_report(row, rule)
    said = capsys.readouterr().out
    assert "one class only" in said
    assert "nan" not in said
    assert f"{own.upper()} pictures" in said
    assert f"{other.upper()} pictures" not in said


def test_by_source():
    labels, sources = np.array([0, 0, 1, 1, 1]), np.array(["a", "b", "a", "a", "c"])
    rows = trust.by_source(labels, np.array([0.1, 0.9, 0.9, 0.2, 0.9]), 0.5, sources)
    assert [row["source"] for row in rows] == ["a", "b", "c", "AVG"]
    assert (rows[0]["real_recall"], rows[0]["fake_recall"], rows[0]["balanced_accuracy"]) == (1, 0.5, 0.75)
    assert np.isnan(rows[1]["balanced_accuracy"])
    assert (rows[0]["roc_auc"], rows[3]["roc_auc"]) == (1, 1)
    assert rows[0]["balanced_accuracy_low"] < 0.75 < rows[0]["balanced_accuracy_high"]
    assert np.isnan([row[key] for row in rows[1:3] for key in ("roc_auc", "roc_auc_low")]).all()
    assert (rows[3]["n_real"], rows[3]["n_fake"]) == (2, 3)
    assert (rows[3]["real_recall"], rows[3]["fake_recall"], rows[3]["balanced_accuracy"]) == (0.5, 0.75, 0.75)


def test_the_command_reads_what_was_scored(tmp_path, capsys):
    tree, other = make_tree(tmp_path / "easy", train=100), make_tree(tmp_path / "other", train=1, seed=3)
    train.main(["-ep", "2", "-mf", "one", "--data", str(tree), "-lr", "0.02"])
    with pytest.raises(TellError, match=r"first python code/test.py -mf one --data .*easy --split test"):
        trust.main(["-mf", "one", "--data", str(tree)])
    rows = [test.main(["-mf", "one", "--data", str(data)])["models"][0] for data in (tree, other)]
    found = trust.main(["-mf", "one", "--data", str(tree), str(other)])["rows"]
    assert [row["data"] for row in found] == ["easy", "other"]
    for mine, theirs in zip(found, rows, strict=True):
        same = mine.keys() & theirs.keys()
        assert {"accuracy", "balanced_ece", "coverage_real", "pd_at_5"} <= same
        np.testing.assert_equal({key: mine[key] for key in same}, {key: theirs[key] for key in same})
    assert len(read_csv(folder("results") / "trust-one.csv")) == 2
    assert (folder("figures") / "trust-one.png").stat().st_size > 10_000


def test_without_calibration_it_says_what_to_do(tmp_path, capsys):
    tree = make_tree(tmp_path / "easy", train=100)
    train.main(["-ep", "1", "-mf", "old", "--data", str(tree)])
    path = checkpoints.path_of("old")
    content = checkpoints.read(path)
    content.pop("calibration", None)
    checkpoints.write(path, content)
    row = test.main(["-mf", "old", "--data", str(tree)])["models"][0]
    assert "python code/calibration.py adds it" in capsys.readouterr().out
    assert "balanced_ece" in row
    assert "coverage_real" not in row
    with pytest.raises(TellError, match="old has no calibration; python code/calibration.py -mf old adds it"):
        trust.main(["-mf", "old", "--data", str(tree)])


def test_the_committed_table_follows_from_the_committed_scores(monkeypatch):
    monkeypatch.setenv("TELL_MODELS", str(CODE.parent / "models"))
    monkeypatch.setenv("TELL_RESULTS", str(CODE.parent / "paper/results"))
    written = read_csv(folder("results") / "trust-base_model.csv")
    sets = {row["data"]: trust.saved("base_model", row["data"], "test") for row in written}
    for row, again in zip(written, trust.table(sets, checkpoints.load("base_model")[1]), strict=True):
        assert row.keys() == again.keys()
        for key in list(row)[1:]:
            assert (row[key] == again[key] == "") or float(row[key]) == pytest.approx(
                float(again[key]), abs=1e-9, nan_ok=True), key
