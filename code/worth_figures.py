"""Figures of what a verdict is worth: rows of worth.py, degrade.py and general.py in, figures out.

{model: rows} is what worth.measured gives: values are text, "" where a kind of picture cannot give one.
"""
from itertools import cycle

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures import FAKE, LINE, REAL, STYLE
from trust_figures import CALIBRATED, plot_reliability
from worth import at_prior

OUTCOMES = {"right": "#009E73", "cannot_tell": "#BBBBBB", "wrong": LINE}
FAMILIES = {"saved again": ("#0072B2", "o", ("JPEG", "WebP")),
            "resampled": ("#D55E00", "s", ("smaller", "larger", "crop", "blur", "messenger", "screenshot")),
            "tones": ("#CC79A7", "^", ("darker", "brighter")), "noise": ("#009E73", "D", ("noise",)),
            "as it is": (LINE, "*", ("clean",))}
VIEWS = {"as they are": LINE, "re-saved": "#E69F00"}
MODEL_STYLES = (("#333333", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v"),
                ("#56B4E9", "P"))
PRIORS = np.logspace(-4, np.log10(0.5), 60)
SMALL = STYLE | {"figure.dpi": 72}  # a notebook of ten figures stays below 2 MB
Models = dict[str, list[dict[str, str]]]


def name_of(row: dict) -> str:
    return f"{row['kind']}\n{int(row['reals']):,} real, {int(row['fakes']):,} fake"


def by_kind(models: Models, lines: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of one column a model, and its axes (lines, models): each with a line a kind of picture."""
    rows = next(iter(models.values()))
    figure, axes = plt.subplots(lines, len(models), sharey=True, squeeze=False, layout="constrained",
                                figsize=(2.2 + 2.6 * len(models), 1.2 + 0.45 * len(rows) * lines))
    axes[0, 0].set_yticks(range(len(rows)), [name_of(row) for row in rows], fontsize=8)
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    for ax in axes[:, 0]:
        ax.tick_params(axis="y", labelsize=8)
    return figure, axes


def plot_points(ax: Axes, rows: list[dict], key: str, shift: float, **style) -> None:
    """One point with its 95 % interval a row, from top to bottom; none where there is no value."""
    places = [place for place, row in enumerate(rows) if row.get(key) not in ("", "nan", None)]
    value, low, high = (np.array([float(rows[place][key + end]) for place in places])
                        for end in ("", "_low", "_high"))
    ax.errorbar(value, np.array(places) + shift, xerr=np.maximum((value - low, high - value), 0),
                fmt="o", ms=4, capsize=2, **style)


def below(figure: Figure, ax: Axes, columns: int = 6) -> None:
    """The legend of one panel for all, below the figure."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=9)


# --- three verdicts ----------------------------------------------------------------------------

def plot_worth(models: Models) -> Figure:
    """What became of all pictures of each kind, a panel for each model: right, cannot tell, wrong."""
    with plt.rc_context(SMALL):
        figure, axes = by_kind(models)
        for ax, (model, rows) in zip(axes[0], models.items(), strict=True):
            plot_outcomes(ax, rows)
            ax.set_title(model)
        below(figure, axes[0, 0])
    return figure


def plot_outcomes(ax: Axes, rows: list[dict]) -> None:
    """Stacked bars, the numbers within."""
    left = np.zeros(len(rows))
    for key, colour in OUTCOMES.items():
        part = np.array([float(row[key]) for row in rows])
        ax.barh(range(len(rows)), part, left=left, color=colour, label=key.replace("_", " "))
        for place, share in enumerate(part):
            if share >= 0.07:
                ax.text(left[place] + share / 2, place, f"{share:.0%}", ha="center", va="center", fontsize=8,
                        color="black" if key == "cannot_tell" else "white")
        left += part
    ax.set(xlim=(0, 1), xlabel="share of all pictures")
    ax.grid(visible=False)


def plot_coverage(models: Models, alpha: float = 0.05) -> Figure:
    """How many pictures of each class have it among the possible ones; dotted: what validation promises."""
    with plt.rc_context(SMALL):
        figure, axes = by_kind(models)
        for ax, (model, rows) in zip(axes[0], models.items(), strict=True):
            for shift, label, colour in ((-0.13, "real", REAL), (0.13, "fake", FAKE)):
                plot_points(ax, rows, f"coverage_{label}", shift, color=colour, label=f"{label} pictures")
            ax.axvline(1 - alpha, ls=":", color="grey", label=f"promised: {1 - alpha:.0%}")
            ax.set(title=model, xlim=(-0.03, 1.03), xlabel="covered (fraction)")
        below(figure, axes[0, 0])
    return figure


# --- thresholds --------------------------------------------------------------------------------

def plot_thresholds(models: Models) -> Figure:
    """Accuracy at the transferred threshold against the oracle's, a point a degradation and strength."""
    with plt.rc_context(SMALL):
        figure, axes = plt.subplots(1, len(models), figsize=(0.6 + 3.4 * len(models), 3.7), sharex=True,
                                    sharey=True, squeeze=False, layout="constrained")
        for ax, (model, rows) in zip(axes[0], models.items(), strict=True):
            for name, (colour, mark, kinds) in FAMILIES.items():
                mine = [row for row in rows if row["degradation"] in kinds]
                best, own = ([float(row[key]) for row in mine] for key in ("oracle_accuracy", "accuracy"))
                ax.plot(best, own, mark, color=colour, ms=11 if mark == "*" else 5, alpha=0.8, label=name)
            ax.axline((0.5, 0.5), slope=1, color=LINE, ls=":", lw=1, label="nothing lost")
            ax.set(title=f"{model} (n = {int(rows[0]['n']):,})", aspect="equal", xlim=(0.48, 1),
                   ylim=(0.48, 1), xlabel="accuracy at the best threshold (oracle)")
        axes[0, 0].set_ylabel("accuracy at the threshold\nfrom validation")
        below(figure, axes[0, 0])
    return figure


def plot_promises(models: Models) -> Figure:
    """False alarms (above) and fakes found (below) at the bounds that validation set for 1 % and for 5 %.

    Hollow: fakes found at the threshold that would keep the promise on these very pictures.
    """
    with plt.rc_context(SMALL):
        figure, axes = by_kind(models, lines=2)
        for (alarms, hits), (model, rows) in zip(axes.T, models.items(), strict=True):
            for shift, p, colour in ((-0.2, 1, LINE), (0.1, 5, "#E69F00")):
                plot_points(alarms, rows, f"false_alarm_val_{p}", shift, color=colour,
                            label=f"bound set for {p} % on validation")
                plot_points(hits, rows, f"pd_val_{p}", shift, color=colour)
                plot_points(hits, rows, f"pd_at_{p}", shift + 0.14, color=colour, mfc="white")
                alarms.axvline(p / 100, ls=":", color=colour)
            alarms.set(title=model, xlabel="false alarms (of the real pictures)")
            hits.set(xlabel="fakes found (of the fakes)", xlim=(-0.03, 1.03))
        below(figure, axes[0, 0])
    return figure


def plot_priors(models: Models) -> Figure:
    """Share of right verdicts FAKE against the share of fakes among all pictures.

    A panel for each kind of picture, a line with its 95 % band for each model; dashed where no verdict FAKE
    was wrong, or none right: then the end of the interval that says how sure that is.
    """
    kinds = list(dict.fromkeys(row["kind"] for rows in models.values() for row in rows
                               if row["fake_right"] not in ("", "nan")))
    lines = -(-len(kinds) // 4)
    with plt.rc_context(SMALL):
        figure, axes = plt.subplots(lines, 4, figsize=(12.5, 0.8 + 2.9 * lines), sharex=True, sharey=True,
                                    squeeze=False, layout="constrained")
        for ax, kind in zip(axes.flat, kinds, strict=False):
            for (model, rows), (colour, mark) in zip(models.items(), cycle(MODEL_STYLES), strict=False):
                for row in (row for row in rows if row["kind"] == kind and row["fake_right"] != "nan"):
                    plot_prior(ax, row, color=colour, marker=mark, label=model)
            ax.set(title=kind, xscale="log", ylim=(-0.03, 1.03))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        for ax in axes.flat[len(kinds):]:
            ax.axis("off")
        for ax in axes.flat[max(0, len(kinds) - 4):len(kinds)]:  # nothing below
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("share of fakes", fontsize=10)
        figure.supylabel('share of verdicts "FAKE" that are right', fontsize=10)
        named = {text: line for ax in axes.flat
                 for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def plot_prior(ax: Axes, row: dict, label: str, **style) -> None:
    """One model on one kind of picture: a line and its band, or one end of it."""
    worth, low, high = (at_prior(float(row[f"fake_right{end}"]), PRIORS) for end in ("", "_low", "_high"))
    style |= {"lw": 1.5, "ms": 4, "markevery": [0, 16, 32, 48, 59]}
    if 0 < float(row["fake_right"]) < 1:
        ax.plot(PRIORS, worth, label=label, **style)
        ax.fill_between(PRIORS, low, high, color=style["color"], alpha=0.15, lw=0)
        return
    end, word = (low, "at least") if float(row["fake_right"]) else (high, "at most")
    ax.plot(PRIORS, end, ls="--", mfc="white", label=f"{label}: {word} (95 %)", **style)


# --- calibration -------------------------------------------------------------------------------

def plot_calibration(models: dict[str, tuple[dict, dict]]) -> Figure:
    """Reliability of each model, {name: (worth.scored_sets, calibration)}: a column; a line for each set."""
    names = list(dict.fromkeys(data for sets, _ in models.values() for data, (labels, _) in sets.items()
                               if 0 < labels.sum() < len(labels)))
    with plt.rc_context(SMALL):
        figure, axes = plt.subplots(len(names), len(models), sharex=True, sharey=True, squeeze=False,
                                    figsize=(1 + 3 * len(models), 3 * len(names)), layout="constrained")
        for column, (model, (sets, rule)) in zip(axes.T, models.items(), strict=True):
            for ax, data in zip(column, names, strict=True):
                plot_set(ax, model, data, sets.get(data), rule)
    return figure


def plot_set(ax: Axes, model: str, data: str, found: tuple | None, rule: dict) -> None:
    if found is None:
        ax.set_title(f"{model}: {data} not scored", fontsize=10)
        return
    plot_reliability(ax, *found, rule)
    ax.set_title(f"{model} on {data} (n = {len(found[0]):,})", fontsize=10)
    ax.set(ylim=(-0.02, 1.3), yticks=np.linspace(0, 1, 6))  # room for the legend
    ax.label_outer()


def plot_errors(models: Models) -> Figure:
    """ECE of each kind with both classes, as the network gives P(fake) and calibrated on validation."""
    both = {model: [row for row in rows if row["balanced_ece"] != ""] for model, rows in models.items()}
    with plt.rc_context(SMALL):
        figure, axes = by_kind(both)
        for ax, (model, rows) in zip(axes[0], both.items(), strict=True):
            plot_points(ax, rows, "balanced_ece", -0.13, color=LINE, label="as it is")
            plot_points(ax, rows, "calibrated_balanced_ece", 0.13, color=CALIBRATED, label="calibrated")
            ax.set(title=model, xlabel="balanced ECE", xlim=(0, None))
        below(figure, axes[0, 0])
    return figure


# --- unseen sources ----------------------------------------------------------------------------

def plot_unseen(rows: list[dict]) -> Figure:
    """AUC on sources left out of the fit: the mean of each method, and each source of the first method.

    rows of general.csv; points are means over seeds, bars 95 % intervals over pictures.
    """
    means = [row | {"name": row["method"]} for row in rows if row["source"] == "MEAN"]
    first = [row | {"name": f"{row['source']} ({row['n_real']} real, {row['n_fake']} fake)"} for row in rows
             if row["method"] == rows[0]["method"] and row["source"] != "MEAN"]
    with plt.rc_context(SMALL):
        lines = [len({row["name"] for row in part}) for part in (means, first)]
        figure, axes = plt.subplots(2, 1, figsize=(8, 1.8 + 0.28 * sum(lines)), sharex=True,
                                    height_ratios=lines, layout="constrained")
        for ax, part, title in ((axes[0], means, "Mean over unseen sources"),
                                (axes[1], first, f"{rows[0]['method']}, by source and generator")):
            names = list(dict.fromkeys(row["name"] for row in part))
            for shift, (view, colour) in zip((-0.13, 0.13), VIEWS.items(), strict=True):
                plot_points(ax, [row for row in part if row["pictures"] == view], "roc_auc", shift,
                            color=colour, label=view)
            ax.axvline(0.5, ls=":", color="grey", label="chance")
            ax.set_title(title)
            ax.set_yticks(range(len(names)), names, fontsize=8)
            ax.set_ylim(len(names) - 0.5, -0.5)
        axes[1].set_xlabel("ROC AUC")
        below(figure, axes[0])
    return figure
