"""What a verdict is worth, one kind of picture beside another: right, wrong, or "cannot tell".

    python code/worth.py -mf base_model attn_model      networks for 32 pixels; about 30 s each

Verdicts are infer.py's: FAKE, REAL or "cannot tell" by the checkpoint's calibration, pictures of natural size
by their tiles. KINDS says what is scored; what is not on this machine is named and left out. Writes
paper/results/worth-NAME.csv, one row a kind. The figures are drawn from such rows by notebook 09.
"""
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import checkpoints
from calibration import rate, verdicts
from cifar100 import open_photographs
from classes import pick_device
from datasets import ImageSet, banner, load
from figures import LINE, STYLE
from files import Parser, TellError, command_line, folder, read_csv, shown, write_csv
from lossless import open_pairs
from natural import open_pictures
from robustness import degraded, squashed
from scoring import Z95, logits, sigmoid
from tiles import portions, vote
from trust import percent, table

SMOKE_PICTURES = 60
KEPT = ("n", "accuracy", "accuracy_low", "accuracy_high", "majority", "threshold", "threshold_oracle",
        "accuracy_oracle", "roc_auc", "roc_auc_low", "roc_auc_high", "false_alarm_val_1",
        "false_alarm_val_1_low", "false_alarm_val_1_high", "coverage_real", "coverage_fake")
KINDS = {"CIFAKE's test half": None,  # None, or the degradation of it
         "the same at JPEG 60": ("JPEG", 60),
         "made smaller, 0.75": ("smaller", 0.75),
         "cropped, 0.9": ("crop", 0.9),
         "sent by messenger, 0.75": ("messenger", 0.75),
         "real, never JPEG": "pairs",
         "photographs from elsewhere": "photographs",
         "natural size, by tiles": "tiles",
         "natural size, squashed": "squash"}


# --- pictures -> logits ------------------------------------------------------------------------

def pictures_of(kind: str, cifake: ImageSet, natural: str):
    """The ImageSet or natural.PictureSet of one of KINDS, test half; TellError where it is not there."""
    what = KINDS[kind]
    if what in ("tiles", "squash"):
        return open_pictures(natural).split("test")
    if what == "photographs":
        return open_photographs()
    return open_pairs(cifake)[0].split("test") if what == "pairs" else cifake.split("test")


def logits_of(kind: str, network, pictures, device) -> np.ndarray:
    """The logit of FAKE of each picture as its kind is seen, float (n,)."""
    what = KINDS[kind]
    if what == "tiles":
        votes = [one for some in portions(pictures) for one in vote(network, some, what)]
        return np.array([one.logit for one in votes])
    if what == "squash":
        pictures = squashed(pictures)
    return logits(network, degraded(pictures, *what) if isinstance(what, tuple) else pictures, device)


# --- logits -> rows ----------------------------------------------------------------------------

def shares(labels: np.ndarray, logits: np.ndarray, rule: dict) -> dict[str, float]:
    """Shares of the three verdicts, labels (n,), logits (n,), rule as of calibration.fit; Wilson intervals.

    right, cannot_tell, wrong: of all pictures, together 1. false_alarm: reals called FAKE; miss: fakes called
    REAL. fake_right, real_right: what share of the verdicts FAKE, and REAL, is right at even odds.
    """
    labels, told = np.asarray(labels).astype(bool), verdicts(logits, rule)
    fake, real, n = told == "FAKE", told == "REAL", len(labels)
    fakes, reals = int(labels.sum()), int((~labels).sum())
    hits, alarms = int((fake & labels).sum()), int((fake & ~labels).sum())
    kept, misses = int((real & ~labels).sum()), int((real & labels).sum())
    return {"reals": reals, "fakes": fakes, **rate("right", hits + kept, n),
            **rate("cannot_tell", n - hits - kept - alarms - misses, n), **rate("wrong", alarms + misses, n),
            **rate("false_alarm", alarms, reals), **rate("miss", misses, fakes),
            **at_even_odds("fake_right", hits, fakes, alarms, reals),
            **at_even_odds("real_right", kept, reals, misses, fakes)}


def at_even_odds(name: str, hits: int, own: int, slips: int, others: int) -> dict[str, float]:
    """Share of right verdicts where both classes are equally likely: hits of `own`, slips of `others`.

    95 % interval from that of the logarithm of the likelihood ratio (Simel, Samsa and Matchar, J Clin
    Epidemiol 44, 1991), with half a picture added to each count where one is zero. nan without both classes
    or without such a verdict.
    """
    if not own or not others or not hits + slips:
        return {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    share = (hits / own) / (hits / own + slips / others)
    if not hits or not slips:
        hits, own, slips, others = hits + 0.5, own + 0.5, slips + 0.5, others + 0.5
    middle = np.log(hits / own * others / slips)
    half = Z95 * np.sqrt(1 / hits - 1 / own + 1 / slips - 1 / others)
    low, high = sigmoid(np.array([middle - half, middle + half])).tolist()
    return {name: share, f"{name}_low": min(low, share), f"{name}_high": max(high, share)}


def measure(name: str, cifake: ImageSet, natural: str, device, most: int | None = None) -> list[dict]:
    """One row a kind of picture for one checkpoint; `most`: so many pictures of each kind at most."""
    network, facts = checkpoints.load(name, device)
    if "calibration" not in facts or hasattr(network, "size"):
        raise TellError(f"{name}: a network for 32 pixels with a calibration is needed; "
                        "python code/calibration.py adds one")
    rows = []
    for kind in KINDS:
        try:
            pictures = pictures_of(kind, cifake, natural)
        except TellError as error:
            print(f"left out: {kind} ({error})")
            continue
        pictures = pictures.head(most or len(pictures))
        found = pictures.labels, logits_of(kind, network, pictures, device)
        numbers = table({kind: found}, facts)[0]
        rows.append({"model": checkpoints.model_name(name), "kind": kind, "data": pictures.name,
                     **{key: numbers.get(key, "") for key in KEPT}, **shares(*found, facts["calibration"])})
    return rows


# --- rows -> figures ---------------------------------------------------------------------------

OUTCOMES = {"right": "#009E73", "cannot_tell": "#BBBBBB", "wrong": LINE}
FAMILIES = {"saved again": ("#0072B2", "o", ("JPEG", "WebP")),
            "resampled": ("#D55E00", "s", ("smaller", "larger", "crop", "blur", "messenger", "screenshot")),
            "tones": ("#CC79A7", "^", ("darker", "brighter")), "noise": ("#009E73", "D", ("noise",)),
            "as it is": (LINE, "*", ("clean",))}


def read_all(pattern: str) -> dict[str, list[dict[str, str]]]:
    """{model: its rows} of the files of results/ like "worth-*.csv", by their column `model`."""
    paths = sorted(folder("results").glob(pattern))
    if not paths:
        raise TellError(f"{shown(folder('results') / pattern)}: not there; --help of worth.py and degrade.py "
                        "say which command writes it")
    return {rows[0]["model"]: rows for rows in map(read_csv, paths)}


def plot_worth(models: dict[str, list[dict]]) -> Figure:
    """What became of all pictures of each kind, a panel for each model: right, cannot tell, wrong."""
    with plt.rc_context(STYLE):
        rows = next(iter(models.values()))
        figure, axes = plt.subplots(1, len(models), figsize=(3.2 + 3.6 * len(models), 0.8 + 0.45 * len(rows)),
                                    sharey=True, squeeze=False, layout="constrained")
        for ax, (model, mine) in zip(axes[0], models.items(), strict=True):
            plot_outcomes(ax, mine)
            ax.set_title(model)
        axes[0, 0].set_yticks(range(len(rows)), [name_of(row) for row in rows], fontsize=8)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def name_of(row: dict) -> str:
    return f"{row['kind']}\n{int(row['reals']):,} real, {int(row['fakes']):,} fake"


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
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="share of all pictures")
    ax.grid(visible=False)


def plot_thresholds(models: dict[str, list[dict]]) -> Figure:
    """Accuracy at the transferred threshold against the oracle's, a point a degradation and strength."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(models), figsize=(0.6 + 4 * len(models), 4.2), sharex=True,
                                    sharey=True, squeeze=False, layout="constrained")
        for ax, (model, rows) in zip(axes[0], models.items(), strict=True):
            for name, (colour, mark, kinds) in FAMILIES.items():
                mine = [row for row in rows if row["degradation"] in kinds]
                best, own = ([float(row[key]) for row in mine] for key in ("oracle_accuracy", "accuracy"))
                ax.plot(best, own, mark, color=colour, ms=11 if mark == "*" else 5, alpha=0.8, label=name)
            ax.axline((0.5, 0.5), slope=1, color=LINE, ls=":", lw=1, label="nothing lost")
            ax.set(title=f"{model} (n = {int(rows[0]['n']):,})", aspect="equal", xlim=(0.48, 1),
                   ylim=(0.48, 1), xlabel="accuracy at the best threshold (oracle)")
        axes[0, 0].set_ylabel("accuracy at the threshold from validation")
        axes[0, 0].legend(loc="upper left")
    return figure


# --- command line ------------------------------------------------------------------------------

def print_rows(rows: list[dict]) -> None:
    print(f"\n{rows[0]['model']}: shares of all pictures, 95 % intervals")
    for row in rows:
        print(f"{row['kind']:<27} n {row['n']:>6,}  right {percent(row, 'right')}, cannot tell "
              f"{percent(row, 'cannot_tell')}, wrong {percent(row, 'wrong')}")


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_argument("-mf", "--modelfile", dest="mf", nargs="+", required=True, metavar="NAME",
                       help="checkpoints")
    flags.add_argument("--data", default="auto", metavar="SET", help="cifake, sample, or a folder (CIFAKE)")
    flags.add_argument("--natural", default="wild", metavar="SET", help="pictures of natural size (wild)")
    flags.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    flags.add_argument("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures of each kind")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    device, cifake, rows = pick_device(args.device), load(args.data), []
    banner(cifake)
    origin = {key: value for key, value in checkpoints.surroundings().items() if key != "versions"}
    for name in args.mf:
        mine = measure(name, cifake, args.natural, device, SMOKE_PICTURES if args.smoke else None)
        print_rows(mine)
        path = folder("results") / f"worth-{mine[0]['model']}{'-smoke' if args.smoke else ''}.csv"
        write_csv(path, [row | origin for row in mine])
        print(f"written: {shown(path)}")
        rows += mine
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
