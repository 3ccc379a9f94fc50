"""test.py: every number against scikit-learn and scipy, and what the command prints and writes."""
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import encoded, make_tree, run_tell
from hypothesis import given, settings
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics

import checkpoints
import scoring
import test
from classes import build
from datasets import load
from files import TellError, folder, read_csv

LABELS_AND_SCORES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(np.linspace(0, 1, 17).tolist())),
                             min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(LABELS_AND_SCORES, st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
def test_numbers_equal_scikit_learns(pairs, threshold):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    found = scoring.score(labels, scores, threshold)
    verdicts = scores >= threshold
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, verdicts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rates = metrics.precision_recall_fscore_support(labels, verdicts, labels=[0, 1], zero_division=np.nan)
    for i, name in enumerate(("real", "fake")):
        mine = [found[f"{name}_{rate}"] for rate in ("precision", "recall")]
        np.testing.assert_allclose(mine, [rates[0][i], rates[1][i]])
    assert metrics.confusion_matrix(labels, verdicts, labels=[0, 1]).ravel().tolist() == [
        found["real_as_real"], found["real_as_fake"], found["fake_as_real"], found["fake_as_fake"]]
    if 0 < labels.sum() < len(labels):
        assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert found["average_precision"] == pytest.approx(metrics.average_precision_score(labels, scores))
        f1 = metrics.f1_score(labels, verdicts, zero_division=np.nan)
        np.testing.assert_allclose(found["fake_f1"], f1)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 2), (18_340, 20_000), (3, 334)])
def test_interval_is_wilsons(hits, n):
    interval = binomtest(hits, n).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(scoring.wilson(hits, n), interval, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(LABELS_AND_SCORES)
def test_no_threshold_is_better_than_the_chosen_one(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    others = np.concatenate(([0, 2], scores, scores + 1e-9))
    for choose, accuracy_of in ((scoring.choose_threshold, metrics.balanced_accuracy_score),
                                (scoring.oracle_threshold, metrics.accuracy_score)):
        threshold, accuracy = choose(labels, scores)
        if 0 < labels.sum() < len(labels) or choose is scoring.oracle_threshold:
            assert accuracy_of(labels, scores >= threshold) == pytest.approx(accuracy)
            assert accuracy >= max(accuracy_of(labels, scores >= other) for other in others) - 1e-12
        else:
            assert accuracy == ((scores >= threshold) == labels).mean() == 1


def threshold_of_before(labels, scores):
    """choose_threshold as it was when it maximised plain accuracy."""
    values, group = np.unique(scores, return_inverse=True)
    fakes = np.bincount(group, weights=labels.astype(bool), minlength=len(values))
    reals = np.bincount(group, minlength=len(values)) - fakes
    right = np.cumsum(np.append(0, reals)) + labels.sum() - np.cumsum(np.append(0, fakes))
    above = np.nextafter(values, 2)
    cuts = np.concatenate(([0.0], np.maximum((values[1:] + values[:-1]) / 2, above[:-1]), above[-1:]))
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[np.argmin(abs(cuts[best] - 0.5))]]), float(right.max() / len(labels))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(np.linspace(0, 1, 17).tolist())] * 2), min_size=1, max_size=60))
def test_with_as_many_fakes_as_reals_the_threshold_has_the_bits_of_before(pairs):
    labels, scores = np.tile(np.array([0, 1], np.uint8), len(pairs)), np.array(pairs).ravel()
    assert scoring.choose_threshold(labels, scores) == threshold_of_before(labels, scores)
    assert scoring.oracle_threshold(labels, scores) == threshold_of_before(labels, scores)
    assert scoring.accuracy_name(labels) == "accuracy"


def test_many_pictures_too_have_the_bits_of_before():
    random = np.random.default_rng(0)
    labels = np.repeat(np.array([0, 1], np.uint8), 5000)
    for decimals in (2, 17):  # with many ties, and without
        scores = np.round(np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1), decimals)
        assert scoring.choose_threshold(labels, scores) == threshold_of_before(labels, scores)


def test_many_fakes_do_not_make_everything_fake():
    random = np.random.default_rng(0)
    labels = (np.arange(1000) % 5 > 0).astype(np.uint8)  # 80 %
    scores = np.clip(random.normal(0.45 + 0.05 * labels, 0.1), 0, 1)
    assert threshold_of_before(labels, scores)[0] < scores.min()
    threshold, accuracy = scoring.choose_threshold(labels, scores)
    found = scoring.score(labels, scores, threshold)
    assert min(found["fake_recall"], found["real_recall"]) > 0.4
    assert accuracy == pytest.approx((found["fake_recall"] + found["real_recall"]) / 2)
    assert scoring.accuracy_name(labels) == "balanced accuracy"


def test_of_equal_thresholds_the_one_nearest_to_a_half():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert scoring.choose_threshold(labels, scores) == (0.5, 1.0)


def test_one_class_has_no_auc_but_a_false_alarm_rate():
    found = scoring.score(np.zeros(4), np.array([0.1, 0.2, 0.9, 0.3]))
    assert np.isnan(found["roc_auc"])
    assert np.isnan(found["fake_recall"])
    assert found["real_recall"] == 0.75
    assert found["majority"] == 1


def test_what_cannot_be_scored():
    with pytest.raises(TellError, match="as many labels as scores"):
        scoring.score(np.zeros(3), np.zeros(4))
    with pytest.raises(TellError, match="as many labels as scores"):
        scoring.score(np.zeros(0), np.zeros(0))
    with pytest.raises(TellError, match="1 of 2 scores are not finite"):
        scoring.score(np.zeros(2), np.array([0.5, np.nan]))


def test_sigmoid_does_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(scoring.sigmoid(np.array([-1e4, 0, 1e4], np.float32)), [0, 0.5, 1])


@pytest.fixture
def saved(tmp_path):
    """A folder of pictures, and two checkpoints that have learnt nothing."""
    tree = make_tree(tmp_path / "tree", test=30)
    for seed in (0, 1):
        torch.manual_seed(seed)
        content = checkpoints.pack(build("CIFAKE_CNN"), "CIFAKE_CNN", {"attn": False}, threshold=0.49,
                                   threshold_source="a test", data="nothing", fingerprint="none", seed=seed)
        checkpoints.write(checkpoints.path_of(f"net-s{seed}"), content)
    return tree


def test_predict_does_not_depend_on_batches_or_mode(saved, monkeypatch):
    network, _ = checkpoints.load("net-s0")
    data = load(str(saved)).split("test")
    scores = scoring.predict(network, data)
    assert scores.shape == (60,)
    assert scores.dtype == np.float64
    monkeypatch.setattr(scoring, "BATCH_SIZE", 7)
    network.train()
    np.testing.assert_allclose(scoring.predict(network, data), scores, atol=1e-6)
    assert network.training


def test_the_table_the_scores_and_the_numbers_agree(saved, capsys):
    row = test.main(["-mf", "net-s0", "--data", str(saved)])["models"][0]
    said = capsys.readouterr().out
    paths, labels, logits = scoring.read_scores(folder("results") / "scores-net-s0-tree-test.csv")
    data = load(str(saved)).split("test")
    assert paths.tolist() == data.paths.tolist()
    np.testing.assert_array_equal(logits, scoring.logits(checkpoints.load("net-s0")[0], data))
    again = scoring.score(labels, scoring.sigmoid(logits), row["threshold"])
    np.testing.assert_equal(again, {key: row[key] for key in again})
    written = read_csv(folder("results") / "metrics-net-s0-tree-test.csv")[0]
    assert float(written["accuracy"]) == row["accuracy"]
    for words in ("n = 60", f"{row['accuracy']:.2%}", "95 % interval", "majority baseline 50.00%", "FAKE  ",
                  "REAL  ", "ROC AUC", "average precision", "0.4900   (a test)", "scores:", "checkpoint:"):
        assert words in said


def test_threshold_of_the_flag(saved):
    row = test.main(["-mf", "net-s0", "--data", str(saved), "-thr", "0"])["models"][0]
    assert row["fake_recall"] == 1
    assert row["real_recall"] == 0
    assert row["threshold_source"] == "-thr"


def test_a_users_threshold_leaves_the_checkpoints_own_numbers(saved):
    own = test.main(["-mf", "net-s0", "--data", str(saved)])["models"][0]
    test.main(["-mf", "net-s0", "--data", str(saved), "-thr", "0.99"])
    written = read_csv(folder("results") / "metrics-net-s0-tree-test.csv")[0]
    assert float(written["threshold"]) == own["threshold"]
    assert (folder("results") / "metrics-net-s0-tree-test-thr0.99.csv").exists()


def test_several_models_give_a_mean(saved, capsys):
    rows = test.main(["-mf", "net-s*", "--data", str(saved)])["models"]
    assert [row["model"] for row in rows] == ["net-s0", "net-s1"]
    values = np.array([row["accuracy"] for row in rows])
    assert f"2 models: accuracy {values.mean():.2%} ± {values.std(ddof=1):.2%}" in capsys.readouterr().out


def test_training_pictures_are_no_test(saved, capsys):
    network = build("CIFAKE_CNN")
    content = checkpoints.pack(network, "CIFAKE_CNN", {"attn": False}, threshold=0.5, seed=0, data="tree",
                               threshold_source="x", fingerprint=load(str(saved)).fingerprint)
    checkpoints.write(checkpoints.path_of("known"), content)
    test.main(["-mf", "known", "--data", str(saved), "--split", "train"])
    assert "no measure of how well it generalises" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [
    (["-thr", "7"], "'7' is not a number from 0 to 1"), (["-thr", "x"], "'x' is not a number"),
    (["-mf"], "expected at least one argument"), (["--treshold", "0.5"], "unrecognized arguments"),
    (["--split", "dev"], "invalid choice")])
def test_wrong_flags_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        test.main(flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_no_such_checkpoint(saved):
    for name, words in (("nope", "no such checkpoint; in that folder: net-s0, net-s1"),
                        ("nope*", "no checkpoint matches")):
        with pytest.raises(TellError, match=words):
            test.main(["-mf", name, "--data", str(saved)])


def test_help_of_every_command():
    for script in ("train.py", "test.py", "datasets.py", "figures.py"):
        done = run_tell(script, "--help")
        assert done.returncode == 0
        assert "python code/" in done.stdout


def test_groups_and_mistakes():
    labels, groups = np.array([0, 0, 1, 1, 1]), np.array(["cat", "dog", "cat", "cat", "dog"])
    scores = np.array([0.9, 0.2, 0.1, 0.8, 0.3])
    rows = {(row["group"], row["label"]): (row["n"], row["accuracy"]) for row in
            scoring.by_group(labels, scores, 0.5, groups)}
    assert rows == {("cat", "REAL"): (1, 0), ("cat", "FAKE"): (2, 0.5), ("dog", "REAL"): (1, 1),
                    ("dog", "FAKE"): (1, 0)}
    assert scoring.most_wrong(labels, scores, 1, 2).tolist() == [2, 4]
    assert scoring.most_wrong(labels, scores, 0, 1).tolist() == [0]
    assert [row["accuracy"] for row in scoring.sweep(labels, scores, np.array([0.0, 0.5]))] == [0.6, 0.4]


def test_pictures_of_any_format_are_scored_or_named(saved, tmp_path, capsys):
    """Every file below real/ and fake/ is one or the other, and every row of the issue is printed."""
    random = np.random.default_rng(0)
    folder_of = {label: tmp_path / "mine" / label.lower() for label in ("REAL", "FAKE")}
    kinds = (("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "GIF"), ("1", "TIFF"),
             ("RGB", "WEBP"), ("RGB", "BMP"))
    for label, where in folder_of.items():
        where.mkdir(parents=True)
        for i, (mode, kind) in enumerate(kinds):
            picture = Image.fromarray(random.integers(0, 256, (20 + i, 70, 3), dtype=np.uint8))
            (where / f"{i} {label}.{kind}").write_bytes(encoded(picture.convert(mode), kind))
        (where / "cut.jpg").write_bytes(encoded(picture, "JPEG")[:300])
        (where / "notes.txt").write_text("no picture")
    row = test.main(["-mf", "net-s0", "--data", str(tmp_path / "mine")])["models"][0]
    said = capsys.readouterr().out
    assert row["n"] == 2 * len(kinds)
    assert said.count("unreadable: ") == 4
    for words in ("majority baseline", "metadata only", "balanced accuracy", "ROC AUC", "transferred",
                  "(oracle)", "Pd at 1 % false alarm", "calibration "):
        assert words in said


@pytest.mark.parametrize("label", ["real", "fake"])
def test_a_folder_of_one_class_is_scored(saved, tmp_path, label, capsys):
    (tmp_path / "mine" / label).mkdir(parents=True)
    for i in range(5):
        picture = Image.fromarray(np.full((40 + i, 60, 3), 50 * i, np.uint8))
        (tmp_path / "mine" / label / f"{i}.png").write_bytes(encoded(picture, "PNG"))
    row = test.main(["-mf", "net-s0", "--data", str(tmp_path / "mine")])["models"][0]
    assert (row["n"], row["majority"]) == (5, 1)
    assert row["accuracy"] == row[f"{label}_recall"]
    said = capsys.readouterr().out
    assert "one class only" in said
    assert "nan" not in said
