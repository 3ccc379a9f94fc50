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
import trust
from classes import fake_logit, normalise, pick_device
from datasets import SMALL, SPLITS, banner
from decode import resize
from files import Parser, command_line, folder, read_csv, shown, whole_number, write_csv
from scoring import BATCH_SIZE, oracle_threshold, roc_auc, sigmoid, views, wilson

LIMIT = 64   # tiles a picture
FLAT = 12.0  # grey levels, standard deviation of green: 999 in 1,000 training pictures of CIFAKE have more
DRAWS = 2000  # of the bootstrap
EVEN = 3.0   # grey levels, standard deviation of every channel; the least in CIFAKE's 120,000 is 7.5
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
    blank: bool = False  # there is nothing to see: every tile is flat, or the one view is even

    @property
    def looked_at(self) -> float:
        """The share of the picture's area that the views cover."""
        return float((self.boxes[:, 2] * self.boxes[:, 3]).sum() / (self.height * self.width))


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
        return Seen(picture[None], np.array([[0, 0, size, size]]), size, size, "whole", is_even(picture))
    return WAYS[way](picture, size, limit)


def is_even(view: np.ndarray) -> bool:
    """Whether uint8 (h, w, 3) is one plain area, but for noise: nothing that a verdict could rest on."""
    return all(view[..., channel].std() < EVEN for channel in (1, 0, 2))  # green alone nearly always decides


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
    view = resize(picture, size)
    return Seen(view[None], np.array([[0, 0, height, width]]), height, width, done, is_even(view))


def fitted(picture: np.ndarray, size: int, limit: int) -> Seen:
    height, width = picture.shape[:2]
    side = min(height, width)
    view = np.asarray(ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.BICUBIC))
    box = [(height - side) // 2, (width - side) // 2, side, side]
    done = f"centre {side}x{side} {'enlarged' if side < size else 'resized'} to {size}x{size}"
    return Seen(view[None], np.array([box]), height, width, done, is_even(view))


WAYS = {"tiles": tiled, "squash": squashed, "fit": fitted}


# --- how right networks are on pictures of natural size, as measured -----------------------------

def record(model: str, way: str) -> dict[str, str] | None:
    """The row of paper/results on a network at natural size seen one way, as this file's or test.py's tables
    have it; None where nobody measured it."""
    results = folder("results")
    paths = ([*sorted(results.glob(f"tiles-{model}-*.csv")), results / "agiri-wild.csv"] if way != "fit"
             else sorted(results.glob(f"metrics-{model}-*-test*.csv")))
    rows = (row for path in paths if path.exists() for row in read_csv(path))
    return next((row for row in rows if row.get("model") == model and row.get("way", "fit") == way
                 and row["data"] not in SMALL), None)


def in_words(row: dict[str, str] | None) -> str:
    """One clause on a row of record()."""
    if row is None:
        return "nobody has measured how right this network is on pictures of natural size"
    value, low, high, majority = (float(row[key]) for key in (
        "accuracy", "accuracy_low", "accuracy_high", "majority"))
    said = (f"on {int(row['n']):,} pictures of natural size this network was right on {100 * value:.0f} % "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %, set: {row['data']})")
    idle = f", no better than always saying the same: {100 * majority:.0f} %"
    return said + (idle if low < majority else "")


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
    found = []
    for batch in torch.from_numpy(np.require(pixels, requirements="W")).split(BATCH_SIZE):
        found.append(views(network, normalise(batch.to(device), network.normalisation)))
    return fake_logit(torch.cat(found).cpu().numpy(), network.heads)


def means(logits: np.ndarray, counts: list[int]) -> np.ndarray:
    """The mean logit of each picture, float64 (n,), of views in order; of one view it is that view's."""
    starts = np.cumsum([0, *counts[:-1]])
    return np.add.reduceat(logits.astype(np.float64), starts) / counts


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

    Intervals of 95 %: of a way those that test.py gives, of the difference the bootstrap's percentiles.
    *_oracle: at the threshold of highest accuracy on these very pictures, best_balanced_accuracy at that of
    highest balanced accuracy.
    """
    labels = labels.astype(bool)
    rows = [{"way": way} | of_way(labels, *one) for way, one in found.items()]
    if len(found) == 1:
        return rows
    first, *_, last = found
    draws = resampled(labels, [found[first], found[last]])
    measured = [rates(labels, *found[way]) for way in (first, last)]
    difference = as_row(f"{last} minus {first}", measured[1] - measured[0], draws[:, 1] - draws[:, 0])
    return [*rows, dict.fromkeys(rows[0], "") | difference]


def of_way(labels: np.ndarray, scores: np.ndarray, cut: float) -> dict[str, float]:
    """Accuracy, balanced accuracy and AUC of one way with their intervals, and what its oracles reach."""
    accuracy, balanced, area = rates(labels, scores, cut).tolist()
    low, high = wilson(round(accuracy * len(labels)), len(labels))
    oracle, _ = oracle_threshold(labels, scores)
    at_oracle = rates(labels, scores, oracle)
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high,
            **trust.balanced_accuracy(labels, (scores >= cut) == labels),
            "roc_auc": area, **trust.auc_interval(labels, scores),
            "threshold": cut, "threshold_oracle": oracle, "accuracy_oracle": float(at_oracle[0]),
            "balanced_accuracy_oracle": float(at_oracle[1]), **trust.balanced_oracle(labels, scores)}


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
    numbers = "   ".join(trust.percent(row, key) for key in ("accuracy", "balanced_accuracy"))
    best = row["best_balanced_accuracy"]
    oracle = "" if best == "" else f"   oracle {best:.2%} balanced, {row['accuracy_oracle']:.2%}"
    print(f"{row['way']:<20} {numbers}   {trust.area(row)}{oracle}")


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
