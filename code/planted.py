"""Maps against a truth that is known: pictures of which only a patch is fake, or only a patch real.

A patch of one picture is put into another of the same object class, at the same place, aligned to JPEG's
blocks of 8 pixels. Kept are the pictures whose logit the patch moved; there a true map points at it.
Control: real patches in other real pictures. Where the network takes these for fake, it is the seam that it
sees; where it does not notice them, a map that points there does so without reason. Run by faithful.py.
"""
from collections.abc import Callable

import numpy as np
from torch import nn

from explain import pictures_of
from files import TellError
from lime_shap import GRID, cells_of, normalised, score_all

KINDS = {"fake in real": (0, 1, 1), "real in fake": (1, 0, -1), "real in real": (0, 0, 1)}
SIDES = (3, 4)  # cells, of the patches: 12 and 16 of 32 pixels
MOVED = 1.0     # logit, at least, where a patch counts as noticed
DRAWS = 1000    # of the bootstrap


def interval(values: np.ndarray, name: str = "mean", seed: int = 0) -> dict[str, float]:
    """{name, name_low, name_high}: mean of the finite values and its 95 % interval by bootstrap."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    picks = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def patches(n: int, side: int, random: np.random.Generator) -> np.ndarray:
    """A square of side x side cells for each picture, at even rows and columns: bool (n, cells)."""
    corners = random.choice(np.arange(0, GRID - side + 1, 2), (n, 2, 1))
    offsets = np.arange(GRID) - corners  # (n, 2, GRID)
    rows, columns = ((offsets >= 0) & (offsets < side)).transpose(1, 0, 2)
    return (rows[:, :, None] & columns[:, None]).reshape(n, -1)


def donors(hosts, pool, random: np.random.Generator) -> np.ndarray:
    """For each host a random picture of `pool` with its object class, not itself: indices int (n,)."""
    found = np.empty(len(hosts), np.int64)
    for i, (kind, path) in enumerate(zip(hosts.objects, hosts.paths, strict=True)):
        fitting = np.flatnonzero((pool.objects == kind) & (pool.paths != path))
        if not len(fitting):
            raise TellError(f"{pool.source}: no other picture has the object class of {path}")
        found[i] = random.choice(fitting)
    return found


def hits(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pointing game (J. Zhang et al., ECCV 2016): is the largest cell inside? (..., n, cells), (n, cells)."""
    return np.take_along_axis(np.broadcast_to(inside, maps.shape), maps.argmax(-1)[..., None], -1)[..., 0]


def overlaps(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """IoU of the patch with as many of the map's largest cells: (..., n, cells), (n, cells) -> (..., n)."""
    ranks = (-maps).argsort(axis=-1, kind="stable").argsort(axis=-1)
    chosen = ranks < inside.sum(axis=-1)[:, None]
    return (chosen & inside).sum(axis=-1) / (chosen | inside).sum(axis=-1)


def splice(hosts: np.ndarray, others: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The hosts uint8 (n, 3, h, w) with the cells `inside` (n, cells) of the others."""
    return np.where(inside[:, None, cells_of(*hosts.shape[2:])], others, hosts)


def rows_of(network: nn.Module, data, n: int, cell_maps: Callable, names: list[str]) -> list[dict]:
    """The table, a row for each kind of patch, its side, and method, of at most n hosts of each label.

    cell_maps(network, pictures) -> (methods, n, cells). hit and iou are of the pictures that were kept;
    _before, of the same hosts before the patch was put in, is what a method shows there anyway.
    """
    rows, random = [], np.random.default_rng(0)
    for label in (0, 1):
        hosts = data.take(data.labels == label).head(n)
        pixels = pictures_of(hosts, network)
        logits, before = score_all(network, normalised(network, pixels)), cell_maps(network, pixels)
        for kind, (host, donor, sign) in KINDS.items():
            if host != label:
                continue
            pool = data.take(data.labels == donor)
            others = pictures_of(pool.take(donors(hosts, pool, random)), network)
            for side in SIDES:
                inside = patches(len(hosts), side, random)
                spliced = splice(pixels, others, inside)
                rise = sign * (score_all(network, normalised(network, spliced)) - logits)
                share = (side / GRID) ** 2
                about = {"side": side / GRID, "pictures": len(hosts), **interval(rise >= MOVED, "moved"),
                         "hit_chance": share, "iou_chance": share / (2 - share)}
                for name, keep in kept(kind, rise).items():
                    now = cell_maps(network, spliced[keep]) if keep.any() else before[:, keep]
                    rows += [{"kind": name, "kept": int(keep.sum())} | about | row for row in
                             compared(sign * now, sign * before[:, keep], inside[keep], names)]
    return rows


def kept(kind: str, rise: np.ndarray) -> dict[str, np.ndarray]:
    """{kind: bool (n,)}: the pictures whose logit the patch moved; of the control also those unmoved."""
    if kind != "real in real":
        return {kind: rise >= MOVED}
    return {f"{kind}, taken for fake": rise >= MOVED, f"{kind}, unnoticed": abs(rise) < MOVED}


def compared(now: np.ndarray, before: np.ndarray, inside: np.ndarray, names: list[str]) -> list[dict]:
    """One row a method from maps (methods, n, cells) with and without the patch `inside` (n, cells)."""
    (hit, hit_before), (iou, iou_before) = ([measure(maps, inside).astype(float) for maps in (now, before)]
                                            for measure in (hits, overlaps))
    return [{"method": name, **interval(hit[i], "hit"), "hit_before": interval(hit_before[i])["mean"],
             **interval(hit[i] - hit_before[i], "hit_gain"), **interval(iou[i], "iou"),
             "iou_before": interval(iou_before[i])["mean"]} for i, name in enumerate(names)]
