"""The networks, by name, and the batches they are fed with.

Every network returns logits (batch, columns), columns named by `network.heads`, and carries the
`normalisation` that its pixels need. Logit > 0 means FAKE. The stronger networks stand in
detectors.py; the set of pictures itself, ImageSet, in datasets.py, which so works without torch.
"""
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache import ready
from datasets import ImageSet
from degrade import augmented
from detectors import Backbone, Compact, ResNet18
from files import TellError
from middle import General

SHIFT = 2  # pixels, at most, of the augmentation "shift"
BLOCK = 256  # pictures gathered and normalised at once: fewer calls, and still inside the cache


class SRMLayer(nn.Module):
    """Style-based recalibration: each channel is scaled by a gate made of its own mean and spread.

    (batch, channels, h, w) float -> the same shape. H. Lee, H.-E. Kim, H. Nam, "SRM: A Style-based
    Recalibration Module for Convolutional Neural Networks", ICCV 2019, equations 1-4. The spread is
    the unbiased standard deviation, as in the authors' code.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.cfc = nn.Conv1d(channels, channels, kernel_size=2, groups=channels, bias=False)
        self.bn = nn.BatchNorm1d(channels)

    def gates(self, x: Tensor) -> Tensor:
        """The gate of each channel: (batch, channels, 1, 1), from 0 to 1."""
        spread, mean = torch.std_mean(x, dim=(2, 3))
        style = torch.stack((mean, spread), dim=2)
        return torch.sigmoid(self.bn(self.cfc(style)))[..., None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)


def pool(x: Tensor) -> Tensor:
    """Maximum of each 2 x 2 square, height and width even: (batch, channels, h, w) -> half of each.

    Without a gradient by elementwise maxima: the same bits in a tenth of the time of max_pool2d,
    which on a CPU is a third of the whole network's.
    """
    if torch.is_grad_enabled():
        return F.max_pool2d(x, 2)
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])


def convolved_and_pooled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """pool(layer(x)) of a 5 x 5 convolution; without a gradient in four fifths of the time.

    There one convolution of stride (1, 2), whose 5 x 6 kernels are the layer's at two places, gives both
    numbers of each pair as channels: 12 of them fill more of a CPU's vectors than the layer's own 6.
    """
    if torch.is_grad_enabled() or layer._forward_hooks:  # a hook is there to see the layer's own output
        return pool(layer(x))
    placed = torch.cat([F.pad(layer.weight, (place, 1 - place)) for place in (0, 1)])
    x = F.conv2d(x, placed, layer.bias.repeat(2), stride=(1, 2))
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(*x.chunk(2, dim=1))


class CIFAKE_CNN(nn.Module):
    """The course project's network: 61,241 parameters, 61,265 with attention.

    LeNet-5's plan (LeCun et al. 1998) for 32-pixel RGB: (batch, 3, 32, 32) float, normalised to
    [-1, 1] -> logits (batch, 1). With attn=True an SRMLayer follows the first pooling.
    """

    heads = {"fake": 1}

    def __init__(self, attn: bool = False):
        super().__init__()
        self.normalisation = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        self.conv1 = nn.Conv2d(3, 6, kernel_size=5)
        self.attend = SRMLayer(6) if attn else nn.Identity()
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (3, 32, 32):
            raise TellError(f"CIFAKE_CNN takes (batch, 3, 32, 32) pictures, not {tuple(x.shape)}")
        # Pooling before ReLU gives the same values (both are monotone) for a quarter of the ReLU.
        x = self.attend(F.relu(convolved_and_pooled(self.conv1, x)))
        x = F.relu(pool(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


NETWORKS = {"CIFAKE_CNN": CIFAKE_CNN, "Compact": Compact, "Wide": partial(Compact, wide=True),
            "Plain": partial(Compact, whitened=False), "ResNet18": ResNet18, "Backbone": Backbone,
            "General": General}


def build(name: str, /, **arguments) -> nn.Module:
    """A new network by its name in NETWORKS; TellError for a name that is not there."""
    if name not in NETWORKS:
        raise TellError(f"no network is called {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](**arguments).to(memory_format=torch.channels_last)


def training_mode(network: nn.Module) -> None:
    """Training mode, except for the frozen parts, whose BatchNorm would go on counting."""
    network.train()
    for name in getattr(network, "frozen", ()):
        network.get_submodule(name).eval()


def freeze(network: nn.Module, names: list[str]) -> None:
    """Keep the parts of these names as they are, BatchNorm statistics included."""
    for name in names:
        try:
            network.get_submodule(name).requires_grad_(False)
        except AttributeError as error:
            parts = ", ".join(name for name, _ in network.named_modules() if name.count(".") == 1)
            raise TellError(f"--freeze {name}: no such part; there are: {parts[:400]}") from error
    network.frozen = (*getattr(network, "frozen", ()), *names)


def fake_logit(outputs: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """The logit of FAKE from a network's outputs, (n, columns) -> (n,).

    A generator head has no column for FAKE: the probabilities of all generators are summed, so the
    logit is logsumexp(generators) - logit(nature), its column 0.
    """
    first = dict(zip(heads, np.cumsum([0, *heads.values()]), strict=False))
    if "fake" in heads:
        return outputs[:, first["fake"]]
    columns = outputs[:, first["generator"]:first["generator"] + heads["generator"]]
    return np.logaddexp.reduce(columns[:, 1:], axis=1) - columns[:, 0]


def parameters(network: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def layers(network: nn.Module, size: int = 32) -> list[dict]:
    """What each layer gives for one picture, in the order of the forward pass, and its parameters."""
    rows, hooks = [], []
    for name, layer in network.named_modules():
        if not list(layer.children()):
            hooks.append(layer.register_forward_hook(lambda layer, inputs, output, name=name: rows.append(
                {"layer": name, "kind": type(layer).__name__, "output": "x".join(map(str, output.shape[1:])),
                 "parameters": parameters(layer)})))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return rows


def pick_device(name: str) -> torch.device:
    """"auto", "cpu" or "cuda" -> device; TellError where there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TellError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def feed(data, network: nn.Module, batch_size: int, device, seed: int | None = None,
         augment: tuple[str, ...] = (), part: tuple[int, int] = (0, 1)):
    """The batches that `network` takes of `data`, an ImageSet (32 pixels) or a natural.PictureSet."""
    if isinstance(data, ImageSet):
        return Batches(data, batch_size, network.normalisation, device, seed, tuple(network.heads),
                       augment, part)
    if "degrade" in augment:
        raise TellError(f"{data.source}: --recipe robust is for pictures of 32 pixels; at natural size "
                        "strong and finetune blur some and save some as JPEG already")
    from natural import PictureBatches
    return PictureBatches(data, batch_size, network.size, network.normalisation, device, seed,
                          tuple(network.heads), augment, part)


def normalise(pixels: Tensor, normalisation: dict) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in channels_last, (pixels / 255 - mean) / std."""
    mean, std = (torch.tensor(normalisation[key], device=pixels.device).repeat(pixels.shape[2])
                 for key in ("mean", "std"))
    rows = pixels.flatten(2).to(torch.float32)  # over rows: three channels at a time take twice as long
    return torch.addcmul(-mean / std, rows, 1 / (255 * std), out=rows).view(pixels.shape).permute(0, 3, 1, 2)


class Batches:
    """Normalised batches of an image set, on the device.

    Each is (pixels, targets): float32 (b, 3, 32, 32) in channels_last, int64 (b, heads), a column each of
    `heads`: "fake" (fake = 1) and "object" (0..9, -1 unknown). Pixels stay uint8, in the cache's memory map
    or the memory of another device, until their batch is made.

    Without `seed`: every picture once, in order. With `seed`: a new order over the whole set each
    epoch, which depends on seed and epoch only, and no last short batch.
    augment: "flip" (mirrored, half of them), "shift" (by up to SHIFT pixels each way, reflected at
    the edge) and, before both, "degrade" (degrade.augmented). part: (i, k), of every batch only each
    k-th picture from the i-th on, for k processes.
    """

    columns = {"fake": "labels", "object": "objects"}

    def __init__(self, data: ImageSet, batch_size: int, normalisation: dict,
                 device: torch.device | str = "cpu", seed: int | None = None,
                 heads: tuple[str, ...] = ("fake",), augment: tuple[str, ...] = (),
                 part: tuple[int, int] = (0, 1)):
        self.batch_size, self.seed, self.n = batch_size, seed, len(data)
        self.device, self.augment, self.part = torch.device(device), augment, part
        if not len(self):
            raise TellError(f"batch size {batch_size} is larger than the {len(data):,} pictures "
                            f"of {data.source}; take a smaller -bs")
        if batch_size % part[1]:
            raise TellError(f"batch size {batch_size} cannot be shared by {part[1]} processes; "
                            "take a multiple as -bs")
        self.read(data)
        targets = np.stack([getattr(data, self.columns[head]) for head in heads], axis=1)
        self.targets = torch.from_numpy(targets.astype(np.int64)).to(self.device)
        self.normalisation = normalisation

    def read(self, data: ImageSet) -> None:
        # Fetched once, in the order of the file: shuffled reads through a map that is still on disk would
        # fetch each page on its own, which took 10 to 25 s of a first epoch.
        pixels, rows = ready(data.pixels, data.rows), data.rows
        if self.device.type != "cpu":  # to its memory, and there only what is needed
            pixels, rows = pixels[rows], np.arange(len(rows))
        self.pixels, self.rows = (torch.from_numpy(part).to(self.device) for part in (pixels, rows))

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return self.n // self.batch_size if self.seed is not None else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number`."""
        order, moves = self.order(number), self.moves(number)
        size = self.batch_size // self.part[1]
        block = max(1, BLOCK // size) * size
        for i, picked in enumerate(order.split(block)):
            pixels = self.pixels.index_select(0, self.rows[picked])
            if "degrade" in self.augment:
                pixels = self.degraded(pixels, number, picked)
            if moves is not None:
                pixels = moved(pixels, *(move[i * block:(i + 1) * block] for move in moves))
            pixels = normalise(pixels, self.normalisation)
            yield from zip(pixels.split(size), self.targets[picked].split(size), strict=True)

    def order(self, number: int) -> Tensor:
        if self.seed is None:
            return torch.arange(self.n, device=self.device)
        # Stateless, so that a resumed run sees what an uninterrupted one would have seen.
        order = np.random.default_rng([self.seed, number]).permutation(self.n)
        return self.mine(torch.from_numpy(order[:len(self) * self.batch_size]))

    def moves(self, number: int) -> tuple[Tensor, Tensor] | None:
        """For each picture of the epoch: shift down and right, int64 (n, 2); mirrored or not, bool (n,)."""
        if not self.augment:
            return None
        random = np.random.default_rng([self.seed, number, 1])  # other numbers than the order's
        n, reach = len(self) * self.batch_size, SHIFT if "shift" in self.augment else 0
        shift = torch.from_numpy(random.integers(-reach, reach + 1, (n, 2)))
        flip = torch.from_numpy(random.random(n) < (0.5 if "flip" in self.augment else 0.0))
        return self.mine(shift), self.mine(flip)

    def degraded(self, pixels: Tensor, number: int, picked: Tensor) -> Tensor:
        """Pictures `picked` of an epoch, uint8 (b, h, w, 3), by degrade.augmented.

        What becomes of each depends on seed, epoch and picture, not on batches and processes.
        """
        found = [augmented(picture, np.random.default_rng([self.seed, number, 2, i]))
                 for picture, i in zip(pixels.cpu().numpy(), picked.tolist(), strict=True)]
        return torch.from_numpy(np.stack(found)).to(self.device)

    def mine(self, per_picture: Tensor) -> Tensor:
        """This process's share of what belongs to the pictures of an epoch."""
        i, k = self.part
        shape = per_picture.shape[1:]
        per_picture = per_picture.view(len(self), self.batch_size, *shape)[:, i::k]
        return per_picture.reshape(-1, *shape).to(self.device)


def moved(pixels: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Pictures uint8 (b, h, w, 3) shifted by int64 (b, 2) pixels, reflected at the edge, and mirrored."""
    rows, columns = (reflected(size, offset) for size, offset in zip(pixels.shape[1:3], shift.T, strict=True))
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    return pixels[torch.arange(len(pixels), device=pixels.device)[:, None, None], rows[:, :, None],
                  columns[:, None, :]]


def reflected(size: int, offset: Tensor) -> Tensor:
    """Indices 0..size-1 moved by each offset (b,), reflected at both ends: (b, size)."""
    index = (torch.arange(size, device=offset.device) + offset[:, None]).abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)
