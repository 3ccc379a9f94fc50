"""Pictures -> scores -> numbers with intervals: what test.py prints, and what notebooks call.

(Python has a package `test` of its own, which a notebook's `import test` may find: import this.)
"""
from pathlib import Path

import numpy as np
import torch
from torch import nn

from classes import fake_logit, feed
from files import TellError, read_csv

BATCH_SIZE = 125  # divides CIFAKE's splits: a short last batch costs its own set-up
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


# --- pictures -> scores ------------------------------------------------------------------------

@torch.inference_mode()
def outputs(network: nn.Module, data, device: torch.device | str = "cpu",
            precision: str = "fp32") -> np.ndarray:
    """All logits of every picture, float32 (n, columns), in the order of `data`.

    Where the network says `mirror`, the mean of those of the picture and of its mirror image.
    """
    device = torch.device(device)
    was_training = network.training
    network.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = [views(network, pixels) for pixels, _ in feed(data, network, BATCH_SIZE, device)]
    network.train(was_training)
    return torch.cat(found).cpu().numpy()


def views(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    logits = network(pixels).float()
    return (logits + network(pixels.flip(3)).float()) / 2 if getattr(network, "mirror", False) else logits


def logits(network: nn.Module, data, device: torch.device | str = "cpu") -> np.ndarray:
    """The logit of FAKE of every picture, float32 (n,), in the order of `data`."""
    return fake_logit(outputs(network, data, device), network.heads)


def head_accuracies(outputs: np.ndarray, data, heads: dict[str, int]) -> dict[str, float]:
    """{"object_accuracy": ...}: of each head beside "fake", over the pictures whose class is known."""
    rows, first = {}, 0
    for head, width in heads.items():
        columns, first = outputs[:, first:first + width], first + width
        if head == "fake":
            continue
        wanted = getattr(data, f"{head}s")
        known = wanted >= 0
        rows[f"{head}_accuracy"] = ratio(float((columns.argmax(1) == wanted)[known].sum()), int(known.sum()))
    return rows


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits -> P(fake), float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def predict(network: nn.Module, data, device: torch.device | str = "cpu") -> np.ndarray:
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
    labels = labels.astype(bool)  # 0 and 1 would be taken for places
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
    """The threshold of highest balanced accuracy, and that; of equals the one nearest to 0.5.

    With as many fakes as reals, or one class only, it is the accuracy. For validation pictures; of test
    pictures it is an oracle (trust.py).
    """
    fakes = int(labels.astype(bool).sum())
    # Where fakes are many, plain accuracy may be highest at 0: everything FAKE.
    return best_cut(labels, scores, max(fakes, 1), max(len(labels) - fakes, 1))


def oracle_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold of highest accuracy on these very pictures, and that accuracy."""
    return best_cut(labels, scores, 1, 1)


def accuracy_name(labels: np.ndarray) -> str:
    """What choose_threshold maximises on these labels."""
    return "accuracy" if 2 * int(labels.astype(bool).sum()) == len(labels) else "balanced accuracy"


def best_cut(labels: np.ndarray, scores: np.ndarray, real: int, fake: int) -> tuple[float, float]:
    """The threshold where most is right, and its share; a real picture counts `real`, a fake one `fake`.

    Candidates lie half way between neighbouring scores; of equals the one nearest to 0.5.
    """
    values, group = np.unique(scores, return_inverse=True)
    fakes = np.bincount(group, weights=labels.astype(bool), minlength=len(values))
    reals = real * (np.bincount(group, minlength=len(values)) - fakes)
    fakes *= fake
    # right[i]: values[:i] are called REAL, values[i:] FAKE; whole numbers, so that equals are equal
    right = np.cumsum(np.append(0, reals)) + fakes.sum() - np.cumsum(np.append(0, fakes))
    above = np.nextafter(values, 2)  # a cut must exclude the score below it, however near the next
    cuts = np.concatenate(([0.0], np.maximum((values[1:] + values[:-1]) / 2, above[:-1]), above[-1:]))
    best = np.flatnonzero(right == right.max())
    share = right.max() / (reals.sum() + fakes.sum())
    return float(cuts[best[np.argmin(abs(cuts[best] - 0.5))]]), float(share)


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


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A file of write_scores -> paths str (n,), labels uint8 (n,), logits float32 (n,)."""
    rows = read_csv(path)
    return (np.array([row["path"] for row in rows]), np.array([row["label"] for row in rows], np.uint8),
            np.array([row["logit"] for row in rows], np.float32))
