"""The overview of recipes: what it reads, and what it does where something is missing."""
import numpy as np
import pytest
from matplotlib.text import Text

import overview
from files import TellError, folder, write_csv


def scored(run: str, accuracy: float, seconds: tuple[float, ...] = ()) -> None:
    row = {"n": 20_000, "accuracy": accuracy, "roc_auc": 0.9}
    write_csv(folder("results") / f"metrics-{run}-cifake-test.csv", [row])
    if seconds:
        write_csv(folder("results") / f"history-{run}.csv", [{"epoch": i, "seconds": s}
                                                             for i, s in enumerate(seconds)])


def test_seeds_are_preferred_to_the_single_run_and_sorted():
    scored("net", 0.5)
    assert overview.runs_of("net") == ["net"]
    for seed in (1, 0):
        scored(f"net-s{seed}", 0.9)
    scored("net-small-s0", 0.1)  # of another recipe
    assert overview.runs_of("net") == ["net-s0", "net-s1"]


def test_the_seeds_of_a_recipe_with_and_without_twins():
    for seed in (1, 0):
        scored(f"net-s{seed}", 0.9 + seed / 100)
    write_csv(folder("results") / "without-twins.csv", [{"model": "net-s1", "accuracy_without": 0.88}])
    rows = overview.of_seeds("net")
    assert [(row["run"], row["accuracy"]) for row in rows] == [("net-s0", 0.9), ("net-s1", 0.91)]
    assert np.isnan(rows[0]["without twins"])
    assert rows[1]["without twins"] == 0.88
    assert np.isnan(rows[1]["object class"])


def test_a_recipe_without_scores_is_named():
    with pytest.raises(TellError, match="none_such: no scores.*test.py -mf none_such"):
        overview.row_of("none_such")


def test_mean_deviation_and_seconds(monkeypatch):
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        scored(f"net-s{seed}", accuracy, (1.0, 2.0))
    network = type("Net", (), {"parameters": lambda self: [np.zeros((2, 3))]})()
    monkeypatch.setattr(overview.checkpoints, "load", lambda name: (network, {}))
    monkeypatch.setattr(overview, "parameters", lambda network: 6)
    row = overview.row_of("net")
    assert row["accuracy"] == pytest.approx(0.93)
    assert row["sd"] == pytest.approx(0.0360555)
    assert (row["seeds"], row["seconds"], row["parameters"]) == (3, 3.0, 6)
    assert np.isnan(row["object_accuracy"])  # no such head


def test_seconds_of_a_second_cycle_count_the_first(monkeypatch):
    for seed, seconds in enumerate((10.0, 20.0)):
        scored(f"long-s{seed}", 0.9, (seconds,))
        scored(f"short-s{seed}", 0.8, (1.0, 2.0))
    started = {"long": {"recipe": {"start": "short-s1"}}, "short": {"recipe": {"start": None}}}
    monkeypatch.setattr(overview.checkpoints, "load", lambda name: (None, started[name]))
    assert overview.seconds_with_start("long") == 15 + 3


def test_generators_left_out_in_their_order():
    names = ("roc_auc", "balanced_accuracy")
    rates = {f"{name}{end}": 0.5 for name in names for end in ("", "_low", "_high", "_oracle")}
    rates |= dict.fromkeys(("threshold", "threshold_oracle", "real_recall", "fake_recall", "accuracy",
                            "majority", "metadata_accuracy", "metadata_roc_auc"), 0.5)
    for number, generator in enumerate(("glide", "adm")):
        counts = {"real_as_real": 7, "real_as_fake": 4, "fake_as_fake": number, "fake_as_real": 10}
        write_csv(folder("results") / f"metrics-q_{generator}-set-test-{generator}.csv", [counts | rates])
    rows = overview.left_out("q", "set")
    found = [(row["left out"], row["real"], row["fake"]) for row in rows]
    assert found == [("adm", 11, 11), ("glide", 11, 10)]
    assert overview.left_out("q", "another") == []


@pytest.mark.parametrize(("key", "crosses"), [("parameters", 1), ("seconds", 0)])
def test_names_stand_inside_and_cover_no_dot_and_no_other_name(key, crosses):
    accuracies = {"far": (0.7, 1), "a": (0.983, 100), "b": (0.9845, 110), "c": (0.9857, 110),
                  "d": (0.984, 120)}
    rows = [{"model": name, "seeds": 5, "accuracy": accuracy, "sd": 0.001, key: 1000 * x}
            for name, (accuracy, x) in accuracies.items()]
    figure = overview.plot_overview(rows, key)
    figure.draw_without_rendering()
    ax, = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert len([line for line in ax.lines if line.get_marker() == "x"]) == crosses
    names = [text for text in ax.texts if text.get_text().endswith("(5)")]
    assert [text.get_text() for text in names] == [f"{name} (5)" for name in accuracies]
    spots = ax.transData.transform([(row[key], 1 - row["accuracy"]) for row in rows])
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    for i, box in enumerate(boxes):
        assert ax.bbox.count_contains(box.corners()) == 4 or ax.texts[i] not in names
        assert not box.count_contains(spots)
        assert not any(map(box.overlaps, boxes[:i]))
