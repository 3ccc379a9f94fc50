"""False alarms on photographs of classes that no training picture showed, all real: CIFAR-100.

    python code/transfer.py                      every model of MODELS that is here
    python code/transfer.py -mf base_model       these only

Without CIFAR-100 its stand-in is scored, see cifar100.py; without that the built-in sample, which proves
nothing. Neither was ever JPEG at 32 pixels, as CIFAKE is, so each photograph is scored as it is and saved
as such a JPEG. Writes paper/results/false-alarms-SET.csv, and scores-NAME-SET-test.csv for the photographs
as they are.
"""
from itertools import cycle

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import checkpoints
from cache import OBJECTS
from cifar100 import open_photographs
from classes import pick_device
from datasets import ImageSet
from figures import STYLE, plot_pictures
from files import Parser, TellError, command_line, folder, read_csv, save_models, shown, write_csv
from lossless import as_jpeg, models_here
from scoring import logits, ratio, sigmoid, wilson

MODELS = ("base_model", "mini_model", "attn_model", "compact", "wide28", "dual", "sturdy")
CIFAKE_QUALITY = 75
VERSIONS = ("as they are", f"as JPEG {CIFAKE_QUALITY}")
# Of CIFAR-100's classes to CIFAR-10's, whose "truck includes only big trucks" (Krizhevsky's page of both).
NEAREST = {"pickup_truck": "truck"}
PERMUTATIONS = 2000
SMOKE_PICTURES = 200


# --- false alarms ------------------------------------------------------------------------------

def title(data: ImageSet) -> str:
    """What the photographs are, for the head of a table or figure."""
    groups, classes = (len(set(column.tolist())) for column in classes_of(data))
    what = {"cifar100": "CIFAR-100, test half", "cifar100-changed": "CIFAR-100, NOT as published",
            "imagenet1000": "ImageNet photographs in place of CIFAR-100",
            "sample-real": "BUILT-IN SAMPLE, for smoke runs, not for conclusions"}[data.name]
    return f"{what}: n = {len(data):,} real, {groups} groups, {classes:,} classes"


def classes_of(data: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Group (superclass) and class of each photograph, str (n,), from its path."""
    parts = [path.split("/")[2:] for path in data.paths.tolist()]
    known = [(part[0], part[1]) if len(part) > 1 else (data.name, data.name) for part in parts]
    groups, classes = zip(*known, strict=True)
    return np.array(groups), np.array(classes)


def rate(called: np.ndarray) -> dict:
    """n, how many are called FAKE (bool (n,)), and their share with its 95 % interval (Wilson)."""
    low, high = wilson(int(called.sum()), len(called))
    return {"n": len(called), "called_fake": int(called.sum()), "false_alarm": float(called.mean()),
            "false_alarm_low": low, "false_alarm_high": high}


def false_alarms(called: np.ndarray, data: ImageSet) -> list[dict]:
    """The rate of photographs called FAKE (bool (n,)): of all, of each group, of each class.

    Without classes where each has a single photograph, which has no rate.
    """
    groups, classes = classes_of(data)
    rows = [{"level": "all", "name": data.name, **rate(called)}]
    levels = {"group": groups} | ({"class": classes} if len(set(classes.tolist())) < len(data) else {})
    for level, column in levels.items():
        rows += [{"level": level, "name": name, **rate(called[column == name])}
                 for name in np.unique(column).tolist()]
    return rows


def equal_rates_p(n: np.ndarray, called_fake: np.ndarray, seed: int = 0) -> float:
    """p of the hypothesis that groups of n pictures (int, (k,)) have one rate of called_fake (int, (k,)).

    Permutation test of Pearson's chi-squared statistic (PERMUTATIONS draws, so at least 1 / 2001), right for
    groups of any size; nan without groups.
    """
    if not len(n):
        return float("nan")
    n, called_fake = np.asarray(n), np.asarray(called_fake)
    draws = np.random.default_rng(seed).multivariate_hypergeometric(n, called_fake.sum(), PERMUTATIONS)
    expected = n * called_fake.sum() / n.sum()
    spread = ((np.vstack((called_fake, draws)) - expected) ** 2 / n).sum(axis=1)
    return float((1 + (spread[1:] >= spread[0] - 1e-9).sum()) / (1 + PERMUTATIONS))


def cifake_alarms(model: str) -> float:
    """The false-alarm rate of a model on CIFAKE's own test photographs, as test.py saved it; else nan."""
    path = folder("results") / f"metrics-{model}-cifake-test.csv"
    if not path.exists():
        return float("nan")
    numbers = read_csv(path)[0]
    called, kept = int(numbers["real_as_fake"]), int(numbers["real_as_real"])
    return ratio(called, called + kept)


def measure(name: str, data: ImageSet, device="cpu", mark: str = "") -> list[dict]:
    """One row for each version of the photographs and each level, group and class; saves the scores."""
    network, facts = checkpoints.load(name, device)
    model, rows = checkpoints.model_name(name), []
    for version, pictures in zip(VERSIONS, (data, as_jpeg(data, CIFAKE_QUALITY)), strict=True):
        output = logits(network, pictures, device)
        if pictures is data:
            columns = data.paths.tolist(), output.tolist(), sigmoid(output).tolist()
            write_csv(folder("results") / f"scores-{model}-{data.name}-test{mark}.csv",
                      [{"path": path, "label": 0, "logit": f"{logit:.9g}", "score": f"{score:.6f}"}
                       for path, logit, score in zip(*columns, strict=True)])
        called = sigmoid(output) >= facts["threshold"]
        rows += [{"model": model, "data": data.name, "version": version, "threshold": facts["threshold"],
                  **row} for row in false_alarms(called, data)]
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """For each model: its rate on CIFAKE's photographs and on both versions, and whether groups differ."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        row = {"model": model, "n": mine[0]["n"], "CIFAKE, real test half": cifake_alarms(model)}
        for version in VERSIONS:
            parts = {level: [part for part in mine if (part["version"], part["level"]) == (version, level)]
                     for level in ("all", "group", "class")}
            whole = parts["all"][0]
            row |= {version: whole["false_alarm"], f"{version}, low": whole["false_alarm_low"],
                    f"{version}, high": whole["false_alarm_high"]}
            row |= {f"{version}, p of equal rates by {level}":
                    equal_rates_p(*([part[key] for part in parts[level]] for key in ("n", "called_fake")))
                    for level in ("group", "class")}
        table.append(row)
    return table


def seen_classes(rows: list[dict]) -> list[dict]:
    """Groups that are a class of CIFAKE too: their rates, and the model's on CIFAKE's test photographs.

    CIFAR-100 was made without CIFAR-10's classes, CIFAKE's: of it the class that is nearest to one, which
    rows name as what it is. A printed line says where there is none of CIFAKE's own.
    """
    chosen = {(row["model"], row["name"]): row for row in rows if row["version"] == VERSIONS[0]
              and (row["level"] == "group" and row["name"] in OBJECTS
                   or row["level"] == "class" and row["name"] in NEAREST)}
    if not any(name in OBJECTS for _, name in chosen):
        near = ", ".join(f"{name} is nearest to CIFAKE's {NEAREST[name]}"
                         for name in sorted({name for _, name in chosen})) or "none is near one"
        print(f"No class of CIFAKE is among these photographs; {near}.")
    return [row for (model, name), ours in chosen.items() for row in beside_cifake(model, name, ours)]


def beside_cifake(model: str, name: str, ours: dict) -> list[dict]:
    """Two rows, of CIFAKE's photographs of a class and of `ours`; none where test.py saved no scores."""
    path, known = folder("results") / f"scores-{model}-cifake-test.csv", NEAREST.get(name, name)
    if not path.exists():
        return []
    theirs = rate(np.array([float(score["score"]) >= ours["threshold"] for score in read_csv(path)
                            if (score["object"], score["label"]) == (known, "0")]))
    both = (known, "CIFAKE", theirs), (name, ours["data"], ours)
    return [{"model": model, "class": shown_as, "photographs of": source, **{key: row[key] for key in theirs}}
            for shown_as, source, row in both]


# --- figures -----------------------------------------------------------------------------------

COLOURS = ("#333333", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#0072B2")


def plot_groups(rows: list[dict], data: ImageSet, version: str, level: str = "group") -> Figure:
    """False-alarm rate of each group with its interval, a column for each model, the whole as a line."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    chosen = [row for row in rows if (row["version"], row["level"]) == (version, level)]
    names = sorted({row["name"] for row in chosen}, key=lambda name: np.mean(
        [row["false_alarm"] for row in chosen if row["name"] == name]))
    sizes = {row["name"]: row["n"] for row in chosen}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(models), sharey=True, sharex=True, squeeze=False,
                                    layout="constrained",
                                    figsize=(2.2 + 2.4 * len(models), 1.4 + 0.24 * len(names)))
        for ax, model, colour in zip(axes[0], models, cycle(COLOURS), strict=False):
            plot_rates(ax, {row["name"]: row for row in chosen if row["model"] == model}, names, colour)
            whole = next(row for row in rows if (row["model"], row["version"], row["level"])
                         == (model, version, "all"))
            ax.axvline(whole["false_alarm"], color=colour, ls="--", lw=1)
            ax.set(xlabel="called FAKE (fraction)", xlim=(0, 1))
            ax.set_title(f"{model}\nall {whole['false_alarm']:.1%}", fontsize=10)
        axes[0, 0].set_yticks(range(len(names)), [f"{name} ({sizes[name]})" for name in names], fontsize=8)
        figure.suptitle(f"{title(data)}; {version}", fontsize=10)
    return figure


def plot_classes(rows: list[dict], data: ImageSet, model: str, version: str = VERSIONS[0],
                 columns: int = 4) -> Figure:
    """False-alarm rate of each class for one model with its interval, from least to most; dashed: of all.

    TellError where each class has a single photograph, which has no rate.
    """
    whole, *mine = (row for row in rows if (row["model"], row["version"]) == (model, version)
                    and row["level"] in ("all", "class"))
    if not mine:
        raise TellError(f"{data.name}: no class has more than one photograph, so none has a rate")
    mine.sort(key=lambda row: (row["false_alarm"], row["name"]))
    each = -(-len(mine) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, sharex=True, figsize=(3 * columns, 1.2 + 0.2 * each),
                                    squeeze=False, layout="constrained")
        for place, ax in enumerate(axes[0]):
            part = {row["name"]: row for row in mine[place * each:(place + 1) * each]}
            plot_rates(ax, part, list(part), COLOURS[5])
            ax.axvline(whole["false_alarm"], color=COLOURS[0], ls="--", lw=1)
            ax.set(xlim=(0, 1), ylim=(-0.6, each - 0.4))
            ax.set_yticks(range(len(part)), [name.replace("_", " ") for name in part], fontsize=8)
        sizes = [row["n"] for row in mine]
        figure.supxlabel("called FAKE (fraction), 95 % intervals; photographs of a class: "
                         + " to ".join(map(str, sorted({min(sizes), max(sizes)}))), fontsize=9)
        figure.suptitle(f"{model}: all {whole['false_alarm']:.1%}. {title(data)}; {version}", fontsize=10)
    return figure


def plot_rates(ax: Axes, rows: dict[str, dict], names: list[str], colour: str) -> None:
    """One model: a point and a 95 % interval for each name."""
    rates = np.array([rows[name]["false_alarm"] for name in names])
    ends = np.array([[rows[name][f"false_alarm_{end}"] for name in names] for end in ("low", "high")])
    ax.errorbar(rates, range(len(names)), xerr=abs(ends - rates), fmt="o", ms=4, color=colour, capsize=2)


def plot_most_suspect(name: str, data: ImageSet, k: int = 20) -> Figure:
    """The k photographs that a model finds most like a fake, with their classes and P(fake)."""
    network, facts = checkpoints.load(name)
    scores, (_, classes) = sigmoid(logits(network, data)), classes_of(data)
    worst = np.argsort(-scores, kind="stable")[:k]
    captions = [f"{classes[i].split('_', 1)[-1][:16]}\n{scores[i]:.3f}" for i in worst]
    return plot_pictures(data.pixels[data.rows[worst]], captions, min(k, 10),
                         title=f"{name}, threshold {facts['threshold']:.3f}: most like a fake, all real")


# --- command line ------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_models(None, f"those that are here of {', '.join(MODELS)}")
    flags.add_device()
    flags.add_argument("--smoke", action="store_true",
                       help=f"{SMOKE_PICTURES} photographs only: does it run?")
    args = flags.parse_args(argv)
    data = open_photographs()
    data = data.head(SMOKE_PICTURES) if args.smoke else data
    print(f"{title(data)}\nfrom {shown(data.source)}")
    mark, device = "-smoke" if args.smoke else "", pick_device(args.device)
    rows = [row for name in args.mf or models_here(MODELS) for row in measure(name, data, device, mark)]
    for row in summary(rows):
        print("\n" + "\n".join(f"{key:<42} {f'{value:.4f}' if isinstance(value, float) else value}"
                               for key, value in row.items()))
    save_models(f"false-alarms-{data.name}{mark}", rows)
    return {"rows": rows, "summary": summary(rows)}


if __name__ == "__main__":
    command_line(main)
