"""What do the networks look at: the subject of a picture, or what is around it?

    python code/looks.py -mf base_model             1,000 pictures of CIFAKE's test half
    python code/looks.py -mf base_model compact     several networks
    python code/looks.py --smoke                    does it run?

CIFAKE has no masks of its subjects. Two stand-ins for what is around them: "border", the outer ring of the
8 x 8 cells, and "background", which is what a random walk started at the edges reaches (`background`). Two
measurements: the share of a map's mass that lies there, beside its share of the area and the same network
with shuffled weights; and, without any map, what of the logit changes when a fake and a real picture of one
object class exchange that part (`swapped`). Writes looks-NAME-DATA.csv, mean-maps-NAME-DATA.csv and
swaps-NAME-DATA.csv to paper/results (looks_figures.py draws them), with 95 % intervals by bootstrap over
pictures or pairs.
"""
import time
from collections.abc import Iterator

import numpy as np
from torch import nn

import checkpoints
from cache import OBJECTS
from classes import pick_device
from datasets import banner, load
from explain import pictures_of
from faithful import ALL, in_cells, shuffled
from files import Parser, TellError, command_line, save_result, whole_number
from lime_shap import GRID, cells_of, normalised, score_all
from natural import held_part
from planted import DRAWS, interval

METHODS = ("grad-cam", "integrated gradients", "lime, mean colour")  # as published; faithful.py's best two
MASSES = ("both signs", "for the verdict")  # the second is Grad-CAM's own, with its ReLU
SHUFFLES = 10  # networks of shuffled weights, to which the pictures are dealt
BETA = 1000    # of the random walk: how much an edge stops it


# --- pictures and their parts ------------------------------------------------------------------

def pairs(data, each: int) -> np.ndarray:
    """Up to `each` real and as many fake pictures of every object class: indices (2, n), real above fake."""
    found = []
    for kind in np.unique(data.objects):
        members = [np.flatnonzero((data.objects == kind) & (data.labels == label)) for label in (0, 1)]
        n = min(each, *map(len, members))
        found.append([index[np.linspace(0, len(index) - 1, n).astype(int)] for index in members])
    if not sum(len(index) for index, _ in found):
        raise TellError(f"{data.source}: no object class has both real and fake pictures")
    return np.concatenate(found, axis=1)


def background(picture: np.ndarray) -> np.ndarray:
    """What is probably around the subject of a picture uint8 (3, h, w): bool (h, w).

    Where a random walk, which edges slow down, reaches the picture's rim before the square in its middle, a
    quarter of the sides wide (L. Grady, PAMI 2006). What of a subject touches the rim is cut off, one that
    stands aside is missed.
    """
    from skimage.segmentation import random_walker  # a second
    height, width = picture.shape[1:]
    seeds = np.full((height, width), 2)
    seeds[1:-1, 1:-1] = 0
    seeds[height * 3 // 8:height * 5 // 8, width * 3 // 8:width * 5 // 8] = 1
    return random_walker(picture.transpose(1, 2, 0) / 255, seeds, beta=BETA, mode="bf", channel_axis=-1) == 2


def border(pictures: np.ndarray) -> np.ndarray:
    """The outer cells of pictures (n, 3, h, w), 28 of 64: bool (n, h, w)."""
    outer = np.pad(np.zeros((GRID - 2, GRID - 2), bool), 1, constant_values=True).ravel()
    return np.broadcast_to(outer[cells_of(*pictures.shape[2:])], (len(pictures), *pictures.shape[2:]))


def regions(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """{"border", "background": bool (n, h, w)} of pictures uint8 (n, 3, h, w)."""
    return {"border": border(pictures), "background": np.stack([background(each) for each in pictures])}


# --- where the maps lie ------------------------------------------------------------------------

def maps_of(network: nn.Module, pictures: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Maps in cells, times the sign of the network's verdict, and that sign: (n, cells), (n,)."""
    sign = np.where(score_all(network, normalised(network, pictures)) > 0, 1, -1)
    return in_cells(ALL[method](network, pictures)) * sign[:, None], sign


def shuffled_maps(network: nn.Module, pictures: np.ndarray, method: str) -> np.ndarray:
    """The same maps of networks of shuffled weights, each for every SHUFFLES-th picture: (n, cells)."""
    found = np.empty((len(pictures), GRID * GRID), np.float32)
    for seed in range(min(SHUFFLES, len(pictures))):
        found[seed::SHUFFLES] = maps_of(shuffled(network, seed), pictures[seed::SHUFFLES], method)[0]
    return found


def mass(maps: np.ndarray, kind: str) -> np.ndarray:
    """Each cell's share of a map's mass: (n, cells), rows sum to 1; nan where a map has none of that kind."""
    sizes = abs(maps) if kind == MASSES[0] else maps.clip(0)
    total = sizes.sum(axis=1, keepdims=True)
    return np.divide(sizes, total, out=np.full(sizes.shape, np.nan), where=total > 0)


def groups(data) -> Iterator[tuple[str, str, np.ndarray]]:
    """(label, object, chosen bool (n,)): all pictures, each label, each object class."""
    yield "all", "all", np.ones(len(data), bool)
    for label, name in enumerate(("real", "fake")):
        yield name, "all", data.labels == label
    for kind in np.unique(data.objects):
        yield "all", (*OBJECTS, "unknown")[kind], data.objects == kind


def looks(data, covers: dict[str, np.ndarray], maps: dict[str, np.ndarray]) -> list[dict]:
    """A row for each region, mass and group: share of the mass there, that of the area, and differences.

    covers {region: (n, cells)}, how much of each cell belongs to it; maps {"trained" or "shuffled":
    (n, cells)}. n: maps that have any mass of this kind.
    """
    rows = []
    for region, cover in covers.items():
        area = cover.mean(axis=1)
        for kind in MASSES:
            share, blind = ((mass(maps[name], kind) * cover).sum(axis=1) for name in ("trained", "shuffled"))
            for label, name, chosen in groups(data):
                rows.append({"region": region, "mass": kind, "label": label, "object": name,
                             "n": int(np.isfinite(share[chosen]).sum()), "area": float(area[chosen].mean()),
                             **interval(share[chosen], "share"),
                             **interval((share - area)[chosen], "over_area"),
                             **interval(blind[chosen], "shuffled"),
                             **interval((share - blind)[chosen], "over_shuffled")})
    return rows


def mean_maps(data, maps: dict[str, np.ndarray], sign: np.ndarray) -> list[dict]:
    """Means over each label and object class, cell by cell, as text: of the mass, and of the signed map.

    Each map is scaled to a mass of 1 first; signed: positive towards FAKE.
    """
    chosen = [("trained", ("real", "fake")[label], (*OBJECTS, "unknown")[kind],
               (data.labels == label) & (data.objects == kind))
              for label in (0, 1) for kind in np.unique(data.objects)]
    rows = []
    for weights, label, name, where in [*chosen, ("shuffled", "all", "all", np.ones(len(data), bool))]:
        shares = mass(maps[weights][where], MASSES[0])
        signed = shares * np.sign(maps[weights][where]) * sign[where, None]
        rows.append({"weights": weights, "label": label, "object": name, "n": int(where.sum()),
                     **{key: " ".join(f"{cell:.4g}" for cell in np.nanmean(values, axis=0))
                        for key, values in (("mass", shares), ("signed", signed))}})
    return rows


# --- what exchanging a part does ---------------------------------------------------------------

def swapped(network: nn.Module, reals: np.ndarray, fakes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """What `part` bool (n, h, w) adds to logit(fake) - logit(real), that difference, seam: float64 (3, n).

    Shapley's value of two players, the part and the rest: the mean of what exchanging it does in the real and
    in the fake picture, so that both values add up to the difference. What the seam of a splice adds to the
    two spliced pictures alike cancels out of it, and is returned for itself.
    """
    part = part[:, None]
    into_real, into_fake = np.where(part, fakes, reals), np.where(part, reals, fakes)
    real, fake, real_spliced, fake_spliced = (
        score_all(network, normalised(network, each)) for each in (reals, fakes, into_real, into_fake))
    return np.stack((((real_spliced - real) + (fake - fake_spliced)) / 2, fake - real,
                     (real_spliced + fake_spliced - real - fake) / 2))


def share_interval(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> dict[str, float]:
    """{share, share_low, share_high} of sum(part) / sum(whole), 95 % interval by bootstrap over pairs."""
    picks = np.random.default_rng(seed).integers(len(part), size=(DRAWS, len(part)))
    low, high = np.quantile(part[picks].sum(axis=1) / whole[picks].sum(axis=1), (0.025, 0.975))
    return {"share": float(part.sum() / whole.sum()), "share_low": float(low), "share_high": float(high)}


def swaps(network: nn.Module, data, pictures: np.ndarray, where: dict[str, np.ndarray]) -> list[dict]:
    """A row for each part and object class, of n real pictures, then n fake ones of the same classes.

    where: what regions() gives for them.
    """
    n, rows = len(data) // 2, []
    parts = {"border": where["border"][:n], "background of the real": where["background"][:n],
             "background of the fake": where["background"][n:]}
    for name, part in parts.items():
        value, whole, seam = swapped(network, pictures[:n], pictures[n:], part)
        for label, kind, chosen in groups(data.take(np.arange(n))):
            if label == "all":
                rows.append({"part": name, "object": kind, "pairs": int(chosen.sum()),
                             "area": float(part[chosen].mean()),
                             **share_interval(value[chosen], whole[chosen]),
                             **interval(value[chosen], "logits"), **interval(whole[chosen], "difference"),
                             **interval(seam[chosen], "seam")})
    return rows


# --- command line ------------------------------------------------------------------------------

def examine(name: str, args) -> dict[str, list[dict]]:
    """The three tables of one checkpoint, printed and written."""
    network, facts = checkpoints.load(name, pick_device(args.device))
    whole, start = load(args.data, hasattr(network, "size")), time.perf_counter()
    banner(whole)
    part, model = held_part(whole, facts, "test"), checkpoints.model_name(name)
    data = part.take(pairs(part, 1 if args.smoke else args.pictures).ravel())
    found = {kind: [{"model": model, "data": whole.name} | row for row in rows]
             for kind, rows in measured(network, data).items()}
    report(found)
    for kind, rows in found.items():
        save_result(f"{kind}-{model}-{whole.name}{'-smoke' if args.smoke else ''}", rows)
    print(f"{time.perf_counter() - start:.0f} s")
    return found


def measured(network: nn.Module, data) -> dict[str, list[dict]]:
    """{"looks", "mean-maps", "swaps": rows} of pictures as pairs() orders them."""
    pictures = pictures_of(data, network)
    where = regions(pictures)
    covers = {region: in_cells(masks.astype(np.float32)) for region, masks in where.items()}
    found = {"looks": [], "mean-maps": [], "swaps": swaps(network, data, pictures, where)}
    for method in METHODS:
        trained, sign = maps_of(network, pictures, method)
        maps = {"trained": trained, "shuffled": shuffled_maps(network, pictures, method)}
        found["looks"] += [{"method": method} | row for row in looks(data, covers, maps)]
        found["mean-maps"] += [{"method": method} | row for row in mean_maps(data, maps, sign)]
    return found


def report(found: dict[str, list[dict]]) -> None:
    """Print what holds for all pictures: share, interval, share of the area."""
    for row in [*found["looks"], *found["swaps"]]:
        if row["object"] == row.get("label", "all") == "all":
            what = row.get("part") or f"{row['region']}, {row['method']}, {row['mass']}"
            print(f"{what:<52}{row['share']:6.1%} [{row['share_low']:.1%}, {row['share_high']:.1%}] "
                  f"on {row['area']:.1%} of the area")


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    flags.add_models(["base_model"], "base_model")
    add("--data", default="auto", metavar="SET",
        help="whose test half: cifake, sample, a folder or an archive (auto: CIFAKE or else the sample)")
    add("--pictures", type=whole_number(1), default=50, metavar="N",
        help="of each label and object class (50)")
    flags.add_device()
    add("--smoke", action="store_true", help="one of each, files marked -smoke: does it run?")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    return {"models": {name: examine(name, args) for name in args.mf}}


if __name__ == "__main__":
    command_line(main)
