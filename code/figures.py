"""Figures: numbers in, matplotlib figure out. One style; real is always blue, fake always orange.

    python code/figures.py -mf base_model    paper/figures/base_model.png from the CSVs of a run
    ... --data SET --split SPLIT             paper/figures/base_model-SET-SPLIT.png
"""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from cache import OBJECTS
from datasets import SPLITS, ImageSet, name_in_results
from files import Parser, TellError, atomic, command_line, folder, read_csv, shown
from fitting import merit
from scoring import average_precision, read_scores, roc_auc, sigmoid

# Okabe and Ito's palette: told apart with any colour vision, and in grey print.
REAL, FAKE, LINE = "#0072B2", "#D55E00", "#333333"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 150, "legend.frameon": False}


def plot_history(ax: Axes, history: list[dict]) -> None:
    """Training and validation loss by epoch; the epoch that is kept is marked."""
    epochs = [int(row["epoch"]) for row in history]
    train, val = ([float(row[f"{part}_loss"]) for row in history] for part in ("train", "val"))
    ax.plot(epochs, train, "o-", color=LINE, label="training")
    ax.plot(epochs, val, "s--", color="#009E73", label="validation")
    kept = max(range(len(history)), key=lambda i: merit(history[i]))
    ax.plot(epochs[kept], val[kept], "o", ms=13, mfc="none", mec="#009E73",
            label=f"kept: epoch {epochs[kept]}")
    ax.set(xlabel="epoch", ylabel="cross-entropy a picture (nats)", title="Learning", ylim=(0, None),
           xticks=epochs if len(epochs) <= 12 else None)
    ax.legend()


def plot_scores(ax: Axes, labels: np.ndarray, scores: np.ndarray, threshold: float) -> None:
    """Histogram of P(fake) of each class, logarithmic, with the threshold."""
    bins = np.linspace(0, 1, 41)
    for label, name, colour in ((0, "real", REAL), (1, "fake", FAKE)):
        part = scores[labels == label]
        ax.hist(part, bins, histtype="stepfilled", alpha=0.35, color=colour)
        ax.hist(part, bins, histtype="step", lw=1.6, color=colour, label=f"{name} (n = {len(part):,})")
    ax.axvline(threshold, color=LINE, ls="--", label=f"threshold {threshold:.3f}")
    ax.set(yscale="log", xlabel="score P(fake)", ylabel="pictures in a bin of 0.025", title="Scores")
    top = ax.get_ylim()[1]
    ax.set_ylim(0.8, top * 20)  # room for the legend above the bars
    ax.legend(loc="upper center", frameon=True, framealpha=1, edgecolor="none")


def plot_roc(ax: Axes, labels: np.ndarray, scores: np.ndarray, threshold: float) -> None:
    """Receiver operating characteristic, with the point of the threshold."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    fakes = labels[order].astype(int)
    found = np.append(0, np.cumsum(fakes)[ends] / fakes.sum())
    alarms = np.append(0, np.cumsum(1 - fakes)[ends] / (1 - fakes).sum())
    ax.plot(alarms, found, color=LINE, label=f"AUC {roc_auc(labels.astype(bool), scores):.4f}")
    ax.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    called = scores >= threshold
    ax.plot(called[labels == 0].mean(), called[labels == 1].mean(), "o", color=FAKE, label="at the threshold")
    ax.set(xlabel="real pictures called FAKE (fraction)", ylabel="fake pictures called FAKE (fraction)",
           title="Receiver operating characteristic", aspect="equal")
    ax.legend(loc="lower right")


def plot_precision_recall(ax: Axes, labels: np.ndarray, scores: np.ndarray) -> None:
    """Precision against recall for FAKE, with the average precision."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order].astype(int))[ends]
    ax.plot(hits / labels.sum(), hits / (ends + 1), color=LINE,
            label=f"average precision {average_precision(labels.astype(bool), scores):.4f}")
    ax.axhline(labels.mean(), ls=":", color="grey", label="chance")
    ax.set(xlabel="recall of FAKE", ylabel="precision of FAKE", title="Precision and recall",
           ylim=(0.4, 1.01))
    ax.legend(loc="lower left")


def plot_confusion(ax: Axes, numbers: dict) -> None:
    """The four counts of score() as a table, shaded by their share of the class."""
    counts = np.array([[int(numbers[f"{truth}_as_{called}"]) for called in ("real", "fake")]
                       for truth in ("real", "fake")])
    ax.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Greys", vmin=0, vmax=1.6)
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, f"{count:,}\n{count / counts[row].sum():.1%}", ha="center", va="center")
    ax.set(xticks=[0, 1], yticks=[0, 1], xticklabels=["called REAL", "called FAKE"],
           yticklabels=["real", "fake"], title="Confusion")
    ax.grid(False)


def plot_sweep(ax: Axes, rows: list[dict], chosen: float) -> None:
    """Accuracy, and precision, recall and F1 of FAKE, against the threshold; the chosen one is marked."""
    thresholds = [row["threshold"] for row in rows]
    for key, label, style in (("accuracy", "accuracy", "-"), ("fake_precision", "precision of FAKE", "--"),
                              ("fake_recall", "recall of FAKE", "-."), ("fake_f1", "F1 of FAKE", ":")):
        ax.plot(thresholds, [row[key] for row in rows], style, color=LINE if key == "accuracy" else FAKE,
                label=label)
    ax.axvline(chosen, color="#009E73", label=f"chosen: {chosen:.3f}")
    ax.set(xlabel="threshold on P(fake)", ylabel="fraction", title="Threshold, on validation", ylim=(0.5, 1))
    ax.legend()


def plot_groups(ax: Axes, rows: list[dict]) -> None:
    """Accuracy of each group with its 95 % interval, real and fake beside each other."""
    groups = sorted({row["group"] for row in rows})
    for shift, name, colour in ((-0.12, "REAL", REAL), (0.12, "FAKE", FAKE)):
        mine = [row for row in rows if row["label"] == name]
        values = np.array([row["accuracy"] for row in mine])
        ends = np.array([[row["accuracy_low"], row["accuracy_high"]] for row in mine])
        places = [groups.index(row["group"]) + shift for row in mine]
        ax.errorbar(places, values, abs(ends.T - values), fmt="o", color=colour, capsize=3,
                    label=f"{name.lower()} (n = {mine[0]['n']:,} each)")
    ax.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    ax.set(ylabel="accuracy (recall of the class)", title="Accuracy by object class")
    ax.legend()


def plot_intervals(ax: Axes, rows: DataFrame, key: str, baseline: str | None = None) -> None:
    """Column `key` of each row of metrics with its 95 % interval; dotted: its `baseline`, or one half."""
    for place, row in enumerate(rows.to_dict("records")):
        ax.errorbar(row[key], place, xerr=[[row[key] - row[f"{key}_low"]], [row[f"{key}_high"] - row[key]]],
                    fmt="o", color=LINE, capsize=3)
        ax.plot([row[baseline] if baseline else 0.5] * 2, [place - 0.35, place + 0.35], ":", color="grey")
    ax.set_yticks(range(len(rows)), [f"{row.model}, {row.held} (n = {row.n})" for row in rows.itertuples()])
    ax.set(xlabel=key.replace("_", " "), xlim=(0, 1))
    ax.invert_yaxis()


def plot_band(ax: Axes, x: np.ndarray, curves: np.ndarray, label: str, colour: str) -> None:
    """Mean of several runs (runs, n) as a line, their minimum and maximum as a band."""
    ax.plot(x, curves.mean(axis=0), color=colour, label=f"{label} (mean of {len(curves)}, band: min to max)")
    ax.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, lw=0)


def plot_gates(axes: list[Axes], gates: np.ndarray, labels: np.ndarray) -> None:
    """Histogram of each channel's gate, real and fake; one axis a channel."""
    bins = np.linspace(0, 1, 41)
    for channel, ax in enumerate(axes):
        for label, name, colour in ((0, "real", REAL), (1, "fake", FAKE)):
            ax.hist(gates[labels == label, channel], bins, histtype="stepfilled", alpha=0.4, color=colour,
                    density=True, label=name)
        ax.set(xlabel="gate", title=f"channel {channel}")
    axes[0].set_ylabel("density")
    axes[0].legend()


def plot_paired(ax: Axes, one: np.ndarray, two: np.ndarray, names: tuple[str, str]) -> None:
    """Accuracies of two recipes, the runs of one seed joined by a line."""
    for first, second in zip(one, two, strict=True):
        ax.plot([0, 1], [first, second], "o-", color=LINE, alpha=0.6)
    ax.errorbar([-0.15, 1.15], [np.mean(one), np.mean(two)], [np.std(one, ddof=1), np.std(two, ddof=1)],
                fmt="D", color="#009E73", capsize=4, label="mean and standard deviation")
    ax.set_xticks([0, 1], names)
    ax.set(ylabel="test accuracy", title=f"{len(one)} seeds, paired", xlim=(-0.4, 1.4))
    ax.legend()


def plot_first_epoch(axes: list[Axes], trace: DataFrame, colour: str, label: str) -> None:
    """Validation loss and accuracy against the batches seen: mean of the seeds and their range."""
    for ax, key, name in ((axes[0], "val_loss", "validation loss (nats)"),
                          (axes[1], "val_accuracy", "validation accuracy at 0.5")):
        curves = trace.pivot(index="seed", columns="batches", values=key)
        plot_band(ax, curves.columns.to_numpy(), curves.to_numpy(), label, colour)
        ax.set(xlabel="batches of 32 pictures", ylabel=name)
        ax.legend()


def plot_sizes(ax: Axes, sizes: DataFrame) -> None:
    """Validation accuracy against the number of training pictures, every seed a point."""
    ax.plot(sizes.pictures, sizes.val_accuracy_at_threshold, "o", color=LINE, alpha=0.5, label="one seed")
    means = sizes.groupby("pictures").val_accuracy_at_threshold.mean()
    ax.plot(means.index, means, "-", color=LINE, label="mean")
    ax.axhline(0.5, ls=":", color="grey", label="chance")
    ax.set(xscale="log", xlabel="training pictures", ylabel="validation accuracy at its best threshold",
           title="Difficulty: how many pictures it takes")
    ax.legend()


def plot_pictures(pixels: np.ndarray, captions: list[str], columns: int, colours: list[str] | None = None,
                  title: str = "") -> Figure:
    """Pictures uint8 (n, 3, 32, 32) in a grid, every pixel as a square, a caption under each."""
    rows = -(-len(pixels) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(1.05 * columns, 1.3 * rows), squeeze=False,
                                    layout="constrained")
        for i, ax in enumerate(axes.flat):
            ax.axis("off")
            if i < len(pixels):
                ax.imshow(pixels[i].transpose(1, 2, 0), interpolation="nearest")
                ax.text(0.5, -0.04, captions[i], transform=ax.transAxes, ha="center", va="top", fontsize=7,
                        color=colours[i] if colours else LINE)
        figure.suptitle(title)
    return figure


def plot_classes(data: ImageSet, each: int = 5) -> Figure:
    """`each` real and `each` fake pictures of every object class (or of the unknown one)."""
    picked = [np.flatnonzero((data.objects == obj) & (data.labels == label))[:each]
              for obj in np.unique(data.objects) for label in (0, 1)]
    index, names = np.concatenate(picked), [*OBJECTS, "unknown"]
    captions = [f"{names[data.objects[i]]}, {('real', 'fake')[data.labels[i]]}" for i in index]
    colours = [(REAL, FAKE)[data.labels[i]] for i in index]
    return plot_pictures(data.pixels[data.rows[index]], captions, 2 * each, colours)


def pixels_of(data: ImageSet, paths: list[str]) -> np.ndarray:
    """Pictures by path: uint8 (n, 3, 32, 32); plain grey for those that are not in `data`."""
    where = {path: row for path, row in zip(data.paths.tolist(), data.rows.tolist(), strict=True)}
    grey = np.full(data.pixels.shape[1:], 200, np.uint8)
    return np.stack([data.pixels[where[path]] if path in where else grey for path in paths])


def plot_pairs(data: ImageSet, rows: list[dict], title: str) -> Figure:
    """The pictures of pairs of leaks.py, one above the other."""
    paths = [row[side] for side in ("one", "two") for row in rows]
    captions = [path.removesuffix(".jpg").replace("/", " ", 1).replace("/", "\n") for path in paths]
    return plot_pictures(pixels_of(data, paths), captions, len(rows), title=title)


def plot_run(title: str, history: list[dict], labels: np.ndarray, scores: np.ndarray,
             threshold: float) -> Figure:
    """Learning curve, scores and ROC of one checkpoint, side by side."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
        plot_history(axes[0], history)
        plot_scores(axes[1], labels, scores, threshold)
        plot_roc(axes[2], labels, scores, threshold)
        figure.suptitle(title)
    return figure


def plot_attention(seeds: int = 10) -> Figure:
    """Base against attention: paired test accuracies, and learning curves with the range over seeds."""
    rows = read_csv(folder("results") / "compare-base_model-attn_model-cifake.csv")
    base, attn = ([float(row[name]) for row in rows] for name in ("base_model", "attn_model"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
        plot_paired(axes[0], base, attn, ("base", "attention"))
        for name, label, colour in (("base_model", "base", LINE), ("attn_model", "attention", "#CC79A7")):
            runs = [read_csv(folder("results") / f"history-{name}-s{seed}.csv") for seed in range(seeds)]
            curves = np.array([[float(row["val_accuracy_at_threshold"]) for row in run] for run in runs])
            plot_band(axes[1], np.arange(1, curves.shape[1] + 1), curves, label, colour)
        axes[1].set(xlabel="epoch", ylabel="validation accuracy at its best threshold", title="Learning")
        axes[1].legend()
    return figure


def read_table(name: str) -> DataFrame:
    """A committed table of results/, numbers as numbers."""
    path = folder("results") / f"{name}.csv"
    if not path.exists():
        raise TellError(f"{shown(path)}: not there; the lab log and --help say which command writes it")
    return pd.read_csv(path)


def plot_difficulty() -> Figure:
    """The first epoch with two starts, and accuracy against the number of pictures."""
    trace = read_table("difficulty-first-epoch")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
        for start, colour in (("default", LINE), ("he", "#009E73")):
            curves = trace[trace.start == start].pivot(index="seed", columns="batches", values="val_accuracy")
            plot_band(axes[0], curves.columns.to_numpy(), curves.to_numpy(), f"{start} start", colour)
        axes[0].set(xlabel="batches of 32 pictures", ylabel="validation accuracy at 0.5",
                    title="The first epoch")
        axes[0].legend()
        plot_sizes(axes[1], read_table("difficulty-pictures"))
    return figure


def run_figure(name: str, data: str, split: str) -> Figure:
    """The figure of a checkpoint that train.py and test.py have left their CSVs of."""
    results, stem = folder("results"), f"{name}-{data}-{split}"
    needed = [results / f"{part}.csv" for part in (f"history-{name}", f"scores-{stem}", f"metrics-{stem}")]
    missing = next((path for path in needed if not path.exists()), None)
    if missing:
        raise TellError(f"{missing}: not there; run train.py and test.py -mf {name} first")
    _, labels, logits = read_scores(needed[1])
    if len(np.unique(labels)) < 2:
        raise TellError(f"{shown(needed[1])}: a figure needs real and fake pictures")
    numbers = read_csv(needed[2])[0]
    title = (f"{name} on {data}, {split} split: accuracy {float(numbers['accuracy']):.2%} "
             f"[{float(numbers['accuracy_low']):.2%}, {float(numbers['accuracy_high']):.2%}], "
             f"n = {int(numbers['n']):,}")
    if "sample" in (data, numbers["trained_on"]):
        title += "  (built-in sample: for smoke runs, not for conclusions)"
    return plot_run(title, read_csv(needed[0]), labels, sigmoid(logits), float(numbers["threshold"]))


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_argument("-mf", "--modelfile", dest="mf", default="base_model", metavar="NAME")
    flags.add_argument("--data", default="auto", metavar="SET", help="as it was given to test.py")
    flags.add_argument("--split", choices=SPLITS, default="test")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    data = name_in_results(args.data)
    figure = run_figure(args.mf, data, args.split)
    stem = args.mf if (data, args.split) == ("cifake", "test") else f"{args.mf}-{data}-{args.split}"
    path = folder("figures") / f"{stem}.png"
    with atomic(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
    print(f"figure:     {shown(path)}")
    return {"figure": str(path)}


if __name__ == "__main__":
    command_line(main)
