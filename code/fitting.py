"""Fit a network: the recipe, the steps, the epoch that is kept.

One loop for every network and set of pictures. A recipe says everything that the outcome depends on
besides network, pictures and seed; the same state file resumes it bit for bit.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from classes import fake_logit, feed, training_mode
from devices import Device, open_device
from files import TellError
from scoring import choose_threshold, head_accuracies, outputs, sigmoid

PLATEAU = 2  # epochs without a lower validation loss, after which the learning rate falls tenfold
PATIENCE = 5  # and after which a fine-tuning stops


@dataclass(frozen=True)
class Recipe:
    """How to train. Rates are of SGD; `batch_size` counts the pictures of all processes together.

    schedule: "constant"; "one-cycle" (L. N. Smith, arXiv:1803.09820, linear up over the first `warmup`
    share of all steps, then linear down to 0); "plateau" (a tenth whenever the validation loss has not
    fallen for PLATEAU epochs, the end after PATIENCE).
    label_smoothing: targets become s/2 and 1 - s/2. average: the weights validated and kept are the
    running mean of those of about the last `average` steps (0: the weights themselves).
    object_weight: of the object head's cross-entropy, beside 1 for the verdict's.
    """
    epochs: int = 5
    batch_size: int = 32
    lr: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.2
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    average: int = 0
    object_weight: float = 0.3
    precision: str = "fp32"

    def factor(self, done: float, history: list[dict]) -> float:
        """What the learning rate is multiplied with after the share `done` of all steps."""
        if self.schedule == "one-cycle":
            return min(done / self.warmup, (1 - done) / (1 - self.warmup))
        return 0.1 ** plateaus(history) if self.schedule == "plateau" else 1.0


def plateaus(history: list[dict]) -> int:
    """How often the validation loss had not fallen for PLATEAU epochs in a row."""
    best, waited, count = np.inf, 0, 0
    for row in history:
        waited = 0 if row["val_loss"] < best else waited + 1
        best = min(best, row["val_loss"])
        if waited == PLATEAU:
            waited, count = 0, count + 1
    return count


def finished(recipe: Recipe, history: list[dict]) -> bool:
    """Every epoch done or, on the plateau schedule, PATIENCE epochs without a lower validation loss."""
    if len(history) >= recipe.epochs:
        return True
    losses = [row["val_loss"] for row in history]
    return recipe.schedule == "plateau" and len(losses) - 1 - int(np.argmin(losses or [0])) >= PATIENCE


class SGD:
    """Gradient descent with momentum: torch.optim.SGD's fused kernel, hence its bits, called directly.

    That class imports torch.compile when it takes its first step, which nothing here uses: 3.7 s a
    process, the time of an epoch. `buffers` is its whole state, one tensor a parameter. Weight decay
    acts on matrices and kernels, not on biases and BatchNorm (airbench, github.com/KellerJordan).
    """

    def __init__(self, parameters, recipe: Recipe):
        self.recipe = recipe
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
        decays = [recipe.weight_decay if parameter.ndim > 1 else 0.0 for parameter in self.parameters]
        self.groups = [(decay, [i for i, own in enumerate(decays) if own == decay]) for decay in {*decays}]

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Use up the gradients, at the recipe's learning rate times `factor`."""
        for decay, chosen in self.groups:
            self.update(chosen, decay, factor)
        for parameter in self.parameters:
            parameter.grad = None

    def update(self, chosen: list[int], decay: float, factor: float) -> None:
        parameters, buffers = ([group[i] for i in chosen] for group in (self.parameters, self.buffers))
        torch._fused_sgd_(parameters, [parameter.grad for parameter in parameters], buffers,
                          weight_decay=decay, momentum=self.recipe.momentum, lr=self.recipe.lr * factor,
                          dampening=0.0, nesterov=self.recipe.nesterov, maximize=False, is_first_step=False)


class Average:
    """The running mean of a network's weights and statistics over about the last `steps` steps.

    During the first `steps` steps it is the plain mean since the start.
    """

    def __init__(self, weights: dict, steps: int, seen: int = 0):
        self.steps, self.seen, self.weights = steps, seen, copy(weights)
        self.floats = [key for key, value in weights.items() if value.is_floating_point()]

    def add(self, weights: dict) -> None:
        self.seen += 1
        torch._foreach_lerp_([self.weights[key] for key in self.floats],
                             [weights[key].detach() for key in self.floats], 1 / min(self.seen, self.steps))


class Run:
    """A network in training: what changes from step to step, and how to go on after a kill."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: Device, state: dict):
        self.network, self.recipe, self.device = network.to(device.device), recipe, device
        if state["epoch"]:
            network.load_state_dict(state["weights"])
        self.optimizer = SGD(network.parameters(), recipe)
        if state["epoch"]:
            self.optimizer.buffers = [buffer.to(device.device) for buffer in state["buffers"]]
        self.wrapped = device.wrap(network)
        self.live = network.state_dict()  # these tensors change in place
        self.average = Average(state.get("average") or self.live, recipe.average, state.get("averaged", 0)
                               ) if recipe.average else None

    def weights(self) -> dict:
        """Those to be validated and kept."""
        return copy(self.average.weights if self.average else self.live)

    def state(self) -> dict:
        averaged = {"average": copy(self.average.weights), "averaged": self.average.seen
                    } if self.average else {}
        buffers = [buffer.clone() for buffer in self.optimizer.buffers]
        return {"weights": copy(self.live), "buffers": buffers, **averaged}

    def step(self, pixels: Tensor, targets: Tensor, factor: float) -> Tensor:
        """One step of training; returns the loss."""
        try:
            output = self.wrapped(pixels)
        except ValueError as error:  # of BatchNorm, where one picture leaves it one value
            raise TellError(f"-bs {self.recipe.batch_size}: {error}; take a larger one") from error
        loss = loss_of(output.float(), targets, self.network.heads, self.recipe)
        self.device.backward(loss)
        self.optimizer.step(factor)
        if self.average:
            self.average.add(self.live)
        return loss.detach()


def loss_of(output: Tensor, targets: Tensor, heads: dict[str, int], recipe: Recipe) -> Tensor:
    """Mean loss of a batch: output (b, columns), targets int64 (b, heads), -1 = unknown.

    Binary cross-entropy for "fake", cross-entropy for the others; "object" weighs object_weight.
    """
    smooth, losses, first = recipe.label_smoothing, [], 0
    for (name, width), target in zip(heads.items(), targets.unbind(1), strict=True):
        if name == "fake":
            wanted = target.to(torch.float32)
            wanted = wanted * (1 - smooth) + smooth / 2 if smooth else wanted
            losses.append(F.binary_cross_entropy_with_logits(output[:, first], wanted))
        elif (target >= 0).any():
            weight = recipe.object_weight if name == "object" else 1.0
            losses.append(weight * F.cross_entropy(output[:, first:first + width], target, ignore_index=-1,
                                                   label_smoothing=smooth))
        first += width
    return reduce(torch.add, losses)  # each operation costs a hundredth of a small network's step


def train_epoch(run: Run, batches, epoch: int, history: list[dict], after_step=None) -> float:
    """One pass over the batches, after_step(step, loss) after each; returns the mean loss a picture."""
    training_mode(run.network)
    total = torch.zeros((), device=run.device.device)
    with tqdm(batches.epoch(epoch), f"epoch {epoch}", len(batches), leave=False, unit=" batches",
              mininterval=0.5, disable=True if run.device.rank else None) as bar:
        for step, (pixels, targets) in enumerate(bar):
            done = (epoch - 1 + step / len(batches)) / run.recipe.epochs
            loss = run.step(pixels, targets, run.recipe.factor(done, history))
            total += loss
            if after_step:
                after_step(step + 1, loss.item())
            if step % 20 == 19 and not bar.disable:
                bar.set_postfix(loss=f"{total.item() / (step + 1):.4f}", refresh=False)
    mean = run.device.mean(total).item() / len(batches)
    if not np.isfinite(mean):
        raise TellError(f"the loss is no longer finite in epoch {epoch}; take a smaller -lr")
    return mean


def validate(network: nn.Module, val, device: Device | None = None,
             precision: str = "fp32") -> dict[str, float]:
    """Validation loss, accuracy at 0.5, the best threshold with its accuracy, and that of other heads.

    "val_accuracy_at_threshold", which the threshold is chosen for, is the balanced accuracy; with as many
    fakes as reals that is the accuracy.

    At a constant learning rate the last layer's bias swings from epoch to epoch, which moves the
    accuracy at 0.5 by more than an epoch of learning does; the best threshold takes that out.
    """
    device = device or Device(torch.device("cpu"))
    mine = val.take(np.arange(len(val))[device.share(len(val))])
    found = device.gather(torch.from_numpy(outputs(network, mine, device.device, precision))).numpy()
    logits = fake_logit(found, network.heads)
    loss = np.logaddexp(0, logits) - logits * val.labels
    threshold, accuracy = choose_threshold(val.labels, sigmoid(logits))
    return {"val_loss": float(loss.mean()), "val_accuracy": float(((logits >= 0) == val.labels).mean()),
            "threshold": threshold, "val_accuracy_at_threshold": accuracy,
            **{f"val_{key}": value for key, value in head_accuracies(found, val, network.heads).items()}}


def copy(weights: dict) -> dict:
    return {key: value.detach().clone() for key, value in weights.items()}


def merit(row: dict) -> tuple[float, float]:
    """What an epoch is kept for: balanced accuracy at the best threshold; of equals, the lower loss."""
    return float(row["val_accuracy_at_threshold"]), -float(row["val_loss"])


def better(best: dict | None, row: dict, weights: dict) -> dict:
    return best if best and merit(row) <= merit(best["row"]) else {"row": row, "weights": weights}


def fit(network: nn.Module, train, val, recipe: Recipe, *, seed: int = 0, device: Device | None = None,
        state: dict | None = None, after_epoch: Callable[[dict], None] | None = None) -> dict:
    """Train `network` on the pictures `train` as `recipe` says; epoch and threshold by those of `val`.

    state: what `after_epoch(state)` got after the last finished epoch, to go on from there; the
    result is then the same, bit for bit on one machine, as without the interruption.
    Returns the last state: {"epoch", "weights", "buffers", "history", "best": {"row", "weights"}, ...},
    where "best" is the epoch of highest balanced validation accuracy at its own best threshold, whose
    weights `network` then holds. Raises TellError when the loss is no longer finite.
    Several processes give what one gives, up to the order of sums (devices.py).
    """
    device = device or open_device("cpu", recipe.precision)
    state = state or {"epoch": 0, "history": [], "best": None}
    open_feed = partial(feed, train, network, recipe.batch_size, device.device, seed=seed,
                        augment=recipe.augment)
    batches = open_feed(part=(device.rank, device.world))
    if not state["epoch"] and hasattr(network, "whiten"):
        # From the pictures of all processes, as one process would, not from this one's share.
        network.whiten(batches if device.world == 1 else open_feed())
    run = Run(network, recipe, device, state)
    while not finished(recipe, state["history"]):
        start, epoch = time.perf_counter(), state["epoch"] + 1
        train_loss = train_epoch(run, batches, epoch, state["history"])
        now, kept = copy(run.live), run.weights()
        network.load_state_dict(kept)
        row = {"epoch": epoch, "train_loss": train_loss, **validate(network, val, device, recipe.precision),
               "seconds": time.perf_counter() - start}
        network.load_state_dict(now)
        state = {"epoch": epoch, **run.state(), "history": [*state["history"], row],
                 "best": better(state["best"], row, kept)}
        if after_epoch:
            after_epoch(state)
    network.load_state_dict(state["best"]["weights"])
    return state
