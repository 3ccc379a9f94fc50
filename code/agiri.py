"""AGIRI: real and generated pictures of natural size before networks that learnt at 32 pixels.

    python code/agiri.py                     every model that is here, squashed and by tiles
    python code/agiri.py -mf base_model      these only, also in the tables
    python code/agiri.py --smoke             60 pictures, nothing written: does it run?

AGIRI is Kaggle's tristanzhang32/ai-generated-images-vs-real-images, {train,test}/{real,fake}/, under the
data root by a name of config.json; its test half counts. Without it the stand-in `wild` is scored, which has
its layout; without that the built-in sample, which proves nothing. Beside the networks stand always saying
the same and a classifier of the files' metadata (metadata.py). Writes to paper/results/ agiri-scores-SET.csv
(a row a picture), agiri-SET.csv (a row for each detector and way), agiri-sources-SET.csv (and source).
"""
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import checkpoints
import metadata
import natural
import overlays
import tiles
from classes import pick_device
from datasets import data_root, sample_archive
from decode import DecodeError, decode
from figures import FAKE, LINE, REAL, STYLE
from files import Parser, command_line, config, save_result, shown
from lossless import models_here
from sample import photo
from scoring import sigmoid, wilson
from trust import by_source, percent, seen_in_training

MODELS = ("base_model", "mini_model", "attn_model", "compact", "wide28", "dual", "robust",
          "sturdy", "general")
TEST_FILES = 12_000  # of AGIRI
SMOKE_PICTURES = 60
METADATA = "metadata only"
# The course project on AGIRI (jshrdt/aics-project@4b8b724): accuracy, recall of FAKE and of REAL.
PUBLISHED = {"base": (0.5480, 0.3100, 0.7119), "SRM": (0.5329, 0.2795, 0.7074),
             "mini": (0.6100, 0.2567, 0.8534)}
PUBLISHED_N = 8_606  # of TEST_FILES; a bare except dropped the others
Scores = dict[str, dict[str, tuple[np.ndarray, float]]]  # {model: {way: (scores (n,), threshold)}}


# --- the pictures ------------------------------------------------------------------------------

def find(key: str) -> Path | None:
    """The source under the data root by the names that config.json lists under `key`; None without."""
    places = (data_root() / name for name in config()[key])
    return next((path for path in places if path.exists()), None)


def open_test() -> natural.PictureSet:
    """AGIRI's test half where it is; else the stand-in's; else the built-in sample's."""
    path = find("agiri") or find("agiri_stand_in") or sample_archive()
    return natural.open_pictures(str(path)).split("test")


def unreadable(data: natural.PictureSet) -> list[tuple[str, str]]:
    """(path, reason) of each file of the test half that is no readable picture."""
    return [entry for entry in data.unreadable if entry[0].startswith("test/")]


def title(data: natural.PictureSet) -> str:
    """Which pictures these are, for the head of a table or figure."""
    name = Path(data.source).name
    if name in config()["agiri_stand_in"]:
        what = f"stand-in `{data.name}` in place of AGIRI"
    elif name not in config()["agiri"]:
        what = "BUILT-IN SAMPLE, for smoke runs, not for conclusions"
    elif len(data) + len(unreadable(data)) == TEST_FILES:
        what = "AGIRI, test half"
    else:
        what = f"AGIRI's name but NOT its {TEST_FILES:,} test files"
    reals, fakes = np.bincount(data.labels, minlength=2)
    return (f"{what}: n = {len(data):,} ({reals:,} real, {fakes:,} fake), "
            f"{len(set(data.groups.tolist()))} sources, {len(unreadable(data))} files unreadable")


def odd_files() -> list[dict]:
    """What becomes of one photograph in unusual formats, and of files that are damaged or no picture."""
    colour = Image.fromarray(photo("skimage/data/coffee.png"))
    made = {"JPEG": encoded(colour, "JPEG"), "PNG, transparent": encoded(colour.convert("RGBA"), "PNG"),
            "PNG, palette": encoded(colour.convert("P"), "PNG"),
            "JPEG, grey": encoded(colour.convert("L"), "JPEG"),
            "JPEG, CMYK": encoded(colour.convert("CMYK"), "JPEG"), "WEBP": encoded(colour, "WEBP"),
            "GIF": encoded(colour, "GIF"), "TIFF, 1 bit": encoded(colour.convert("1"), "TIFF")}
    made |= {"JPEG, cut in half": made["JPEG"][:len(made["JPEG"]) // 2], "text named .jpg": b"not a picture"}
    return [{"file": name, **outcome(content)} for name, content in made.items()]


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def outcome(content: bytes) -> dict:
    try:
        pixels, note = decode(content)
    except DecodeError as error:
        return {"becomes": "named", "as": str(error).split(" <")[0]}
    height, width = pixels.shape[:2]
    return {"becomes": "scored", "as": f"{width}x{height} RGB" + (f", {note}" if note else "")}


# --- scores ------------------------------------------------------------------------------------

def learnt_from(facts: dict, data: natural.PictureSet) -> bool:
    """Whether a checkpoint was fitted to these pictures or some of them, so that they are no test of it."""
    return (facts.get("fingerprint") == data.fingerprint or data.name in facts["data"].split("+")
            or seen_in_training(facts, data).get("in_training", 0) > 0)


def of_networks(names: list[str], data: natural.PictureSet, device="cpu") -> Scores:
    """Scores of each network in each of its ways; each picture is decoded once for all of them.

    For a network of 32 pixels "squash", "tiles" (P(fake) of the mean logit) and "tiles' share", the share of
    tiles called FAKE, threshold 0.5; for one of natural size its own way.
    """
    loaded = {checkpoints.model_name(name): checkpoints.load(name, device) for name in names}
    votes = {model: {way: [] for way in ("squash", "tiles")} if tiles.own_way(network) == "tiles"
             else {tiles.own_way(network): []} for model, (network, _) in loaded.items()}
    for pictures in tiles.portions(data):
        for model, ways in votes.items():
            for way, found in ways.items():
                found += tiles.vote(loaded[model][0], pictures, way)
    return {model: scores_of(ways, loaded[model][1]["threshold"]) for model, ways in votes.items()}


def scores_of(ways: dict[str, list[tiles.Vote]], cut: float) -> dict[str, tuple[np.ndarray, float]]:
    """{way: (scores (n,), threshold)} of the votes; the mean of tiles comes last."""
    scores = {way: (sigmoid(np.array([one.logit for one in votes])), cut) for way, votes in ways.items()}
    if "tiles" in ways:
        scores["tiles' share"] = np.array([one.share(cut) for one in ways["tiles"]]), 0.5
        scores["tiles"] = scores.pop("tiles")
    return scores


def of_metadata(data: natural.PictureSet, headers: metadata.Headers) -> dict[str, tuple[np.ndarray, float]]:
    """What the files alone give, cross-validated by picture and, where there are sources, by source."""
    groups = {"folds by picture": natural.units_of(data, sets=False)[0], "folds by source": headers.sources}
    labels, features = data.labels.astype(bool), headers.features()
    return {way: (metadata.cross_validated(labels, features, group), 0.5)
            for way, group in groups.items() if metadata.can_take_turns(labels, group)}


def giveaways(data: natural.PictureSet, headers: metadata.Headers) -> list[dict]:
    """How far single facts about the files tell the classes apart, folds by picture."""
    pixels = headers.widths * headers.heights
    facts = {"format": np.unique(headers.formats, return_inverse=True)[1][:, None],
             "width and height": np.column_stack((headers.widths, headers.heights)),
             "bytes": headers.sizes[:, None],
             "bytes a pixel": (headers.sizes / np.maximum(pixels, 1))[:, None],
             "JPEG tables": headers.tables}
    labels, groups = data.labels.astype(bool), natural.units_of(data, sets=False)[0]
    return [{"what a classifier sees": name, **metadata.numbers(
        labels, metadata.cross_validated(labels, np.asarray(columns, float), groups))}
        for name, columns in facts.items()]


# --- numbers -----------------------------------------------------------------------------------

def overall(data: natural.PictureSet, found: Scores) -> list[dict]:
    """Rows of tiles.table() for each detector, with the majority's accuracy."""
    about = {"data": data.name, "n": len(data), "majority": majority(data)}
    return [{"model": model, "way": row["way"], **about, **row}
            for model, ways in found.items() for row in tiles.table(data.labels, ways)]


def majority(data: natural.PictureSet) -> float:
    """The accuracy of always saying the more frequent class."""
    return float(max(data.labels.mean(), 1 - data.labels.mean()))


def sources(data: natural.PictureSet, found: Scores) -> list[dict]:
    """Rows of trust.by_source() for each detector and way."""
    return [{"model": model, "way": way, **row}
            for model, ways in found.items() for way, (scores, cut) in ways.items()
            for row in by_source(data.labels, scores, cut, data.groups)]


def published() -> list[dict]:
    """The course project's numbers on AGIRI, and what they imply: its counts, and always saying REAL.

    accuracy n = recall_FAKE fakes + recall_REAL (n - fakes) gives the number of fakes that were scored.
    """
    rows = []
    for model, (accuracy, fake_recall, real_recall) in PUBLISHED.items():
        fakes = round(PUBLISHED_N * (real_recall - accuracy) / (real_recall - fake_recall))
        low, high = wilson(round(accuracy * PUBLISHED_N), PUBLISHED_N)
        rows.append({"model": model, "scored": PUBLISHED_N, "lost": 1 - PUBLISHED_N / TEST_FILES,
                     "fakes": fakes, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high,
                     "always REAL": 1 - fakes / PUBLISHED_N})
    return rows


# --- figures -----------------------------------------------------------------------------------

def plot_files(data: natural.PictureSet, headers: metadata.Headers) -> Figure:
    """Bytes a pixel against size, each file a point: colour for the class, mark for the format."""
    pixels = np.maximum(headers.widths * headers.heights, 1)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
        for kind, mark in zip(np.unique(headers.formats), "os^Dv*PX", strict=False):
            for label, name, colour in ((0, "real", REAL), (1, "fake", FAKE)):
                mine = (headers.formats == kind) & (data.labels == label)
                if mine.any():
                    ax.plot(pixels[mine] / 1e6 * 1.06 ** (label - 0.5), headers.sizes[mine] / pixels[mine],
                            mark, ms=4, mfc="none", color=colour, alpha=0.7,
                            label=f"{kind}, {name} ({mine.sum():,})")
        ax.set(xscale="log", yscale="log", ylabel="bytes a pixel",
               xlabel="megapixels (real and fake of one size side by side)",
               title="What the files say before a pixel is seen")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_detectors(rows: list[dict]) -> Figure:
    """Accuracy, balanced accuracy and AUC of each detector and way with 95 % intervals."""
    rows = [row for row in rows if " minus " not in row["way"]]
    names = [f"{row['model']}, {row['way']}" for row in rows]
    colours = ["#009E73" if row["model"] == METADATA else LINE for row in rows]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 1.4 + 0.3 * len(rows)), sharey=True,
                                    layout="constrained")
        for ax, key, chance in zip(axes, ("accuracy", "balanced_accuracy", "roc_auc"),
                                   (rows[0]["majority"], 0.5, 0.5), strict=True):
            plot_intervals(ax, rows, key, colours)
            label = f"always the same: {chance:.1%}" if key == "accuracy" else "chance"
            ax.axvline(chance, ls=":", color="grey", label=label)
            ax.set(xlabel={"roc_auc": "ROC AUC"}.get(key, key.replace("_", " ")))
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
        axes[0].set_yticks(range(len(rows)), names)
        axes[0].invert_yaxis()
    return figure


def plot_intervals(ax: Axes, rows: list[dict], key: str, colours: list[str], shift: float = 0) -> None:
    """One point with its interval a row, from top to bottom."""
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        ends = [[abs(row[key] - row[f"{key}_{end}"])] for end in ("low", "high")]
        ax.errorbar(row[key], place + shift, xerr=ends, fmt="o", ms=4, color=colour, capsize=2)


def plot_sources(rows: list[dict], model: str) -> Figure:
    """Share of each source's real and fake pictures that is called right, a panel for each way."""
    mine = [row for row in rows if row["model"] == model and row["source"] != "AVG"]
    ways = list(dict.fromkeys(row["way"] for row in mine))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(ways), figsize=(2.2 + 3.2 * len(ways), 3.6), sharey=True,
                                    squeeze=False, layout="constrained")
        for ax, way in zip(axes[0], ways, strict=True):
            part = [row for row in mine if row["way"] == way]
            plot_intervals(ax, part, "real_recall", [REAL] * len(part), -0.15)
            plot_intervals(ax, part, "fake_recall", [FAKE] * len(part), 0.15)
            ax.set(title=way, xlabel="called right (fraction)", xlim=(-0.03, 1.03))
        names = [f"{row['source']} ({row['n_real']} real, {row['n_fake']} fake)" for row in part]
        axes[0, 0].set_yticks(range(len(part)), names)
        axes[0, 0].invert_yaxis()
        figure.legend(handles=[plt.Line2D([], [], color=colour, marker="o", ls="", label=name)
                               for name, colour in (("real pictures", REAL), ("fake pictures", FAKE))],
                      loc="outside lower center", ncols=2)
        figure.suptitle(model)
    return figure


def plot_seen(name: str, photos: tuple[str, ...] = ("skimage/data/coffee.png", "skimage/data/chelsea.png")
              ) -> Figure:
    """Photographs of scikit-image, squashed, and each tile's vote: orange FAKE, blue REAL."""
    network, facts = checkpoints.load(name)
    size, cut = tiles.size_of(network), facts["threshold"]
    with plt.rc_context(STYLE | {"axes.grid": False, "figure.dpi": 90}):
        figure, axes = plt.subplots(len(photos), 3, figsize=(9.5, 2.7 * len(photos)), squeeze=False,
                                    layout="constrained")
        for row, place in zip(axes, photos, strict=True):
            picture = photo(place)
            squash, vote = (tiles.vote(network, [picture], way)[0] for way in ("squash", "tiles"))
            drawn, boxes = overlays.sketch(picture, vote.boxes)
            maps = (vote.logits - np.log(cut / (1 - cut)))[:, None, None]
            panels = ((picture, f"{picture.shape[1]} x {picture.shape[0]} pixels, a photograph"),
                      (tiles.see(picture, size, "squash").pixels[0],
                       f"squashed: P(fake) {sigmoid(np.array(squash.logit)):.2f}"),
                      (overlays.overlay(drawn, boxes, maps),
                       f"{vote.treatment}\n{vote.share(cut):.0%} say FAKE, mean: "
                       f"P(fake) {sigmoid(np.array(vote.logit)):.2f}"))
            for ax, (shot, caption) in zip(row, panels, strict=True):
                ax.imshow(shot, interpolation="nearest")
                ax.set_title(caption, fontsize=9)
                ax.axis("off")
        figure.suptitle(f"{name}, threshold {cut:.2f}")
    return figure


# --- command line ------------------------------------------------------------------------------

def picture_rows(data: natural.PictureSet, found: Scores) -> list[dict]:
    """One row a picture: where from, how large, and the score of each detector and way."""
    columns = {f"{model}: {way}": scores for model, ways in found.items()
               for way, (scores, _) in ways.items()}
    return [{"path": data.paths[i], "label": data.labels[i], "source": data.groups[i],
             "format": data.formats[i], "height": data.heights[i], "width": data.widths[i],
             **{name: f"{scores[i]:.6g}" for name, scores in columns.items()}} for i in range(len(data))]


def fair(names: list[str], data: natural.PictureSet) -> list[str]:
    """The models that are tested by these pictures; the others are named."""
    learnt = [name for name in names if learnt_from(checkpoints.load(name)[1], data)]
    if learnt:
        print(f"not scored, as they learnt from {data.name}: {', '.join(learnt)}")
    return [name for name in names if name not in learnt]


def print_rows(rows: list[dict]) -> None:
    print(f"always saying the same: {rows[0]['majority']:.2%}; 95 % intervals\n"
          f"{'':<15}{'':<40}{'accuracy':<26}{'balanced accuracy':<26}ROC AUC")
    for row in rows:
        print(f"{row['model']:<15}{row['way']:<40}{percent(row, 'accuracy'):<26}"
              f"{percent(row, 'balanced_accuracy'):<26}{row['roc_auc']:.3f} "
              f"[{row['roc_auc_low']:.3f}, {row['roc_auc_high']:.3f}]"
              + ("" if row["threshold"] == "" else f"   oracle {row['best_balanced_accuracy']:.2%} balanced"))


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_models(None, f"those that are here of {', '.join(MODELS)}")
    flags.add_device()
    flags.add_argument("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures, nothing written")
    args = flags.parse_args(argv)
    whole = open_test()
    whole.require_both_classes()
    data = whole.head(SMOKE_PICTURES) if args.smoke else whole
    print(f"{title(whole)}\nfrom {shown(whole.source)}")
    for path, reason in unreadable(whole):
        print(f"unreadable: {path if path.isprintable() else ascii(path)}: {reason}")
    found = of_networks(fair(args.mf or models_here(MODELS), data), data, pick_device(args.device))
    found[METADATA] = of_metadata(data, metadata.read_headers(data))
    rows, by = overall(data, found), sources(data, found)
    print_rows(rows)
    if not args.smoke:
        for what, content in (("scores-", picture_rows(data, found)), ("", rows), ("sources-", by)):
            save_result(f"agiri-{what}{data.name}", content)
    return {"rows": rows, "sources": by}


if __name__ == "__main__":
    command_line(main)
