"""Figures of what networks look at: maps over pictures, mean maps, shares. For notebook 06.

Overlays are drawn from maps; all else from the tables that looks.py wrote.
"""
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from pandas import DataFrame
from torch import nn

import checkpoints
from cache import OBJECTS
from explain import pictures_of
from faithful import in_cells
from figures import FAKE, LINE, REAL, STYLE, read_table
from files import folder
from lime_shap import GRID
from looks import MASSES, METHODS, regions

NETWORKS = ("base_model", "sturdy")  # those shown, where they are there
OPACITY = 0.75  # of the strongest cell of an overlay
COVER = (204, 121, 167)
COLOURS = (LINE, "#009E73", "#E69F00", "#CC79A7", "#56B4E9")


def networks_here(*kinds: str) -> list[str]:
    """Those of NETWORKS whose checkpoint and whose tables of these kinds for CIFAKE exist."""
    return [name for name in NETWORKS if checkpoints.path_of(name).exists() and all(
        (folder("results") / f"{kind}-{name}-cifake.csv").exists() for kind in kinds)]


# --- maps over pictures -------------------------------------------------------------------------

def cases(labels: np.ndarray, scores: np.ndarray, threshold: float, each: int, seed: int = 0) -> np.ndarray:
    """Real called REAL, real called FAKE, fake called FAKE, fake called REAL: `each` by lot, indices (k,)."""
    random, called = np.random.default_rng(seed), scores >= threshold
    kinds = [np.flatnonzero((labels == label) & (called == verdict))
             for label, verdict in ((0, 0), (0, 1), (1, 1), (1, 0))]
    return np.concatenate([random.permutation(kind)[:each] for kind in kinds])


def examples(data, network: nn.Module, scores: np.ndarray, threshold: float,
             each: int) -> tuple[np.ndarray, list[str]]:
    """Pictures of `cases`, uint8 (k, 3, h, w), and of each what it is, what it is called, and its score."""
    index = cases(data.labels, scores, threshold, each)
    captions = [f"{('real', 'fake')[data.labels[i]]}, called {'FAKE' if scores[i] >= threshold else 'REAL'}\n"
                f"P(fake) {scores[i]:.3f}" for i in index]
    return pictures_of(data.take(index), network), captions


def plot_overlays(pictures: np.ndarray, captions: list[str], maps: dict[str, np.ndarray]) -> Figure:
    """A column a picture: itself, then each method's map over it in grey.

    Orange towards FAKE, blue towards REAL, the stronger the more opaque, relative to the map's largest cell.
    pictures uint8 (n, 3, h, w), maps {name: (n, h, w)}. In cells: colour on every pixel would hide the grey.
    """
    n, rows = len(pictures), len(maps) + 1
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(rows, n, figsize=(1.3 * n + 0.5, 1.36 * rows + 0.4), squeeze=False,
                                    layout="constrained")
        for column, picture, caption in zip(axes.T, pictures, captions, strict=True):
            column[0].imshow(picture.transpose(1, 2, 0), interpolation="nearest")
            column[0].set_title(caption, fontsize=8)
        for line, each in zip(axes[1:], maps.values(), strict=True):
            for ax, picture, cells in zip(line, pictures, in_cells(each), strict=True):
                draw_overlay(ax, picture, cells.reshape(GRID, GRID))
        tidy(axes, ["picture", *maps])
        figure.supxlabel("orange: towards FAKE, blue: towards REAL; full: the map's largest cell", fontsize=9)
    return figure


def draw_overlay(ax: Axes, picture: np.ndarray, cells: np.ndarray) -> None:
    """A signed map (GRID, GRID) over a picture uint8 (3, h, w) in light grey."""
    height, width = picture.shape[1:]
    strength = cells / (abs(cells).max() or 1)
    colour = np.where(strength[..., None] > 0, to_rgb(FAKE), to_rgb(REAL))
    ax.imshow(90 + 0.65 * picture.mean(axis=0), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.imshow(np.dstack((colour, OPACITY * abs(strength))), interpolation="nearest",
              extent=(-0.5, width - 0.5, height - 0.5, -0.5))


def tidy(axes: np.ndarray, names: list[str]) -> None:
    """Pictures without ticks, the name of each row on its left."""
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, fontsize=8)


def covered(pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 (n, 3, h, w) in which `background` is painted over in one colour: the same shape."""
    hidden = regions(pictures)["background"][:, None]
    return np.where(hidden, np.array(COVER, np.uint8)[:, None, None], pictures)


# --- the tables of looks.py ---------------------------------------------------------------------

def mean_of(rows: DataFrame, key: str) -> np.ndarray:
    """Rows of mean_maps() as one map, each with the weight of its n; 1 or -1: spread evenly. (GRID, GRID)"""
    maps = [np.array(text.split(), float) for text in rows[key]]
    return np.average(maps, axis=0, weights=rows["n"]).reshape(GRID, GRID) * GRID**2


def plot_mean_maps(name: str) -> Figure:
    """Where the mass of the maps lies on average: a row a method; real, fake, and for shuffled weights."""
    rows = read_table(f"mean-maps-{name}-cifake")
    columns = {"real": "real", "fake": "fake", "all": "weights shuffled"}
    maps = [[mean_of(rows[(rows.method == method) & (rows.label == label)], "mass") for label in columns]
            for method in METHODS]
    return plot_grid(maps, METHODS, columns.values(), dict(cmap="magma", vmin=0, vmax=2.5),
                     "mass of a cell (1: spread evenly)", name)


def plot_object_maps(name: str, method: str) -> Figure:
    """Which side a method's maps speak for on average: a column an object class, real above fake."""
    rows = read_table(f"mean-maps-{name}-cifake")
    rows = rows[(rows.method == method) & (rows.weights == "trained")]
    maps = [[mean_of(rows[(rows.label == label) & (rows.object == kind)], "signed") for kind in OBJECTS]
            for label in ("real", "fake")]
    colours = LinearSegmentedColormap.from_list("sides", [REAL, "white", FAKE])
    limit = np.abs(maps).max()  # networks differ: one scale for all would cut off the middle of one of them
    return plot_grid(maps, ("real", "fake"), OBJECTS, dict(cmap=colours, vmin=-limit, vmax=limit),
                     "REAL (-), FAKE (+)", f"{name}, {method}")


def plot_grid(maps: list, rows: Sequence[str], columns: Iterable[str], style: dict, label: str,
              title: str) -> Figure:
    """Maps (rows, columns, GRID, GRID) as pictures with one scale of colours."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        n, k = len(maps), len(maps[0])
        figure, axes = plt.subplots(n, k, figsize=(1.2 * k + 1.8, 1.25 * n + 0.8), layout="constrained")
        for ax, each in zip(axes.flat, (each for line in maps for each in line), strict=True):
            drawn = ax.imshow(each, interpolation="nearest", **style)
        for ax, column in zip(axes[0], columns, strict=True):
            ax.set_title(column, fontsize=9)
        tidy(axes, rows)
        figure.colorbar(drawn, ax=axes, fraction=0.03).set_label(label, fontsize=9)
        figure.suptitle(title, fontsize=10)
    return figure


def plot_shares(name: str) -> Figure:
    """By object class: the part of the border and background in maps, and in the logit, beside their area."""
    found, swapping = (read_table(f"{kind}-{name}-cifake") for kind in ("looks", "swaps"))
    found = found[(found.mass == MASSES[0]) & (found.label == "all")]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
        for ax, region in zip(axes, ("border", "background"), strict=True):
            mine = found[found.region == region]
            rows = {method: mine[mine.method == method] for method in METHODS} | {
                f"exchanged: {part}": swapping[swapping.part == part]
                for part in swapping.part.unique() if part.startswith(region)}
            draw_shares(ax, rows)
            ax.set(ylabel="share", title=f"{region}; grey, at each point's place: its share of the area")
            ax.legend(fontsize=8, ncols=len(rows), loc="upper center", frameon=True, edgecolor="none")
        figure.suptitle(name, fontsize=10)
    return figure


def draw_shares(ax: Axes, rows: dict[str, DataFrame]) -> None:
    """Shares with their intervals by object class, the whole first; a short grey line at the area."""
    names = ["all", *OBJECTS]
    for i, ((name, mine), colour) in enumerate(zip(rows.items(), COLOURS, strict=False)):
        mine = mine.set_index("object").loc[names]
        places = np.arange(len(names)) + 0.14 * (i - (len(rows) - 1) / 2)
        ax.errorbar(places, mine.share, (mine.share - mine.share_low, mine.share_high - mine.share), fmt="o",
                    ms=4, capsize=2, color=colour, label=name)
        ax.hlines(mine.area, places - 0.07, places + 0.07, color="grey", lw=2)
    ax.set_xticks(range(len(names)), names)
    ax.margins(y=0.18)
