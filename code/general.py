"""A detector for pictures of natural size from anywhere, judged on sources that it has not seen.

    python code/general.py                  its frozen part from models/general.pth, the rest anew
    python code/general.py --weights FILE   that part from tf_efficientnet_lite0's ImageNet weights
    python code/general.py --data wild --questions vqa --beside base_model

It is a logistic regression on the middle layers of a frozen network (middle.py). It, hand-made statistics
(forensic.py), metadata and the checkpoints of --beside are scored on each source after fitting on the others
(unseen.py), on pictures as they are and re-saved (resaved.py). Writes paper/results/general.csv, what its
verdicts are worth to general-verdicts.csv, and models/general.pth from all pictures, with threshold and
calibration from the scores of left-out sources.
"""
import hashlib

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import checkpoints
from classes import build
from files import Parser, TellError, command_line, save_result, shown, whole_number
from resaved import VIEWS, WAYS, Pool, gather, measure
from scoring import sigmoid
from trust import short_hashes
from unseen import (
    STRENGTH,
    judged,
    linear,
    own_sources,
    print_means,
    print_verdicts,
    promised,
    regression,
    rule,
    table,
    trees,
    untrained,
    verdicts,
)

NETWORK = {"name": "tf_efficientnet_lite0", "size": 256, "blocks": [3, 4, 5]}


def compare(found: dict[str, np.ndarray], pool: Pool, args) -> tuple[np.ndarray, list[dict]]:
    """Logits (seeds, n, 2) of the detector, each source left out in turn, and the rows of all methods."""
    fits = {"middle": linear, "forensic": linear, "metadata": trees,
            **{f"{name}, {way}": untrained for name in args.beside for way in WAYS}}
    scores = {name: judged(found[name].astype(np.float64), pool, fit, args.seeds)
              for name, fit in tqdm(fits.items(), "methods", leave=False)}
    rows = [row for name, (logits, cuts) in scores.items() for row in table(pool, name, logits - cuts)]
    print_means(rows)
    return scores["middle"][0], rows


def fill(network: nn.Module, x: np.ndarray, pool: Pool) -> None:
    """Fit the linear layer of a General to all views x (n, views, k) of all pictures."""
    labels, groups = (column.repeat(x.shape[1]) for column in (pool.labels, pool.sources))
    w, b = regression(x.reshape(-1, x.shape[2]).astype(np.float64), labels, groups)
    with torch.no_grad():
        network.head.weight[0], network.head.bias[0] = torch.from_numpy(w), b


def ruled(pool: Pool, logits: np.ndarray) -> tuple[dict, float, list[dict]]:
    """The checkpoint's rule and cut, from logits of left-out sources, and what verdicts by it are worth."""
    worth = verdicts(pool, logits)
    print_verdicts(worth)
    found, cut = rule(pool, logits, own_sources(pool))
    if (found := promised(found, worth))["real_bound"] == np.inf:
        print("so the checkpoint never gives one: every verdict is \"cannot tell\"")
    return found, cut, worth


def save(name: str, network: nn.Module, pool: Pool, calibration: dict, cut: float, seeds: int) -> None:
    """Write the checkpoint."""
    path, names = checkpoints.path_of(name), "+".join(data.name for data in pool.sets)
    fingerprint = hashlib.sha256("".join(data.fingerprint for data in pool.sets).encode()).hexdigest()[:16]
    content = checkpoints.pack(
        network, "General", NETWORK, threshold=float(sigmoid(np.array(cut))), data=names,
        threshold_source=f"half way between the classes' medians of {calibration['source']}",
        fingerprint=fingerprint, fitted_on=[data.fingerprint for data in pool.sets],
        fitted_pictures=torch.from_numpy(short_hashes(pool.sha256)),
        pictures={"train": len(pool)}, seed=0, calibration=calibration,
        recipe={"views": VIEWS, "seeds": seeds, "strength": STRENGTH}, **checkpoints.surroundings())
    checkpoints.write(path, content)
    print(f"checkpoint: {shown(path)}")


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


def network_of(args) -> torch.nn.Module:
    """A new one with --weights, else that of models/NAME.pth, ready to score."""
    if args.weights:
        return build("General", **NETWORK, weights=args.weights).eval()
    network, facts = checkpoints.load(args.mf)
    if facts["architecture"] != "General":
        raise TellError(f"-mf {args.mf}: not a General but a {facts['architecture']}; give --weights FILE")
    return network.eval()


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    network = network_of(args)
    pool = gather(args.data, args.questions)
    print(f"{len(pool)} pictures, {pool.labels.sum()} fake, from {len(np.unique(pool.sources))} sources")
    found = measure(network, pool, args.seeds, args.beside)
    logits, rows = compare(found, pool, args)
    calibration, cut, worth = ruled(pool, logits)
    for end, content in (("", rows), ("-verdicts", worth)):
        save_result(f"{args.mf}{end}", content)
    fill(network, found["middle"], pool)
    save(args.mf, network, pool, calibration, cut, args.seeds)
    return {"rows": rows, "verdicts": worth, "calibration": calibration}


if __name__ == "__main__":
    command_line(main)
