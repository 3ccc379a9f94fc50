"""What a classifier gets from the file alone, without one pixel: the baseline of every set of pictures.

    python code/metadata.py --data FOLDER          test.py runs this itself where the files differ
    python code/metadata.py --data cifake          in bytes alone

Format, mode, size in bytes and in pixels, bytes a pixel and the JPEG's quantisation tables, in a small
cross-validated classifier. Where it beats chance, a detector may have learnt the file format instead of
the picture (Grommelt et al., "Fake or JPEG?", arXiv:2403.17608). Writes
paper/results/metadata-DATA-SPLIT.csv.
"""
import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import CIFAKE_FINGERPRINT, SPLITS, ImageSet, banner, load
from files import Parser, TellError, command_line, folder, read_csv, shown, write_csv
from scoring import roc_auc, wilson
from sources import files_of
from trust import auc_interval, balanced_accuracy

FOLDS = 5
TABLES = 2 * 64  # luminance and chrominance
LOOK = 1000      # files of 32 pixels that are opened to see whether they differ


@dataclass(frozen=True)
class Headers:
    """What the files of a set of pictures say before they are decoded, in the set's order."""
    formats: np.ndarray  # str (n,), Pillow's names: "JPEG", "PNG", "WEBP", ...
    modes: np.ndarray    # str (n,), "RGB", "L", "CMYK", ...
    sizes: np.ndarray    # int64 (n,), bytes
    widths: np.ndarray   # int64 (n,), pixels, before any rotation that Exif asks for
    heights: np.ndarray  # int64 (n,)
    tables: np.ndarray   # float64 (n, TABLES), the JPEG's quantisation tables, nan where there is none
    sources: np.ndarray  # str (n,), the manifest's `set`, else the folder below real/ or fake/, else ""
    generators: np.ndarray  # str (n,), the manifest's `generator`, else ""

    def features(self) -> np.ndarray:
        """float64 (n, k): format and mode as numbers of their kinds, then the rest; constants left out."""
        kinds = [np.unique(column, return_inverse=True)[1] for column in (self.formats, self.modes)]
        pixels = np.maximum(self.widths * self.heights, 1)
        shape = [self.sizes / pixels, self.sizes, self.widths, self.heights,
                 self.widths / np.maximum(self.heights, 1)]
        features = np.column_stack((*kinds, *shape, self.tables))
        return features[:, [len(np.unique(column)) > 1 for column in features.T]]

    def differ(self) -> bool:
        """Whether there is more than one format, mode, size in pixels or set of JPEG tables."""
        rows = zip(self.formats, self.modes, self.widths, self.heights, map(bytes, self.tables), strict=True)
        return len(set(rows)) > 1


def is_natural(data) -> bool:
    """Whether sizes differ: a set at natural size, or one of which a picture was resized to 32 pixels."""
    return not isinstance(data, ImageSet) or bool((np.char.find(data.notes, "resized from") >= 0).any())


# --- read --------------------------------------------------------------------------------------

def read_headers(data) -> Headers:
    """The headers of an ImageSet's or a natural.PictureSet's files, read again from its source."""
    wanted = {path: i for i, path in enumerate(data.paths.tolist())}
    found, manifests = [None] * len(wanted), {}
    for name, content in named_files(Path(data.source)):
        if name.startswith("/"):
            manifests[name] = content
        elif name in wanted:
            found[wanted[name]] = header(content)
    if missing := [path for path, row in zip(wanted, found, strict=True) if row is None]:
        raise TellError(f"{data.source}: {missing[0]} was there when the set was opened, but not now; "
                        "restore it")
    columns = [np.array(column) for column in zip(*found, strict=True)]
    return Headers(*columns, *said_by_manifest(data, manifests))


def named_files(path: Path) -> Iterator[tuple[str, bytes | str]]:
    """(canonical name, content or path) of each picture; of a manifest "/" and its path."""
    from natural import picture_or_manifest
    return files_of(path, partial(picture_or_manifest, path))


def header(content: bytes | str) -> tuple:
    """(format, mode, bytes, width, height, tables) of a file by its path or content.

    "unknown" and 0 where Pillow cannot say, though a decoder of ours could read the picture.
    """
    size = len(content) if isinstance(content, bytes) else Path(content).stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which datasets.py judges
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as picture:
                known = getattr(picture, "quantization", {})
                tables = [value for key in (0, 1) for value in known.get(key, ())]
                kind, mode, (width, height) = picture.format, picture.mode, picture.size
    except Exception:  # Pillow raises a dozen types on odd headers: each means that it cannot say
        kind, mode, width, height, tables = "unknown", "", 0, 0, []
    padded = np.full(TABLES, np.nan)
    padded[:len(tables)] = tables[:TABLES]
    return kind, mode, size, width, height, padded


def said_by_manifest(data, manifests: dict) -> tuple[np.ndarray, np.ndarray]:
    """Headers.sources and Headers.generators."""
    from natural import manifest_rows
    paths = data.paths.tolist()
    rows = manifest_rows(Path(data.source), manifests, [(path,) for path in paths]) if manifests else {}
    known = [rows.get(path, {}) for path in paths]
    return (np.array([row.get("set") or own for row, own in zip(known, folders(data.paths), strict=True)]),
            np.array([row.get("generator") or "" for row in known]))


def folders(paths: np.ndarray) -> np.ndarray:
    """The folder right below real/ or fake/ of "split/LABEL/rest" paths, str (n,), "" for none."""
    paths = paths.tolist()
    if "".join(paths).count("/") == 2 * len(paths):  # no path has one
        return np.full(len(paths), "")
    return np.array([path.split("/", 2)[2].rpartition("/")[0].split("/")[0] for path in paths])


# --- classify ----------------------------------------------------------------------------------

def baseline(data, headers: Headers) -> list[dict]:
    """What the headers alone give: a row for folds by picture and, where sources are known, one by source.

    By picture (identical files on one side) shows how far the set gives its labels away; by source what of
    that holds for sources never seen. No row where a class has too few pictures or sources to take turns.
    """
    same = np.unique(np.ascontiguousarray(data.sha256).view("S32").ravel(), return_inverse=True)[1]
    groups = {"picture": same} | ({"source": headers.sources} if (headers.sources != "").all() else {})
    labels, features = data.labels.astype(bool), headers.features()
    rows = []
    for folds, group in groups.items():
        if can_take_turns(labels, group):
            found = cross_validated(labels, features, group)
            rows.append({"data": data.name, "pictures": hash_of(data), "folds": folds,
                         "sources": len(np.unique(headers.sources)), **numbers(labels, found)})
    return rows


def can_take_turns(labels: np.ndarray, groups: np.ndarray) -> bool:
    return min(len(np.unique(groups[labels == label])) for label in (False, True)) >= 2


def cross_validated(labels: np.ndarray, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """P(fake), float64 (n,), of each picture by a classifier that saw none of its group.

    Gradient-boosted trees, classes weighted alike; FOLDS folds, fewer where a class has fewer groups.
    labels bool (n,), features (n, k), groups (n,) of any kind.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # two seconds
    from sklearn.model_selection import StratifiedGroupKFold
    if not features.shape[1]:
        return np.full(len(labels), 0.5)  # all files are alike
    folds = min(FOLDS, *(len(np.unique(groups[labels == label])) for label in (False, True)))
    found = np.full(len(labels), 0.5)
    turns = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in turns.split(features, labels, groups):
        model = HistGradientBoostingClassifier(min_samples_leaf=5, early_stopping=False, random_state=0,
                                               class_weight="balanced")
        if 0 < labels[train].sum() < len(train):
            found[test] = model.fit(features[train], labels[train]).predict_proba(features[test])[:, 1]
    return found


def numbers(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and AUC of P(fake) with 95 % intervals, the predictions taken as given."""
    right = (scores >= 0.5) == labels
    low, high = wilson(int(right.sum()), len(right))
    return {"n": len(labels), "majority": float(max(labels.mean(), 1 - labels.mean())),
            "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high,
            **balanced_accuracy(labels, right), "roc_auc": float(roc_auc(labels, scores)),
            **auc_interval(labels, scores)}


def seen_from_outside(data, stem: str) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """What test.py puts beside a score: rows of baseline(), Headers.sources, Headers.generators.

    Measured once and kept in metadata-STEM.csv. Of pictures that all are of 32 pixels only where files differ
    in more than bytes, which LOOK of them show; else what this module's command kept there.
    """
    stored = stored_baseline(data, stem)
    if is_natural(data):
        headers = read_headers(data)
        return stored or write_baseline(data, stem, headers), headers.sources, headers.generators
    # CIFAKE's files have one header; only to go through its archive again takes ten seconds.
    if not stored and data.fingerprint != CIFAKE_FINGERPRINT and read_headers(data.head(LOOK)).differ():
        stored = write_baseline(data, stem, read_headers(data))
    return stored, folders(data.paths), np.full(len(data), "")


def stored_baseline(data, stem: str) -> list[dict]:
    """The rows that were written for these very pictures earlier; none where there are none."""
    path = folder("results") / f"metadata-{stem}.csv"
    rows = read_csv(path) if path.exists() else []
    words, pictures = ("data", "pictures", "folds"), hash_of(data)
    return [{key: value if key in words else float(value) for key, value in row.items()}
            for row in rows if row.get("pictures") == pictures]


def hash_of(data) -> str:
    """Of the contents of these very pictures, in order."""
    return hashlib.sha256(data.sha256.tobytes()).hexdigest()[:16]


def write_baseline(data, stem: str, headers: Headers) -> list[dict]:
    """Measure, keep in metadata-STEM.csv, return the rows."""
    if rows := baseline(data, headers):
        write_csv(folder("results") / f"metadata-{stem}.csv", rows)
    return rows


def print_baseline(rows: list[dict]) -> None:
    if not rows:
        print("metadata only      not measured; python code/metadata.py does, where both classes are there")
    for row in rows:
        print(f"metadata only      {row['accuracy']:.2%} [{100 * row['accuracy_low']:.2f}, "
              f"{100 * row['accuracy_high']:.2f}], balanced {row['balanced_accuracy']:.2%}, AUC "
              f"{row['roc_auc']:.4f} [{row['roc_auc_low']:.4f}, {row['roc_auc_high']:.4f}], "
              f"folds by {row['folds']}")


# --- command line ------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("--data", default="auto", metavar="SET", help="cifake, sample, or a folder or archive")
    flags.add_argument("--split", choices=SPLITS, default="test", help="which part of it (test)")
    args = flags.parse_args(argv)
    whole = load(args.data)
    banner(whole)
    data = whole.split(args.split)
    data.require_both_classes()
    headers, stem = read_headers(data), f"{data.name}-{args.split}"
    print("formats: " + ", ".join(f"{kind} {n:,}" for kind, n in
                                  zip(*np.unique(headers.formats, return_counts=True), strict=True)))
    print(f"n = {len(data):,}, majority {max(data.labels.mean(), 1 - data.labels.mean()):.2%}")
    rows = write_baseline(data, stem, headers)
    print_baseline(rows)
    print(f"numbers: {shown(folder('results') / f'metadata-{stem}.csv')}")
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
