"""How hard is the task? The first epoch under a lens, fewer pictures, and simpler models.

    python code/difficulty.py first-epoch   why the default recipe stands still at first: 10 seeds, 2 starts
    python code/difficulty.py pictures      validation accuracy against the number of training pictures
    python code/difficulty.py simple        what a linear model, colours or the spectrum reach

Each writes paper/results/difficulty-*.csv, which the notebook reads. Validation pictures only.
"""
import joblib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from classes import Batches, build
from datasets import ImageSet, load
from devices import Device
from files import Parser, command_line, folder, shown, whole_number, write_csv
from fitting import Recipe, Run, fit, train_epoch
from scoring import logits

SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 90_000)
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
TRACED = 2_000  # validation pictures scored again and again in the first epoch


def he_start(network: nn.Module) -> None:
    """Weights of variance 2 / fan-in, biases zero (He et al. 2015): ReLU layers then keep the scale.

    torch's default has variance 1 / (3 fan-in), a sixth of it.
    """
    for layer in (getattr(network, name) for name in LAYERS):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


STARTS = {"default": lambda network: None, "he": he_start}


def signal(network: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[dict]:
    """For each layer: how far its output varies between pictures, and the size of its gradient.

    spread: standard deviation over pictures, averaged over the layer's outputs; relative_step: norm of
    the gradient over norm of the weights, times the learning rate's 0.001.
    """
    outputs = {}
    hooks = [getattr(network, name).register_forward_hook(
        lambda layer, inputs, output, name=name: outputs.update({name: output.detach()})) for name in LAYERS]
    network.zero_grad()
    F.binary_cross_entropy_with_logits(network(pixels)[:, 0], targets[:, 0].float()).backward()
    for hook in hooks:
        hook.remove()
    rows = []
    for name in LAYERS:
        weight = getattr(network, name).weight
        rows.append({"layer": name, "spread": outputs[name].std(dim=0).mean().item(),
                     "relative_step": 0.001 * (weight.grad.norm() / weight.norm()).item()})
    network.zero_grad()
    return rows


def first_epoch(start: str, seed: int, every: int, parts: dict[str, ImageSet]) -> tuple[list, list]:
    """One epoch of the default recipe: (validation every so many batches, the signal at the start)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network, val = build("CIFAKE_CNN"), parts["val"].head(TRACED)
    STARTS[start](network)
    run = Run(network, Recipe(epochs=1), Device(torch.device("cpu")), {"epoch": 0})
    batches = Batches(parts["train"], 32, network.normalisation, seed=seed)
    probe = next(iter(Batches(val, 512, network.normalisation)))
    at_start = [{"start": start, "seed": seed, **row} for row in signal(network, *probe)]
    rows, losses = [], []

    def look(step: int, loss: float) -> None:
        losses.append(loss)
        if step % every:
            return
        output = logits(network, val)
        rows.append({"start": start, "seed": seed, "batches": step, "train_loss": np.mean(losses),
                     "val_loss": (np.logaddexp(0, output) - output * val.labels).mean(),
                     "val_accuracy": ((output >= 0) == val.labels).mean()})
        losses.clear()

    train_epoch(run, batches, 1, [], look)
    return rows, at_start


def with_pictures(n: int, seed: int, parts: dict[str, ImageSet]) -> dict:
    """The default recipe's ten epochs of steps on n pictures, which come round as often as needed."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    whole = parts["train"]
    chosen = np.random.default_rng([seed, n]).permutation(len(whole))[:n]
    repeated = whole.take(np.resize(chosen, len(whole)))
    network = build("CIFAKE_CNN")
    state = fit(network, repeated, parts["val"], Recipe(epochs=10), seed=seed)
    return {"pictures": min(n, len(whole)), "seed": seed, **state["best"]["row"]}


# --- models without convolutions ---------------------------------------------------------------

def linear_features(pixels: np.ndarray) -> np.ndarray:
    """The pixels themselves, from -1 to 1."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1


def colour_features(pixels: np.ndarray) -> np.ndarray:
    """How often each of 8 x 8 x 8 colours occurs, as a square root."""
    bins = (pixels >> 5).astype(np.int64)
    index = (bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2]).reshape(len(pixels), -1)
    flat = (index + 512 * np.arange(len(pixels))[:, None]).ravel()
    return np.sqrt(np.bincount(flat, minlength=512 * len(pixels)).reshape(-1, 512) / 1024).astype(np.float32)


def spectrum_features(pixels: np.ndarray) -> np.ndarray:
    """Logarithm of the power spectrum of each colour channel, 3 x 32 x 17 numbers."""
    spectrum = np.abs(np.fft.rfft2(pixels.astype(np.float32) / 255))
    return np.log(spectrum + 1e-3).reshape(len(pixels), -1).astype(np.float32)


SIMPLE = {"pixels": linear_features, "colours": colour_features, "spectrum": spectrum_features}


def simple_model(name: str, parts: dict[str, ImageSet]) -> dict:
    """Logistic regression on one kind of features; its accuracy on the validation pictures."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    features = {split: SIMPLE[name](part.pixels[part.rows]) for split, part in parts.items()}
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(features["train"], parts["train"].labels)
    accuracy = model.score(features["val"], parts["val"].labels)
    return {"features": name, "numbers": features["val"].shape[1], "val_accuracy": accuracy,
            "n_train": len(parts["train"]), "n_val": len(parts["val"])}


# --- command line ------------------------------------------------------------------------------

def in_parallel(jobs: list) -> list:
    return joblib.Parallel(n_jobs=joblib.cpu_count())(jobs)


def write(name: str, rows: list[dict]) -> dict:
    path = folder("results") / f"difficulty-{name}.csv"
    write_csv(path, rows)
    print(f"written: {shown(path)}, {len(rows)} rows")
    return {"rows": rows}


def run_first_epoch(args, parts: dict) -> dict:
    jobs = [joblib.delayed(first_epoch)(start, seed, args.every, parts)
            for start in STARTS for seed in range(args.seeds)]
    traces, starts = zip(*in_parallel(jobs), strict=True)
    write("signal", [row for rows in starts for row in rows])
    return write("first-epoch", [row for rows in traces for row in rows])


def run_pictures(args, parts: dict) -> dict:
    sizes = [n for n in SIZES if n <= len(parts["train"])]
    return write("pictures", in_parallel([joblib.delayed(with_pictures)(n, seed, parts)
                                          for n in sizes for seed in range(args.seeds)]))


def run_simple(args, parts: dict) -> dict:
    rows = [simple_model(name, parts) for name in SIMPLE]
    for row in rows:
        print(f"{row['features']:<9} {row['numbers']:>5} numbers  "
              f"validation accuracy {row['val_accuracy']:.2%}")
    return write("simple", rows)


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    runs = {"first-epoch": run_first_epoch, "pictures": run_pictures, "simple": run_simple}
    studies = flags.add_subparsers(dest="study", required=True, parser_class=Parser)
    for name in runs:
        study = studies.add_parser(name)
        study.add_argument("--data", default="auto", metavar="SET")
        if name != "simple":  # which has one outcome
            study.add_argument("--seeds", type=whole_number(1), default=10, help="(10)")
        if name == "first-epoch":
            study.add_argument("--every", type=whole_number(1), default=25,
                               help="batches between two looks (25)")
    args = flags.parse_args(argv)
    data = load(args.data)
    return runs[args.study](args, {split: data.split(split) for split in ("train", "val")})


if __name__ == "__main__":
    command_line(main)
