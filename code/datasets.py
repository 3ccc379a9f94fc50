"""Where pictures come from: find, fetch, verify, decode once, cache, split.

    python code/datasets.py list             what is here, and from where
    python code/datasets.py fetch cifake     download CIFAKE with kagglehub (no account needed)
    python code/datasets.py import PATH      take a folder, zip or tar of CIFAKE into the data root
    python code/datasets.py verify [PATH]    count, decode and compare every file of CIFAKE

CIFAKE's 120,000 files become one memory-mapped cache of uint8 pixels once; later starts only map
it. Times and the benchmark that gives them: paper/results/bench.csv.
"""
import hashlib
import json
import lzma
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

import sample
from decode import DecodeError, decode, resize
from files import Parser, TellError, atomic, command_line, config, folder, make_folder
from sources import ending, files_of, require_readable, signature

SIZE = 32
SPLITS = ("train", "val", "test")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")
VAL_SHARE = 0.1
CACHE_FORMAT = 1
CIFAKE_FINGERPRINT = "8b6c7ccb5a18adaafe5aea84515fa0a09a3560aa5c4d60d140187899a9b5625c"
KAGGLE_HANDLE = "birdy654/cifake-real-and-ai-generated-synthetic-images"
HOW_TO_GET_CIFAKE = (
    "get CIFAKE (120,000 pictures, about 110 MB): `python code/datasets.py fetch cifake`, or download "
    f"https://www.kaggle.com/datasets/{KAGGLE_HANDLE} by hand and "
    "`python code/datasets.py import THE.zip`")


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
        columns = ("rows", "paths", "splits", "labels", "objects", "sha256", "notes")
        return replace(self, **{column: getattr(self, column)[index] for column in columns})

    def split(self, name: str) -> "ImageSet":
        """The pictures of "train", "val" or "test"; both classes must be there."""
        part = self.take(self.splits == name)
        missing = {"REAL", "FAKE"} - {("REAL", "FAKE")[label] for label in np.unique(part.labels)}
        if missing:
            raise TellError(f"{self.source}: no {' and no '.join(sorted(missing))} picture in its "
                            f"{name} split; expected {name}/REAL and {name}/FAKE")
        return part

    def head(self, n: int) -> "ImageSet":
        """At most n pictures, spread evenly over the set, so that both classes stay."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(n, len(self))).astype(int)))


def load(name: str = "auto") -> ImageSet:
    """Open a data set by name ("cifake", "sample", "auto") or by the path of a folder or archive.

    "auto" is CIFAKE where it is found under the data root, else the built-in sample.
    """
    if name == "auto":
        name = "cifake" if find_cifake() else "sample"
    if name == "sample":
        return open_cache("sample", sample_archive())
    if name == "cifake":
        path = find_cifake()
        if not path:
            raise TellError(f"CIFAKE is not under {folder('data')}; {HOW_TO_GET_CIFAKE}")
        return open_cache("cifake", path)
    path = require_readable(Path(name).expanduser().resolve())
    return open_cache(path.name.split(".")[0] or "root", path)


def find_cifake() -> Path | None:
    """CIFAKE under the data root, by the names in config.json; None if it is not there."""
    candidates = (folder("data") / name for name in config()["cifake"])
    return next((path for path in candidates if path.exists()), None)


def sample_archive() -> Path:
    """The built-in sample, made on first use."""
    cache = make_folder(folder("cache"), "TELL_CACHE")
    path = cache / f"sample-{sample.SAMPLE_SHA256[:8]}.tar"
    return path if path.exists() else sample.make_sample(path)


# --- decode once -------------------------------------------------------------------------------

def decode_chunk(chunk: list[tuple[str, bytes | str]]) -> list[tuple]:
    """[(name, bytes or path)] -> [(name, sha256, pixels or None, note or reason)]."""
    return [decode_file(name, content) for name, content in chunk]


def decode_file(name: str, content: bytes | str) -> tuple:
    try:
        data = content if isinstance(content, bytes) else read(content)
    except OSError as error:
        return name, b"\0" * 32, None, f"cannot be read: {error.strerror}"
    digest = hashlib.sha256(data).digest()
    try:
        pixels, note = decode(data)
    except DecodeError as error:
        return name, digest, None, str(error)
    height, width = pixels.shape[:2]
    if (height, width) == (SIZE, SIZE):
        return name, digest, pixels, note
    resized = f"resized from {width}x{height}"
    return name, digest, resize(pixels, SIZE), f"{note}, {resized}" if note else resized


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def decode_all(path: Path) -> Iterator[tuple]:
    """Decode every file of a source in parallel; see decode_chunk for what is yielded."""
    # Threads: reading and libjpeg release the lock, and no pixel has to be copied to a parent.
    workers = os.cpu_count() or 1
    files, pending = files_of(path), deque()
    with ThreadPoolExecutor(workers) as pool, progress(path) as bar:
        while True:
            chunk = list(islice(files, 256))
            if chunk:
                pending.append(pool.submit(decode_chunk, chunk))
            if not chunk and not pending:
                return
            if len(pending) > 2 * workers or not chunk:
                done = pending.popleft().result()
                bar.update(len(done))
                yield from done


def progress(path: Path) -> tqdm:
    return tqdm(desc=f"decoding {path.name}", unit=" pictures", disable=None, leave=False)


# --- cache -------------------------------------------------------------------------------------

def open_cache(name: str, path: Path) -> ImageSet:
    """Map the cache of a source, building it first where it is missing or the source changed."""
    require_readable(path)
    stem = f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    target = folder("cache") / f"{stem}-{signature(path)[:12]}-v{CACHE_FORMAT}"
    found = map_cache(name, path, target)
    if found:
        return found
    cache = make_folder(target.parent, "TELL_CACHE")
    try:
        with FileLock(cache / ".lock"):
            found = map_cache(name, path, target)  # another process may have built it meanwhile
            return found or build_cache(name, path, target, stem)
    except OSError as error:
        raise TellError(f"{cache}: cannot be written ({error.strerror or error}); free some space "
                        "or set TELL_CACHE to another folder") from error


def map_cache(name: str, path: Path, target: Path) -> ImageSet | None:
    """The image set in a cache folder; None where there is none or it is not whole."""
    try:
        meta = json.loads((target / "meta.json").read_text())
        with np.load(target / "table.npz") as columns:
            table = {key: columns[key] for key in columns.files}
        # Copy-on-write, because torch wants memory that it could write to.
        pixels = np.memmap(target / "pixels.u8", np.uint8, "c", shape=(meta["n"], SIZE, SIZE, 3))
    except (OSError, ValueError):
        return None
    return ImageSet(name=name, source=str(path), fingerprint=meta["fingerprint"],
                    pixels=pixels.transpose(0, 3, 1, 2),
                    unreadable=tuple(map(tuple, meta["unreadable"])), **table)


def build_cache(name: str, path: Path, target: Path, stem: str) -> ImageSet:
    """Decode a source into `target`: written beside it, then renamed, so never seen half done."""
    for stale in target.parent.glob(".building-*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a killed process: we hold the lock
    building = target.parent / f".building-{target.name}"
    building.mkdir()
    try:
        entries = write_pixels(path, building / "pixels.u8")
        write_table(path, entries, building)
        outdated = [old for old in target.parent.glob(f"{stem}-*") if old != target]
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for old in outdated:
        shutil.rmtree(old, ignore_errors=True)
    return map_cache(name, path, target)


def write_pixels(path: Path, target: Path) -> list[tuple]:
    """Append each readable picture to `target`; returns (name, sha256, row or None, note)."""
    entries, row = [], 0
    # A plain file: a full disk is an error here, but would be a crash in a memory map.
    with open(target, "wb") as file:
        for name, digest, pixels, note in decode_all(path):
            entries.append((name, digest, None if pixels is None else row, note))
            if pixels is not None:
                file.write(pixels)
                row += 1
        file.flush()
        os.fsync(file.fileno())
    if not entries:
        raise wrong_layout(path)
    if not row:
        raise TellError(f"{path}: none of its {len(entries)} files is a readable picture "
                        f"({entries[0][0]}: {entries[0][3]})")
    return sorted(entries)


def wrong_layout(path: Path) -> TellError:
    inside = f"; it holds: {', '.join(sorted(os.listdir(path))[:5]) or 'nothing'}" if path.is_dir() else ""
    return TellError(f"{path}: no file under a REAL or FAKE folder{inside}; "
                     "expected {train,test}/{REAL,FAKE}/*.jpg")


def write_table(path: Path, entries: list[tuple], target: Path) -> None:
    """The columns of ImageSet, in path order, and what concerns the whole source."""
    names = [entry[0] for entry in entries]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TellError(f"{path}: two files claim the place {twice[0]}; "
                        "keep one data set in one folder or archive")
    good = [entry for entry in entries if entry[2] is not None]
    table = columns(good)
    meta = {"n": len(good), "fingerprint": fingerprint_of(entries),
            "unreadable": [(name, reason) for name, _, row, reason in entries if row is None]}
    with open(target / "table.npz", "wb") as file:
        np.savez(file, **table)
    (target / "meta.json").write_text(json.dumps(meta))


def columns(entries: list[tuple]) -> dict[str, np.ndarray]:
    parts = [entry[0].split("/", 2) for entry in entries]
    labels = np.array([part[1] == "FAKE" for part in parts], np.uint8)
    objects = np.array([object_class(part[2]) for part in parts], np.int8)
    sha256 = np.frombuffer(b"".join(entry[1] for entry in entries), np.uint8).reshape(-1, 32)
    splits = carve_validation(np.array([part[0] for part in parts]), labels, objects, sha256)
    return {"rows": np.array([entry[2] for entry in entries], np.int64),
            "paths": np.array([entry[0] for entry in entries]), "splits": splits,
            "labels": labels, "objects": objects, "sha256": sha256,
            "notes": np.array([entry[3] for entry in entries])}


def object_class(file_name: str) -> int:
    """CIFAKE's names carry the CIFAR-10 class: "12.jpg" airplane, "12 (2).jpg" automobile, ...

    Returns 0..9 (OBJECTS), or -1 for a name of another form.
    """
    match = re.fullmatch(r"\d+(?: \((\d+)\))?\.jpg", file_name)
    number = int(match[1] or 1) if match else 0
    return number - 1 if 1 <= number <= len(OBJECTS) else -1


def carve_validation(splits: np.ndarray, labels: np.ndarray, objects: np.ndarray,
                     sha256: np.ndarray) -> np.ndarray:
    """Move a tenth of the training half to "val", unless the source has its own.

    Within each label and object the files with the smallest content hashes go, so the choice is
    the same on every machine; a file identical to one that goes, goes too.
    """
    if (splits == "val").any():
        return splits
    hashes = sha256.copy().view("S32").ravel() if len(sha256) else np.array([], "S32")
    moved = np.zeros(len(splits), bool)
    for stratum in sorted(set(zip(labels.tolist(), objects.tolist()))):
        members = np.flatnonzero((splits == "train") & (labels == stratum[0]) & (objects == stratum[1]))
        order = members[np.argsort(hashes[members], kind="stable")]
        moved[order[:round(VAL_SHARE * len(members))]] = True
    moved = (splits == "train") & np.isin(hashes, hashes[moved])
    return np.where(moved, "val", splits)


def fingerprint_of(entries: list[tuple]) -> str:
    """SHA-256 over the sorted lines "path sha256-of-file": equal for equal content, in any form."""
    lines = "".join(f"{name} {digest.hex()}\n" for name, digest, *_ in sorted(entries))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


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
    for name, digest, pixels, note in decode_all(path):
        entries.append((name, digest))
        differences += difference(name, digest, pixels, note, expected)
    differences += [f"{name}: missing" for name in sorted(expected.keys() - {n for n, _ in entries})]
    if not differences and fingerprint_of(entries) != CIFAKE_FINGERPRINT:
        differences.append("the fingerprint differs though every file's short hash agrees")
    return sorted(differences)


def difference(name: str, digest: bytes, pixels, note: str, expected: dict[str, str]) -> list[str]:
    if name not in expected:
        return [f"{name}: not a file of CIFAKE"]
    if pixels is None:
        return [f"{name}: {note}"]
    if note:
        return [f"{name}: not 32x32 RGB ({note})"]
    return [] if digest.hex().startswith(expected[name]) else [f"{name}: other content"]


# --- fetch and import --------------------------------------------------------------------------

def fetch() -> Path:
    """Download CIFAKE from Kaggle into the data root; needs a network but no account."""
    target = folder("data") / "CIFAKE"
    if find_cifake():
        raise TellError(f"CIFAKE is there already: {find_cifake()}")
    make_folder(folder("data"), "TELL_DATA")
    partial = target.with_name(".CIFAKE.partial")
    try:
        import kagglehub
        kagglehub.dataset_download(KAGGLE_HANDLE, output_dir=str(partial))
    except Exception as error:  # kagglehub and requests share no base class; each is "no download"
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise TellError(f"CIFAKE could not be downloaded ({type(error).__name__}: {reason}); "
                        f"{HOW_TO_GET_CIFAKE}") from error
    return accept(partial, target)


def accept(partial: Path, target: Path) -> Path:
    """Rename a finished copy to its final name, once it is CIFAKE file by file."""
    differences = verify(partial)
    if differences:
        raise TellError(f"{partial}: not CIFAKE as published, {len(differences):,} differences, "
                        f"the first: {differences[0]}")
    os.replace(partial, target)
    return target


def import_cifake(path: Path) -> Path:
    """Copy a folder or archive of CIFAKE into the data root under a name that is found there."""
    require_readable(path)
    if find_cifake():
        raise TellError(f"CIFAKE is there already: {find_cifake()}")
    root = make_folder(folder("data"), "TELL_DATA")
    target = root / ("CIFAKE" if path.is_dir() else "cifake" + ending(path))
    partial = root / f".partial-{target.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(path, partial) if path.is_dir() else shutil.copyfile(path, partial)
    except OSError as error:
        raise TellError(f"{root}: {path} could not be copied there "
                        f"({error.strerror or str(error)[:120]})") from error
    return accept(partial, target)


# --- command line ------------------------------------------------------------------------------

def describe(data: ImageSet) -> dict[str, int]:
    """{"train REAL": n, ...} over the splits and labels that occur."""
    counts = Counter(zip(data.splits.tolist(), data.labels.tolist()))
    return {f"{split} {('REAL', 'FAKE')[label]}": counts[split, label]
            for split in SPLITS for label in (0, 1) if counts[split, label]}


def report_unreadable(data: ImageSet) -> None:
    """Name every picture that could not be read, and count those that were converted."""
    for path, reason in data.unreadable:
        print(f"unreadable: {path}: {reason}")
    if data.unreadable:
        print(f"{len(data.unreadable):,} of {len(data.unreadable) + len(data.pixels):,} "
              f"files of {data.source} could not be read")
    converted = Counter(re.sub(r"\d+", "N", note) for note in data.notes.tolist() if note)
    for note, count in sorted(converted.items()):
        print(f"converted: {count:,} pictures ({note})")


def banner(data: ImageSet) -> None:
    """Say which pictures these are; for the built-in sample, loudly."""
    print(f"data: {data.name}, {len(data):,} pictures, from {data.source}")
    if data.name == "sample":
        print("*" * 88)
        print("This is the BUILT-IN SAMPLE: for smoke runs, not for conclusions. For real results,")
        print(HOW_TO_GET_CIFAKE)
        print("*" * 88)
    report_unreadable(data)


def list_sets() -> dict:
    path = find_cifake()
    found = {"cifake": load("cifake")} if path else {}
    found["sample"] = load("sample")
    print(f"data root: {folder('data')}   cache: {folder('cache')}")
    if not path:
        print(f"cifake: not here; {HOW_TO_GET_CIFAKE}")
    for name, data in found.items():
        print(f"{name}: {data.source}")
        print("   " + ", ".join(f"{key} {count:,}" for key, count in describe(data).items()))
    return {name: describe(data) for name, data in found.items()}


def verify_command(path: str | None) -> dict:
    source = require_readable(Path(path).resolve()) if path else find_cifake()
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
    actions.add_parser("fetch", help="download").add_argument("name", choices=["cifake"])
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
    path = fetch() if args.action == "fetch" else import_cifake(Path(args.path).resolve())
    print(f"CIFAKE, complete and verified: {path}")
    return {"path": str(path)}


if __name__ == "__main__":
    command_line(main)
