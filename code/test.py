"""Score pictures with a trained network, and turn scores into numbers with intervals.

    python code/test.py -mf base_model                      the test half of CIFAKE
    python code/test.py -mf base_model --data MY_FOLDER     real/ and fake/ pictures of your own
    python code/test.py -mf 'base_model-s*'                 several runs, mean and deviation
    python code/test.py -mf base_model -thr 0.3             another threshold than the checkpoint's

Writes one row a picture to paper/results/scores-NAME-DATA-SPLIT.csv and one row of numbers to
metrics-NAME-DATA-SPLIT.csv beside it.
"""
import glob
from pathlib import Path

import numpy as np
import torch
from torch import nn

import checkpoints
from cache import OBJECTS
from classes import Batches, pick_device
from datasets import SPLITS, ImageSet, banner, load
from files import Parser, TellError, atomic, command_line, folder, number_between, read_csv, shown, write_csv

BATCH_SIZE = 125  # divides CIFAKE's splits: a short last batch costs its own set-up
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


# --- pictures -> scores ------------------------------------------------------------------------

@torch.inference_mode()
def logits(network: nn.Module, data: ImageSet, device: torch.device | str = "cpu",
           precision: str = "fp32") -> np.ndarray:
    """The "fake" logit of every picture, float32 (n,), in the order of `data`."""
    device = torch.device(device)
    was_training = network.training
    network.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        batches = Batches(data, BATCH_SIZE, network.normalisation, device)
        output = torch.cat([network(pixels)[:, 0].float() for pixels, _ in batches])
    network.train(was_training)
    return output.cpu().numpy()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits -> P(fake), float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def predict(network: nn.Module, data: ImageSet, device: torch.device | str = "cpu") -> np.ndarray:
    """P(fake) of every picture, float64 (n,), in the order of `data`."""
    return sigmoid(logits(network, data, device))


# --- scores -> numbers -------------------------------------------------------------------------

def score(labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> dict:
    """Numbers for labels (n,) in {0 real, 1 fake} and P(fake) scores (n,); FAKE is score >= threshold.

    Rates are fractions. A rate without pictures to compute it from is nan, such as the AUC of
    pictures of one class only.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1 or not len(labels):
        raise TellError(f"score() needs as many labels as scores, not {labels.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise TellError(f"{(~np.isfinite(scores)).sum():,} of {len(scores):,} scores are not finite")
    verdicts = scores >= threshold
    hits = {"fake_as_fake": int((labels & verdicts).sum()), "fake_as_real": int((labels & ~verdicts).sum()),
            "real_as_fake": int((~labels & verdicts).sum()), "real_as_real": int((~labels & ~verdicts).sum())}
    right = hits["fake_as_fake"] + hits["real_as_real"]
    low, high = wilson(right, len(labels))
    return {"n": len(labels), "accuracy": right / len(labels), "accuracy_low": low, "accuracy_high": high,
            "majority": max(labels.mean(), 1 - labels.mean()), "threshold": float(threshold),
            "accuracy_at_half": float(((scores >= 0.5) == labels).mean()),
            **class_rates("fake", hits["fake_as_fake"], hits["real_as_fake"], hits["fake_as_real"]),
            **class_rates("real", hits["real_as_real"], hits["fake_as_real"], hits["real_as_fake"]),
            "roc_auc": roc_auc(labels, scores), "average_precision": average_precision(labels, scores),
            **hits}


def class_rates(name: str, hit: int, false_alarm: int, miss: int) -> dict[str, float]:
    precision, recall = ratio(hit, hit + false_alarm), ratio(hit, hit + miss)
    return {f"{name}_precision": precision, f"{name}_recall": recall,
            f"{name}_f1": ratio(2 * hit, 2 * hit + false_alarm + miss)}


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    p, z2 = hits / n, Z95**2
    middle, half = p + z2 / (2 * n), Z95 * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return float((middle - half) / (1 + z2 / n)), float((middle + half) / (1 + z2 / n))


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """P(a fake scores higher than a real), ties half (Mann-Whitney U)."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[group]
    fakes = labels.sum()
    return ratio(rank[labels].sum() - fakes * (fakes + 1) / 2, fakes * (len(labels) - fakes))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean precision over the fakes by falling score, without interpolation; ties count as one step."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order])[last]
    return ratio(float((np.diff(hits, prepend=0) * hits / (last + 1)).sum()), labels.sum())


def choose_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold of highest accuracy, and that accuracy; of equals the one nearest to 0.5.

    Candidates lie half way between neighbouring scores. For validation pictures only.
    """
    values, group = np.unique(scores, return_inverse=True)
    fakes = np.bincount(group, weights=labels.astype(bool), minlength=len(values))
    reals = np.bincount(group, minlength=len(values)) - fakes
    # right[i]: values[:i] are called REAL, values[i:] FAKE
    right = np.cumsum(np.append(0, reals)) + labels.sum() - np.cumsum(np.append(0, fakes))
    above = np.nextafter(values, 2)  # a cut must exclude the score below it, however near the next
    cuts = np.concatenate(([0.0], np.maximum((values[1:] + values[:-1]) / 2, above[:-1]), above[-1:]))
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[np.argmin(abs(cuts[best] - 0.5))]]), float(right.max() / len(labels))


def sweep(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> list[dict]:
    """score() at each threshold."""
    return [score(labels, scores, threshold) for threshold in thresholds]


def by_group(labels: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray) -> list[dict]:
    """Accuracy and its interval for each group and label: groups (n,) of any sortable kind."""
    rows = []
    for group in np.unique(groups):
        for label, name in ((0, "REAL"), (1, "FAKE")):
            chosen = (groups == group) & (labels == label)
            if chosen.any():
                numbers = score(labels[chosen], scores[chosen], threshold)
                rows.append({"group": group, "label": name} | {
                    key: numbers[key] for key in ("n", "accuracy", "accuracy_low", "accuracy_high")})
    return rows


def most_wrong(labels: np.ndarray, scores: np.ndarray, label: int, k: int) -> np.ndarray:
    """Indices of the k pictures of one label whose scores lie farthest on the wrong side."""
    members = np.flatnonzero(labels == label)
    order = np.argsort(scores[members] if label else -scores[members], kind="stable")
    return members[order[:k]]


# --- command line ------------------------------------------------------------------------------

def evaluate(name: str, data: ImageSet, split: str, threshold: float | None, device) -> dict:
    """Score one checkpoint, write its two files and print its table; returns the row of numbers."""
    network, facts = checkpoints.load(name, device)
    output = logits(network, data, device)
    source = "-thr" if threshold is not None else facts["threshold_source"]
    numbers = score(data.labels, sigmoid(output), facts["threshold"] if threshold is None else threshold)
    model = checkpoints.path_of(name).stem
    row = {"model": model, "data": data.name, "split": split, "fingerprint": data.fingerprint, **numbers,
           "threshold_source": source, "trained_on": facts["data"], "seed": facts["seed"],
           **{key: value for key, value in checkpoints.surroundings().items() if key != "versions"}}
    stem = f"{model}-{data.name}-{split}"
    scores_path, metrics_path = (folder("results") / f"{kind}-{stem}.csv" for kind in ("scores", "metrics"))
    write_scores(scores_path, data, output)
    write_csv(metrics_path, [row])
    print_table(row, facts)
    for what, path in (("checkpoint", checkpoints.path_of(name)), ("scores", scores_path),
                       ("metrics", metrics_path)):
        print(f"{what + ':':<11} {shown(path)}")
    return row


def write_scores(path: Path, data: ImageSet, output: np.ndarray) -> None:
    """One row a picture; logit to the last bit of float32, score for reading."""
    objects = [*OBJECTS, ""]  # -1, unknown, is the last
    rows = zip(data.paths.tolist(), data.labels.tolist(), data.objects.tolist(), output.tolist(),
               sigmoid(output).tolist(), strict=True)
    lines = (f'"{p.replace(chr(34), chr(34) * 2)}",{y},{objects[o]},{z:.9g},{s:.6f}\n'
             for p, y, o, z, s in rows)
    with atomic(path, "w") as file:
        file.write("path,label,object,logit,score\n" + "".join(lines))


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A file of write_scores -> paths str (n,), labels uint8 (n,), logits float32 (n,)."""
    rows = read_csv(path)
    return (np.array([row["path"] for row in rows]), np.array([row["label"] for row in rows], np.uint8),
            np.array([row["logit"] for row in rows], np.float32))


def print_table(row: dict, facts: dict) -> None:
    print(f"\n{row['model']} on {row['data']}, {row['split']} split, n = {row['n']:,} "
          f"(trained on {facts['data']}, seed {facts['seed']})")
    if facts["data"] == "sample" or row["data"] == "sample":
        print("THE BUILT-IN SAMPLE IS FOR SMOKE RUNS, NOT FOR CONCLUSIONS")
    if row["split"] != "test" and facts.get("fingerprint") == row["fingerprint"]:
        print(f"these pictures were used in training ({row['split']}): no measure of how well it generalises")
    print(f"accuracy           {row['accuracy']:7.2%}   95 % interval {row['accuracy_low']:.2%} to "
          f"{row['accuracy_high']:.2%}   majority baseline {row['majority']:.2%}")
    print("                 precision   recall       F1")
    for name in ("fake", "real"):
        rates = "  ".join(f"{row[f'{name}_{rate}']:7.2%}" for rate in ("precision", "recall", "f1"))
        print(f"{name.upper():<18} {rates}")
    print(f"ROC AUC             {row['roc_auc']:.4f}   average precision (FAKE) "
          f"{row['average_precision']:.4f}")
    print(f"FAKE pictures      {row['fake_as_fake']:,} called FAKE, {row['fake_as_real']:,} called REAL")
    print(f"REAL pictures      {row['real_as_fake']:,} called FAKE, {row['real_as_real']:,} called REAL")
    print(f"threshold           {row['threshold']:.4f}   ({row['threshold_source']}); "
          f"at 0.5 the accuracy is {row['accuracy_at_half']:.2%}")


def print_mean(rows: list[dict]) -> None:
    values = np.array([row["accuracy"] for row in rows])
    print(f"\n{len(values)} models: accuracy {values.mean():.2%} ± {values.std(ddof=1):.2%} (mean ± sd), "
          f"min {values.min():.2%}, max {values.max():.2%}")


def expand(names: list[str]) -> list[str]:
    """Checkpoint names and patterns -> names, in sorted order within a pattern."""
    found = []
    for name in names:
        matches = sorted(glob.glob(str(checkpoints.path_of(name)))) if glob.has_magic(name) else [name]
        if not matches:
            raise TellError(f"no checkpoint matches {checkpoints.path_of(name)}")
        found += matches
    return found


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-mf", "--modelfile", dest="mf", nargs="+", default=["base_model"], metavar="NAME",
        help="checkpoints: models/NAME.pth, paths, or patterns in quotes (base_model)")
    add("-thr", "--decision_thresh", dest="thr", type=number_between(0, 1),
        help="FAKE where P(fake) is at least this (the checkpoint's own, chosen on validation)")
    add("--data", default="auto", metavar="SET",
        help="cifake, sample, or a folder or archive; auto: CIFAKE where it is, else the sample")
    add("--split", choices=SPLITS, default="test", help="which part of the data (test)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    names, device = expand(args.mf), pick_device(args.device)
    whole = load(args.data)
    banner(whole)
    data = whole.split(args.split)
    rows = [evaluate(name, data, args.split, args.thr, device) for name in names]
    if len(rows) > 1:
        print_mean(rows)
    return {"models": rows}


if __name__ == "__main__":
    command_line(main)
