"""Score pictures with a trained network, and turn scores into numbers with intervals.

    python code/test.py -mf base_model                      the test half of CIFAKE
    python code/test.py -mf base_model --data MY_FOLDER     real/ and fake/ pictures of your own
    python code/test.py -mf 'base_model-s*'                 several runs, mean and deviation
    python code/test.py -mf base_model -thr 0.3             another threshold than the checkpoint's
    python code/test.py -mf NAME --data GENIMAGE --leave-out glide      on a generator that it never saw

Writes one row a picture to paper/results/scores-NAME-DATA-SPLIT.csv and one row of numbers to
metrics-NAME-DATA-SPLIT.csv beside it (with -thr, --group, --leave-out: these in the name); where a
manifest or sub-folders say where pictures are from, one row a source to sources-NAME-DATA-SPLIT.csv; where a
manifest names generators, one row each to generators-NAME-DATA-SPLIT.csv.

A network of 32 pixels sees larger pictures squashed here; where they differ in size it is compared with
letting tiles vote, as infer.py does (tiles-NAME-DATA.csv).
"""
import glob
from functools import cache
from pathlib import Path

import numpy as np

import checkpoints
import tiles
from cache import OBJECTS
from classes import fake_logit, pick_device
from datasets import SPLITS, ImageSet, banner, load
from files import Parser, TellError, atomic, command_line, folder, number_between, shown, write_csv
from metadata import is_natural, print_baseline, seen_from_outside
from scoring import head_accuracies, outputs, score, sigmoid
from scoring import predict as predict  # offered here as well
from trust import (
    by_generator,
    by_source,
    print_generators,
    print_report,
    print_sources,
    report,
    seen_in_training,
)


def evaluate(name: str, args, device) -> dict:
    """Score one checkpoint, print its table and write its files; returns the row of numbers."""
    network, facts = checkpoints.load(name, device)
    data = pictures(args, network, facts)
    found = outputs(network, data, device)
    output = fake_logit(found, network.heads)
    part = "-".join(filter(None, (data.name, args.split, args.group, args.leave_out)))
    baseline, sources, generators = seen_from_outside(data, part)
    row = numbers_of(name, args, facts, data, output, head_accuracies(found, data, network.heads))
    row |= report(data.labels, output, row["threshold"], facts.get("calibration")) | in_one_row(baseline)
    row |= seen_in_training(facts, data)
    print_table(row, facts)
    print_report(row, facts.get("calibration"))
    print_baseline(baseline)
    tables = tables_of(data.labels, sigmoid(output), row["threshold"], sources, generators)
    print(f"checkpoint: {shown(checkpoints.path_of(name))}")
    write_results(f"{row['model']}-{part}", args.thr, {"metrics": [row], **tables}, data, output)
    # Of the test part only: validation pictures are others at natural size (natural.py).
    both = 0 < data.labels.sum() < len(data)
    if both and args.split == "test" and isinstance(data, ImageSet) and is_natural(data):
        from natural import open_pictures
        tiles.report(name, open_pictures(args.data).split("test"), tiles.LIMIT, device, "test")
    return row


def numbers_of(name: str, args, facts: dict, data, output: np.ndarray, heads: dict[str, float]) -> dict:
    """score() of the logits of FAKE (n,), and what it depends on."""
    own = args.thr is None
    numbers = score(data.labels, sigmoid(output), facts["threshold"] if own else args.thr)
    return {"model": checkpoints.model_name(name), "data": data.name, "split": args.split,
            "fingerprint": data.fingerprint, **numbers, **heads,
            "threshold_source": facts["threshold_source"] if own else "-thr",
            "trained_on": facts["data"], "seed": facts["seed"],
            **{key: value for key, value in checkpoints.surroundings().items() if key != "versions"}}


def tables_of(labels: np.ndarray, scores: np.ndarray, threshold: float, sources: np.ndarray,
              generators: np.ndarray) -> dict[str, list[dict]]:
    """{"sources": rows, "generators": rows}, of what is known of the pictures, and prints them."""
    tables = {}
    if (sources != "").any():
        tables["sources"] = by_source(labels, scores, threshold, sources)
        print_sources(tables["sources"])
    if rows := by_generator(labels, scores, threshold, generators):
        tables["generators"] = rows
        print_generators(rows)
    return tables


def write_results(stem: str, threshold: float | None, tables: dict[str, list[dict]], data,
                  output: np.ndarray) -> None:
    # Numbers at a threshold of the user's do not replace those at the checkpoint's own.
    mark = "" if threshold is None else f"-thr{threshold:g}"
    path = folder("results") / f"scores-{stem}.csv"
    write_scores(path, data, output)
    print(f"{'scores:':<11} {shown(path)}")
    for what, rows in tables.items():
        path = folder("results") / f"{what}-{stem}{mark}.csv"
        write_csv(path, rows)
        print(f"{what + ':':<11} {shown(path)}")


def in_one_row(baseline: list[dict]) -> dict[str, float]:
    """The metadata-only baseline as columns beside the detector's."""
    return {f"metadata_{key}" + ("_by_source" if row["folds"] == "source" else ""): row[key]
            for row in baseline for key in ("accuracy", "balanced_accuracy", "roc_auc")}


def pictures(args, network, facts: dict):
    """The pictures that --data, --split, --group and --leave-out ask for, as `network` takes them."""
    whole = opened(args.data, hasattr(network, "size"))
    if isinstance(whole, ImageSet):
        if args.leave_out or args.group:
            raise TellError(f"{args.data}: --leave-out and --group are for pictures at natural size")
        return whole.split(args.split)
    from natural import leave_out
    seen = facts.get("fingerprint") == whole.fingerprint  # then only its held part is a fair test
    recipe = facts["recipe"] if seen else {}
    if seen:
        refuse_seen(args, recipe)
    if not (whole.splits == "train").any():
        whole = split_anew(whole, args, recipe.get("group"))
    elif args.group:
        raise TellError(f"{args.data}: --group is for a folder without train/; this one is split already")
    return (leave_out(whole, args.leave_out)[1] if args.leave_out else whole).split(args.split)


def refuse_seen(args, recipe: dict) -> None:
    """TellError where the checkpoint was trained on these very pictures, but split in another way."""
    for flag, asked in (("group", args.group), ("leave_out", args.leave_out)):
        if asked and asked != recipe.get(flag):
            raise TellError(f"--{flag.replace('_', '-')} {asked}: the checkpoint was trained on these "
                            f"pictures with {recipe.get(flag) or 'none'} and has seen some of what this "
                            "would test; score one that was trained with the same flag")


def split_anew(whole, args, trained: str | None):
    """A set without a split of its own as train.py splits it, if asked for or trained on; else as it is."""
    from natural import with_split
    group = args.group or trained
    return with_split(whole, seed=0, group=group, left_out=args.leave_out) if group else whole


@cache
def opened(name: str, natural: bool):
    """A set of pictures, opened and announced once for all checkpoints."""
    whole = load(name, natural)
    banner(whole)
    return whole


def write_scores(path: Path, data, output: np.ndarray) -> None:
    """One row a picture; logit to the last bit of float32, score for reading."""
    names = OBJECTS if isinstance(data, ImageSet) else range(1000)  # of ImageNet
    objects = [*names, ""]  # -1, unknown, is the last
    paths = [path.replace('"', '""') for path in data.paths.tolist()]
    rows = zip(paths, data.labels.tolist(), data.objects.tolist(), output.tolist(),
               sigmoid(output).tolist(), strict=True)
    lines = [f'"{path}",{label},{objects[o]},{logit:.9g},{p:.6f}\n' for path, label, o, logit, p in rows]
    with atomic(path, "w") as file:
        file.write("path,label,object,logit,score\n" + "".join(lines))


def print_table(row: dict, facts: dict) -> None:
    print(f"\n{row['model']} on {row['data']}, {row['split']} split, n = {row['n']:,} "
          f"(trained on {checkpoints.trained_on(facts)}, seed {facts['seed']})")
    if facts["data"] == "sample" or row["data"] == "sample":
        print("THE BUILT-IN SAMPLE IS FOR SMOKE RUNS, NOT FOR CONCLUSIONS")
    if row["fingerprint"] in facts.get("fitted_on", ()) or (
            row["split"] != "test" and facts.get("fingerprint") == row["fingerprint"]):
        print(f"these pictures were used in training ({row['split']}): no measure of how well it generalises")
    elif row.get("in_training"):
        print(f"{row['in_training']:,} of these {row['n']:,} pictures were used in training: "
              "no measure of how well it generalises")
    print(f"accuracy           {row['accuracy']:7.2%}   95 % interval {row['accuracy_low']:.2%} to "
          f"{row['accuracy_high']:.2%}   majority baseline {row['majority']:.2%}")
    print("                 precision   recall       F1")
    for name in ("fake", "real"):
        rates = "  ".join(f"{row[f'{name}_{rate}']:7.2%}" for rate in ("precision", "recall", "f1"))
        print(f"{name.upper():<18} {rates.replace('nan%', 'none')}")
    if 0 < row["fake_as_fake"] + row["fake_as_real"] < row["n"]:
        print(f"ROC AUC             {row['roc_auc']:.4f}   average precision (FAKE) "
              f"{row['average_precision']:.4f}")
    print(f"FAKE pictures      {row['fake_as_fake']:,} called FAKE, {row['fake_as_real']:,} called REAL")
    print(f"REAL pictures      {row['real_as_fake']:,} called FAKE, {row['real_as_real']:,} called REAL")
    for head in ("object", "generator"):
        if not np.isnan(row.get(f"{head}_accuracy", np.nan)):  # nan: no picture's class is known
            print(f"{head} class".ljust(18) + f" {row[f'{head}_accuracy']:7.2%} right")
    print(f"threshold           {row['threshold']:.4f}   ({row['threshold_source']}); "
          f"at 0.5 the accuracy is {row['accuracy_at_half']:.2%}")


def print_mean(rows: list[dict]) -> None:
    values = np.array([row["accuracy"] for row in rows])
    print(f"\n{len(values)} models: accuracy {values.mean():.2%} ± {values.std(ddof=1):.2%} (mean ± sd), "
          f"min {values.min():.2%}, max {values.max():.2%}")


def expand(names: list[str]) -> list[str]:
    """Checkpoint names and patterns -> names, in sorted order within a pattern."""
    found = []
    for name in names:
        matches = sorted(glob.glob(str(checkpoints.path_of(name)))) if glob.has_magic(name) else [name]
        if not matches:
            raise TellError(f"no checkpoint matches {checkpoints.path_of(name)}")
        found += matches
    return found


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-mf", "--modelfile", dest="mf", nargs="+", default=["base_model"], metavar="NAME",
        help="checkpoints: models/NAME.pth, paths, or patterns in quotes (base_model)")
    add("-thr", "--decision_thresh", dest="thr", type=number_between(0, 1),
        help="FAKE where P(fake) is at least this (the checkpoint's own, chosen on validation)")
    flags.add_data()
    add("--split", choices=SPLITS, default="test", help="which part of the data (test)")
    add("--group", choices=["content", "set"],
        help="split a folder without train/ as train.py does, and score its held part only")
    add("--leave-out", metavar="GENERATOR",
        help="this generator's pictures, and the real ones of the test part")
    flags.add_device()
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    names, device = expand(args.mf), pick_device(args.device)
    opened.cache_clear()  # the files may have changed since an earlier call
    rows = [evaluate(name, args, device) for name in names]
    if len(rows) > 1:
        print_mean(rows)
    return {"models": rows}


if __name__ == "__main__":
    command_line(main)
