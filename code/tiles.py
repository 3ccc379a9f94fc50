"""A picture of any size before a network of one size: squash it, or let its tiles vote.

    python code/tiles.py -mf base_model --data wild      both ways on real and fake pictures

Three ways to see a picture of h x w pixels with a network of s x s pixels:
  tiles    at most 64 tiles of s x s at native resolution, from the grid of multiples of s (so that JPEG's
           8 x 8 blocks lie as in a file of s x s pixels), a seeded sample where there are more; tiles
           flatter than FLAT are passed over; the logit is the mean of theirs
  squash   the whole picture resized to s x s, whatever its shape
  fit      the shorter side resized to s and the centre taken, as natural.py scores
Tiles are the default for small networks because they leave the pixels as they are, not because they do well:
on 334 natural pictures neither they nor squashing told base_model anything (paper/results/tiles-*.csv).
A picture smaller than s is enlarged, one of s x s is taken as it is. The comparison scores both of the first
two and writes paper/results/tiles-NAME-DATA.csv, and each picture's logits to tiles-scores-NAME-DATA.csv.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

import checkpoints
from classes import fake_logit, pick_device
from datasets import SPLITS, banner
from decode import resize
from files import Parser, command_line, folder, shown, whole_number, write_csv
from scoring import BATCH_SIZE, oracle_threshold, roc_auc, sigmoid, views, wilson

LIMIT = 64   # tiles a picture
FLAT = 12.0  # grey levels, standard deviation of green: 999 in 1,000 training pictures of CIFAKE have more
DRAWS = 2000  # of the bootstrap
SKETCH = 512  # pixels of a heat map's longer side
CELL = 8      # pixels a side, of a tile's map over a larger picture
OPACITY = 0.7
FAKE_COLOUR, REAL_COLOUR = (213, 94, 0), (0, 114, 178)  # those of figures.py
TOGETHER = 16  # pictures of natural size whose tiles share batches


# --- picture -> what a network sees of it ------------------------------------------------------

@dataclass(frozen=True)
class Seen:
    """What a network sees of one picture of height x width pixels."""
    pixels: np.ndarray  # uint8 (k, s, s, 3)
    boxes: np.ndarray   # int64 (k, 4), where they lie in the picture: top, left, height, width
    height: int
    width: int
    treatment: str      # what was done, in words
    blank: bool = False  # every tile was flat, so that flat ones had to be taken


def size_of(network: nn.Module) -> int:
    """The side of the pictures that a network takes, in pixels."""
    return getattr(network, "size", 32)


def own_way(network: nn.Module) -> str:
    """How a network sees a picture of another size than its own unless told: one of WAYS."""
    return "fit" if hasattr(network, "size") else "tiles"


def see(picture: np.ndarray, size: int, way: str, limit: int = LIMIT) -> Seen:
    """uint8 (h, w, 3) -> views of size x size pixels, by one of WAYS."""
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return Seen(picture[None], np.array([[0, 0, size, size]]), size, size, "whole")
    return WAYS[way](picture, size, limit)


def tiled(picture: np.ndarray, size: int, limit: int) -> Seen:
    height, width = picture.shape[:2]
    if min(height, width) < size:
        return squashed(picture, size, limit)
    corners, flat, blank = choose_tiles(picture, size, limit)
    pixels = np.stack([picture[top:top + size, left:left + size] for top, left in corners])
    boxes = np.hstack((corners, np.full_like(corners, size)))
    done = f"{len(corners)} of {(height // size) * (width // size)} tiles{f', {flat} flat' if flat else ''}"
    return Seen(pixels, boxes, height, width, done, blank)


def choose_tiles(picture: np.ndarray, size: int, limit: int) -> tuple[np.ndarray, int, bool]:
    """Top left corners int64 (k, 2) of the tiles that vote, how many were flat, and whether all were.

    The grid is gone through in an order drawn with a fixed seed until `limit` tiles are found. Where every
    tile is flat, the first of that order are taken.
    """
    rows, columns = picture.shape[0] // size, picture.shape[1] // size
    order = np.random.default_rng(0).permutation(rows * columns)
    corners = size * np.stack(np.divmod(order, columns), axis=1)
    kept, flat = [], 0
    for top, left in corners:
        if len(kept) == limit:
            break
        if picture[top:top + size, left:left + size, 1].std() < FLAT:
            flat += 1
        else:
            kept.append((top, left))
    chosen = np.array(kept) if kept else corners[:limit]
    return chosen[np.lexsort(chosen.T[::-1])], flat, not kept


def squashed(picture: np.ndarray, size: int, limit: int) -> Seen:
    height, width = picture.shape[:2]
    done = f"{'enlarged' if max(height, width) < size else 'squashed'} to {size}x{size}"
    return Seen(resize(picture, size)[None], np.array([[0, 0, height, width]]), height, width, done)


def fitted(picture: np.ndarray, size: int, limit: int) -> Seen:
    height, width = picture.shape[:2]
    side = min(height, width)
    view = ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.BICUBIC)
    box = [(height - side) // 2, (width - side) // 2, side, side]
    done = f"centre {side}x{side} {'enlarged' if side < size else 'resized'} to {size}x{size}"
    return Seen(np.asarray(view)[None], np.array([box]), height, width, done)


WAYS = {"tiles": tiled, "squash": squashed, "fit": fitted}


# --- what it sees -> logits --------------------------------------------------------------------

@dataclass(frozen=True)
class Vote:
    """The logit of FAKE of one picture, and of each of its views, which make a map."""
    logit: float
    logits: np.ndarray  # float32 (k,)
    boxes: np.ndarray   # int64 (k, 4): top, left, height, width
    treatment: str
    blank: bool

    def share(self, threshold: float) -> float:
        """The share of views whose P(fake) is at least `threshold`."""
        return float((sigmoid(self.logits) >= threshold).mean())


def vote(network: nn.Module, pictures: list[np.ndarray], way: str | None = None,
         limit: int = LIMIT) -> list[Vote]:
    """Pictures uint8 (h, w, 3) of any sizes -> a Vote each; way: one of WAYS, or the network's own."""
    seen = [see(picture, size_of(network), way or own_way(network), limit) for picture in pictures]
    counts = [len(one.pixels) for one in seen]
    found = view_logits(network, np.concatenate([one.pixels for one in seen]))
    parts = np.split(found, np.cumsum(counts)[:-1])
    return [Vote(logit, part, one.boxes, one.treatment, one.blank)
            for logit, part, one in zip(means(found, counts).tolist(), parts, seen, strict=True)]


@torch.inference_mode()
def view_logits(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """The logits of FAKE of uint8 (n, s, s, 3), float32 (n,): in batches, the network's own normalisation.

    The same arithmetic as scoring.logits on the same pictures, so the same bits.
    """
    device = next(network.parameters()).device
    mean, std = (torch.tensor(network.normalisation[key], device=device).view(3, 1, 1)
                 for key in ("mean", "std"))
    scale, shift, found = 1 / (255 * std), -mean / std, []
    for batch in torch.from_numpy(pixels).split(BATCH_SIZE):
        x = batch.to(device).permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)
        found.append(views(network, x))
    return fake_logit(torch.cat(found).cpu().numpy(), network.heads)


def means(logits: np.ndarray, counts: list[int]) -> np.ndarray:
    """The mean logit of each picture, float64 (n,), of views in order; of one view it is that view's."""
    starts = np.cumsum([0, *counts[:-1]])
    return np.add.reduceat(logits.astype(np.float64), starts) / counts


# --- a map of the picture ----------------------------------------------------------------------

def sketch(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 (h, w, 3) at the size that heat maps have, and `boxes` (k, 4) in its pixels.

    The longer side becomes at most SKETCH; a picture of less than half of that is enlarged by a whole factor.
    """
    height, width = picture.shape[:2]
    scale = SKETCH / max(height, width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    filter = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    ends = np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:])) * scale
    ends = ends.round().astype(int)
    return np.asarray(Image.fromarray(picture).resize(shape, filter)), np.hstack(
        (ends[:, :2], np.maximum(ends[:, 2:] - ends[:, :2], 1)))


def legible(maps: np.ndarray) -> np.ndarray:
    """Maps (k, s, s) of a picture's views; of several tiles means over CELL x CELL pixels.

    A map of single pixels would not be seen over a picture of hundreds.
    """
    if len(maps) == 1:
        return maps
    k, side = len(maps), maps.shape[1] // CELL
    whole = maps[:, :side * CELL, :side * CELL]  # of a side that CELL does not divide a few pixels are lost
    return whole.reshape(k, side, CELL, side, CELL).mean(axis=(2, 4))


def overlay(picture: np.ndarray, boxes: np.ndarray, maps: np.ndarray) -> Image.Image:
    """Signed maps (k, rows, columns) of boxes (k, 4) over a picture uint8 (h, w, 3), as sketch() gives both.

    Orange towards FAKE, blue towards REAL, over the picture in grey; full colour from the 98th percentile of
    absolute values on. What was not seen is pale.
    """
    heat, seen = np.zeros(picture.shape[:2], np.float32), np.zeros(picture.shape[:2], bool)
    for (top, left, height, width), one in zip(boxes, maps, strict=True):
        place = np.s_[top:top + height, left:left + width]
        heat[place] = Image.fromarray(one).resize(heat[place].shape[::-1], Image.Resampling.BILINEAR)
        seen[place] = True
    strength = OPACITY * np.minimum(abs(heat) / (np.quantile(abs(heat[seen]), 0.98) or 1), 1)[..., None]
    colour = np.where(heat[..., None] > 0, *np.array((FAKE_COLOUR, REAL_COLOUR), np.float32))
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    pale = 255 - (255 - grey) / 3
    shaded = np.where(seen[..., None], grey + (colour - grey) * strength, pale)
    return Image.fromarray(shaded.round().astype(np.uint8))


# --- comparison --------------------------------------------------------------------------------

def portions(data) -> Iterator[list[np.ndarray]]:
    """The pictures of a natural.PictureSet, decoded, TOGETHER at a time."""
    for start in tqdm(range(0, len(data), TOGETHER), desc="pictures", disable=None, leave=False):
        yield [data.pixels(i) for i in range(start, min(start + TOGETHER, len(data)))]


def both_ways(network: nn.Module, data, limit: int) -> dict[str, list[Vote]]:
    """{"squash": [Vote, ...], "tiles": [...]} of each picture of a natural.PictureSet."""
    found = {"squash": [], "tiles": []}
    for pictures in portions(data):
        for way, votes in found.items():
            votes += vote(network, pictures, way, limit)
    return found


def rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Accuracy, balanced accuracy and ROC AUC of labels bool (n,) and scores (n,)."""
    right = (scores >= threshold) == labels
    return np.array([right.mean(), (right[labels].mean() + right[~labels].mean()) / 2,
                     roc_auc(labels, scores)])


def resampled(labels: np.ndarray, ways: list[tuple[np.ndarray, float]], seed: int = 0) -> np.ndarray:
    """rates() of each way on DRAWS bootstrap samples, the same for all ways: (DRAWS, ways, 3).

    Each class is drawn from itself. B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    random, classes = np.random.default_rng(seed), [np.flatnonzero(labels == label) for label in (0, 1)]
    draws = [np.concatenate([random.choice(members, len(members)) for members in classes])
             for _ in range(DRAWS)]
    return np.array([[rates(labels[draw], scores[draw], cut) for scores, cut in ways] for draw in draws])


def table(labels: np.ndarray, found: dict[str, tuple[np.ndarray, float]]) -> list[dict]:
    """A row of numbers for each {way: (scores (n,), threshold)}; of several ways one for last minus first.

    Intervals of 95 %: Wilson's for accuracy, the bootstrap's percentiles for everything else. *_oracle: at
    the threshold of highest accuracy on these very pictures.
    """
    labels, n = labels.astype(bool), len(labels)
    draws = resampled(labels, list(found.values()))
    measured = [rates(labels, *one) for one in found.values()]
    rows = [as_row(way, numbers, draws[:, i]) | {"threshold": found[way][1]} | oracle(labels, found[way][0])
            for i, (way, numbers) in enumerate(zip(found, measured, strict=True))]
    for row in rows:
        row["accuracy_low"], row["accuracy_high"] = wilson(round(row["accuracy"] * n), n)
    if len(found) == 1:
        return rows
    first, *_, last = found
    difference = as_row(f"{last} minus {first}", measured[-1] - measured[0], draws[:, -1] - draws[:, 0])
    return [*rows, difference | dict.fromkeys(("threshold", *oracle(labels, found[first][0])), "")]


def oracle(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    cut, _ = oracle_threshold(labels, scores)
    accuracy, balanced, _ = rates(labels, scores, cut).tolist()
    return {"threshold_oracle": cut, "accuracy_oracle": accuracy, "balanced_accuracy_oracle": balanced}


def as_row(way: str, numbers: np.ndarray, draws: np.ndarray) -> dict:
    row = {"way": way}
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    for i, name in enumerate(("accuracy", "balanced_accuracy", "roc_auc")):
        row |= {name: float(numbers[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return row


def picture_rows(data, found: dict[str, list[Vote]], threshold: float) -> list[dict]:
    """One row a picture: what each way gives, to the last bit of float32."""
    return [{"path": path, "label": label, "height": height, "width": width,
             "squash_logit": f"{squash.logit:.9g}", "tiles_logit": f"{tiles.logit:.9g}",
             "tiles": len(tiles.logits), "share": f"{tiles.share(threshold):.4f}", "blank": int(tiles.blank),
             "treatment": tiles.treatment}
            for path, label, height, width, squash, tiles in zip(
                data.paths, data.labels, data.heights, data.widths, *found.values(), strict=True)]


def compare(name: str, data, limit: int, device: torch.device) -> tuple[list[dict], list[dict]]:
    """Rows of numbers for each way, and a row for each picture."""
    network, facts = checkpoints.load(name, device)
    found, cut = both_ways(network, data, limit), facts["threshold"]
    scores = {way: (sigmoid(np.array([one.logit for one in votes])), cut) for way, votes in found.items()}
    scores["tiles' share"] = np.array([one.share(cut) for one in found["tiles"]]), 0.5
    reals, fakes = np.bincount(data.labels, minlength=2).tolist()
    about = {"model": checkpoints.model_name(name), "data": data.name, "fingerprint": data.fingerprint}
    counts = {"n": len(data), "reals": reals, "fakes": fakes, "majority": max(reals, fakes) / len(data),
              "limit": limit, "trained_on": facts["data"]}
    order = ("squash", "tiles' share", "tiles")
    rows = [about | row | counts | checkpoints.surroundings()
            for row in table(data.labels, {way: scores[way] for way in order})]
    return [{key: value for key, value in row.items() if key != "versions"} for row in rows], picture_rows(
        data, found, cut)


def print_row(row: dict) -> None:
    numbers = "   ".join(f"{row[key]:7.2%} [{row[f'{key}_low']:.2%}, {row[f'{key}_high']:.2%}]"
                         for key in ("accuracy", "balanced_accuracy", "roc_auc"))
    best = "" if row["accuracy_oracle"] == "" else f"   oracle {row['accuracy_oracle']:.2%}"
    print(f"{row['way']:<20} {numbers}{best}")


def report(name: str, data, limit: int, device: torch.device, split: str) -> dict:
    """Compare both ways on a natural.PictureSet, print and write the tables."""
    rows, pictures = compare(name, data, limit, device)
    stem = f"{rows[0]['model']}-{data.name}" + ("" if split == "test" else f"-{split}")
    print(f"\n{rows[0]['model']} on {data.name}, n = {len(data):,}; majority baseline "
          f"{rows[0]['majority']:.2%}\n{'':<20} accuracy, 95 %            balanced accuracy          ROC AUC")
    for row in rows:
        print_row(row)
    paths = {"numbers": folder("results") / f"tiles-{stem}.csv",
             "pictures": folder("results") / f"tiles-scores-{stem}.csv"}
    for (what, path), content in zip(paths.items(), (rows, pictures), strict=True):
        write_csv(path, content)
        print(f"{what + ':':<10} {shown(path)}")
    return {"rows": rows, **{what: str(path) for what, path in paths.items()}}


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-mf", "--modelfile", dest="mf", default="base_model", metavar="NAME", help="checkpoint (base_model)")
    add("--data", required=True, metavar="SET", help="folder or archive of real/ and fake/ pictures")
    add("--split", choices=SPLITS, default="test", help="which part of the data (test)")
    add("--tiles", type=whole_number(1, 100_000), default=LIMIT, metavar="N", help=f"at most ({LIMIT})")
    flags.add_device()
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    from natural import held_part, open_pictures
    whole = open_pictures(args.data)
    banner(whole)
    data = held_part(whole, checkpoints.load(args.mf)[1], args.split)
    data.require_both_classes()
    return report(args.mf, data, args.tiles, pick_device(args.device), args.split)


if __name__ == "__main__":
    command_line(main)
