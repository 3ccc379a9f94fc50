"""Figures: numbers in, matplotlib figure out. One style; real is always blue, fake always orange.

    python code/figures.py -mf base_model    paper/figures/base_model.png from the committed CSVs
"""
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets import SPLITS, set_name
from files import Parser, TellError, atomic, command_line, folder, read_csv
from test import read_scores, roc_auc, sigmoid

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
    kept = int(np.argmax([float(row["val_accuracy_at_threshold"]) for row in history]))
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
    ax.legend(loc="upper center")


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


def run_figure(name: str, data: str, split: str) -> Figure:
    """The figure of a checkpoint that train.py and test.py have left their CSVs of."""
    results, stem = folder("results"), f"{name}-{data}-{split}"
    needed = [results / f"{part}.csv" for part in (f"history-{name}", f"scores-{stem}", f"metrics-{stem}")]
    missing = next((path for path in needed if not path.exists()), None)
    if missing:
        raise TellError(f"{missing}: not there; run train.py and test.py -mf {name} first")
    _, labels, logits = read_scores(needed[1])
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
    figure = run_figure(args.mf, set_name(args.data), args.split)
    path = folder("figures") / f"{args.mf}.png"
    with atomic(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
    print(f"figure:     {path}")
    return {"figure": str(path)}


if __name__ == "__main__":
    command_line(main)
