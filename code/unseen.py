"""Judge detectors on sources that they have not seen: fit without one source, score it, each in turn.

What is judged is a function fit(x, labels, groups) -> (features (m, k) -> logits (m,)), for x (n, k);
table() gives its rows of paper/results/general.csv. The cut between REAL and FAKE is transferred: a fifth of
the other sources' pictures, kept out of the fit, chooses it. A checkpoint's rule, and what its verdicts are
worth, come from the same scores: each by a detector that saw nothing of the picture's source.
"""
from collections.abc import Callable
from itertools import product

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import calibration
from files import TellError
from resaved import ONE_CLASS, SAME_ORIGIN, VIEWS, Pool
from scoring import roc_auc

STRENGTH = 3.0   # of the mean loss against half of |w|^2: from 0.3 to 30 the results differ by noise
DRAWS = 500      # of the bootstrap
FEWEST = 5       # fakes of a generator that get a row of their own
WORDS = ("REAL", "FAKE", "cannot tell")
SILENT = {"real_bound": np.inf, "fake_bound": -np.inf}  # of a rule: both classes are possible, always


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


def linear(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Callable:
    """features (m, k) -> logits, by regression."""
    w, b = regression(x, labels, groups)
    return lambda rows: rows @ w + b


def trees(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Callable:
    """features (m, k) -> logits, by gradient-boosted trees."""
    model = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=8, random_state=0)
    return model.fit(x, labels, sample_weight=weights_of(labels, groups)).decision_function


def untrained(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Callable:
    """The logits themselves, of a detector that was trained elsewhere."""
    return lambda rows: rows[:, 0]


def seen_by(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, fit: Callable) -> Callable:
    """`fit` on all views of pictures: x (n, views, k) -> (m, views, k) -> logits (m, views)."""
    views = x.shape[1]
    model = fit(x.reshape(-1, x.shape[2]), labels.repeat(views), groups.repeat(views))
    return lambda rows: model(rows.reshape(-1, rows.shape[2])).reshape(rows.shape[:2])


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
                fit: Callable) -> tuple[np.ndarray, float]:
    """Logits (m, 2) of `test` by a detector fitted on four fifths, and the cut that the rest choose."""
    rest = held(labels, groups)
    model = seen_by(x[~rest], labels[~rest], groups[~rest], fit)
    return model(test), halfway(labels[rest].repeat(2), model(x[rest][:, :2]).ravel())


# --- judging --------------------------------------------------------------------------------------

def judged(x: np.ndarray, pool: Pool, fit: Callable, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (seeds, n, 2: as it is, re-saved) and cuts (seeds, n, 1), each source left out in turn.

    With it goes the one of SAME_ORIGIN: a detector that knows the camera's side of a source has seen it.
    """
    logits, cuts = np.empty((seeds, len(pool), 2)), np.empty((seeds, len(pool), 1))
    for seed, name in product(range(seeds), np.unique(pool.sources)):
        views = x[:, [0, *range(1 + seed * VIEWS, 1 + (seed + 1) * VIEWS)]]
        test, seen = pool.sources == name, ~np.isin(pool.sources, [name, SAME_ORIGIN.get(name, name)])
        logits[seed, test], cuts[seed, test] = transferred(
            views[seen], pool.labels[seen], pool.sources[seen], views[test][:, :2], fit)
    return logits, cuts


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


def table(pool: Pool, method: str, logits: np.ndarray) -> list[dict]:
    """Rows of one method, logits (seeds, n, 2) less their cuts: each source, each generator against its
    source's real pictures, and the mean.

    The mean is over sources with both classes of their own; ONE_CLASS, whose classes come from different
    places, stays out of it.
    """
    part = {name: pool.sources == name for name in np.unique(pool.sources)}
    part |= {f"{home}: {maker}": part[home] & (~pool.labels | (pool.generators == maker))
             for home in part for maker in makers_of(pool, home)}
    rows = []
    for view, pictures in enumerate(("as they are", "re-saved")):
        chosen = {name: (pool.labels[rows], logits[:, rows, view]) for name, rows in part.items()}
        for name, parts in [*((name, [one]) for name, one in chosen.items()),
                            ("MEAN", [chosen[name] for name in own_sources(pool)])]:
            fakes = int(sum(labels.sum() for labels, _ in parts))
            total = sum(len(labels) for labels, _ in parts)
            rows.append({"method": method, "pictures": pictures, "source": name, "n_real": total - fakes,
                         "n_fake": fakes, **numbers(parts), "majority": max(fakes, total - fakes) / total})
    return rows


def own_sources(pool: Pool) -> list[str]:
    """The sources with real and fake pictures of their own."""
    return [str(name) for name in np.unique(pool.sources) if name != ONE_CLASS]


def makers_of(pool: Pool, source: str) -> list[str]:
    """The generators of which a source has FEWEST pictures or more; none for ONE_CLASS."""
    if source == ONE_CLASS:
        return []
    makers, counts = np.unique(pool.generators[pool.sources == source], return_counts=True)
    return [str(maker) for maker, n in zip(makers, counts, strict=True) if maker and n >= FEWEST]


def print_means(rows: list[dict]) -> None:
    print(f"{'method':<24}{'pictures':<13}{'AUC on unseen sources':<31}balanced accuracy")
    for row in (row for row in rows if row["source"] == "MEAN"):
        cells = "   ".join(f"{row[key]:.3f} [{row[key + '_low']:.3f}, {row[key + '_high']:.3f}] "
                           f"±{row[key + '_sd']:.3f}" for key in ("roc_auc", "balanced_accuracy"))
        print(f"{row['method']:<24}{row['pictures']:<13}{cells}")


# --- what a checkpoint says -----------------------------------------------------------------------

def even(pool: Pool, names: list[str]) -> np.ndarray:
    """As many real as fake pictures of each source, spread over its files: int (k,).

    So a source's share of fakes says nothing, and P(fake) stands at even odds wherever a picture is from.
    """
    found = []
    for name in names:
        rows = [np.flatnonzero((pool.sources == name) & (pool.labels == label)) for label in (False, True)]
        least = min(map(len, rows))
        found += [mine[np.arange(least) * len(mine) // least] for mine in rows]
    return np.concatenate(found)


def rule(pool: Pool, logits: np.ndarray, names: list[str]) -> tuple[dict, float]:
    """calibration.fit on the logits (seeds, n, 2) of even(names), and the cut half way between the classes.

    Where fakes score no higher than real pictures, nothing can be told: P(fake) is 1/2 and every verdict
    "cannot tell".
    """
    chosen = even(pool, names)
    labels, values = np.tile(pool.labels[chosen].repeat(2), len(logits)), logits[:, chosen].ravel()
    told = f"{len(values) // len(chosen)} scores each of {len(chosen)} pictures whose source was left out"
    try:
        found = calibration.fit(labels, values, told)
    except TellError as error:  # of both classes and finite scores there is one: they do not rise
        print(f"{error}; every verdict will be \"cannot tell\"")
        found = {"temperature": np.inf, "bias": 0.0, "source": told, "alpha": calibration.ALPHA, **SILENT,
                 "false_alarm_bounds": dict.fromkeys(calibration.FALSE_ALARMS, np.inf)}
    return found | {"n": len(chosen)}, halfway(labels, values)


def verdicts(pool: Pool, logits: np.ndarray) -> list[dict]:
    """What verdicts are worth on an unseen source: a row each, the rule from the other sources' scores.

    Counts are over seeds and both views of each picture, logits (seeds, n, 2).
    """
    rows = []
    for name in own_sources(pool):
        mine = pool.sources == name
        by = rule(pool, logits, [other for other in own_sources(pool) if other != name])[0]
        said, labels = calibration.verdicts(logits[:, mine], by), pool.labels[mine]
        counts = {f"{truth}_as_{word}": int((said[:, labels == label] == word).sum())
                  for label, truth in enumerate(("real", "fake")) for word in WORDS}
        rows.append({"source": name, "temperature": by["temperature"], **counts})
    return rows


def shares(rows: list[dict], truth: str) -> dict[str, float]:
    """What share of the "real" or of the "fake" pictures got each verdict of WORDS, over all rows."""
    counts = {word: sum(row[f"{truth}_as_{word}"] for row in rows) for word in WORDS}
    return {word: count / sum(counts.values()) for word, count in counts.items()}


def promised(found: dict, rows: list[dict]) -> dict:
    """The rule `found`, or SILENT where its promise failed on unseen sources, rows of verdicts().

    It promises that at most alpha of a class get the other's verdict.
    """
    wrong = max(shares(rows, "real")["FAKE"], shares(rows, "fake")["REAL"])
    return found if wrong <= found["alpha"] else found | SILENT


def print_verdicts(rows: list[dict]) -> None:
    for truth in ("real", "fake"):
        said = ", ".join(f"{share:.1%} {word}" for word, share in shares(rows, truth).items())
        print(f"verdicts on {truth} pictures of unseen sources: {said}")
