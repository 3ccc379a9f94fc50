"""Two recipes over the same seeds and pictures: is one better, or was it luck?

    python code/compare.py base_model attn_model     after test.py -mf 'base_model-s*' 'attn_model-s*'

Writes paper/results/compare-ONE-TWO-DATA.csv, one row a seed: both accuracies, and on how many pictures
only one of the two is right (McNemar). Positive differences are in favour of the second.
"""
import re

import numpy as np
from scipy import stats

from datasets import name_in_results
from files import Parser, TellError, command_line, folder, read_csv, save_result
from scoring import read_scores, sigmoid


def right(model: str, data: str) -> np.ndarray:
    """Which test pictures a scored checkpoint got right at its own threshold: bool (n,)."""
    paths = [folder("results") / f"{kind}-{model}-{data}-test.csv" for kind in ("scores", "metrics")]
    missing = next((path for path in paths if not path.exists()), None)
    if missing:
        raise TellError(f"{missing}: not there; run python code/test.py -mf {model}")
    _, labels, logits = read_scores(paths[0])
    return (sigmoid(logits) >= float(read_csv(paths[1])[0]["threshold"])) == labels


def seeds_of(model: str, data: str) -> list[int]:
    """The seeds whose scores of `model` are there."""
    pattern = re.compile(rf"scores-{re.escape(model)}-s(\d+)-{re.escape(data)}-test\.csv")
    found = (pattern.fullmatch(path.name) for path in folder("results").glob("scores-*.csv"))
    return sorted(int(match[1]) for match in found if match)


def mcnemar(only_one: int, only_two: int) -> float:
    """Exact two-sided p that two classifiers err equally often (Q. McNemar, Psychometrika 12, 1947)."""
    return float(stats.binomtest(only_one, only_one + only_two).pvalue) if only_one + only_two else 1.0


def compare_seed(one: str, two: str, seed: int, data: str) -> dict:
    rights = [right(f"{model}-s{seed}", data) for model in (one, two)]
    only_one, only_two = int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())
    return {"seed": seed, one: rights[0].mean(), two: rights[1].mean(),
            "difference": rights[1].mean() - rights[0].mean(), "only_one_right": only_one,
            "only_two_right": only_two, "mcnemar_p": mcnemar(only_one, only_two)}


def paired(differences: np.ndarray) -> dict[str, float]:
    """Mean difference over seeds with its 95 % interval and p (paired t), and Wilcoxon's p."""
    differences = np.asarray(differences, float)
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    return {"seeds": len(differences), "mean": float(differences.mean()), "low": float(low),
            "high": float(high), "sd": float(differences.std(ddof=1)), "p": float(test.pvalue),
            "wilcoxon_p": float(stats.wilcoxon(differences).pvalue)}


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("one")
    flags.add_argument("two")
    flags.add_argument("--data", default="cifake", metavar="SET")
    args = flags.parse_args(argv)
    if args.one == args.two:
        raise TellError(f"{args.one} cannot be compared with itself")
    data = name_in_results(args.data)
    seeds = sorted(set(seeds_of(args.one, data)) & set(seeds_of(args.two, data)))
    if len(seeds) < 2:
        raise TellError(f"{folder('results')}: scores of {len(seeds)} common seeds of {args.one} and "
                        f"{args.two}; at least two are needed: train.py --seeds N, then test.py")
    rows = [compare_seed(args.one, args.two, seed, data) for seed in seeds]
    for row in rows:
        print(f"seed {row['seed']}: {row[args.one]:.2%} and {row[args.two]:.2%}, difference "
              f"{row['difference'] * 100:+.2f} points; only one right {row['only_one_right']} and "
              f"{row['only_two_right']}, McNemar p = {row['mcnemar_p']:.2g}")
    result = paired([row["difference"] for row in rows])
    print(f"{args.two} minus {args.one}: {result['mean'] * 100:+.2f} points "
          f"[{result['low'] * 100:+.2f}, {result['high'] * 100:+.2f}] over {result['seeds']} seeds, paired t "
          f"p = {result['p']:.3f}, Wilcoxon p = {result['wilcoxon_p']:.3f}")
    save_result(f"compare-{args.one}-{args.two}-{data}", rows)
    return {"rows": rows, **result}


if __name__ == "__main__":
    command_line(main)
