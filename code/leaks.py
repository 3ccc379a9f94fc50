"""The leak audit: pictures that stand twice in a data set, byte for byte or nearly.

    python code/leaks.py    paper/results/leaks-cifake.csv, one row a pair, and without-twins.csv: every
                            scored model without the test pictures that also stand in train; 20 s

Near pairs are proposed by a perceptual hash and confirmed by the distance of their pixels. Looking at
90 pairs of each label: up to a distance of 20 nearly all show one picture in two versions, above 26
many FAKE pairs are two pictures of one prompt.
"""
from collections.abc import Iterator

import numpy as np
from scipy.fft import dctn
from tqdm import tqdm

from datasets import ImageSet, banner, load
from files import Parser, TellError, command_line, folder, read_csv, shown, write_csv
from scoring import read_scores, score, sigmoid

MAX_BITS = 10  # of 63, in which the hashes of a near pair may differ
MAX_DISTANCE = 20.0  # root mean square over the pixels, in levels of 255
BLOCK = 256


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3, 32, 32) -> uint64 (n,): which low frequencies are above their median.

    The DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
    2010, on the grey picture as it is: 8 x 8 coefficients without the mean, 63 bits.
    """
    grey = np.tensordot(pixels.astype(np.float32), np.float32([0.299, 0.587, 0.114]), (1, 0))
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(grey), 64)[:, 1:]
    bits = low > np.median(low, axis=1, keepdims=True)
    return (bits.astype(np.uint64) << np.arange(63, dtype=np.uint64)).sum(axis=1)


def near_hashes(hashes: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Every pair of hashes (n,) that differ in at most max_bits: int64 (pairs, 2), first < second."""
    found = [np.empty((0, 2), np.int64)]
    for start in tqdm(range(0, len(hashes), BLOCK), "comparing hashes", disable=None, leave=False):
        differing = np.bitwise_count(hashes[start:start + BLOCK, None] ^ hashes[None, start:])
        pairs = np.argwhere(differing <= max_bits)
        found.append(pairs[pairs[:, 1] > pairs[:, 0]] + start)
    return np.concatenate(found)


def distances(data: ImageSet, pairs: np.ndarray) -> np.ndarray:
    """Root mean square difference of the pixels of each pair, in levels of 255."""
    result = np.empty(len(pairs))
    for start in range(0, len(pairs), 4096):
        one, two = (data.pixels[data.rows[pairs[start:start + 4096, side]]].astype(np.float32)
                    for side in (0, 1))
        result[start:start + 4096] = np.sqrt(((one - two) ** 2).mean(axis=(1, 2, 3)))
    return result


def pairs_of(data: ImageSet) -> Iterator[dict]:
    """One row a pair of pictures of one label that are identical or near."""
    hashes = np.concatenate([perceptual_hash(data.pixels[data.rows[start:start + 8192]])
                             for start in range(0, len(data), 8192)])
    for label, name in ((0, "REAL"), (1, "FAKE")):
        members = np.flatnonzero(data.labels == label)
        pairs = members[near_hashes(hashes[members])]
        for (one, two), distance in zip(pairs.tolist(), distances(data, pairs), strict=True):
            if distance <= MAX_DISTANCE:
                identical = (data.sha256[one] == data.sha256[two]).all()
                yield {"label": name, "kind": "identical" if identical else "near",
                       "one": data.paths[one], "two": data.paths[two], "distance": f"{distance:.2f}"}


def halves(row: dict) -> str:
    """"train", "test", or "across": where the two pictures of a pair stand."""
    sides = {row[side].split("/")[0] for side in ("one", "two")}
    return sides.pop() if len(sides) == 1 else "across"


def count(rows: list[dict]) -> list[dict]:
    """Pairs by label and kind: inside train, inside test, across the two."""
    table = []
    for label in ("REAL", "FAKE"):
        for kind in ("identical", "near"):
            places = [halves(row) for row in rows if (row["label"], row["kind"]) == (label, kind)]
            table.append({"label": label, "kind": kind, "pairs": len(places),
                          **{place: places.count(place) for place in ("train", "test", "across")}})
    return table


def twins_in_train(rows: list[dict]) -> set[str]:
    """The test pictures that also stand, exactly or nearly, in the training half."""
    across = (row for row in rows if halves(row) == "across")
    return {next(row[side] for side in ("one", "two") if row[side].startswith("test/")) for row in across}


def read_leaks() -> list[dict]:
    """The committed audit of CIFAKE."""
    path = folder("results") / "leaks-cifake.csv"
    if not path.exists():
        raise TellError(f"{path}: not there; python code/leaks.py makes it")
    return read_csv(path)


def without_twins(twins: set[str]) -> list[dict]:
    """For every model with scores on CIFAKE's test half: accuracy on all of it, and without the twins."""
    rows = []
    for path in sorted(folder("results").glob("scores-*-cifake-test.csv")):
        model = path.name.removeprefix("scores-").removesuffix("-cifake-test.csv")
        threshold = float(read_csv(path.with_name(path.name.replace("scores-", "metrics-")))[0]["threshold"])
        paths, labels, logits = read_scores(path)
        alone = np.array([name not in twins for name in paths.tolist()])
        scores = sigmoid(logits)
        whole, rest = score(labels, scores, threshold), score(labels[alone], scores[alone], threshold)
        rows.append({"model": model, "n": whole["n"], "accuracy": whole["accuracy"],
                     "n_without": rest["n"], "accuracy_without": rest["accuracy"],
                     "low_without": rest["accuracy_low"], "high_without": rest["accuracy_high"]})
    return rows


def main(argv: list[str] | None = None) -> dict:
    Parser(description=__doc__).parse_args(argv)
    data = load("cifake")
    banner(data)
    if data.name != "cifake":
        raise TellError(f"{data.source}: the audit is of CIFAKE as published; "
                        "`python code/datasets.py verify` names what differs")
    rows = list(pairs_of(data))
    for row in count(rows):
        print(f"{row['label']} {row['kind']:<9} {row['pairs']:>5} pairs: {row['train']} inside train, "
              f"{row['test']} inside test, {row['across']} across")
    twins = twins_in_train(rows)
    print(f"{len(twins):,} of 20,000 test pictures have a twin in train")
    path = folder("results") / "leaks-cifake.csv"
    write_csv(path, rows)
    models = without_twins(twins)
    for row in models:
        print(f"{row['model']:<16} {row['accuracy']:.2%} of {row['n']:,}; "
              f"{row['accuracy_without']:.2%} of the {row['n_without']:,} without a twin")
    if models:
        write_csv(folder("results") / "without-twins.csv", models)
    print(f"written: {shown(path)} and without-twins.csv")
    return {"counts": count(rows), "twins": len(twins)}


if __name__ == "__main__":
    command_line(main)
