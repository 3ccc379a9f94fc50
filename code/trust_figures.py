"""Figures of trust: reliability before and after calibration, and three verdicts on set beside set.

trust.py draws them; real is blue, fake orange, as in figures.py.
"""
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibration import calibrated, coverage, ece, reliability, verdicts
from figures import FAKE, LINE, REAL, STYLE
from scoring import sigmoid

CALIBRATED = "#009E73"
COLOURS = {"REAL": REAL, "cannot tell": "#BBBBBB", "FAKE": FAKE}


def plot_reliability(ax: Axes, labels: np.ndarray, logits: np.ndarray, rule: dict) -> None:
    """Share of fakes against P(fake) in bins of equal width, as it is and calibrated, with intervals."""
    labels = labels.astype(bool)
    ax.plot([0, 1], [0, 1], color=LINE, ls=":", lw=1)
    for probabilities, mark, colour, name in ((sigmoid(logits), "o", LINE, "as it is"),
                                              (calibrated(logits, rule), "s", CALIBRATED, "calibrated")):
        rows = reliability(labels, probabilities)
        p, middle, low, high = (np.array([row[key] for row in rows])
                                for key in ("probability", "fakes", "fakes_low", "fakes_high"))
        error = ece(labels, probabilities)["balanced_ece"]
        ax.errorbar(p, middle, (np.maximum(middle - low, 0), np.maximum(high - middle, 0)), fmt=mark + "-",
                    ms=4, lw=1, color=colour, label=f"{name}, ECE {error:.3f}")
    ax.set(xlabel="P(fake)", ylabel="share of fakes at even odds", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left")


def plot_verdicts(ax: Axes, sets: dict[str, tuple], rule: dict) -> None:
    """Stacked shares of the three verdicts for each set and class, with the coverage beside each bar."""
    names, shares, covered = [], [], []
    for data, (labels, logits) in sets.items():
        told, rows = verdicts(logits, rule), coverage(labels, logits, rule)
        for label, row in enumerate(rows):
            if row["n"]:
                mine = told[labels == label]
                shares.append([(mine == word).mean() for word in COLOURS])
                names.append(f"{data}\n{row['label']}, n = {row['n']:,}")
                covered.append(row["coverage"])
    left, places = np.zeros(len(names)), np.arange(len(names))
    for part, (word, colour) in zip(np.array(shares).T, COLOURS.items(), strict=True):
        ax.barh(places, part, left=left, color=colour, label=f'"{word}"')
        left += part
    for place, share in zip(places, covered, strict=True):
        ax.text(1.01, place, f"{share:.1%}\ncovered", va="center")
    ax.set(xlim=(0, 1), xlabel="share of pictures by verdict", yticks=places, yticklabels=names)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def draw(model: str, sets: dict[str, tuple], rule: dict) -> Figure:
    """Reliability of each set that has both classes, {name: (labels (n,), logits (n,))}; verdicts of all."""
    both = {data: found for data, found in sets.items() if 0 < found[0].sum() < len(found[0])}
    with plt.rc_context(STYLE):
        height = max(4.2, 1.2 + 0.62 * 2 * len(sets))
        figure, axes = plt.subplots(1, len(both) + 1, figsize=(4.4 * len(both) + 6, height),
                                    layout="constrained", squeeze=False)
        for ax, (data, (labels, logits)) in zip(axes[0], both.items(), strict=False):
            plot_reliability(ax, labels, logits, rule)
            ax.set_title(f"{model} on {data} (n = {len(labels):,})")
        plot_verdicts(axes[0, -1], sets, rule)
        axes[0, -1].set_title(f"Three verdicts ({1 - rule['alpha']:.0%} covered on validation)")
    return figure
