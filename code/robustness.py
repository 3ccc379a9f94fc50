"""How verdicts hold on degraded pictures: measured for every degradation and strength, drawn as curves.

    python code/degrade.py -mf base_model attn_model     measures these, then draws all that was measured
    python code/degrade.py -mf base_model --data wild    pictures degraded at their own size
    python code/degrade.py                               draws again

Writes paper/results/degradation-NAME-DATA-SPLIT.csv, a row for the pictures as they are and one for each
degradation and strength (see `curves`), and three figures of all networks, paper/figures/
degradation-DATA-SPLIT.png (accuracy), -false-alarm.png and -auc.png. Choose recipes with --split val; test
is for final numbers.

CIFAKE's files are JPEGs of quality 75, so that saving them at 75 again changes next to nothing: 0.3 grey
levels on average, against 2.0 at 85 and 4.8 at 60 (300 validation pictures).
"""
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import checkpoints
from cache import SIZE
from classes import pick_device
from datasets import ImageSet, banner, load, set_name
from decode import resize
from degrade import DEGRADATIONS, degrade, require_known
from figures import STYLE
from files import Parser, TellError, atomic, folder, read_csv, shown, whole_number, write_csv
from natural import PictureSet, held_part
from scoring import logits, oracle_threshold, roc_auc, score, sigmoid, wilson
from trust import auc_interval

SMOKE_PICTURES = 200


# --- sets of pictures --------------------------------------------------------------------------

def degraded(data: ImageSet | PictureSet, name: str, strength: float, seed: int = 0) -> ImageSet | PictureSet:
    """The same set with every picture degraded, for whatever takes `data`.

    An ImageSet's pictures are degraded now and stay in memory; a PictureSet's whenever they are decoded,
    at their own size. TellError as of degrade.require_known.
    """
    require_known(name, strength)
    if isinstance(data, PictureSet):
        return DegradedPictures(**vars(data), change=(name, strength, seed))
    pixels = [degrade(picture, name, strength, seed, sha256) for picture, sha256
              in zip(data.pixels[data.rows].transpose(0, 2, 3, 1), data.sha256, strict=True)]
    return replace(data, pixels=np.stack(pixels).transpose(0, 3, 1, 2), rows=np.arange(len(data)))


@dataclass(frozen=True)
class DegradedPictures(PictureSet):
    """Pictures that are degraded after decoding."""
    change: tuple[str, float, int]  # name, strength, seed

    def pixels(self, i: int) -> np.ndarray:
        try:
            return degrade(super().pixels(i), *self.change, self.sha256[i])
        except (OSError, ValueError, MemoryError) as error:  # such as WebP's limit of 16,383 pixels a side
            raise TellError(f"{self.source}: {self.paths[i]} cannot be degraded by {self.change[0]} "
                            f"{self.change[1]:g} ({error}); leave it out") from error


def squashed(data: PictureSet) -> ImageSet:
    """Pictures of any size as a network of 32 pixels takes them, decoded and squashed now."""
    pixels = np.stack([resize(data.pixels(i), SIZE) for i in range(len(data))]).transpose(0, 3, 1, 2)
    columns = ImageSet.__annotations__.keys() & PictureSet.__annotations__.keys()
    shared = {name: getattr(data, name) for name in columns}
    return ImageSet(**shared, pixels=pixels, rows=np.arange(len(data)))


# --- curves ------------------------------------------------------------------------------------

def curves(network: nn.Module, threshold: float, data: ImageSet | PictureSet, kinds=tuple(DEGRADATIONS),
           seed: int = 0, device="cpu") -> Iterator[dict]:
    """A row of numbers for the pictures as they are ("clean"), then one a strength of each of `kinds`.

    Rates are fractions: accuracy, false_alarm (reals called FAKE) and miss (fakes called REAL) at
    `threshold`, each with its 95 % interval (_low, _high); the same with oracle_ at the threshold that is
    best for these very degraded pictures, hence a little flattered: what it wins back was a shift of the
    scores, what stays lost is information. auc: area under the ROC curve, 95 % interval beside it.
    TellError for an unknown degradation, and with fewer than two pictures of a class.
    """
    if min(data.labels.sum(), len(data) - data.labels.sum()) < 2:
        raise TellError(f"{data.source}: curves need real and fake pictures, at least two of each")
    natural = hasattr(network, "size")

    def row(kind: str, strength: float | str, unit: str, pictures: ImageSet | PictureSet) -> dict:
        if isinstance(pictures, PictureSet) and not natural:
            pictures = squashed(pictures)
        scores = sigmoid(logits(network, pictures, device))
        return {"degradation": kind, "strength": strength, "unit": unit,
                **measure(data.labels, scores, threshold)}

    yield row("clean", "", "", data)
    for kind in kinds:
        for strength in DEGRADATIONS[kind].strengths:
            yield row(kind, strength, DEGRADATIONS[kind].unit, degraded(data, kind, strength, seed))


def measure(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """The numbers of a row of `curves` from labels (n,) of both classes and P(fake) scores (n,)."""
    oracle, _ = oracle_threshold(labels, scores)
    area = auc_interval(labels, scores)
    return {"n": len(labels), "majority": max(labels.mean(), 1 - labels.mean()),
            "auc": roc_auc(labels, scores), "auc_low": area["roc_auc_low"], "auc_high": area["roc_auc_high"],
            **rates(labels, scores, threshold),
            **{f"oracle_{key}": value for key, value in rates(labels, scores, oracle).items()}}


def rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Accuracy, false alarms and misses at a threshold, as fractions with their Wilson intervals."""
    found, fakes = score(labels, scores, threshold), int(labels.sum())
    right = found["fake_as_fake"] + found["real_as_real"]
    row = {"threshold": threshold}
    for name, hits, n in (("accuracy", right, len(labels)), ("miss", found["fake_as_real"], fakes),
                          ("false_alarm", found["real_as_fake"], len(labels) - fakes)):
        low, high = wilson(hits, n)
        row |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
    return row


# --- figures -----------------------------------------------------------------------------------

MEASURES = {"accuracy": "accuracy", "false_alarm": "reals called FAKE", "auc": "ROC AUC"}
COLOURS = ("#333333", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
           "#882255", "#999933", "#88CCAA")
MARKERS = "osD^vPX<>*"
COLUMNS = 4


def plot_curves(rows: list[dict], measure: str, title: str) -> Figure:
    """One of MEASURES: a panel for each degradation, stronger to the right; the legend in the last place.

    rows: of one or several files of this module, as read back or as `curves` gives them with "model" added.
    """
    kinds = [kind for kind in DEGRADATIONS if any(row["degradation"] == kind for row in rows)]
    lines = -(-(len(kinds) + 1) // COLUMNS)
    with plt.rc_context(STYLE | {"xtick.labelsize": 8, "axes.titlesize": 10, "axes.labelsize": 9}):
        figure, axes = plt.subplots(lines, COLUMNS, sharey=True, squeeze=False, layout="constrained",
                                    figsize=(10, 2.4 * lines + 0.3))
        for ax, kind in zip(axes.flat, kinds, strict=False):
            plot_panel(ax, rows, kind, measure)
        for ax in axes[:, 0]:
            ax.set_ylabel(MEASURES[measure])
        for ax in axes.flat[len(kinds):]:
            ax.axis("off")
        axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=8)
        figure.suptitle(title, fontsize=11)
    return figure


def plot_panel(ax: Axes, rows: list[dict], kind: str, measure: str) -> None:
    """All models under one degradation."""
    models = sorted({row["model"] for row in rows})
    for i, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model and row["degradation"] in ("clean", kind)]
        plot_curve(ax, mine, measure, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
    if f"oracle_{measure}" in rows[0]:
        ax.plot([], [], "--", lw=0.8, color="black", label="at the oracle threshold")
    if measure == "accuracy":
        ax.axhline(float(rows[0]["majority"]), color="black", ls=":", lw=1, label="always the larger class")
    strengths = DEGRADATIONS[kind].strengths
    ax.set_xticks(range(len(strengths) + 1), ["clean", *(f"{strength:g}" for strength in strengths)])
    ax.set(title=kind, xlabel=DEGRADATIONS[kind].unit)


def plot_curve(ax: Axes, rows: list[dict], measure: str, colour: str, marker: str) -> None:
    """One model under one degradation: a line with its 95 % band; dashed: at the oracle threshold."""
    value, low, high = ([float(row[measure + end]) for row in rows] for end in ("", "_low", "_high"))
    ax.plot(value, marker=marker, ms=3.5, lw=1.2, color=colour,
            label=f"{rows[0]['model']} (n = {int(rows[0]['n']):,})")
    ax.fill_between(range(len(rows)), low, high, color=colour, alpha=0.2, lw=0)
    if f"oracle_{measure}" in rows[0]:
        ax.plot([float(row[f"oracle_{measure}"]) for row in rows], "--", lw=0.8, color=colour)


def draw(rows: list[dict], stem: str, title: str) -> list[str]:
    """Write the figure of each of MEASURES; returns their paths."""
    paths = []
    for measure in MEASURES:
        figure = plot_curves(rows, measure, title)
        mark = "" if measure == "accuracy" else f"-{measure.replace('_', '-')}"
        path = folder("figures") / f"degradation-{stem}{mark}.png"
        with atomic(path) as file:
            figure.savefig(file, format="png")
        plt.close(figure)
        print(f"figure:     {shown(path)}")
        paths.append(str(path))
    return paths


# --- command line ------------------------------------------------------------------------------

def pictures(args, network: nn.Module, facts: dict) -> ImageSet | PictureSet:
    """What --data and --split ask for; of the set that a network was trained on, what it has not seen."""
    whole = load(args.data, natural=True)
    if isinstance(whole, PictureSet) and not hasattr(network, "size") and args.split == "val":
        raise TellError(f"{args.data}: for networks of {SIZE} pixels --split val is of CIFAKE or the sample")
    banner(whole)
    part = held_part(whole, facts, args.split)
    return part.head(SMOKE_PICTURES if args.smoke else args.pictures or len(part))


def run(args, name: str) -> str:
    """Measure one checkpoint, print its rows as they come, write them; returns the set's name."""
    device = pick_device(args.device)
    network, facts = checkpoints.load(name, device)
    data, model = pictures(args, network, facts), checkpoints.model_name(name)
    print(f"\n{model}, {args.split} split of {data.name}, n = {len(data):,}; threshold "
          f"{facts['threshold']:.3f} ({facts['threshold_source']}); oracle: the best for these very pictures")
    about = {"model": model, "data": data.name, "split": args.split, "fingerprint": data.fingerprint,
             "trained_on": facts["data"]}
    origin = {key: value for key, value in checkpoints.surroundings().items() if key != "versions"}
    rows = []
    for row in curves(network, facts["threshold"], data, seed=args.seed, device=device):
        print(line(row))
        rows.append(about | row | {"seed": args.seed} | origin)
    path = path_of(args, model, data.name)
    write_csv(path, rows)
    print(f"curves:     {shown(path)}")
    return data.name


def line(row: dict) -> str:
    return (f"{row['degradation']:<10} {row['strength']:>5}   accuracy {row['accuracy']:7.2%} "
            f"[{row['accuracy_low']:.2%}, {row['accuracy_high']:.2%}]   oracle {row['oracle_accuracy']:7.2%}"
            f"   AUC {row['auc']:.4f}   false alarms {row['false_alarm']:7.2%}   misses {row['miss']:7.2%}")


def stem_of(args, data: str) -> str:
    return f"{data}-{args.split}{'-smoke' if args.smoke else ''}"


def path_of(args, model: str, data: str) -> Path:
    return folder("results") / f"degradation-{model}-{stem_of(args, data)}.csv"


def parser() -> Parser:
    kinds = "\n".join(f"  {name:<11}{', '.join(f'{s:g}' for s in one.strengths)}; {one.unit}: {one.what}"
                      for name, one in DEGRADATIONS.items())
    flags = Parser(description=f"{__doc__}\n{kinds}")
    add = flags.add_argument
    add("-mf", "--modelfile", dest="mf", nargs="+", default=[], metavar="NAME",
        help="checkpoints to measure; without: draw again what has been measured")
    flags.add_data()
    add("--split", choices=["val", "test"], default="test", help="which part of the data (test)")
    add("--pictures", type=whole_number(4), metavar="N", help="at most so many, drawn by lot (all)")
    add("--seed", type=whole_number(0), default=0, help="of noise and of places of crops (0)")
    flags.add_device()
    add("--smoke", action="store_true",
        help=f"{SMOKE_PICTURES} pictures, files marked -smoke: does it run?")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    data = set_name(args.data)
    for name in args.mf:
        data = run(args, name)
    pattern = path_of(args, "*", data)
    rows = [row for path in sorted(pattern.parent.glob(pattern.name)) for row in read_csv(path)
            if row["data"] == data]  # the name of a model may end like another set's
    if not rows:
        raise TellError(f"{shown(path_of(args, 'NAME', data))}: nothing measured yet; "
                        "name checkpoints with -mf")
    title = f"Degraded pictures of {data}, {args.split} split; bands: 95 % intervals"
    if data == "sample":
        title += " (built-in sample: for smoke runs, not for conclusions)"
    return {"rows": rows, "figures": draw(rows, stem_of(args, data), title)}
