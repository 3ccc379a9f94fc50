"""Judge detectors on sources that they have not seen: fit without one source, score it, each in turn.

What is judged is a function fit(x, labels, groups, seed) -> (features (m, k) -> logits (m,)), for x (n, k).
compare() does so for each of METHODS and gives the rows of paper/results/general.csv. The cut between REAL
and FAKE is transferred: a fifth of the other sources' pictures, kept out of the fit, chooses it.
"""
from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from resaved import ONE_CLASS, VIEWS, Pool
from scoring import roc_auc

STRENGTH = 3.0   # of the mean loss against half of |w|^2: from 0.3 to 30 the results differ by noise
DRAWS = 500      # of the bootstrap
FEWEST = 5       # fakes of a generator that get a row of their own


# --- fitting --------------------------------------------------------------------------------------

def weights_of(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each group weighs what it has rows, both classes of it alike: float64 (n,), mean 1."""
    found = np.zeros(len(labels))
    for group in np.unique(groups):
        for label in (False, True):
            mine = (groups == group) & (labels == label)
            found[mine] = (groups == group).sum() / 2 / max(mine.sum(), 1)
    return found / found.mean()


def regression(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, float]:
    """(w, b) of the logit x @ w + b, for features x (n, k), labels bool (n,), groups (n,).

    Each group's mean is taken out first: only how real and fake differ inside a source counts, not which
    source a picture is from. The penalty on w does not depend on n.
    """
    weights = weights_of(labels, groups)
    mean = np.average(x, axis=0, weights=weights)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights)) + 1e-4
    z = (x - mean) / spread
    for group in np.unique(groups):
        mine = groups == group
        z[mine] -= np.average(z[mine], axis=0, weights=weights[mine])
    model = LogisticRegression(C=STRENGTH / len(z), max_iter=300)
    w = model.fit(z, labels, sample_weight=weights).coef_[0] / spread
    return w, float(model.intercept_[0] - mean @ w)


def linear(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Callable:
    """features (m, k) -> logits, by regression."""
    w, b = regression(x, labels, groups)
    return lambda rows: rows @ w + b


def trees(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Callable:
    """features (m, k) -> logits, by gradient-boosted trees."""
    model = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=8, random_state=0)
    return model.fit(x, labels, sample_weight=weights_of(labels, groups)).decision_function


def untrained(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Callable:
    """The logits themselves, of a detector that was trained elsewhere."""
    return lambda rows: rows[:, 0]


def seen_by(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, fit: Callable, seed: int) -> Callable:
    """`fit` on all views of pictures: x (n, views, k) -> (m, views, k) -> logits (m, views)."""
    views = x.shape[1]
    model = fit(x.reshape(-1, x.shape[2]), labels.repeat(views), groups.repeat(views), seed)
    return lambda rows: model(rows.reshape(-1, rows.shape[2])).reshape(rows.shape[:2])


def left_out(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, fit: Callable, seed: int) -> np.ndarray:
    """Logits (n, views) of each picture by a detector that saw nothing of its group."""
    found = np.empty(x.shape[:2])
    for group in np.unique(groups):
        mine = groups == group
        found[mine] = seen_by(x[~mine], labels[~mine], groups[~mine], fit, seed)(x[mine])
    return found


def halfway(labels: np.ndarray, logits: np.ndarray) -> float:
    """The cut half way between the medians of both classes: it calls neither class always by accident."""
    return float(np.median(logits[labels]) + np.median(logits[~labels])) / 2


def held(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """A fifth of each group and class, bool (n,): not fitted to, so that they can choose a cut."""
    found = np.zeros(len(labels), bool)
    for group in np.unique(groups):
        for label in (False, True):
            found[np.flatnonzero((groups == group) & (labels == label))[::5]] = True
    return found


def transferred(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray,
                fit: Callable, seed: int) -> np.ndarray:
    """Logits (m, views) of `test` by a detector fitted on four fifths, less the cut that the rest choose."""
    rest = held(labels, groups)
    model = seen_by(x[~rest], labels[~rest], groups[~rest], fit, seed)
    return model(test) - halfway(labels[rest].repeat(x.shape[1]), model(x[rest]).ravel())


# --- judging --------------------------------------------------------------------------------------

def judged(x: np.ndarray, pool: Pool, fit: Callable, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits less the transferred cut, (seeds, n, 2: as it is, re-saved), each source left out in turn.

    Second: the same where the detector saw only the largest source and is judged on all others (nan on it).
    """
    names, counts = np.unique(pool.sources, return_counts=True)
    largest, shape = names[counts.argmax()], (seeds, len(pool), 2)
    unseen, alone = np.full(shape, np.nan), np.full(shape, np.nan)
    for seed in range(seeds):
        views = x[:, [0, *range(1 + seed * VIEWS, 1 + (seed + 1) * VIEWS)]]
        splits = [(unseen, pool.sources != name, pool.sources == name) for name in names]
        for found, train, test in [*splits, (alone, pool.sources == largest, pool.sources != largest)]:
            found[seed, test] = transferred(views[train], pool.labels[train], pool.sources[train],
                                            views[test][:, :2], fit, seed)
    return unseen, alone


def auc(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """ROC AUC of each seed: labels (n,), logits (seeds, n) -> (seeds,)."""
    return np.array([roc_auc(labels, one) for one in logits])


def balanced(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Mean of both classes' recalls at cut 0, of each seed."""
    right = (logits >= 0) == labels
    return (right[:, labels].mean(axis=1) + right[:, ~labels].mean(axis=1)) / 2


def resampled(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pictures drawn with replacement, as many of each class as there are: int (n,)."""
    rows = [np.flatnonzero(labels == label) for label in (False, True)]
    return np.concatenate([random.choice(mine, len(mine)) for mine in rows])


def numbers(parts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """AUC and balanced accuracy, the mean over parts (labels (n,), logits (seeds, n)) and over seeds.

    _low, _high: 95 % percentile interval of a bootstrap over the pictures of each part; _sd: over seeds.
    """
    random, row = np.random.default_rng(0), {}
    draws = [[resampled(labels, random) for labels, _ in parts] for _ in range(DRAWS)]
    for name, measure in (("roc_auc", auc), ("balanced_accuracy", balanced)):
        of_seeds = np.mean([measure(*part) for part in parts], axis=0)
        drawn = [np.mean([measure(labels[rows], logits[:, rows]).mean() for (labels, logits), rows
                          in zip(parts, draw, strict=True)]) for draw in draws]
        low, high = np.percentile(drawn, [2.5, 97.5])
        row |= {name: float(of_seeds.mean()), f"{name}_low": float(low), f"{name}_high": float(high),
                f"{name}_sd": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else float("nan")}
    return row


def table(pool: Pool, method: str, fitted_on: str, logits: np.ndarray) -> list[dict]:
    """Rows of one method: each source, each generator against its source's real pictures, and the mean.

    The mean is over sources with both classes of their own; ONE_CLASS, whose classes come from different
    places, stays out of it.
    """
    rows = []
    for view, pictures in enumerate(("as they are", "re-saved")):
        tested = ~np.isnan(logits[0, :, view])
        part = {name: tested & (pool.sources == name) for name in np.unique(pool.sources[tested])}
        part |= {f"{home}: {maker}": part[home] & (~pool.labels | (pool.generators == maker))
                 for home in part for maker in makers_of(pool, home)}
        chosen = {name: (pool.labels[rows], logits[:, rows, view]) for name, rows in part.items()}
        own = [one for name, one in chosen.items() if name != ONE_CLASS and ":" not in name]
        for name, parts in [*((name, [one]) for name, one in chosen.items()), ("MEAN", own)]:
            fakes = int(sum(labels.sum() for labels, _ in parts))
            total = sum(len(labels) for labels, _ in parts)
            rows.append({"method": method, "fitted_on": fitted_on, "pictures": pictures, "source": name,
                         "n_real": total - fakes, "n_fake": fakes, **numbers(parts),
                         "majority": max(fakes, total - fakes) / total})
    return rows


def makers_of(pool: Pool, source: str) -> list[str]:
    """The generators of which a source has FEWEST pictures or more; none for ONE_CLASS."""
    if source == ONE_CLASS:
        return []
    makers, counts = np.unique(pool.generators[pool.sources == source], return_counts=True)
    return [str(maker) for maker, n in zip(makers, counts, strict=True) if maker and n >= FEWEST]


def compare(found: dict[str, np.ndarray], pool: Pool, methods: dict[str, tuple], seeds: int) -> list[dict]:
    """Every method's rows: methods {name: (key of `found`, fit)}."""
    rows = []
    for method, (values, fit) in tqdm(methods.items(), "methods", leave=False):
        unseen, alone = judged(found[values].astype(np.float64), pool, fit, seeds)
        rows += table(pool, method, "all other sources", unseen)
        rows += table(pool, method, "the largest source only", alone) if fit is not untrained else []
    return rows


def print_means(rows: list[dict]) -> None:
    print(f"{'method':<24}{'fitted on':<25}{'pictures':<13}{'AUC on unseen sources':<31}balanced accuracy")
    for row in (row for row in rows if row["source"] == "MEAN"):
        cells = "   ".join(f"{row[key]:.3f} [{row[key + '_low']:.3f}, {row[key + '_high']:.3f}] "
                           f"±{row[key + '_sd']:.3f}" for key in ("roc_auc", "balanced_accuracy"))
        print(f"{row['method']:<24}{row['fitted_on']:<25}{row['pictures']:<13}{cells}")
