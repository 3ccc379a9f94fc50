"""The never-JPEG control: how much of a verdict on a real picture is JPEG?

    python code/lossless.py                      every model of MODELS that is here
    python code/lossless.py -mf base_model       these only
    python code/lossless.py --smoke              200 pairs: does it run?

CIFAKE's real pictures are CIFAR-10's, saved as JPEG. `cifar10_lossless_subset.npz.xz` under the data root has
9,085 of them before that, each with the name of CIFAKE's file made from it: pairs that differ in JPEG alone.
Each original is scored as it is, as CIFAKE has it, and saved anew at several qualities, training, validation
and test pictures apart, since a network has seen CIFAKE's version of the first.

Writes paper/results/lossless.csv, one row for each model, part and version.
"""
import io
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import checkpoints
from classes import pick_device
from compare import mcnemar
from datasets import SPLITS, ImageSet, data_root, load
from degrade import jpeg
from figures import STYLE
from files import Parser, TellError, command_line, folder, save_models
from scoring import logits, sigmoid, wilson

ARCHIVE = "cifar10_lossless_subset.npz.xz"
QUALITIES = (95, 90, 85, 80, 75, 70, 60, 45, 30)
MODELS = ("base_model", "mini_model", "attn_model", "compact", "wide28", "dual", "sturdy")
DRAWS = 2000  # of the bootstrap
MAX_DIFFERENCE = 20.0  # grey levels, mean over a picture: two pictures differ by 72, a pair by 13 at most
SMOKE_PAIRS = 200


# --- the pairs ---------------------------------------------------------------------------------

def read_originals(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images uint8 (n, 3, 32, 32), labels int64 (n,) of CIFAR-10, names str (n,) "split/REAL/FILE"."""
    if not path.exists():
        raise TellError(f"{path}: not there; this study needs the CIFAR-10 pictures before JPEG")
    try:
        with lzma.open(path) as packed, np.load(io.BytesIO(packed.read()), allow_pickle=False) as file:
            images, labels, names = (file[key] for key in ("images", "labels", "cifake_name"))
    except (lzma.LZMAError, EOFError, OSError, ValueError, KeyError) as error:
        raise TellError(f"{path}: not an archive of `images`, `labels`, `cifake_name` ({error})") from error
    if images.dtype != np.uint8 or images.shape != (len(names), 32, 32, 3) or len(labels) != len(names):
        raise TellError(f"{path}: images {images.dtype} {images.shape} do not go with {len(names):,} names")
    return images.transpose(0, 3, 1, 2), labels, names


def open_pairs(cifake: ImageSet, path: Path | None = None) -> tuple[ImageSet, ImageSet]:
    """(originals, the same as CIFAKE has them), pair by pair; TellError where one is no pair.

    A pair has one class, and its pictures differ by MAX_DIFFERENCE grey levels at most.
    """
    path = path or data_root() / ARCHIVE
    images, labels, names = read_originals(path)
    rows = {name: row for row, name in enumerate(cifake.paths.tolist())}
    # CIFAKE's own folder name: a validation picture is in train/, wherever the split has put it.
    index = np.array([rows.get(name, -1) for name in names.tolist()])
    theirs = cifake.take(index)
    originals = replace(theirs, name="lossless", source=str(path), pixels=images, rows=np.arange(len(images)))
    for wrong, reason in ((index < 0, "is not in CIFAKE"), (theirs.objects != labels, "is of another class"),
                          (grey_levels(originals, theirs) > MAX_DIFFERENCE, "shows another picture")):
        if wrong.any():
            raise TellError(f"{path}: {names[wrong][0]} {reason} ({wrong.sum():,} of {len(names):,})")
    return originals, theirs


def as_jpeg(data: ImageSet, quality: int) -> ImageSet:
    """The same pictures, each saved as JPEG of this quality, colours at half size (4:2:0)."""
    pictures = data.pixels[data.rows].transpose(0, 2, 3, 1)
    pixels = np.stack([jpeg(picture, quality) for picture in pictures])
    return replace(data, pixels=pixels.transpose(0, 3, 1, 2), rows=np.arange(len(data)))


def versions(originals: ImageSet, theirs: ImageSet) -> dict[str, ImageSet]:
    """{"lossless", "cifake", "jpeg 95", ...}: every version of the same pictures."""
    return {"lossless": originals, "cifake": theirs,
            **{f"jpeg {quality}": as_jpeg(originals, quality) for quality in QUALITIES}}


def models_here(names: tuple[str, ...] = MODELS) -> list[str]:
    """Those of the named checkpoints that exist; TellError where none does."""
    found = [name for name in names if checkpoints.path_of(name).exists()]
    if not found:
        raise TellError(f"{folder('models')}: none of {', '.join(names)}; train one, or name some with -mf")
    return found


# --- what changes with JPEG ---------------------------------------------------------------------

def measure(name: str, pictures: dict[str, ImageSet], device="cpu") -> list[dict]:
    """One row for each part (train, val, test) and version of `pictures`, against CIFAKE's version."""
    network, facts = checkpoints.load(name, device)
    output = {version: logits(network, data, device) for version, data in pictures.items()}
    splits, rows = pictures["cifake"].splits, []
    levels = {version: grey_levels(data, pictures["cifake"]) for version, data in pictures.items()}
    for part in SPLITS:
        mine = splits == part
        for version in pictures:
            if mine.any():
                rows.append({"model": checkpoints.model_name(name), "part": part, "version": version,
                             "threshold": facts["threshold"], "grey_levels": levels[version][mine].mean(),
                             **paired(output[version][mine], output["cifake"][mine], facts["threshold"])})
    return rows


def grey_levels(one: ImageSet, two: ImageSet) -> np.ndarray:
    """Mean absolute difference of the pixels of each pair of pictures, in levels of 255: float64 (n,)."""
    return np.abs(one.pixels[one.rows].astype(np.int16) - two.pixels[two.rows]).mean(axis=(1, 2, 3))


def paired(logits: np.ndarray, reference: np.ndarray, threshold: float) -> dict:
    """A version's false alarms, and how it differs from the reference version of the same pictures.

    logits, reference: (n,), all real. Wilson's interval for the rate; a paired bootstrap over pictures for
    the differences, in fractions of the pictures and in the logit; McNemar's exact p for the verdicts.
    """
    called, before = (sigmoid(values) >= threshold for values in (logits, reference))
    low, high = wilson(int(called.sum()), len(called))
    only_here, only_there = int((called & ~before).sum()), int((before & ~called).sum())
    change = np.stack((called.astype(float) - before, logits - reference), axis=1)
    ends = np.quantile(resampled_means(change), (0.025, 0.975), axis=0)
    return {"n": len(called), "false_alarm": called.mean(), "false_alarm_low": low, "false_alarm_high": high,
            "difference": change[:, 0].mean(), "difference_low": ends[0, 0], "difference_high": ends[1, 0],
            "only_here_fake": only_here, "only_cifake_fake": only_there,
            "mcnemar_p": mcnemar(only_here, only_there), "logit_change": change[:, 1].mean(),
            "logit_change_low": ends[0, 1], "logit_change_high": ends[1, 1], "mean_logit": logits.mean()}


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of DRAWS bootstrap samples of the rows of values (n, k): float64 (DRAWS, k)."""
    random, n = np.random.default_rng(seed), len(values)
    counts = random.multinomial(n, np.full(n, 1 / n), DRAWS)
    return counts @ values / n


# --- figure ------------------------------------------------------------------------------------

def plot_versions(rows: list[dict], part: str) -> Figure:
    """False-alarm rate against quality, a panel for each model; lines: never JPEG, and CIFAKE's version."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with plt.rc_context(STYLE):
        columns = min(4, len(models))
        lines = -(-len(models) // columns)
        figure, axes = plt.subplots(lines, columns, figsize=(1 + 3.2 * columns, 0.8 + 2.8 * lines),
                                    squeeze=False, layout="constrained")
        for ax in axes.flat[len(models):]:
            ax.remove()
        for ax, model in zip(axes.flat, models, strict=False):
            mine = {row["version"]: row for row in rows if (row["model"], row["part"]) == (model, part)}
            plot_model(ax, mine)
            ax.set(title=f"{model} (n = {int(mine['cifake']['n']):,})", xlabel="JPEG quality", ylim=(0, None))
        for ax in axes[:, 0]:
            ax.set_ylabel("called FAKE (fraction)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(f"The same real pictures, never JPEG and saved anew ({part} half, all real)")
    return figure


def plot_model(ax: Axes, rows: dict[str, dict]) -> None:
    """One model: points with 95 % intervals by quality, bands for the other two versions."""
    anew = [row for version, row in rows.items() if version.startswith("jpeg ")]
    rate, low, high = (np.array([float(row[f"false_alarm{end}"]) for row in anew])
                       for end in ("", "_low", "_high"))
    quality = [int(row["version"].split()[1]) for row in anew]
    ax.errorbar(quality, rate, (rate - low, high - rate), fmt="o-", color="#333333", capsize=3, ms=4,
                label="saved anew")
    for version, colour, style in (("lossless", "#009E73", "-"), ("cifake", "#0072B2", "--")):
        value, low, high = (float(rows[version][f"false_alarm{end}"]) for end in ("", "_low", "_high"))
        ax.axhline(value, color=colour, ls=style,
                   label={"lossless": "never JPEG", "cifake": "as CIFAKE has it"}[version])
        ax.axhspan(low, high, color=colour, alpha=0.15, lw=0)
    ax.invert_xaxis()


# --- command line ------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_models(None, f"those that are here of {', '.join(MODELS)}")
    flags.add_device()
    flags.add_argument("--smoke", action="store_true", help=f"{SMOKE_PAIRS} pairs only: does it run?")
    args = flags.parse_args(argv)
    pairs = open_pairs(load("cifake"))
    originals, theirs = (data.head(SMOKE_PAIRS) for data in pairs) if args.smoke else pairs
    counts = ", ".join(f"{part} {(theirs.splits == part).sum():,}" for part in SPLITS)
    print(f"{len(theirs):,} pairs: {counts}")
    pictures, rows = versions(originals, theirs), []
    for name in args.mf or models_here():
        mine = measure(name, pictures, pick_device(args.device))
        print_rows(mine)
        rows += mine
    save_models(f"lossless{'-smoke' if args.smoke else ''}", rows)
    return {"rows": rows}


def print_rows(rows: list[dict]) -> None:
    print(f"\n{rows[0]['model']}: real pictures called FAKE; against CIFAKE's version of the same pictures")
    for row in rows:
        print(f"{row['part']:<6}{row['version']:<9} n {row['n']:,}, {row['grey_levels']:.2f} levels away  "
              f"{row['false_alarm']:6.2%} [{row['false_alarm_low']:.2%}, {row['false_alarm_high']:.2%}]  "
              f"{row['difference'] * 100:+6.2f} points [{row['difference_low'] * 100:+.2f}, "
              f"{row['difference_high'] * 100:+.2f}]  only here {row['only_here_fake']}, only there "
              f"{row['only_cifake_fake']}, p = {row['mcnemar_p']:.2g}  logit {row['logit_change']:+.3f}")


if __name__ == "__main__":
    command_line(main)
