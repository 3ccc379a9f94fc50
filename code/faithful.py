"""Are the maps of explain.py true? Measured on test pictures, beside a random map and a centre blob.

    python code/faithful.py -mf base_model             500 pictures of CIFAKE's test half
    python code/faithful.py -mf base_model compact     several networks
    python code/faithful.py -mf base_model --smoke     does it run?

Writes paper/results/faithful-NAME-DATA.csv (one row a method and measure) and planted-NAME-DATA.csv (the
test of planted.py), with 95 % intervals by bootstrap over pictures. All maps are compared as means over
8 x 8 cells: pixels taken out one by one leave noise, to which a detector of fine traces may itself react.
"""
import copy
import time
from itertools import groupby

import numpy as np
import torch
from pandas import DataFrame
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import spsolve
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

import checkpoints
import planted
from classes import pick_device
from datasets import SPLITS, banner, load
from explain import METHODS, pictures_of
from files import Parser, command_line, save_result, whole_number
from lime_shap import GRID, cells_of, explanation, masked_logits, mean_colour, normalised, score_all
from natural import held_part
from planted import interval

STEPS = 16                         # of the curves; 4 of the 64 cells each
SHARES = (0.2, 0.4, 0.6, 0.8)      # of the cells that ROAD takes out
NOISE = 0.01                       # that ROAD adds to them, in normalised pixels
SMOKE_PICTURES = 12
MEASURES = {"deletion": "area under the verdict's logit while cells take the mean colour, most important "
                        "first; low is good",
            "insertion": "the same while cells of the picture replace a blurred one; high is good",
            "road": "ROAD: the verdict's logit without the least minus without the most important "
                    "cells, imputed, / 2; high is good",
            "shift": "rank correlation with the map of the picture moved by one pixel; 1 is stable",
            "randomised": "rank correlation of the sizes with those for shuffled weights; 0 is good",
            "agreement": "mean rank correlation with the other methods of explain.py",
            "sign": "share of pictures where the sum of the map has the verdict's sign; 1 is good"}
BADNESS = {"deletion": np.positive, "insertion": np.negative, "road": np.negative, "shift": np.negative,
           "randomised": np.abs}  # the lower, the better the map


# --- baselines ---------------------------------------------------------------------------------

@explanation
def random_map(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Normal noise a cell, other for each network and picture, reproducible."""
    seed = score_all(network, normalised(network, pictures)).view(np.uint64)
    noise = np.random.default_rng(seed).standard_normal((len(pictures), GRID * GRID))
    return noise[:, cells_of(*pictures.shape[2:])]


@explanation
def centre_blob(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """A Gaussian in the middle, a quarter of the side wide, that speaks for the verdict."""
    rows, columns = (np.exp(-np.linspace(-2, 2, n) ** 2 / 2) for n in pictures.shape[2:])
    sign = np.sign(score_all(network, normalised(network, pictures)))
    return sign[:, None, None] * np.outer(rows, columns)


BASELINES = {"random": random_map, "centre": centre_blob}
ALL = METHODS | BASELINES


def in_cells(maps: np.ndarray) -> np.ndarray:
    """Means over the cells of a grid: (n, h, w) -> (n, GRID * GRID)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps)), GRID).flatten(1).numpy()


def cell_maps(network: nn.Module, pictures: np.ndarray, back: int = 0) -> np.ndarray:
    """Maps of every method of ALL, moved up and left by `back` pixels, in cells: (methods, n, cells)."""
    found = []
    for method in ALL.values():
        maps = method(network, pictures)[:, back:, back:]
        found.append(in_cells(np.pad(maps, ((0, 0), (0, back), (0, back)), mode="edge")))
    return np.stack(found)


# --- taking away what a map calls important ----------------------------------------------------

def ranks_of(support: np.ndarray) -> np.ndarray:
    """0 for the cell that supports the verdict most, 1 for the next, ...: (..., cells) -> int, same shape."""
    return (-support).argsort(axis=-1, kind="stable").argsort(axis=-1)


def areas(network: nn.Module, picture: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Areas under deletion and insertion curves of one picture, in logits: (methods, cells) -> (2, methods).

    V. Petsiuk, A. Das, K. Saenko, "RISE", BMVC 2018, on logits instead of probabilities, which saturate.
    """
    taken = ranks[:, None] < np.linspace(0, ranks.shape[1], STEPS + 1)[:, None]
    taken = taken.reshape(-1, ranks.shape[1])[:, cells_of(*picture.shape[1:])]
    blurred = gaussian_filter(picture, (0, picture.shape[1] / 8, picture.shape[2] / 8))
    curves = np.stack((masked_logits(network, picture, mean_colour(picture[None])[0], ~taken),
                       masked_logits(network, picture, blurred, taken)))
    return np.trapezoid(curves.reshape(2, len(ranks), STEPS + 1), dx=1 / STEPS)


def neighbours(height: int, width: int) -> sparse.csr_array:
    """How much each pixel counts for each: 1/6 beside, 1/12 across the corner; (h w, h w)."""
    rows, columns = (sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(n, n)) for n in (height, width))
    beside = sparse.kron(rows, sparse.eye_array(width)) + sparse.kron(sparse.eye_array(height), columns)
    return (beside / 6 + sparse.kron(rows, columns) / 12).tocsr()


def imputed(x: np.ndarray, hidden: np.ndarray, weights: sparse.csr_array) -> np.ndarray:
    """x float (3, h, w) with each hidden pixel (h, w) the weighted mean of its neighbours: (3, h, w).

    The linear imputation of Y. Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution
    Methods", ICML 2022, without its noise; as grad-cam has it, in a quarter of the time.
    """
    flat, hidden = x.reshape(len(x), -1).copy(), hidden.ravel()
    rows = weights[hidden]
    system = sparse.diags_array(rows.sum(axis=1)) - rows[:, hidden]
    flat[:, hidden] = spsolve(system.tocsc(), rows[:, ~hidden] @ flat[:, ~hidden].T).T
    return flat.reshape(x.shape)


def road(network: nn.Module, x: torch.Tensor, ranks: np.ndarray, weights: sparse.csr_array,
         random: np.random.Generator) -> np.ndarray:
    """ROAD of one normalised picture (3, h, w): ranks (methods, cells) -> (methods,), logits."""
    cells, counts = cells_of(*x.shape[1:]), [round(share * ranks.shape[1]) for share in SHARES]
    hidden = np.stack([side < n for side in (ranks.shape[1] - 1 - ranks, ranks) for n in counts])[..., cells]
    filled = np.stack([imputed(x.cpu().numpy(), each, weights) for each in hidden.reshape(-1, *cells.shape)])
    noise = NOISE * random.standard_normal(filled.shape) * hidden.reshape(-1, 1, *cells.shape)
    logits = score_all(network, torch.from_numpy((filled + noise).astype(np.float32)).to(x.device))
    least, most = logits.reshape(2, len(SHARES), len(ranks)).mean(axis=1)
    return (least - most) / 2


def removal(network: nn.Module, pictures: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    """{"deletion", "insertion", "road"} of maps in cells (methods, n, cells): each (methods, n), logits.

    What is followed is the logit of the verdict: of FAKE where that is positive, else its negative.
    """
    x = normalised(network, pictures)
    sign = np.where(score_all(network, x) > 0, 1, -1)
    ranks, weights = ranks_of(cells * sign[:, None]), neighbours(*pictures.shape[2:])
    random = np.random.default_rng(0)
    rows = [np.vstack((areas(network, picture, each), road(network, one, each, weights, random)))
            for picture, one, each in zip(pictures, x, ranks.transpose(1, 0, 2), strict=True)]
    return dict(zip(("deletion", "insertion", "road"), np.stack(rows, axis=2) * sign, strict=True))


# --- comparing maps ----------------------------------------------------------------------------

def rank_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Spearman's, picture by picture: (n, cells) and (n, cells) -> (n,), nan where a map is constant."""
    one, two = (rankdata(maps, axis=1) - (maps.shape[1] + 1) / 2 for maps in (one, two))
    spread = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return np.divide((one * two).sum(axis=1), spread, out=np.full(len(one), np.nan), where=spread > 0)


def shuffled(network: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose weights are shuffled, tensor by tensor, so that it knows nothing.

    J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, keeping each tensor's distribution.
    What is no parameter stays: Compact's whitening, the statistics of BatchNorm.
    """
    other, random = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.parameters():
            order = torch.randperm(weights.numel(), generator=random).to(weights.device)
            weights.copy_(weights.flatten()[order].view(weights.shape))
    return other


def moved(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, 3, h, w) moved down and right by one pixel, reflected at the edge."""
    return np.pad(pictures, ((0, 0), (0, 0), (1, 0), (1, 0)), mode="reflect")[..., :-1, :-1]


# --- the table ---------------------------------------------------------------------------------

def measured(network: nn.Module, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """{measure of MEASURES: float64 (methods, n)}, methods in the order of ALL."""
    cells, shifted = cell_maps(network, pictures), cell_maps(network, moved(pictures), back=1)
    blind = cell_maps(shuffled(network), pictures)
    own = [i for i, name in enumerate(ALL) if name in METHODS]
    agreement = [np.mean([rank_correlation(one, cells[j]) for j in own if j != i], axis=0)
                 for i, one in enumerate(cells)]
    return removal(network, pictures, cells) | {
        "shift": np.stack(list(map(rank_correlation, cells, shifted))),
        "randomised": np.stack(list(map(rank_correlation, abs(cells), abs(blind)))),
        "agreement": np.stack(agreement), "sign": signs(network, pictures, cells)}


def signs(network: nn.Module, pictures: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """1 where a map's sum has the sign of the logit, else 0: (methods, n, cells) -> (methods, n)."""
    fake = score_all(network, normalised(network, pictures)) > 0
    return ((cells.sum(axis=-1) > 0) == fake).astype(float)


def table(found: dict[str, np.ndarray]) -> list[dict]:
    """A row a method and measure: mean, its interval, and that of the paired difference to the random map."""
    names = list(ALL)
    return [{"method": name, "measure": measure, **interval(values[i]),
             **interval(values[i] - values[names.index("random")], "over_random"),
             "n": int(np.isfinite(values[i]).sum())}
            for measure, values in found.items() for i, name in enumerate(names)]


def wide(found: DataFrame) -> DataFrame:
    """The written table with methods down, measures across: "mean [low, high]"; an older one has fewer."""
    cells = [f"{row.mean:.2f} [{row.mean_low:.2f}, {row.mean_high:.2f}]" for row in found.itertuples()]
    texts = found.assign(cell=cells).pivot(index="method", columns="measure", values="cell")
    there = [[name for name in names if name in axis]
             for names, axis in ((ALL, texts.index), (MEASURES, texts.columns))]
    return texts.loc[*there].rename_axis(index=None, columns=None)


def ranking(found: DataFrame) -> DataFrame:
    """Of the written table, by measure of BADNESS: the best method, and where Grad-CAM and the blob stand."""
    rows = []
    for measure, badness in BADNESS.items():
        means = found[found.measure == measure].set_index("method")["mean"]
        own = means.drop(list(BASELINES))
        first = badness(own).idxmin()
        rows.append({"measure": measure, "best method": first, "best": own[first],
                     "grad-cam": own["grad-cam"], "blob in the middle": means["centre"],
                     "grad-cam is number": int(badness(own).rank()["grad-cam"]), "of": len(own)})
    return DataFrame(rows).set_index("measure")


def print_table(rows: list[dict]) -> None:
    """Methods down, measures across: means with half the width of their interval."""
    print(" " * 22 + "".join(f"{measure:>16}" for measure in MEASURES))
    for name in ALL:
        mine = {row["measure"]: row for row in rows if row["method"] == name}
        cells = (f"{row['mean']:.2f} ± {(row['mean_high'] - row['mean_low']) / 2:.2f}"
                 for row in (mine[measure] for measure in MEASURES))
        print(f"{name:<22}" + "".join(f"{cell:>16}" for cell in cells))


def print_planted(rows: list[dict]) -> None:
    """The hit rates and IoU of planted.rows_of, a paragraph for each kind and side of the patches."""
    for (kind, side), group in groupby(rows, lambda row: (row["kind"], row["side"])):
        group = list(group)
        row = group[0]
        print(f"{kind}, patch of {side:.3f} of the side: {row['kept']:,} of {row['pictures']:,} pictures; "
              f"chance: hit {row['hit_chance']:.1%}, IoU {row['iou_chance']:.3f}")
        for row in group:
            print(f"   {row['method']:<22}" + "   ".join(
                f"{measure} {row[measure]:.3f} [{row[f'{measure}_low']:.3f}, {row[f'{measure}_high']:.3f}], "
                f"before {row[f'{measure}_before']:.3f}" for measure in ("hit", "iou")))


def examine(name: str, args) -> dict[str, list[dict]]:
    """Both tables of one checkpoint, printed and written."""
    network, facts = checkpoints.load(name, pick_device(args.device))
    whole = load(args.data, hasattr(network, "size"))
    banner(whole)
    data, model = held_part(whole, facts, args.split), checkpoints.model_name(name)
    n = SMOKE_PICTURES if args.smoke else args.pictures
    start, about = time.perf_counter(), {"model": model, "data": data.name, "split": args.split}
    faithful = [about | row for row in table(measured(network, pictures_of(data.head(n), network)))]
    print(f"\n{model} on {data.name}, {args.split} split, n = {len(data.head(n)):,}; "
          f"mean ± half of the 95 % interval")
    print_table(faithful)
    print("\n".join(f"{measure}: {text}" for measure, text in MEASURES.items()) + "\n")
    hosts = n if args.smoke else args.hosts
    spliced = [about | row for row in planted.rows_of(network, data, hosts, cell_maps, list(ALL))]
    print_planted(spliced)
    found = {"faithful": faithful, "planted": spliced}
    mark = ("" if args.split == "test" else f"-{args.split}") + ("-smoke" if args.smoke else "")
    for kind, rows in found.items():
        save_result(f"{kind}-{model}-{data.name}{mark}", rows)
    print(f"{time.perf_counter() - start:.0f} s")
    return found


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    flags.add_models(["base_model"], "base_model")
    flags.add_data()
    add("--split", choices=SPLITS, default="test", help="which part of the data (test)")
    add("--pictures", type=whole_number(2), default=500, metavar="N",
        help="drawn by lot (500)")
    add("--hosts", type=whole_number(2), default=500, metavar="N",
        help="pictures of each class that take planted patches; most of the time goes there (500)")
    flags.add_device()
    add("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures, files marked -smoke: does it run?")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    return {"models": {name: examine(name, args) for name in args.mf}}


if __name__ == "__main__":
    command_line(main)
