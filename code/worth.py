"""What a verdict is worth, one kind of picture beside another: right, wrong, or "cannot tell".

    python code/worth.py                     those that are here of MODELS; about 30 s each
    python code/worth.py -mf base_model      these only: networks for 32 pixels

Verdicts are infer.py's: FAKE, REAL or "cannot tell" by the checkpoint's calibration, pictures of natural size
by their tiles. KINDS says what is scored; what is not on this machine is named and left out. Writes
paper/results/worth-NAME.csv, one row a kind: trust.report's numbers, and what became of all pictures.
Notebook 09 draws them (worth_figures.py).
"""
import numpy as np

import checkpoints
from calibration import rate, verdicts
from cifar100 import open_photographs
from classes import pick_device
from datasets import ImageSet, banner, load
from files import Parser, TellError, command_line, folder, read_csv, save_result, shown
from lossless import models_here, open_pairs
from natural import open_pictures
from robustness import degraded, squashed
from scoring import Z95, logits, sigmoid
from tiles import portions, vote
from trust import percent, saved, table

SMOKE_PICTURES = 60
MODELS = ("base_model", "mini_model", "attn_model", "compact", "wide28", "sturdy")
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


def at_prior(share: float, prior: float) -> float:
    """The share of right verdicts where the verdict's class is `prior` of all, from that at even odds."""
    return share * prior / (share * prior + (1 - share) * (1 - prior))


def measure(name: str, cifake: ImageSet, natural: str, device, most: int | None = None) -> list[dict]:
    """One row a kind of picture for one checkpoint; `most`: so many pictures of each kind at most."""
    network, facts = checkpoints.load(name, device)
    if "calibration" not in facts or hasattr(network, "size"):
        raise TellError(f"{name}: a network for 32 pixels with a calibration is needed; "
                        "python code/calibration.py adds one")
    sets, found = {}, {}
    for kind in KINDS:
        try:
            pictures = pictures_of(kind, cifake, natural)
        except TellError as error:
            print(f"left out: {kind} ({error})")
            continue
        pictures = pictures.head(most or len(pictures))
        sets[kind], found[kind] = pictures.name, (pictures.labels, logits_of(kind, network, pictures, device))
    return [{"model": checkpoints.model_name(name), "kind": row.pop("data"), "data": data,
             **row, **shares(*scored, facts["calibration"])}
            for row, data, scored in zip(table(found, facts), sets.values(), found.values(), strict=True)]


# --- rows of earlier runs ----------------------------------------------------------------------

def measured(stem: str, models: list[str]) -> dict[str, list[dict[str, str]]]:
    """{model: its rows} of results/ files, stem like "worth-{}"; models without one are named."""
    paths = {model: folder("results") / f"{stem.format(model)}.csv" for model in models}
    found = {model: read_csv(path) for model, path in paths.items() if path.exists()}
    if missing := [shown(paths[model]) for model in models if model not in found]:
        print(f"not measured yet: {', '.join(missing)}")
    if not found:
        raise TellError(f"{shown(folder('results'))}: no {stem.format('NAME')}.csv; --help of worth.py and "
                        "degrade.py say which command writes it")
    return found


def worth_at(rows: list[dict[str, str]], priors: tuple[float, ...]) -> list[dict[str, str]]:
    """Shares of right verdicts where `priors` of all pictures are fake, of each kind with both classes."""
    return [{"model": row["model"], "kind": row["kind"],
             **{f"{verdict}, {prior:.0%} fakes": right_at(row, key, prior if verdict == "FAKE" else 1 - prior)
                for verdict, key in (("FAKE", "fake_right"), ("REAL", "real_right")) for prior in priors}}
            for row in rows if int(row["reals"]) and int(row["fakes"])]


def right_at(row: dict[str, str], key: str, prior: float) -> str:
    """"0.160 [0.147, 0.175]"; the interval alone counts where there was no wrong verdict."""
    if row[key] == "nan":
        return "never said"
    share, low, high = (at_prior(float(row[key + end]), prior) for end in ("", "_low", "_high"))
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"


def scored_sets(model: str, names: tuple[str, ...] = ("cifake", "wild", "cifar100", "imagenet1000")
                ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{set: (labels (n,), logits (n,))} of the test halves whose scores test.py or transfer.py saved."""
    return {name: saved(model, name, "test") for name in names
            if (folder("results") / f"scores-{model}-{name}-test.csv").exists()}


# --- command line ------------------------------------------------------------------------------

def print_rows(rows: list[dict]) -> None:
    print(f"\n{rows[0]['model']}: shares of all pictures, 95 % intervals")
    for row in rows:
        print(f"{row['kind']:<27} n {row['n']:>6,}  right {percent(row, 'right')}, cannot tell "
              f"{percent(row, 'cannot_tell')}, wrong {percent(row, 'wrong')}")


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_models(None, f"those that are here of {', '.join(MODELS)}")
    flags.add_argument("--data", default="auto", metavar="SET", help="cifake, sample, or a folder (CIFAKE)")
    flags.add_argument("--natural", default="wild", metavar="SET", help="pictures of natural size (wild)")
    flags.add_device()
    flags.add_argument("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures of each kind")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    device, cifake, rows = pick_device(args.device), load(args.data), []
    banner(cifake)
    origin = {key: value for key, value in checkpoints.surroundings().items() if key != "versions"}
    for name in args.mf or models_here(MODELS):
        mine = measure(name, cifake, args.natural, device, SMOKE_PICTURES if args.smoke else None)
        print_rows(mine)
        mark = "-smoke" if args.smoke else ""
        save_result(f"worth-{mine[0]['model']}{mark}", [row | origin for row in mine])
        rows += mine
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
