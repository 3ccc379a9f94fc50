"""Where pictures come from: find, fetch, verify, decode once, cache, split.

    python code/datasets.py list             what is here, and from where
    python code/datasets.py fetch cifake     download CIFAKE with kagglehub (no account needed)
    python code/datasets.py fetch cifar100   download CIFAR-100 from its authors (real pictures, cifar100.py)
    python code/datasets.py import PATH      take a folder, zip or tar of CIFAKE into the data root
    python code/datasets.py verify [PATH]    count, decode and compare every file of CIFAKE

CIFAKE's 120,000 files become one memory-mapped cache of uint8 pixels once; later starts only map
it. Times and the benchmark that gives them: paper/results/bench.csv.
"""
import errno
import lzma
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import sample
from cache import COLUMNS, decode_all, fingerprint_of, open_cache
from files import Parser, TellError, command_line, config, folder, make_folder, remove, shown, user_path
from sources import ARCHIVES, ending, require_readable

SMALL = ("cifake", "cifake-changed", "sample")  # pictures of 32 pixels in any case
SPLITS = ("train", "val", "test")
CIFAKE_FINGERPRINT = "8b6c7ccb5a18adaafe5aea84515fa0a09a3560aa5c4d60d140187899a9b5625c"
KAGGLE_HANDLE = "birdy654/cifake-real-and-ai-generated-synthetic-images"
BY_HAND = (f"download https://www.kaggle.com/datasets/{KAGGLE_HANDLE} by hand and "
           "`python code/datasets.py import THE.zip`")
NO_EVIDENCE = "This is the BUILT-IN SAMPLE: for smoke runs, not for conclusions"
HOW_TO_GET_CIFAKE = ("get CIFAKE (120,000 pictures, about 110 MB): `python code/datasets.py fetch cifake`, "
                     f"or {BY_HAND}")


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one source, or some of them.

    pixels: uint8 (all, 3, 32, 32), memory-mapped; rows: int64 (n,), which of them, in path order;
    paths: str (n,); splits: str (n,) of train, val, test; labels: uint8 (n,), fake = 1, real = 0;
    objects: int8 (n,), 0..9 as in OBJECTS, -1 unknown; sha256: uint8 (n, 32), of the file's bytes;
    notes: str (n,), what decoding converted; unreadable: [(path, reason)] of the whole source.
    """
    name: str
    source: str
    fingerprint: str
    pixels: np.ndarray
    rows: np.ndarray
    paths: np.ndarray
    splits: np.ndarray
    labels: np.ndarray
    objects: np.ndarray
    sha256: np.ndarray
    notes: np.ndarray
    unreadable: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> "ImageSet":
        """The pictures at `index` (integers or a mask over this set)."""
        return replace(self, **{column: getattr(self, column)[index] for column in COLUMNS})

    def split(self, name: str) -> "ImageSet":
        """The pictures of "train", "val" or "test"; TellError where there is none."""
        part = self.take(self.splits == name)
        if not len(part):
            raise TellError(f"{self.source}: no picture in its {name} split; it has: "
                            f"{', '.join(describe(self))}")
        return part

    def require_both_classes(self) -> None:
        """TellError unless there are both real and fake pictures to learn from."""
        if not 0 < self.labels.sum() < len(self):
            raise TellError(f"{self.source}: this needs REAL and FAKE pictures; it has: "
                            f"{', '.join(f'{key} {n:,}' for key, n in describe(self).items())}")

    def head(self, n: int) -> "ImageSet":
        """At most n pictures drawn by lot, always the same, fakes as often as in the whole set.

        Not every k-th: names of CIFAKE go round the ten classes, so every fifth picture is of eight of them.
        """
        random = np.random.default_rng(0)
        order = np.concatenate([random.permutation(np.flatnonzero(self.labels == label)) for label in (0, 1)])
        return self.take(np.sort(order[np.linspace(0, len(self) - 1, min(n, len(self))).astype(int)]))


def load(name: str = "auto", natural: bool = False):
    """Open "cifake", "sample", "auto", or a folder or archive by its path or its name under the data root.

    "auto" is CIFAKE where it is found under the data root, else the built-in sample; TellError where
    TELL_DATA names a folder that is not there. Returns an
    ImageSet, every picture squashed to 32 pixels; with `natural` a natural.PictureSet, every picture at
    its own size, except for CIFAKE and the sample, which have 32 pixels anyway. A CIFAKE that differs from
    the published one in any file, such as half of it, is named "cifake-changed".
    """
    known = set_name(name)
    if natural and known not in ("cifake", "sample"):
        from natural import open_pictures  # loads torch
        return open_pictures(name)
    if name in ("auto", "sample", "cifake"):
        path = find_cifake() if known == "cifake" else sample_archive()
        if not path:
            raise TellError(f"CIFAKE is not under {folder('data')}; {HOW_TO_GET_CIFAKE}")
    else:
        path = require_readable(find_set(name))
    data = ImageSet(**open_cache(known, path))
    changed = known == "cifake" and data.fingerprint != CIFAKE_FINGERPRINT
    return replace(data, name="cifake-changed") if changed else data


def set_name(name: str) -> str:
    """What a set is called in results: "cifake", "sample", or the name of its folder or archive."""
    if name == "auto":
        return "cifake" if find_cifake() else "sample"
    if name in ("cifake", "sample"):
        return name
    found = re.sub(r"[^\w-]+", "_", user_path(name).name.split(".")[0]) or "root"
    return f"{found}_folder" if found in ("cifake", "sample") else found  # these are ours


def name_in_results(name: str) -> str:
    """set_name, with what load() calls a CIFAKE that differs from the published one."""
    known = set_name(name)
    return load(name).name if known == "cifake" and find_cifake() else known


def find_set(name: str) -> Path:
    """The folder or archive of this path or, where there is none, of this name under the data root."""
    named = [folder("data") / (name + end) for end in ("", *ARCHIVES)]
    return next((path for path in (user_path(name), *named) if path.exists()), user_path(name))


def data_root() -> Path:
    """Where sets are looked for; TellError where TELL_DATA names no folder.

    That is most likely mistyped, and the sample would silently take the place of what is looked for.
    """
    root = folder("data")
    if os.environ.get("TELL_DATA") and not root.is_dir():
        raise TellError(f"{root}: no such folder, though TELL_DATA names it; correct or unset TELL_DATA")
    return root


def find_cifake() -> Path | None:
    """CIFAKE under the data root, by the names in config.json; None if it is not there."""
    root = data_root()
    candidates = (root / name for name in config()["cifake"])
    return next((path for path in candidates if path.exists()), None)


def sample_archive() -> Path:
    """The built-in sample, made on first use."""
    cache = make_folder(folder("cache"), "TELL_CACHE")
    path = cache / f"sample-{sample.SAMPLE_SHA256[:8]}.tar"
    if path.exists():
        return path
    print("making the built-in sample, once (10 to 30 s) ...", flush=True)
    return sample.make_sample(path)


# --- verify ------------------------------------------------------------------------------------

def manifest_path() -> Path:
    return folder("library") / "cifake_manifest.txt.xz"


def read_manifest() -> dict[str, str]:
    """{path: first 8 hex digits of its SHA-256} of CIFAKE's 120,000 files."""
    with lzma.open(manifest_path(), "rt") as file:
        return dict(line.rstrip("\n").rsplit(" ", 1) for line in file)


def verify(path: Path) -> list[str]:
    """Compare a CIFAKE source with the committed manifest; returns one line per difference."""
    expected, entries, differences = read_manifest(), [], []
    for decoded in decode_all(path):
        for name, digest, row, note in decoded:
            entries.append((name, digest))
            differences += difference(name, digest, row is not None, note, expected)
    differences += [f"{name}: missing" for name in sorted(expected.keys() - {n for n, _ in entries})]
    if not differences and fingerprint_of(entries) != CIFAKE_FINGERPRINT:
        differences.append("the fingerprint differs though every file's short hash agrees")
    return sorted(differences)


def difference(name: str, digest: bytes, readable: bool, note: str, expected: dict[str, str]) -> list[str]:
    if name not in expected:
        return [f"{name}: not a file of CIFAKE"]
    if not readable:
        return [f"{name}: {note}"]
    if note:
        return [f"{name}: not 32x32 RGB ({note})"]
    return [] if digest.hex().startswith(expected[name]) else [f"{name}: other content"]


# --- fetch and import --------------------------------------------------------------------------

def fetch() -> Path:
    """Download CIFAKE from Kaggle into the data root; needs a network but no account."""
    target = folder("data") / "CIFAKE"
    make_folder(folder("data"), "TELL_DATA")
    partial = target.with_name(".CIFAKE.partial")
    try:
        import kagglehub
        kagglehub.dataset_download(KAGGLE_HANDLE, output_dir=str(partial))
    except Exception as error:  # kagglehub and requests share no base class; each is "no download"
        raise TellError(why_no_download(error)) from error
    return accept(partial, target, KAGGLE_HANDLE, "fetch it again")


def why_no_download(error: Exception) -> str:
    """One line on a download that failed, and what to do about it."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    number, status = (getattr(error, "errno", None),
                      getattr(getattr(error, "response", None), "status_code", None))
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (f"{folder('data')}: no room for CIFAKE ({error.strerror}); free some, or set TELL_DATA to "
                "another folder")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{folder('data')}: cannot be written ({error}); set TELL_DATA to a folder that can"
    if status in (401, 403) or type(error).__name__ in ("CredentialError", "UnauthenticatedError"):
        return (f"CIFAKE could not be downloaded ({reason}): Kaggle refused. It needs no account: remove old "
                f"credentials (~/.kaggle, KAGGLE_USERNAME, KAGGLE_KEY, KAGGLE_API_TOKEN), or {BY_HAND}")
    return f"CIFAKE could not be downloaded ({reason}); on a machine with a network, {BY_HAND}"


def accept(partial: Path, target: Path, source: str, advice: str) -> Path:
    """Rename a finished copy to its final name if it is CIFAKE file by file; else delete it."""
    try:
        differences = verify(partial)
        if differences:
            raise TellError(f"{source}: not CIFAKE as published, {len(differences):,} differences, "
                            f"the first: {differences[0]}; {advice}")
        os.replace(partial, target)
    finally:
        delete(partial)
    return target


def delete(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(path)


def import_cifake(path: Path) -> Path:
    """Copy a folder or archive of CIFAKE into the data root under a name that is found there."""
    require_readable(path)
    root = make_folder(folder("data"), "TELL_DATA")
    target = root / ("CIFAKE" if path.is_dir() else "cifake" + ending(path))
    partial = root / f".partial-{target.name}"  # the ending tells what kind of archive it is
    try:
        delete(partial)
        shutil.copytree(path, partial) if path.is_dir() else shutil.copyfile(path, partial)
    except OSError as error:
        delete(partial)
        raise TellError(f"{root}: {path} could not be copied there "
                        f"({error.strerror or str(error)[:120]})") from error
    return accept(partial, target, str(path), f"`python code/datasets.py verify {path}` names all")


# --- command line ------------------------------------------------------------------------------

def describe(data: ImageSet) -> dict[str, int]:
    """{"train REAL": n, ...} over the splits and labels that occur."""
    counts = {f"{split} {name}": int(((data.splits == split) & (data.labels == label)).sum())
              for split in SPLITS for label, name in enumerate(("REAL", "FAKE"))}
    return {name: count for name, count in counts.items() if count}


def report_unreadable(data: ImageSet) -> None:
    """Name every picture that could not be read, and count those that were converted."""
    for path, reason in data.unreadable:
        print(f"unreadable: {path if path.isprintable() else ascii(path)}: {reason}")
    if data.unreadable:
        print(f"{len(data.unreadable):,} of {len(data.unreadable) + len(data):,} "
              f"files of {shown(data.source)} could not be read")
    converted = Counter(re.sub(r"\d+", "N", note) for note in data.notes[data.notes != ""].tolist())
    for note, count in sorted(converted.items()):
        print(f"converted: {count:,} pictures ({note})")


def banner(data: ImageSet) -> None:
    """Say which pictures these are; for the built-in sample, loudly."""
    print(f"data: {data.name}, {len(data):,} pictures, from {shown(data.source)}")
    if data.name == "sample":
        print("*" * 88)
        print(f"{NO_EVIDENCE}. For real results,")
        print(HOW_TO_GET_CIFAKE)
        print(f"(CIFAKE is looked for under {folder('data')})")
        print("*" * 88)
    if data.name == "cifake-changed":
        print(f"This is NOT CIFAKE as published: {len(data):,} readable pictures, where that has 120,000, or "
              "others; `python code/datasets.py verify` names the differences")
    report_unreadable(data)


def list_sets() -> dict:
    path = find_cifake()
    found = {data.name: data for data in map(load, ["cifake", "sample"] if path else ["sample"])}
    print(f"data root: {folder('data')}   cache: {folder('cache')}")
    if not path:
        print(f"cifake: not here; {HOW_TO_GET_CIFAKE}")
    for name, data in found.items():
        print(f"{name}: {data.source}")
        print("   " + ", ".join(f"{key} {count:,}" for key, count in describe(data).items()))
        if name == "sample":
            print(f"   {NO_EVIDENCE}")
    return {name: describe(data) for name, data in found.items()}


def verify_command(path: str | None) -> dict:
    source = require_readable(user_path(path)) if path else find_cifake()
    if not source:
        raise TellError(f"CIFAKE is not under {folder('data')}; {HOW_TO_GET_CIFAKE}")
    differences = verify(source)
    for line in differences:
        print(line)
    if differences:
        raise TellError(f"{source}: {len(differences):,} differences from CIFAKE as published")
    print(f"{source}: CIFAKE, complete: 50,000 + 50,000 train and 10,000 + 10,000 test pictures, "
          f"all 32x32 RGB\nfingerprint {CIFAKE_FINGERPRINT}")
    return {"fingerprint": CIFAKE_FINGERPRINT, "differences": 0}


def parser() -> Parser:
    commands = Parser(description=__doc__)
    actions = commands.add_subparsers(dest="action", required=True, parser_class=Parser)
    actions.add_parser("list", help="what is here, and from where")
    actions.add_parser("fetch", help="download").add_argument("name", choices=["cifake", "cifar100"])
    actions.add_parser("import", help="take a folder, zip or tar of CIFAKE into the data root"
                       ).add_argument("path")
    actions.add_parser("verify", help="compare every file with CIFAKE as published"
                       ).add_argument("path", nargs="?")
    return commands


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    if args.action == "list":
        return list_sets()
    if args.action == "verify":
        return verify_command(args.path)
    if args.action == "fetch" and args.name == "cifar100":
        from cifar100 import fetch as fetch_cifar100  # which imports this module
        return {"path": str(fetch_cifar100())}
    path = find_cifake() if folder("data").exists() else None  # else it is made
    if path:
        print(f"CIFAKE is there already: {path}; to check it: python code/datasets.py verify")
        return {"path": str(path)}
    path = fetch() if args.action == "fetch" else import_cifake(user_path(args.path))
    print(f"CIFAKE, complete and verified: {path}")
    return {"path": str(path)}


if __name__ == "__main__":
    command_line(main)
