"""Which ideas make the compact network stronger: each alone, over seeds, on validation pictures only.

    python code/ablation.py                      every idea, 3 seeds each: hours; goes on where it stopped
    python code/ablation.py --only no-flip deep   some of them

Each run is BASE, the strong recipe for two epochs, with one thing changed. The weights are averaged over 20
steps, a share of the run as large as 150 steps are of the strong recipe's sixteen epochs. Writes one row a
run to paper/results/ablation.csv; notebook 07 makes the table.
"""
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import joblib
import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from cache import OBJECTS
from datasets import load
from detectors import Compact, Halve
from files import Parser, TellError, command_line, folder, read_csv, shown, whole_number, write_csv
from fitting import Recipe, fit
from train import RECIPES, parts_of

BASE = replace(RECIPES["strong"], epochs=2, average=20)


def luma_chroma(x: Tensor) -> Tensor:
    """(n, 3, h, w) RGB -> brightness and the differences of blue and red from it (ITU-R BT.601)."""
    luma = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)
    return torch.stack((luma, x[:, 2] - luma, x[:, 0] - luma), dim=1)


class WithNoise(Compact):
    """Three more channels into the first stage: the local noise of brightness and of both colour differences.

    The logarithm of the variance in 3 x 3 squares, which no convolution of the pixels gives. A camera's
    noise, and the coarser colour that JPEG leaves, differ from a generator's.
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.stages[0] = Halve(54 + 3, self.stages[0].convolution[0].out_channels)
        self.scale = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        planes = luma_chroma(x.float())
        variance = F.avg_pool2d(planes.square(), 3, 1, 1) - F.avg_pool2d(planes, 3, 1, 1).square()
        noise = self.scale(variance.clamp_min(1e-5).log())
        features = self.stages(torch.cat((self.whitening(x), noise), dim=1))
        return self.head(features.mean(dim=(2, 3)))


FREQUENCIES = 3 * 32 * 17  # of three planes of 32 x 32 pixels, half of them the others' conjugates


class WithSpectrum(Compact):
    """Into the last layer as well: the logarithm of the whole picture's spectrum, of three planes."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.scale = nn.BatchNorm1d(FREQUENCIES)
        self.head = nn.Linear(self.head.in_features + FREQUENCIES, self.head.out_features)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(luma_chroma(x.float())).abs().add(0.1).log().flatten(1)
        features = self.stages(self.whitening(x)).mean(dim=(2, 3))
        return self.head(torch.cat((features, self.scale(spectrum)), dim=1))


def no_mirror(network: nn.Module) -> None:
    network.mirror = False


@dataclass(frozen=True)
class Variant:
    """One change: of the recipe, of the network, of its arguments, or of it once built.

    idea: what became of the idea tested, that is of what this run lacks or of what it adds.
    """
    what: str
    idea: str
    recipe: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    network: type[Compact] = Compact
    change: Callable[[nn.Module], None] = lambda network: None


VARIANTS = {
    "base": Variant("the strong recipe as it is, verdict and object class", ""),
    "one-head": Variant("the verdict alone", "kept", arguments={"objects": 0}),
    "object-1": Variant("the object class weighs as much as the verdict",
                        "dropped: 0.6 lost in twelve epochs (one run)", {"object_weight": 1.0}),
    "learned-first": Variant("first layer learned, not whitened",
                             "kept; Plain does without: fewer photographs from elsewhere are called FAKE",
                             arguments={"whitened": False}),
    "no-flip": Variant("no mirrored pictures in training", "kept: no difference, and it costs nothing",
                       {"augment": ("shift",)}),
    "no-shift": Variant("no shifted pictures in training", "kept: pays later (+0.14 at four epochs, one run)",
                        {"augment": ("flip",)}),
    "no-smoothing": Variant("labels 0 and 1, not 0.05 and 0.95", "kept: not tried without in longer runs",
                            {"label_smoothing": 0.0}),
    "no-average": Variant("the last weights, not their running mean", "kept", {"average": 0}),
    "constant": Variant("constant learning rate of 0.1", "dropped", {"schedule": "constant", "lr": 0.1}),
    "no-decay": Variant("no weight decay", "kept", {"weight_decay": 0.0}),
    "small-batch": Variant("batches of 128, learning rate 0.2", "dropped: 0.10 lost in four epochs (one run)",
                           {"batch_size": 128, "lr": 0.2, "average": 40}),
    "narrow": Variant("half the width", "dropped", arguments={"width": 24}),
    "wide": Variant("a last stage of twice the width, with a residual block", "kept: Wide",
                    arguments={"wide": True}),
    "deep": Variant("two residual blocks a stage, not one",
                    "dropped: the wide end gives as much for as much time", arguments={"blocks": 2}),
    "noise": Variant("local noise of brightness and colour as further channels",
                     "dropped: not clear, for half as much time again", network=WithNoise),
    "spectrum": Variant("the picture's spectrum into the last layer as well", "dropped",
                        network=WithSpectrum),
    "no-mirror": Variant("scored without the mirror image", "kept", change=no_mirror),
    "fp32": Variant("float32, not bfloat16", "dropped: no difference, and three times as slow",
                    {"precision": "fp32"}),
}


def table(rows: list[dict]) -> list[dict]:
    """What each idea changes, worst first, from the rows of ablation.csv.

    points: of validation accuracy, against base with the same seed, mean; low and high: its 95 % t-interval
    over seeds, nan for one seed. seeds: how many pairs. The interval knows seeds only: all runs share their
    validation pictures.
    """
    known = {(row["variant"], int(row["seed"])): 100 * float(row["val_accuracy"]) for row in rows}
    found = []
    for name, variant in VARIANTS.items():
        gain = np.array([value - known["base", seed] for (own, seed), value in known.items()
                         if own == name and ("base", seed) in known])
        if name != "base" and len(gain):
            found.append({"what": variant.what, "points": gain.mean(), **interval(gain), "seeds": len(gain),
                          "idea": variant.idea})
    return sorted(found, key=lambda row: row["points"])


def interval(values: np.ndarray) -> dict[str, float]:
    """95 % t-interval of the mean of values, float (n,); nan for n = 1."""
    half = np.nan
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return {"low": values.mean() - half, "high": values.mean() + half}


def recipe_of(name: str) -> Recipe:
    return replace(BASE, **VARIANTS[name].recipe)


def digest_of(recipe: Recipe) -> str:
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]


def run(name: str, seed: int, data: str) -> dict:
    """One training of one variant: its validation numbers after the last epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    variant, parts = VARIANTS[name], parts_of(load(data), smoke=False)
    network = variant.network(**{"objects": len(OBJECTS)} | variant.arguments)
    variant.change(network)
    recipe = recipe_of(name)
    network = network.to(memory_format=torch.channels_last)
    state = fit(network, parts["train"], parts["val"], recipe, seed=seed)
    last = state["history"][-1]
    return {"variant": name, "what": variant.what, "seed": seed, "epochs": recipe.epochs,
            "recipe": digest_of(recipe), "data": parts["train"].name,
            "val_accuracy": last["val_accuracy"], "val_loss": last["val_loss"],
            "seconds": sum(row["seconds"] for row in state["history"])}


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    flags.add_argument("--seeds", type=whole_number(1), default=3, help="(3)")
    flags.add_argument("--data", default="auto", metavar="SET")
    args = flags.parse_args(argv)
    path, known = folder("results") / "ablation.csv", load(args.data).name
    rows = read_csv(path) if path.exists() else []
    for row in rows:
        if (row.get("data"), row.get("recipe")) != (known, digest_of(recipe_of(row["variant"]))):
            raise TellError(f"{shown(path)}: of other pictures than {known}, or of another recipe; "
                            "move it away")
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
