"""Which ideas make the compact network stronger: each alone, over seeds, on validation pictures only.

    python code/ablation.py                      every idea, 3 seeds each: hours; goes on where it stopped
    python code/ablation.py --only no-flip deep   some of them

Each run is the strong recipe for EPOCHS epochs, with one thing changed. Writes one row a run to
paper/results/ablation.csv; notebook 07 makes the table.
"""
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import joblib
import torch
from torch import nn

from cache import OBJECTS
from classes import build
from datasets import load
from detectors import convolution
from files import Parser, command_line, folder, read_csv, shown, whole_number, write_csv
from fitting import Recipe, fit
from train import RECIPES, parts_of

EPOCHS = 2


def learned_first_layer(network: nn.Module) -> None:
    network.whitening, network.whiten = nn.Sequential(convolution(3, 54), nn.ReLU()), lambda batches: None


def no_mirror(network: nn.Module) -> None:
    network.mirror = False


@dataclass(frozen=True)
class Variant:
    """One change: of the recipe, of the network's arguments, or of the network once built.

    idea: what became of the idea tested, that is of what this run lacks or of what it adds.
    """
    what: str
    idea: str
    recipe: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    change: Callable[[nn.Module], None] = lambda network: None


VARIANTS = {
    "base": Variant("the strong recipe as it is, verdict and object class", ""),
    "one-head": Variant("the verdict alone", "kept", arguments={"objects": 0}),
    "object-1": Variant("the object class weighs as much as the verdict", "dropped", {"object_weight": 1.0}),
    "learned-first": Variant("first layer learned, not whitened", "kept", change=learned_first_layer),
    "no-flip": Variant("no mirrored pictures in training", "kept", {"augment": ("shift",)}),
    "no-shift": Variant("no shifted pictures in training", "kept", {"augment": ("flip",)}),
    "no-smoothing": Variant("labels 0 and 1, not 0.05 and 0.95", "kept", {"label_smoothing": 0.0}),
    "no-average": Variant("the last weights, not their running mean", "kept", {"average": 0}),
    "constant": Variant("constant learning rate of 0.1", "dropped", {"schedule": "constant", "lr": 0.1}),
    "no-decay": Variant("no weight decay", "kept", {"weight_decay": 0.0}),
    "small-batch": Variant("batches of 128, learning rate 0.2", "dropped", {"batch_size": 128, "lr": 0.2}),
    "narrow": Variant("half the width", "dropped", arguments={"width": 24}),
    "wide": Variant("a last stage of twice the width, with a residual block", "kept: Wide",
                    arguments={"wide": True}),
    "deep": Variant("two residual blocks a stage, not one", "dropped", arguments={"blocks": 2}),
    "no-mirror": Variant("scored without the mirror image", "kept", change=no_mirror),
    "fp32": Variant("float32, not bfloat16", "dropped", {"precision": "fp32"}),
}


def run(name: str, seed: int, data: str) -> dict:
    """One training of one variant: its validation numbers after EPOCHS epochs."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    variant, parts = VARIANTS[name], parts_of(load(data), smoke=False)
    network = build("Compact", **{"objects": len(OBJECTS)} | variant.arguments)
    variant.change(network)
    recipe: Recipe = replace(RECIPES["strong"], **{"epochs": EPOCHS} | variant.recipe)
    network = network.to(memory_format=torch.channels_last)
    state = fit(network, parts["train"], parts["val"], recipe, seed=seed)
    last = state["history"][-1]
    return {"variant": name, "what": variant.what, "seed": seed, "epochs": EPOCHS,
            "val_accuracy": last["val_accuracy"], "val_loss": last["val_loss"],
            "seconds": sum(row["seconds"] for row in state["history"])}


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    flags.add_argument("--seeds", type=whole_number(1), default=3, help="(3)")
    flags.add_argument("--data", default="auto", metavar="SET")
    args = flags.parse_args(argv)
    path = folder("results") / "ablation.csv"
    rows = read_csv(path) if path.exists() else []
    done = {(row["variant"], int(row["seed"])) for row in rows}
    wanted = [(name, seed) for seed in range(args.seeds) for name in args.only if (name, seed) not in done]
    jobs = [joblib.delayed(run)(name, seed, args.data) for name, seed in wanted]
    for row in joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator_unordered")(jobs):
        rows.append(row)
        write_csv(path, rows)
        print(f"{row['variant']:<14} seed {row['seed']}: validation {row['val_accuracy']:.2%}, "
              f"loss {row['val_loss']:.4f}, {row['seconds']:.0f} s", flush=True)
    print(f"written: {shown(path)}, {len(rows)} runs")
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
