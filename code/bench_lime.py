"""LIME here against the lime package's defaults: time of one picture, and how near each comes to a long run.

    python code/bench_lime.py     50 validation pictures of CIFAKE for base_model, 15 for compact; minutes

Both sides have the same network, logits, fill and 8 x 8 cells (with the package's own quickshift most
pictures of 32 pixels are one part, and there is nothing to explain), and take the pictures in turn. Defaults:
1,000 samples in batches of 10. The long run is the package's as well, with 10,000 samples.
"""
import contextlib
import io
import time

import numpy as np
from torch import nn

import checkpoints
from classes import parameters
from datasets import load
from explain import pictures_of
from faithful import in_cells, rank_correlation
from files import Parser, command_line, whole_number
from lime_shap import SMALL, lime, normalised, score_all, segments_of
from planted import interval


def package(network: nn.Module, picture: np.ndarray, seed: int = 0, **options) -> np.ndarray:
    """The lime package's weight of each cell of a picture uint8 (3, h, w): float64 (cells,)."""
    from lime.lime_image import LimeImageExplainer
    segments = segments_of(picture)

    def logits(batch: np.ndarray) -> np.ndarray:
        return score_all(network, normalised(network, batch.transpose(0, 3, 1, 2)))[:, None]

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        found = LimeImageExplainer(random_state=seed).explain_instance(
            picture.transpose(1, 2, 0), logits, segmentation_fn=lambda image: segments, **options)
    return np.array([weight for _, weight in sorted(found.local_exp[0])])


def timed(action) -> tuple[float, np.ndarray]:
    """Seconds, and what the action returned."""
    start = time.perf_counter()
    found = action()
    return time.perf_counter() - start, found


def bench(name: str, network: nn.Module, pictures: np.ndarray) -> dict:
    """Row of paper/results/bench.csv: median milliseconds of a picture, ours and the package's. Prints it."""
    package(network, pictures[0]), lime(network, pictures[0])  # imports
    pairs = [(timed(lambda one=one: package(network, one)), timed(lambda one=one: lime(network, one)))
             for one in pictures]
    theirs, mine = (1e3 * np.median([pair[side][0] for pair in pairs]) for side in (0, 1))
    long = np.stack([package(network, one, seed=1, num_samples=10_000, batch_size=500) for one in pictures])
    near = [rank_correlation(np.stack(found), long) for found in (
        [pair[0][1] for pair in pairs], in_cells(np.stack([pair[1][1] for pair in pairs])))]
    gain = interval(near[1] - near[0], "gain")
    print(f"{name}: rank correlation with 10,000 samples, {len(pictures)} pictures: "
          f"package {near[0].mean():.3f}, Tell {near[1].mean():.3f}, difference {gain['gain']:+.3f} "
          f"[{gain['gain_low']:+.3f}, {gain['gain_high']:+.3f}]")
    print(f"a picture: package {theirs:.1f} ms, Tell {mine:.1f} ms, x {theirs / mine:.1f}")
    return {"measure": f"LIME of one picture, {name}, rank correlation {near[1].mean():.3f} (reference "
                       f"{near[0].mean():.3f}, difference {gain['gain']:+.3f} [{gain['gain_low']:+.3f}, "
                       f"{gain['gain_high']:+.3f}])", "unit": "ms", "reference": f"{theirs:.2f}",
            "tell": f"{mine:.3f}", "ratio": f"{theirs / mine:.1f}", "repeats": len(pictures)}


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_models(["base_model", "compact"], "base_model compact")
    flags.add_argument("--pictures", type=whole_number(2), metavar="N",
                       help="(50; of networks whose 10,000 masks take seconds, 15)")
    args = flags.parse_args(argv)
    return {"rows": [one(name, args.pictures) for name in args.mf]}


def one(name: str, n: int | None) -> dict:
    """The row of one checkpoint, on n validation pictures."""
    network, _ = checkpoints.load(name)
    n = n or (50 if parameters(network) < SMALL else 15)
    data = load("cifake", hasattr(network, "size")).split("val").head(n)
    return bench(checkpoints.model_name(name), network, pictures_of(data, network))


if __name__ == "__main__":
    command_line(main)
