"""Train a network; the epoch and the threshold of highest validation accuracy are kept.

    python code/train.py -ep 10 -mf base_model            the course project's network
    python code/train.py -ep 10 -mf attn_model --attn     with style-based attention
    python code/train.py -ep 10 -mf base_model --seeds 10 ten runs, one a core, mean and deviation
    python code/train.py -ep 10 -mf base_model --resume   go on where a killed run stopped

Measured on CIFAKE's 90,000 training pictures: paper/results/ (accuracy) and bench.csv (time).
"""
import os
import time
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.sgd import sgd
from tqdm import tqdm

import checkpoints
from classes import NETWORKS, Batches, build, parameters, pick_device
from datasets import ImageSet, banner, describe, load
from files import (
    Parser,
    TellError,
    command_line,
    folder,
    number_between,
    remove,
    shown,
    whole_number,
    write_csv,
)
from scoring import choose_threshold, logits, sigmoid

SMOKE_PICTURES = 640
RECIPE = ("model", "attn", "bs", "lr", "momentum", "precision", "smoke")


def fit(network: nn.Module, train: ImageSet, val: ImageSet, *, epochs: int, batch_size: int = 32,
        lr: float = 0.001, momentum: float = 0.9, seed: int = 0, device: torch.device | str = "cpu",
        precision: str = "fp32", state: dict | None = None, after_epoch=None) -> dict:
    """Train `network` by SGD on binary cross-entropy of its "fake" logit.

    state: what `after_epoch(state)` got after the last finished epoch, to go on from there; the
    result is then the same, bit for bit on one machine, as without the interruption.
    Returns the last state: {"epoch", "weights", "buffers", "history", "best": {"row", "weights"}},
    where "best" is the epoch of highest validation accuracy at its own best threshold, whose weights
    `network` then holds. Raises TellError when the loss is no longer finite.
    """
    network.to(device)
    optimizer = SGD(network.parameters(), lr, momentum)
    state = state or {"epoch": 0, "history": [], "best": None}
    if state["epoch"]:
        network.load_state_dict(state["weights"])
        optimizer.buffers = [buffer.to(device) for buffer in state["buffers"]]
    batches = Batches(train, batch_size, network.normalisation, device, seed=seed)
    for epoch in range(state["epoch"] + 1, epochs + 1):
        start = time.perf_counter()
        train_loss = train_epoch(network, batches, optimizer, epoch, precision)
        row = {"epoch": epoch, "train_loss": train_loss, **validate(network, val, device, precision),
               "seconds": time.perf_counter() - start}
        state = {"epoch": epoch, "weights": copy(network.state_dict()),
                 "buffers": [buffer.clone() for buffer in optimizer.buffers],
                 "history": [*state["history"], row],
                 "best": better(state["best"], row, network)}
        if after_epoch:
            after_epoch(state)
    network.load_state_dict(state["best"]["weights"])
    return state


class SGD:
    """Gradient descent with momentum: torch.optim.SGD's fused kernel, hence its bits, without its class.

    That class imports torch.compile when it takes its first step, which nothing here uses: 3.7 s a
    process, the time of an epoch. `buffers` is its whole state, one tensor a parameter.
    """

    def __init__(self, parameters, lr: float, momentum: float):
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Use up the gradients."""
        gradients = [parameter.grad for parameter in self.parameters]
        sgd(self.parameters, gradients, self.buffers, fused=True, weight_decay=0, momentum=self.momentum,
            lr=self.lr, dampening=0, nesterov=False, maximize=False)
        for parameter in self.parameters:
            parameter.grad = None


def train_epoch(network: nn.Module, batches: Batches, optimizer: SGD,
                epoch: int, precision: str, after_step=None) -> float:
    """One pass over the batches, after_step(step, loss) after each; returns the mean loss a picture."""
    network.train()
    total = torch.zeros((), device=batches.device)
    with tqdm(batches.epoch(epoch), f"epoch {epoch}", len(batches), leave=False, disable=None,
              unit=" batches", mininterval=0.5) as bar:
        for step, (pixels, labels) in enumerate(bar):
            with torch.autocast(batches.device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = network(pixels)[:, 0]
            loss = F.binary_cross_entropy_with_logits(output.float(), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            if after_step:
                after_step(step + 1, loss.item())
            if step % 200 == 199 and not bar.disable:
                bar.set_postfix(loss=f"{total.item() / (step + 1):.4f}", refresh=False)
    mean = total.item() / len(batches)
    if not np.isfinite(mean):
        raise TellError(f"the loss is no longer finite in epoch {epoch}; take a smaller -lr")
    return mean


def validate(network: nn.Module, val: ImageSet, device, precision: str) -> dict[str, float]:
    """Validation loss, accuracy at P(fake) = 0.5, and the best threshold with its accuracy.

    At a constant learning rate the last layer's bias swings from epoch to epoch, which moves the
    accuracy at 0.5 by more than an epoch of learning does; the best threshold takes that out.
    """
    output = logits(network, val, device, precision)
    loss = np.logaddexp(0, output) - output * val.labels
    threshold, accuracy = choose_threshold(val.labels, sigmoid(output))
    return {"val_loss": float(loss.mean()), "val_accuracy": float(((output >= 0) == val.labels).mean()),
            "threshold": threshold, "val_accuracy_at_threshold": accuracy}


def copy(weights: dict) -> dict:
    return {key: value.detach().clone() for key, value in weights.items()}


def merit(row: dict) -> tuple[float, float]:
    """What an epoch is kept for: accuracy at the best threshold; of equals, the lower loss."""
    return float(row["val_accuracy_at_threshold"]), -float(row["val_loss"])


def better(best: dict | None, row: dict, network: nn.Module) -> dict:
    if best and merit(row) <= merit(best["row"]):
        return best
    return {"row": row, "weights": copy(network.state_dict())}


# --- one run from the command line -------------------------------------------------------------

def run(args, data: dict[str, ImageSet], seed: int, name: str | None, say=print) -> dict:
    """Train once as `args` say; save under `name` unless it is None. Returns what was reached."""
    device = pick_device(args.device)
    torch.manual_seed(seed)
    network = build(args.model, attn=args.attn)
    # Threads and device belong to it: with others the last bits differ.
    recipe = {key: getattr(args, key) for key in RECIPE} | {
        "seed": seed, "data": data["train"].fingerprint, "threads": torch.get_num_threads(),
        "device": device.type}
    unfinished = unfinished_run(name) if name else None
    reached = finished_run(name, recipe, args.ep) if args.resume else None
    if reached:
        say(f"{shown(checkpoints.path_of(name))} is finished already")
        return reached
    if unfinished and not args.resume:
        remove(unfinished)
    state = unfinished_state(unfinished, recipe, args.ep) if args.resume else None
    if state:
        say(f"resuming after epoch {state['epoch']}")

    def after_epoch(state: dict) -> None:
        if unfinished:
            checkpoints.write(unfinished, {"recipe": recipe, "state": state})
        say(epoch_line(state["history"][-1], args.ep))

    state = fit(network, data["train"], data["val"], epochs=args.ep, batch_size=args.bs, lr=args.lr,
                momentum=args.momentum, seed=seed, device=device, precision=args.precision,
                state=state, after_epoch=after_epoch)
    reached = {"seed": seed, **state["best"]["row"],
               "seconds": sum(row["seconds"] for row in state["history"])}
    if name:
        save(name, network, args, data, state, reached, recipe)
        remove(unfinished)
    return reached


def parts_of(data: ImageSet, smoke: bool) -> dict[str, ImageSet]:
    """The training and validation parts; a few hundred pictures of each in a smoke run."""
    parts = {split: data.split(split) for split in ("train", "val")}
    for part in parts.values():
        part.require_both_classes()
    if smoke:
        parts = {split: part.head(SMOKE_PICTURES) for split, part in parts.items()}
    return parts


def unfinished_run(name: str) -> Path:
    return checkpoints.path_of(name).with_suffix(".resume")


def finished_run(name: str, recipe: dict, epochs: int) -> dict | None:
    """What a finished run of this very recipe reached; None where it is unfinished or not begun."""
    path = checkpoints.path_of(name)
    if unfinished_run(name).exists() or not path.exists():
        return None
    content = checkpoints.read(path)
    require_same(path, recipe | {"epochs": epochs},
                 {**content.get("recipe", {}), "epochs": content.get("epochs")})
    return content["metrics"]


def unfinished_state(path: Path, recipe: dict, epochs: int) -> dict | None:
    """The state after the last finished epoch of a run of this very recipe; None if not begun."""
    if not path.exists():
        return None
    content = checkpoints.read(path)
    require_same(path, recipe, content.get("recipe", {}))
    if content["state"]["epoch"] > epochs:
        raise TellError(f"{path}: that run has {content['state']['epoch']} epochs already; "
                        f"-ep {epochs} is too few")
    return content["state"]


def require_same(path: Path, recipe: dict, theirs: dict) -> None:
    changed = [f"{key} ({theirs.get(key)}, not {value})" for key, value in recipe.items()
               if theirs.get(key) != value]
    if changed:
        raise TellError(f"{path}: that run had another {', '.join(changed)}; give the same flags, data and "
                        "threads, or start without --resume")


def epoch_line(row: dict, epochs: int) -> str:
    return (f"epoch {row['epoch']:>2}/{epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.2%} at 0.5, "
            f"{row['val_accuracy_at_threshold']:.2%} at {row['threshold']:.3f}  {row['seconds']:.1f} s")


def save(name: str, network: nn.Module, args, data: dict, state: dict, reached: dict,
         recipe: dict) -> None:
    val = data["val"]
    path = checkpoints.path_of(name)
    checkpoints.write(path, checkpoints.pack(
        network, args.model, {"attn": args.attn}, threshold=reached["threshold"],
        threshold_source=f"highest accuracy on {len(val):,} validation pictures of {val.name}",
        data=val.name, fingerprint=val.fingerprint,
        pictures={split: len(part) for split, part in data.items()}, smoke=args.smoke,
        seed=reached["seed"], recipe=recipe, epochs=args.ep, metrics=reached,
        history=state["history"], **checkpoints.surroundings()))
    history = folder("results") / f"history-{name}.csv"
    write_csv(history, state["history"])
    print(f"checkpoint: {shown(path)}\nhistory:    {shown(history)}")


# --- several seeds -----------------------------------------------------------------------------

def run_seeds(args) -> list[dict]:
    """args.seeds runs, as many at once as there are cores, each with one thread of its own."""
    workers = min(args.seeds, joblib.cpu_count()) if args.device != "cuda" else 1
    settings = {key: value for key, value in os.environ.items() if key.startswith("TELL_")}
    jobs = (joblib.delayed(run_one_seed)(args, seed, settings)
            for seed in range(args.seed, args.seed + args.seeds))
    results = joblib.Parallel(n_jobs=workers)(jobs)
    if args.mf:
        path = folder("results") / f"seeds-{args.mf}.csv"
        write_csv(path, results)
        print(f"seeds:      {shown(path)}")
    return results


def run_one_seed(args, seed: int, settings: dict[str, str]) -> dict:
    os.environ.update(settings)  # the process may be left from an earlier call with others
    torch.set_num_threads(1)
    name, parent = f"{args.mf}-s{seed}" if args.mf else None, os.getppid()

    def say(line: str) -> None:
        if os.getppid() != parent:
            raise SystemExit("the run of several seeds was killed")  # else this process would go on alone
        print(f"seed {seed}: {line}", flush=True)

    return run(args, parts_of(load(args.data), args.smoke), seed, name, say)


def print_seeds(results: list[dict]) -> None:
    for key, name in (("val_accuracy", "at 0.5"), ("val_accuracy_at_threshold", "at chosen threshold")):
        values = np.array([result[key] for result in results])
        deviation = f" ± {values.std(ddof=1):.2%} (sd)" if len(values) > 1 else ""
        print(f"validation accuracy {name}: {values.mean():.2%}{deviation}, "
              f"min {values.min():.2%}, max {values.max():.2%}, {len(values)} seeds")


# --- command line ------------------------------------------------------------------------------

def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-bs", "--batch_size", dest="bs", type=whole_number(1), default=32, help="batch size (32)")
    add("-ep", "--epochs", dest="ep", type=whole_number(1), default=5, help="epochs (5)")
    add("-mf", "--modelfile", dest="mf", type=checkpoints.name_to_save, metavar="NAME",
        help="save to models/NAME.pth; without it nothing is saved")
    add("--model", choices=list(NETWORKS), default="CIFAKE_CNN", help="network (CIFAKE_CNN)")
    add("--attn", action="store_true", help="with the SRM attention layer")
    add("-lr", type=number_between(1e-8, 10), default=0.001, help="learning rate (0.001)")
    add("--momentum", type=number_between(0, 0.9999), default=0.9, help="momentum of SGD (0.9)")
    add("--data", default="auto", metavar="SET",
        help="cifake, sample, or a folder or archive; auto: CIFAKE where it is, else the sample")
    add("--seed", type=whole_number(0), default=0, help="of weights and order (0)")
    add("--seeds", type=whole_number(1), metavar="N", help="N runs, seeds --seed, --seed + 1, ...")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (fp32)")
    add("--resume", action="store_true", help="go on with the unfinished run of this -mf")
    add("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures only: does it run?")
    return flags


def check(args) -> None:
    """Refuse what cannot work before any work is done."""
    if args.resume and not args.mf:
        raise TellError("--resume needs -mf NAME, the run to go on with")
    if args.resume and not args.seeds and not unfinished_run(args.mf).exists() \
            and not checkpoints.path_of(args.mf).exists():
        raise TellError(f"{unfinished_run(args.mf)}: there is no run to resume; start it without --resume")
    if args.attn and args.bs < 2:
        raise TellError("--attn needs -bs 2 or more: its BatchNorm has no spread over one picture")


def warn_about_saving(args) -> None:
    if not args.mf:
        print("nothing will be saved: give -mf NAME to save to models/NAME.pth")
        return
    path = checkpoints.path_of(args.mf)
    if path.exists() and not args.seeds:
        print(f"note: {shown(path)} will be replaced when training has finished")
    if unfinished_run(args.mf).exists() and not args.resume:
        print(f"note: an unfinished run of {args.mf} is dropped; --resume would go on with it")


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    check(args)
    data = load(args.data)
    banner(data)
    print(", ".join(f"{key} {count:,}" for key, count in describe(data).items()))
    warn_about_saving(args)
    print(f"{args.model}{' with attention' if args.attn else ''}: "
          f"{parameters(build(args.model, attn=args.attn)):,} parameters, {checkpoints.machine()}")
    parts = parts_of(data, args.smoke)
    if args.seeds:
        results = run_seeds(args)
        print_seeds(results)
        return {"runs": results}
    reached = run(args, parts, args.seed, args.mf)
    print(f"kept epoch {reached['epoch']}: validation accuracy {reached['val_accuracy']:.2%} at 0.5, "
          f"{reached['val_accuracy_at_threshold']:.2%} at the chosen threshold {reached['threshold']:.3f}")
    return reached


if __name__ == "__main__":
    command_line(main)
