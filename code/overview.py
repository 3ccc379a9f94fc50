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
from matplotlib.figure import Figure

import checkpoints
from classes import parameters
from figures import LINE, STYLE
from files import Parser, TellError, command_line, folder, read_csv, save_result
from genimage import GENERATORS

RECIPES = ("mini_model", "base_model", "attn_model", "effnet", "robust", "fast", "compact", "wide", "dual",
           "wide28")
MEANS = ("roc_auc", "object_accuracy")
# (name, accuracy on the official test half, parameters or None where none are stated)
PUBLISHED = (("Bird & Lotfi, CNN", 0.9298, None),  # IEEE Access 2024
             ("ResNet18, fine-tuned", 0.9649, 11_177_538),  # a course project's notebook
             ("DenseNet, transfer", 0.9774, None))  # arXiv:2401.07358


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


def place_of(row: dict, rows: list[dict], key: str) -> int:
    """How many points above its dot a label stands: below, and lower for each better neighbour."""
    better = sum(0 < other["accuracy"] - row["accuracy"] < 0.03 and 1 / 3 < other[key] / row[key] < 3
                 for other in rows)
    return -2 - 13 * better if better else 5


def plot_overview(rows: list[dict]) -> Figure:
    """Accuracy against parameters and against seconds of training; bars: one standard deviation."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
        for ax, key, label in zip(axes, ("parameters", "seconds"),
                                  ("parameters", "seconds of training, as it was run"), strict=True):
            for row in rows:
                ax.errorbar(row[key], row["accuracy"], np.nan_to_num(row["sd"]), fmt="o", color=LINE,
                            capsize=3)
                ax.annotate(f"{row['model']} ({row['seeds']})", (row[key], row["accuracy"]), fontsize=9,
                            xytext=(6, place_of(row, rows, key)), textcoords="offset points")
            ax.set(xscale="log", xlabel=label)
            ax.margins(x=0.18, y=0.12)
        for name, accuracy, size in PUBLISHED:
            ax = axes[0]
            ax.axhline(accuracy, ls=":", lw=1, color="grey")
            ax.text(0.01, accuracy, f"{name} {accuracy:.2%}", fontsize=8, color="grey", va="bottom",
                    transform=ax.get_yaxis_transform())
            if size:
                ax.plot(size, accuracy, "x", color="grey")
        axes[0].set_ylabel("accuracy on CIFAKE's test half")
    return figure


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
