"""All recipes measured on CIFAKE's test half side by side: accuracy, parameters, training seconds.

    python code/overview.py                        every recipe of RECIPES that has been scored
    python code/overview.py base_model compact     these

Reads paper/results/ (metrics and histories of NAME and of its seeds NAME-s0, NAME-s1, ...) and the
checkpoints; writes paper/results/overview.csv. Seconds are those of the runs, whose threads
and load differ (seed runs have one thread): orders of magnitude, no more.
"""
import re

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import checkpoints
from classes import parameters
from figures import LINE, STYLE
from files import Parser, TellError, command_line, folder, read_csv, save_result
from genimage import GENERATORS

RECIPES = ("mini_model", "base_model", "attn_model", "effnet", "robust", "fast", "sturdy", "compact", "wide",
           "dual", "wide28")
MEANS = ("roc_auc", "object_accuracy")
# (name, accuracy on the official test half, parameters or None where none are stated)
PUBLISHED = (("Bird & Lotfi, CNN", 0.9298, None),  # IEEE Access 2024
             ("ResNet18, fine-tuned", 0.9649, 11_177_538),  # a course project's notebook
             ("DenseNet, transfer", 0.9774, None))  # arXiv:2401.07358
AXES = {"parameters": "parameters", "seconds": "seconds of training, as it was run"}
TICKS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
# Where a name may stand from its dot: points to the right and up, and which of its ends.
PLACES = ((7, 0, "left"), (-7, 0, "right"), *((right, up, side) for up in (12, -12, 24, -24, 36, -36, 48, -48)
                                              for right, side in ((9, "left"), (-9, "right"))))


def runs_of(name: str) -> list[str]:
    """The seed runs of a recipe that have been scored, or the recipe itself where there are none."""
    pattern = re.compile(rf"metrics-({re.escape(name)}-s\d+)-cifake-test\.csv")
    found = (pattern.fullmatch(path.name) for path in folder("results").glob("metrics-*.csv"))
    seeds = sorted(match[1] for match in found if match)
    return seeds or [name] * (folder("results") / f"metrics-{name}-cifake-test.csv").exists()


def column(runs: list[str], key: str) -> np.ndarray:
    """One number of the metrics of each run, float64 (runs,); nan where a run has it not."""
    rows = [read_csv(folder("results") / f"metrics-{run}-cifake-test.csv")[0] for run in runs]
    return np.array([float(row.get(key) or "nan") for row in rows])


def seconds_of(name: str) -> float:
    """Mean seconds of a recipe's runs; nan where their histories are not there."""
    paths = [folder("results") / f"history-{run}.csv" for run in runs_of(name)]
    rows = [read_csv(path) for path in paths if path.exists()]
    return float(np.mean([sum(float(row["seconds"]) for row in one) for one in rows])) if rows else np.nan


def seconds_with_start(name: str) -> float:
    """Mean seconds of a recipe's runs, and of those that they went on from."""
    start = checkpoints.load(name)[1].get("recipe", {}).get("start")
    if not start:
        return seconds_of(name)
    first = re.sub(r"-s\d+$", "", start)
    kept = checkpoints.path_of(first).exists()  # of a first cycle there may be no more than its numbers
    return seconds_of(name) + (seconds_with_start(first) if kept else seconds_of(first))


def row_of(name: str) -> dict:
    """One recipe: mean, deviation and range of its seeds on the same 20,000 pictures."""
    runs = runs_of(name)
    if not runs:
        raise TellError(f"{name}: no scores on CIFAKE's test half; run python code/test.py -mf {name}")
    accuracy, means = column(runs, "accuracy"), {key: column(runs, key).mean() for key in MEANS}
    return {"model": name, "parameters": parameters(checkpoints.load(name)[0]), "seeds": len(runs),
            "accuracy": accuracy.mean(), "sd": accuracy.std(ddof=1) if len(runs) > 1 else float("nan"),
            "lowest": accuracy.min(), "highest": accuracy.max(), "n": int(column(runs, "n")[0]), **means,
            "seconds": seconds_with_start(name)}


def of_seeds(name: str) -> list[dict]:
    """A row for each seed of a recipe: its accuracy, without the twins of leaks.py too, and on the object."""
    alone = {row["model"]: float(row["accuracy_without"])
             for row in read_csv(folder("results") / "without-twins.csv")}
    runs = runs_of(name)
    return [{"recipe": name, "run": run, "accuracy": accuracy, "without twins": alone.get(run, float("nan")),
             "object class": known} for run, accuracy, known in
            zip(runs, column(runs, "accuracy"), column(runs, "object_accuracy"), strict=True)]


def table(names: list[str]) -> list[dict]:
    return [row_of(name) for name in names]


def left_out(prefix: str, data: str) -> list[dict]:
    """A row for each generator that `test.py -mf PREFIX_GENERATOR --data DATA --leave-out GENERATOR` scored.

    Its fakes against the real pictures of the test part, neither seen in training; 95 % intervals.
    """
    keys = ("roc_auc", "roc_auc_low", "roc_auc_high", "threshold", "real_recall", "fake_recall",
            "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high", "threshold_oracle",
            "balanced_accuracy_oracle", "accuracy", "majority", "metadata_accuracy", "metadata_roc_auc")
    rows = []
    for generator in GENERATORS[1:]:
        path = folder("results") / f"metrics-{prefix}_{generator}-{data}-test-{generator}.csv"
        if path.exists():
            found = read_csv(path)[0]
            rows.append({"left out": generator,
                         "real": int(found["real_as_real"]) + int(found["real_as_fake"]),
                         "fake": int(found["fake_as_fake"]) + int(found["fake_as_real"]),
                         **{key: float(found[key]) for key in keys}})
    return rows


def plot_overview(rows: list[dict], key: str = "parameters") -> Figure:
    """Test error against "parameters" or "seconds" of training, both axes logarithmic.

    Bars: one standard deviation over seeds. Dotted: published figures, one run each.
    """
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
        dots = [(row[key], 1 - row["accuracy"], f"{row['model']} ({row['seeds']})") for row in rows]
        for (x, y, _), row in zip(dots, rows, strict=True):
            ax.errorbar(x, y, np.nan_to_num(row["sd"]), fmt="o", color=LINE, capsize=3)
        ax.set(xscale="log", yscale="log", xlabel=AXES[key], ylabel="error on CIFAKE's test half")
        ax.margins(x=0.12, y=0.08)
        ticks = [tick for tick in TICKS if ax.get_ylim()[0] < tick < ax.get_ylim()[1]]
        ax.set_yticks(ticks, [f"{tick:.1%}" for tick in ticks])
        ax.minorticks_off()
        label_dots(ax, dots, [plot_published(ax, name, 1 - accuracy, size if key == "parameters" else None)
                              for name, accuracy, size in PUBLISHED])
    return figure


def plot_published(ax: Axes, name: str, error: float, size: int | None) -> Text:
    """A published error as a line, with a cross where the network's size is to be shown; the line's text."""
    ax.axhline(error, ls=":", lw=1, color="grey")
    if size:
        ax.plot(size, error, "x", color="grey")
    return ax.text(0.01, error, f"{name} {error:.2%}", fontsize=8, color="grey", va="bottom",
                   transform=ax.get_yaxis_transform())


def label_dots(ax: Axes, dots: list[tuple[float, float, str]], texts: list[Text]) -> None:
    """Name each dot (x, y, name) at the first of PLACES inside the axes that covers no dot and no text.

    A line leads to a name that does not stand right beside its dot.
    """
    ax.figure.draw_without_rendering()  # or the axes have not got their places yet
    spots = ax.transData.transform([dot[:2] for dot in dots])
    taken = [Bbox([spot - 8, spot + 8]) for spot in spots] + [text.get_window_extent() for text in texts]
    for x, y, name in dots:
        label = ax.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=9, va="center",
                            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "grey", "shrinkB": 4})
        for right, up, side in PLACES:
            label.set(position=(right, up), horizontalalignment=side)
            label.get_window_extent()  # which moves it; its own result has the line in it
            box = Text.get_window_extent(label)
            if ax.bbox.count_contains(box.corners()) == 4 and not any(map(box.overlaps, taken)):
                break
        taken.append(box)


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("names", nargs="*", metavar="NAME")
    args = flags.parse_args(argv)
    rows = table(args.names or [name for name in RECIPES if runs_of(name)])
    for row in rows:
        spread = f" ± {row['sd']:.2%}" if row["seeds"] > 1 else ""
        print(f"{row['model']:<14} {row['parameters']:>10,} parameters, {row['seeds']} seeds: "
              f"{row['accuracy']:.2%}{spread}, AUC {row['roc_auc']:.4f}, {row['seconds']:,.0f} s of training")
    save_result("overview", rows)
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
