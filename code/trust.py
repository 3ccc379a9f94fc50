"""How far a verdict can be trusted, on one set beside another: thresholds, false alarms, sources, coverage.

    python code/trust.py -mf base_model --data cifake wild     one row a set, and the reliability diagrams

Reads the scores that test.py saved of each set, and the checkpoint's threshold and calibration; writes
paper/results/trust-NAME.csv and paper/figures/trust-NAME.png. test.py prints the same numbers of one set.
"""
import numpy as np

import checkpoints
from calibration import (
    DRAWS,
    FALSE_ALARMS,
    both_classes,
    coverage,
    errors,
    errors_line,
    rate,
    scaled,
    verdicts,
)
from datasets import SPLITS, name_in_results
from files import Parser, TellError, atomic, command_line, folder, shown, write_csv
from scoring import Z95, choose_threshold, oracle_threshold, read_scores, roc_auc, score, sigmoid, wilson

SHOWN = 20  # sources that are printed


# --- numbers -----------------------------------------------------------------------------------

def balanced_accuracy(labels: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Mean of both classes' recalls with its 95 % interval: labels bool (n,), right bool (n,).

    The recalls' Wilson intervals, squared and added (Newcombe, Statistics in Medicine 17, 1998, method 10),
    so that a recall of 100 % has an interval as well.
    """
    parts = [rate("x", right[mine].sum(), mine.sum()) for mine in (~labels, labels)]
    middle = sum(part["x"] for part in parts) / 2
    down, up = (np.sqrt(sum((part["x"] - part[end]) ** 2 for part in parts)) / 2
                for end in ("x_low", "x_high"))
    return {"balanced_accuracy": middle, "balanced_accuracy_low": float(middle - down),
            "balanced_accuracy_high": float(middle + up)}


def auc_interval(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """95 % interval of the ROC AUC: labels (n,), fake = 1, scores (n,). DeLong et al., Biometrics 44, 1988.

    That has no width where the classes do not overlap, or with one picture of a class: there it is
    Wilson's, of as many trials as the smaller class has pictures.
    """
    reals, fakes = (np.sort(scores[labels == label]) for label in (0, 1))
    above, below = share_below(reals, fakes), share_below(fakes, reals)
    auc, n = float(above.mean()), min(len(reals), len(fakes))
    if n == 1 or auc in (0, 1):
        low, high = wilson(auc * n, n)
    else:
        half = Z95 * np.sqrt(above.var(ddof=1) / len(fakes) + below.var(ddof=1) / len(reals))
        low, high = float(auc - half), float(auc + half)
    return {"roc_auc_low": max(0.0, low), "roc_auc_high": min(1.0, high)}


def share_below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the share of `ordered` that lies below it, ties half."""
    return sum(np.searchsorted(ordered, values, side) for side in ("left", "right")) / (2 * len(ordered))


def balanced_oracle(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The highest balanced accuracy on these very pictures, with its interval, and where that is.

    labels bool (n,), of both classes; scores (n,). It is what the threshold from validation was chosen for;
    the plain oracle may call all pictures of an unbalanced set the same.
    """
    cut, _ = choose_threshold(labels, scores)
    found = balanced_accuracy(labels, (scores >= cut) == labels)
    return {"threshold_balanced_oracle": cut, **{f"best_{key}": value for key, value in found.items()}}


def detection(labels: np.ndarray, scores: np.ndarray, false_alarm: float) -> dict[str, float]:
    """{"pd", "pd_low", "pd_high"}: share of fakes above all but this share of the reals of the same set.

    labels bool (n,), scores or logits (n,). 95 % interval: percentile bootstrap of both classes, with the
    threshold set anew in each resample. Of a resample of n reals the k-th least has, among the original
    ones, the rank ceil(n B) with B ~ Beta(k, n + 1 - k); so resamples need not be made. Where no fake or
    every fake is found, resamples hardly differ: it then reaches at least as far as Wilson's.
    """
    reals, fakes = np.sort(scores[~labels]), np.sort(scores[labels])
    k = max(1, len(reals) - int(false_alarm * len(reals) + 1e-9))
    random = np.random.default_rng(0)
    ranks = np.ceil(len(reals) * random.beta(k, len(reals) + 1 - k, DRAWS)).astype(int)
    found = 1 - np.searchsorted(fakes, reals[np.append(k, ranks) - 1], "right") / len(fakes)
    low, high = np.quantile(random.binomial(len(fakes), found[1:]) / len(fakes), (0.025, 0.975))
    if found[0] in (0, 1):
        least, most = wilson(int(found[0]) * len(fakes), len(fakes))
        low, high = min(low, least), max(high, most)
    return {"pd": float(found[0]), "pd_low": float(low), "pd_high": float(high)}


def transferred(labels: np.ndarray, logits: np.ndarray, bound: float) -> dict[str, float]:
    """Shares of reals and of fakes whose logit is above a bound set elsewhere, with Wilson intervals."""
    above = logits > bound
    return {**rate("false_alarm", above[~labels].sum(), (~labels).sum()),
            **rate("pd", above[labels].sum(), labels.sum())}


def report(labels: np.ndarray, logits: np.ndarray, threshold: float, rule: dict | None) -> dict[str, float]:
    """All that test.py adds to scoring.score(), as one flat row: labels (n,), logits of FAKE (n,).

    What needs both classes is left out for a set of one, what needs a calibration where there is none.
    *_oracle: at the threshold of highest accuracy on these very pictures, best_balanced_accuracy: at that of
    balanced_oracle(); pd_at_P: Pd at P % false alarm, threshold of these very pictures; *_val_P: at the bound
    that validation set for P %.
    """
    labels, logits = np.asarray(labels).astype(bool), np.asarray(logits, np.float64)
    row = of_both_classes(labels, logits, threshold, rule) if 0 < labels.sum() < len(labels) else {}
    if not rule:
        return row
    for share, bound in rule["false_alarm_bounds"].items():
        row |= renamed(transferred(labels, logits, bound), f"_val_{100 * share:g}")
    for found in coverage(labels, logits, rule):
        row |= renamed({key: found[key] for key in list(found)[2:]}, f"_{found['label'].lower()}")
    told = verdicts(logits, rule)
    decided = told != "cannot tell"
    right = ((told == "FAKE") == labels)[decided].sum()
    return row | {"decided": int(decided.sum()), **rate("decided_accuracy", right, decided.sum())}


def of_both_classes(labels: np.ndarray, logits: np.ndarray, threshold: float, rule: dict | None) -> dict:
    labels, logits = both_classes(labels, logits)
    scores = sigmoid(logits)
    oracle, accuracy = oracle_threshold(labels, scores)
    row = {**balanced_accuracy(labels, (scores >= threshold) == labels), **auc_interval(labels, scores),
           "threshold_oracle": oracle, "accuracy_oracle": accuracy,
           **renamed(balanced_accuracy(labels, (scores >= oracle) == labels), "_oracle"),
           **balanced_oracle(labels, scores)}
    for share in FALSE_ALARMS:
        row |= renamed(detection(labels, logits, share), f"_at_{100 * share:g}")
    row |= errors(labels, logits)
    if rule:
        row |= {f"calibrated_{key}": value for key, value in errors(labels, scaled(logits, rule)).items()}
    return row


def renamed(row: dict, mark: str) -> dict:
    """The same numbers, `mark` put before _low and _high or else at the end of their names."""
    return {next((key.removesuffix(end) + mark + end for end in ("_low", "_high") if key.endswith(end)),
                 key + mark): value for key, value in row.items()}


def by_source(labels: np.ndarray, scores: np.ndarray, threshold: float, sources: np.ndarray) -> list[dict]:
    """A row for each source, sources str (n,), and a last one, AVG, of means in which each counts once.

    n and recall of each class; balanced accuracy and ROC AUC where both classes are there; 95 % intervals.
    What a source has no pictures of is nan, and left out of the mean.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    rows = [{"source": str(source), **of_source(labels[mine], scores[mine], threshold)}
            for source in np.unique(sources) for mine in [sources == source]]
    last = {key: sum(row[key] for row in rows) for key in ("n_real", "n_fake")}
    for key in ("real_recall", "fake_recall", "balanced_accuracy", "roc_auc"):
        values = [row[key] for row in rows if np.isfinite(row[key])]
        last[key] = float(np.mean(values)) if values else float("nan")
    return [*rows, {key: last.get(key, float("nan")) for key in rows[0]} | {"source": "AVG"}]


def by_generator(labels: np.ndarray, scores: np.ndarray, threshold: float, generators: np.ndarray
                 ) -> list[dict]:
    """A row for each named generator, generators str (n,): n fakes, share called FAKE, 95 % interval."""
    fakes = np.asarray(labels).astype(bool) & ~np.isin(generators, ["", "unknown"])
    return [{"generator": str(name), "n": int(mine.sum()),
             **rate("called_fake", (scores[mine] >= threshold).sum(), mine.sum())}
            for name in np.unique(generators[fakes]) for mine in [fakes & (generators == name)]]


def of_source(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """The row of one source without its name: labels bool (n,), scores (n,)."""
    right, row = (scores >= threshold) == labels, {}
    for name, mine in (("real", ~labels), ("fake", labels)):
        row |= {f"n_{name}": int(mine.sum()), **rate(f"{name}_recall", right[mine].sum(), mine.sum())}
    if not 0 < labels.sum() < len(labels):
        return row | {f"{key}{end}": float("nan") for key in ("balanced_accuracy", "roc_auc")
                      for end in ("", "_low", "_high")}
    return row | {**balanced_accuracy(labels, right), "roc_auc": float(roc_auc(labels, scores)),
                  **auc_interval(labels, scores)}


# --- pictures that training used -----------------------------------------------------------------

def short_hashes(sha256: np.ndarray) -> np.ndarray:
    """The first eight bytes of each hash, uint8 (n, 32) -> int64 (n,): of a million files no two agree."""
    return np.ascontiguousarray(sha256[:, :8]).view(np.int64).ravel()


def seen_in_training(facts: dict, data) -> dict[str, int]:
    """{"in_training": how many pictures of `data` the checkpoint was fitted on}; {} where it does not know.

    Unlike the fingerprint of a whole set, it finds a part of one too. Files, not pixels: a picture that was
    saved anew counts as another.
    """
    if "fitted_pictures" not in facts:
        return {}
    return {"in_training": int(np.isin(short_hashes(data.sha256), facts["fitted_pictures"].numpy()).sum())}


# --- print -------------------------------------------------------------------------------------

def percent(row: dict, key: str) -> str:
    """"91.46 % [91.06, 91.84]"; "none to measure" where there was no picture."""
    if not np.isfinite(row[key]):
        return "none to measure"
    return f"{row[key]:.2%} [{100 * row[f'{key}_low']:.2f}, {100 * row[f'{key}_high']:.2f}]"


def area(row: dict) -> str:
    """"0.9712 [0.9690, 0.9734]", the ROC AUC of a row."""
    return f"{row['roc_auc']:.4f} [{row['roc_auc_low']:.4f}, {row['roc_auc_high']:.4f}]"


def print_thresholds(row: dict) -> None:
    """Lines of what report() and scoring.score() found without a calibration; brackets: 95 % intervals."""
    if "pd_at_1" not in row:
        print("one class only: no balanced accuracy, AUC, oracle, Pd at a false alarm rate, calibration")
        return
    print(f"balanced accuracy  {percent(row, 'balanced_accuracy')}   ROC AUC {area(row)}")
    print(f"thresholds         balanced accuracy {row['balanced_accuracy']:.2%} at {row['threshold']:.4f}, "
          f"transferred; {percent(row, 'best_balanced_accuracy')} at "
          f"{row['threshold_balanced_oracle']:.4f}, chosen on these (oracle)")
    print(f"                   accuracy {row['accuracy']:.2%}, transferred; {row['accuracy_oracle']:.2%} at "
          f"{row['threshold_oracle']:.4f} (oracle); always the same {row['majority']:.2%}")
    for p in (1, 5):
        print(f"Pd at {p} % false alarm, set on these pictures: {percent(row, f'pd_at_{p}')}")


def print_report(row: dict, rule: dict | None) -> None:
    """Lines of all that report() and scoring.score() found, for a reader; rule: the checkpoint's, if any."""
    print_thresholds(row)
    if not rule:
        print('no calibration in this checkpoint, so no "cannot tell": python code/calibration.py adds it')
        return
    for p in (1, 5):
        print(f"set for {p} % by validation: false alarm {percent(row, f'false_alarm_val_{p}')}, "
              f"Pd {percent(row, f'pd_val_{p}')}")
    if "pd_at_1" in row:
        print(f"calibration        as it is:   {errors_line(row)}")
        print(f"                   calibrated: {errors_line(row, 'calibrated_')}")
    print_verdicts(row, rule)


def print_verdicts(row: dict, rule: dict) -> None:
    print(f"three verdicts     conformal, alpha {rule['alpha']:g}, bounds from the {rule['source']}")
    for name in ("real", "fake"):
        if np.isnan(row[f"coverage_{name}"]):
            continue
        print(f"  {name.upper()} pictures    covered {percent(row, f'coverage_{name}')}, "
              f"cannot tell {percent(row, f'cannot_tell_{name}')}, wrong {percent(row, f'wrong_{name}')}")
    print(f"  {row['decided']:,} verdicts  right {percent(row, 'decided_accuracy')}")


def print_sources(rows: list[dict]) -> None:
    """The sources of most pictures, and the mean over all; brackets: 95 % intervals."""
    print("by source          " + f"{'REAL n':>8}{'recall':>9}{'FAKE n':>9}{'recall':>9}"
          f"{'balanced accuracy':>24}{'ROC AUC':>26}")
    largest = sorted(rows[:-1], key=lambda row: -row["n_real"] - row["n_fake"])[:SHOWN]
    for row in (*largest, rows[-1]):
        cells = (f"{row[f'n_{name}']:>{width},}{share(row[f'{name}_recall']):>9}"
                 for name, width in (("real", 8), ("fake", 9)))
        print(f"  {row['source'][:16]:<17}{''.join(cells)}{of_both(row)}")
    if len(rows) - 1 > SHOWN:
        print(f"  the {SHOWN} largest of {len(rows) - 1:,}; the mean is over all")


def print_generators(rows: list[dict]) -> None:
    """The generators of most pictures."""
    print(f"{'by generator':<37}{'FAKE n':>8}{'called FAKE':>24}")
    for row in sorted(rows, key=lambda row: -row["n"])[:SHOWN]:
        print(f"  {row['generator'][:34]:<35}{row['n']:>8,}{percent(row, 'called_fake'):>24}")
    if len(rows) > SHOWN:
        print(f"  the {SHOWN} largest of {len(rows):,}")


def share(value: float) -> str:
    return f"{value:.2%}" if np.isfinite(value) else "-"


def of_both(row: dict) -> str:
    """Balanced accuracy and AUC of a row of by_source(); the means have no interval."""
    if np.isfinite(row["roc_auc_low"]):
        return f"{percent(row, 'balanced_accuracy'):>24}{area(row):>26}"
    auc = f"{row['roc_auc']:.4f}" if np.isfinite(row["roc_auc"]) else "-"
    return f"{share(row['balanced_accuracy']):>24}{auc:>26}"


# --- command line ------------------------------------------------------------------------------

def saved(model: str, data: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits that test.py saved; one line that says how to make them where they are not there."""
    path = folder("results") / f"scores-{model}-{name_in_results(data)}-{split}.csv"
    if not path.exists():
        raise TellError(f"{shown(path)}: not there; first python code/test.py -mf {model} --data {data} "
                        f"--split {split}")
    return read_scores(path)[1:]


def table(sets: dict[str, tuple], facts: dict) -> list[dict]:
    """One row of numbers a set, equal columns, "" where a set cannot give one."""
    rows = []
    for data, (labels, logits) in sets.items():
        rows.append({"data": data, **score(labels, sigmoid(logits), facts["threshold"]),
                     **report(labels, logits, facts["threshold"], facts["calibration"])})
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key, "") for key in keys} for row in rows]


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_argument("-mf", "--modelfile", dest="mf", required=True, metavar="NAME", help="the checkpoint")
    flags.add_argument("--data", nargs="+", default=["cifake"], metavar="SET", help="scored sets (cifake)")
    flags.add_argument("--split", choices=SPLITS, default="test", help="which part of them (test)")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    model, (_, facts) = checkpoints.model_name(args.mf), checkpoints.load(args.mf)
    if "calibration" not in facts:
        raise TellError(f"{args.mf} has no calibration; python code/calibration.py -mf {args.mf} adds it")
    sets = {name_in_results(data): saved(model, data, args.split) for data in args.data}
    rows = table(sets, facts)
    for row in rows:
        print(f"\n{model} on {row['data']}, {args.split} split, n = {row['n']:,}: {percent(row, 'accuracy')}")
        print_report({key: value for key, value in row.items() if value != ""}, facts["calibration"])
    path, figure = folder("results") / f"trust-{model}.csv", folder("figures") / f"trust-{model}.png"
    write_csv(path, rows)
    from trust_figures import draw  # matplotlib takes a second
    with atomic(figure) as file:
        draw(model, sets, facts["calibration"]).savefig(file)
    print(f"\nnumbers: {shown(path)}\nfigure:  {shown(figure)}")
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
