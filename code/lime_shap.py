"""What becomes of the logit of FAKE when parts of a picture are hidden: LIME, SHAP, and what they share.

Every map explains the logit, not P(fake), which hardly moves where a network is sure. Positive is towards
FAKE, negative towards REAL; nothing is clipped or scaled. Where a network says `mirror`, the logit is the
mean of those of the picture and of its mirror image, as when scoring. The other methods: explain.py.
"""
from collections.abc import Callable
from functools import cache, wraps
from itertools import count
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn

from classes import normalise
from files import TellError
from scoring import views

PIXELS = {"cpu": 2**19, "cuda": 2**24}  # in one batch; 512 pictures of 32 x 32, more gains a CPU nothing
SMALL = 100_000  # weights; a larger network's batches leave a CPU's caches: LARGE_PIXELS take 0.6 of the time
LARGE_PIXELS = 48 * 32**2
GRID = 8           # cells along each edge of a small picture
LARGEST_GRID = 64  # pixels along the edge of the largest "small" picture
SUPERPIXELS = 60   # about so many in a larger one
LIME_SAMPLES, SHAP_SAMPLES = 208, 512  # perturbed pictures
FILLS = ("part", "picture")


# --- the number that is explained --------------------------------------------------------------

def column_of_fake(outputs: Tensor, heads: dict[str, int]) -> Tensor:
    """classes.fake_logit for tensors, so that gradients pass: (n, columns) -> (n,)."""
    first = dict(zip(heads, np.cumsum([0, *heads.values()]).tolist(), strict=False))
    if "fake" in heads:
        return outputs[:, first["fake"]]
    generators = outputs[:, first["generator"]:first["generator"] + heads["generator"]]
    return generators[:, 1:].logsumexp(dim=1) - generators[:, 0]


def fake_logits(network: nn.Module, x: Tensor) -> Tensor:
    """The logit of FAKE of normalised pictures (n, 3, h, w), as scoring.logits has it: (n,)."""
    return column_of_fake(views(network, x), network.heads)


def batch_size(network: nn.Module, x: Tensor) -> int:
    """How many pictures like x (..., h, w) are scored at once."""
    pixels = PIXELS.get(x.device.type, PIXELS["cpu"])
    if x.device.type == "cpu" and sum(weights.numel() for weights in network.parameters()) > SMALL:
        pixels = LARGE_PIXELS
    return max(1, pixels // (x.shape[-1] * x.shape[-2]))


@torch.inference_mode()
def score_all(network: nn.Module, x: Tensor, rounded: bool = False) -> np.ndarray:
    """fake_logits in batches, without gradients: float64 (n,); rounded: in bfloat16 where that is faster."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=rounded and gains_by_rounding(network, x)):
        parts = [fake_logits(network, part).float() for part in x.split(batch_size(network, x))]
    return torch.cat(parts).cpu().numpy().astype(np.float64)


def gains_by_rounding(network: nn.Module, x: Tensor) -> bool:
    """Whether bfloat16 is faster: in wide convolutions, on a processor that multiplies such numbers."""
    wide = getattr(network, "wide_convolutions", False)
    return wide and x.device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)


def normalised(network: nn.Module, pictures: np.ndarray) -> Tensor:
    """uint8 (n, 3, h, w) -> float32 of that shape as the network takes it, on its device, channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)))
    return normalise(x.to(next(network.parameters()).device), network.normalisation)


def mean_colour(pictures: np.ndarray) -> np.ndarray:
    """Each picture uint8 (n, 3, h, w) as a plain area of its mean colour, of the same shape."""
    means = pictures.mean(axis=(2, 3), keepdims=True).astype(np.uint8)
    return np.broadcast_to(means, pictures.shape)


def explanation(method: Callable) -> Callable:
    """A method over uint8 (n, 3, h, w) as one that takes a single picture (3, h, w) too.

    Returns float32 (n, h, w), or (h, w). TellError for other pixels and for a network in training mode.
    """
    @wraps(method)
    def explain(network: nn.Module, pixels: np.ndarray, **options) -> np.ndarray:
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            raise TellError(f"an explanation takes uint8 pixels (3, h, w) or (n, 3, h, w), not "
                            f"{pixels.dtype} {pixels.shape}")
        if network.training:
            raise TellError("an explanation takes a network in evaluation mode; call network.eval()")
        maps = method(network, pixels if pixels.ndim == 4 else pixels[None], **options)
        return maps.astype(np.float32).reshape(*pixels.shape[:-3], *pixels.shape[-2:])
    return explain


# --- parts of a picture, and hiding them -------------------------------------------------------

def cells_of(height: int, width: int) -> np.ndarray:
    """A grid of GRID x GRID cells, numbered row by row: int (height, width)."""
    rows, columns = (np.arange(n) * GRID // n for n in (height, width))
    return rows[:, None] * GRID + columns


def segments_of(picture: np.ndarray) -> np.ndarray:
    """The parts of a picture uint8 (3, h, w) that are shown or hidden: int (h, w), numbered from 0.

    Up to 64 pixels a fixed grid of 8 x 8 cells (4 x 4 pixels each at 32), since lime's own quickshift finds
    one or two parts there. Above, some 60 SLIC superpixels (Achanta et al., PAMI 2012).
    """
    height, width = picture.shape[1:]
    if max(height, width) <= LARGEST_GRID:
        return cells_of(height, width)
    from skimage.segmentation import slic  # a second, and only large pictures need it
    found = slic(picture.transpose(1, 2, 0), SUPERPIXELS, compactness=10)
    return np.unique(found, return_inverse=True)[1].reshape(height, width)


def filled(picture: np.ndarray, segments: np.ndarray, fill: str) -> np.ndarray:
    """What stands where a part is hidden: uint8 (3, h, w).

    "part": the mean colour of each part, as lime has it. That smooths, which a detector may itself take for
    a trace of generation. "picture": the mean colour of the picture, which adds edges instead.
    """
    if fill not in FILLS:
        raise TellError(f"no fill is called {fill!r}; there are {', '.join(FILLS)}")
    if fill == "picture":
        return mean_colour(picture[None])[0]
    flat = segments.ravel()
    sums = [np.bincount(flat, channel.ravel()) for channel in picture]
    return (np.stack(sums) / np.bincount(flat)).astype(np.uint8)[:, segments]


@torch.inference_mode()
def masked_logits(network: nn.Module, picture: np.ndarray, fill: np.ndarray, shown: np.ndarray,
                  rounded: bool = False) -> np.ndarray:
    """The logit of `picture` where `shown` bool (n, h, w), and of `fill` elsewhere: float64 (n,)."""
    on, off = normalised(network, np.stack((picture, fill))).permute(0, 2, 3, 1)
    logits = []
    for where in torch.from_numpy(shown[..., None]).split(batch_size(network, on[..., 0])):
        mixed = torch.addcmul(off, where.to(on), on - off)  # a third of the time of torch.where
        logits.append(score_all(network, mixed.permute(0, 3, 1, 2), rounded))
    return np.concatenate(logits)


# --- LIME and SHAP: linear models of the logit over which parts are shown ----------------------

def paley(rows: int) -> np.ndarray:
    """A Hadamard matrix of at least so many rows, True for +1: bool (q + 1, q + 1), q prime (Paley 1933)."""
    q = next(q for q in count(rows - 1) if q % 4 == 3 and all(q % k for k in range(2, isqrt(q) + 1)))
    numbers, square = np.arange(q), np.zeros(q, bool)
    square[numbers**2 % q] = True
    matrix = np.ones((q + 1, q + 1), bool)
    matrix[1:, 1:] = ~square[(numbers[:, None] - numbers) % q]
    return matrix


def paired_masks(samples: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """At least `samples` masks, bool (n, parts): half of them complements of the others, columns orthogonal.

    A two-level design folded over (G. Box, K. Wilson 1951). The complements cancel what parts do in pairs,
    orthogonal columns what coins share by chance: 208 such masks tell what 1,000 coin tosses a part tell.
    """
    matrix = paley(max(parts, -(-samples // 2)))
    half = matrix[:, random.permutation(len(matrix))[:parts]] ^ (random.random(parts) < 0.5)
    return np.concatenate((half, ~half))


def lime_operator(masks: np.ndarray) -> np.ndarray:
    """What turns the logits (n,) of pictures under paired_masks bool (n, parts) into weights: (parts, n).

    Of orthogonal columns lime's ridge regression (strength 1, free intercept) is a difference of means, the
    part shown minus hidden, but for a factor n / (n + 4). Its kernel is left out: over masks of half the
    parts it weighs nearly alike, but undoes the pairs.
    """
    return (masks - 0.5).T / (len(masks) / 4 + 1)


def shapley_operator(masks: np.ndarray) -> np.ndarray:
    """What turns logits into Shapley values, which sum to everything - nothing: (parts, n).

    masks bool (n, parts): first nothing, then everything, then those drawn by the Shapley kernel.
    """
    x, parts = masks[2:].astype(np.float64), masks.shape[1]
    system, right = np.ones((parts + 1, parts + 1)), np.zeros((parts + 1, len(masks)))
    system[:parts, :parts] = x.T @ x / len(x) + 1e-6 * np.eye(parts)  # least squares ...
    system[parts, parts], right[parts, :2] = 0, (-1, 1)               # ... with the sum as a constraint
    right[:parts, 0], right[:parts, 2:] = -x.mean(axis=0), x.T / len(x)
    return np.linalg.solve(system, right)[:parts]


@cache
def lime_plan(parts: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool (n, parts) and their lime_operator."""
    masks = paired_masks(samples, parts, np.random.default_rng(seed))
    return masks, lime_operator(masks)


@cache
def shap_plan(parts: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool (samples + 2, parts) for shapley_operator, half of them complements, and that operator."""
    random, sizes = np.random.default_rng(seed), np.arange(1, parts)
    chances = 1 / (sizes * (parts - sizes))
    drawn = random.choice(sizes, samples // 2, p=chances / chances.sum())
    masks = random.random((samples // 2, parts)).argsort(axis=1).argsort(axis=1) < drawn[:, None]
    masks = np.concatenate((np.zeros((1, parts), bool), np.ones((1, parts), bool), masks, ~masks))
    return masks, shapley_operator(masks)


def fit_parts(network: nn.Module, pictures: np.ndarray, fill: str, plan: Callable,
              anchors: int = 0) -> np.ndarray:
    """Score each picture under the masks of plan(parts) and give every pixel its part's weight.

    All but the first `anchors` masks may be scored in bfloat16, three times as fast: off by 0.007 a logit
    (`sturdy`), which a weight, a sum over all, evens out (rank correlation with exact maps 0.9995, of
    `compact` 0.993).
    """
    maps = np.empty((len(pictures), *pictures.shape[2:]))
    for i, picture in enumerate(pictures):
        segments = segments_of(picture)
        masks, operator = plan(segments.max() + 1)
        shown, hidden = masks[:, segments], filled(picture, segments, fill)
        logits = [masked_logits(network, picture, hidden, part, rounded)
                  for part, rounded in ((shown[:anchors], False), (shown[anchors:], True)) if len(part)]
        maps[i] = (operator @ np.concatenate(logits))[segments]
    return maps


@explanation
def lime(network: nn.Module, pictures: np.ndarray, samples: int = LIME_SAMPLES, fill: str = "part",
         seed: int = 0) -> np.ndarray:
    """LIME: a linear model of the logit over which parts are shown; every pixel has its part's weight.

    Logits a part. M. T. Ribeiro, S. Singh, C. Guestrin, "Why Should I Trust You?", KDD 2016. Differs from
    the lime package in the parts (segments_of), in masks (paired_masks) of equal weight, and in explaining
    logits; given these masks and a flat kernel the package has the same weights (bench_lime.py: times).
    """
    return fit_parts(network, pictures, fill, lambda parts: lime_plan(parts, samples, seed))


@explanation
def shap(network: nn.Module, pictures: np.ndarray, samples: int = SHAP_SAMPLES, fill: str = "part",
         seed: int = 0) -> np.ndarray:
    """KernelSHAP over the parts of LIME: every pixel has its part's Shapley value.

    Logits a part, which sum over the parts to logit(picture) - logit(all parts hidden). S. Lundberg, S.-I.
    Lee, NeurIPS 2017; masks in pairs after I. Covert, S.-I. Lee, AISTATS 2021. captum's KernelShap
    draws its masks one by one and unpaired: seven times as slow, rank correlation with a run of 20,000
    samples 0.65 against 0.81 (512 samples, 20 pictures, base_model).
    """
    return fit_parts(network, pictures, fill, lambda parts: shap_plan(parts, samples, seed), anchors=2)
