"""A detector for pictures of natural size from anywhere, judged on sources that it has not seen.

    python code/general.py                  its frozen part from models/general.pth, the rest anew
    python code/general.py --weights FILE   that part from tf_efficientnet_lite0's ImageNet weights
    python code/general.py --data wild --questions vqa --beside base_model

Its logit is a sum (middle.py): of a logistic regression on the middle layers of a frozen network, and of a
small network for the finest detail, which also learns from pairs of a real picture and its reconstruction
(detail.py). Both, their sum, metadata, hand-made statistics (forensic.py) and the checkpoints of --beside are
scored on each source after fitting on the others (unseen.py), on pictures as they are and re-saved
(resaved.py). Writes paper/results/general.csv, then models/general.pth from all pictures, with threshold and
calibration from the scores of left-out sources.
"""
import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import calibration
import checkpoints
import detail
from classes import build
from detail import Pairs
from files import Parser, command_line, folder, shown, whole_number, write_csv
from middle import Detail
from resaved import VIEWS, WAYS, Pool, gather, measure, pairs, squares
from scoring import sigmoid
from unseen import (
    STRENGTH,
    compare,
    halfway,
    left_out,
    linear,
    print_means,
    regression,
    trees,
    untrained,
    weights_of,
)

NETWORK = {"name": "tf_efficientnet_lite0", "size": 256, "blocks": [3, 4, 5]}
SOME = 128  # pictures whose logits' spread scales a part, so that neither drowns the other


class Parts:
    """Fits the parts of General, and their sum; as the module unseen wants it.

    squares: uint8 (n, views, h, w, 3); pairs: of the same n pictures. The last column of x numbers the views,
    the others are features of the middle layers. A Detail is trained once for each seed and set of pictures.
    """

    def __init__(self, squares: np.ndarray, pairs: Pairs):
        self.views, self.pairs, self.trained = squares.shape[1], pairs, {}
        self.squares = squares.reshape(-1, *squares.shape[2:])

    def detail_of(self, flat: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Detail:
        """The detail part, fitted to the views `flat`; its logits spread by 1 over them."""
        key = seed, flat.tobytes()
        if key not in self.trained:
            seen, weights = self.pairs.of(flat // self.views), weights_of(labels, groups)
            network = detail.train(self.squares, flat, labels, weights, seen, seed)
            spread = float(detail.logits(network, self.squares, flat[::max(1, len(flat) // SOME)]).std())
            with torch.no_grad():
                for value in network.head.parameters():
                    value /= spread
            self.trained[key] = network
        return self.trained[key]

    def alone(self, x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Callable:
        network = self.detail_of(x[:, -1].astype(int), labels, groups, seed)
        return lambda rows: detail.logits(network, self.squares, rows[:, -1].astype(int))

    def middle(self, x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, float]:
        """(w, b) of the middle part, its logits spread by 1 over x."""
        w, b = regression(x[:, :-1], labels, groups)
        spread = (x[:, :-1] @ w).std()
        return w / spread, b / spread

    def both(self, x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Callable:
        w, b = self.middle(x, labels, groups)
        fine = self.alone(x, labels, groups, seed)
        return lambda rows: rows[:, :-1] @ w + b + fine(rows)


def save(name: str, network: nn.Module, x: np.ndarray, pool: Pool, parts: Parts, seeds: int) -> dict:
    """Fit both parts to all pictures, save the checkpoint; threshold and calibration by left-out sources."""
    logits = left_out(x, pool.labels, pool.sources, parts.both, seed=0).ravel()
    labels, groups = (column.repeat(x.shape[1]) for column in (pool.labels, pool.sources))
    told = f"scores of {len(pool)} pictures whose source was left out"
    cut, rule = halfway(labels, logits), calibration.fit(labels, logits, told)
    flat = x.reshape(-1, x.shape[2])
    w, b = parts.middle(flat, labels, groups)
    with torch.no_grad():
        network.middle.head.weight[0], network.middle.head.bias[0] = torch.from_numpy(w), b
    network.detail.load_state_dict(parts.detail_of(flat[:, -1].astype(int), labels, groups, 0).state_dict())
    path, names = checkpoints.path_of(name), "+".join(data.name for data in pool.sets)
    fingerprint = hashlib.sha256("".join(data.fingerprint for data in pool.sets).encode()).hexdigest()[:16]
    checkpoints.write(path, checkpoints.pack(
        network, "General", NETWORK, threshold=float(sigmoid(np.array(cut))), data=names,
        threshold_source=f"half way between the classes' medians of {told}", fingerprint=fingerprint,
        pictures={"train": len(pool)}, seed=0, recipe={"views": VIEWS, "seeds": seeds, "strength": STRENGTH},
        calibration=rule, **checkpoints.surroundings()))
    print(f"checkpoint: {shown(path)}")
    return rule


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("--data", nargs="*", default=["wild"], metavar="SET",
        help="folders or archives of real/ and fake/ pictures (wild)")
    add("--questions", nargs="*", default=["vqa"], metavar="SET", help="question-answering sets (vqa)")
    add("--weights", metavar="hub|FILE", help=f"of {NETWORK['name']}; left out: those in models/NAME.pth")
    add("--beside", nargs="*", default=[], metavar="NAME",
        help="checkpoints for 32 pixels, scored as they are")
    add("--seeds", type=whole_number(1), default=3, help=f"of {VIEWS} re-saved copies of each picture (3)")
    add("-mf", "--modelfile", dest="mf", type=checkpoints.name_to_save, default="general", metavar="NAME")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    network = (build("General", **NETWORK, weights=args.weights) if args.weights
               else checkpoints.load(args.mf)[0]).eval()
    pool = gather(args.data, args.questions)
    print(f"{len(pool)} pictures, {pool.labels.sum()} fake, from {len(np.unique(pool.sources))} sources")
    found = measure(network.middle, pool, args.seeds, args.beside)
    parts = Parts(squares(pool, args.seeds, network.size), pairs(pool, network.size))
    number = np.arange(len(pool) * parts.views).reshape(len(pool), parts.views, 1)
    found["parts"] = np.concatenate((found["middle"].astype(np.float64), number), axis=2)
    methods = {"middle + detail": ("parts", parts.both), "detail": ("parts", parts.alone),
               "middle": ("middle", linear), "forensic": ("forensic", linear),
               "metadata": ("metadata", trees),
               **{f"{name}, {way}": (f"{name}, {way}", untrained) for name in args.beside for way in WAYS}}
    rows = compare(found, pool, methods, args.seeds)
    print_means(rows)
    path = folder("results") / f"{args.mf}.csv"
    write_csv(path, rows)
    print(f"written: {shown(path)}")
    return {"rows": rows, "calibration": save(args.mf, network, found["parts"], pool, parts, args.seeds)}


if __name__ == "__main__":
    command_line(main)
