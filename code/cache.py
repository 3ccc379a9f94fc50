"""Decode a source's pictures once, in parallel, into a memory-mapped cache with its table.

Written beside its final place under a lock, then renamed: two processes, a kill or a full disk
never leave half a cache, and a source whose names, sizes or times changed is decoded again.
"""
import ctypes
import errno
import hashlib
import json
import mmap
import multiprocessing
import os
import shutil
import signal
import stat
import zipfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from math import ceil
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from decode import DecodeError, decode, resize
from files import TellError, atomic, folder, make_folder
from sources import Listing, files_of, listing, require_readable, signature

SIZE = 32
PICTURE = SIZE * SIZE * 3  # bytes
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")
SUFFIXES = {".jpg": 0} | {f" ({number}).jpg": number - 1 for number in range(1, len(OBJECTS) + 1)}
VAL_SHARE = 0.1
CACHE_FORMAT = 3
COLUMNS = ("rows", "paths", "splits", "labels", "objects", "sha256", "notes")  # of the table, a file each
CHUNK, CHUNK_BYTES = 256, 8_000_000  # what a process decodes at a time


def decode_chunk(chunk: list[tuple[str, bytes | str]], first: int, target: Path | None) -> list[tuple]:
    """[(name, bytes or path)] -> [(name, sha256, row or None, note or reason)].

    Row: where in `target`, a file of pixels, the readable ones stand, one after the other from `first` on.
    """
    entries, pixels = [], []
    for name, content in chunk:
        _, digest, found, note = decode_file(name, content)
        entries.append((name, digest, None if found is None else first + len(pixels), note))
        if found is not None:
            pixels.append(found)
    if target and pixels:
        # From here, not by the parent, which would have to be sent 3 kB a picture through a pipe.
        with open(target, "r+b") as file:
            file.seek(first * PICTURE)
            file.write(np.stack(pixels))
    return entries


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
    # Without O_NONBLOCK a named pipe among the pictures would be waited for, for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:  # plain calls: Python's file objects take 2.5 us more, a tenth of the whole
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = os.read(handle, status.st_size)
        while more := os.read(handle, 1 << 20):  # very large, or still growing
            data += more
        return data
    finally:
        os.close(handle)


def chunks(files: Iterator[tuple[str, bytes | str]]) -> Iterator[list[tuple[str, bytes | str]]]:
    """Portions of at most CHUNK files and, read from an archive, about CHUNK_BYTES."""
    portion, size = [], 0
    for name, content in files:
        portion.append((name, content))
        size += len(content) if isinstance(content, bytes) else 0
        if len(portion) == CHUNK or size > CHUNK_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def decode_all(path: Path, target: Path | None = None, listed: Listing | None = None
               ) -> Iterator[list[tuple]]:
    """Decode every file of a source in parallel, pixels to `target`; yields what decode_chunk returns.

    listed: sources.listing(path), where that is known.
    """
    # Processes: at 20 us a file, threads spend more time passing Python's lock around (4.1 s for
    # CIFAKE's 120,000 files on two cores, against 2.0 s).
    workers, fork = os.cpu_count() or 1, multiprocessing.get_context("fork")
    pending, first = deque(), 0
    with (ProcessPoolExecutor(workers, fork, initializer=depend_on_parent) as pool,
          progress(path, listed) as bar):
        for chunk in chunks(files_of(path, listed=listed)):
            pending.append(pool.submit(decode_chunk, chunk, first, target))
            first += len(chunk)
            if len(pending) > 2 * workers:
                yield result(pending.popleft(), bar)
        while pending:
            yield result(pending.popleft(), bar)


def depend_on_parent() -> None:
    """End with the parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG, Linux


def result(future: Future, bar: tqdm) -> list[tuple]:
    try:
        entries = future.result()
        bar.update(len(entries))
        return entries
    except BrokenProcessPool as error:
        raise TellError("a decoding process was killed, perhaps for want of memory; free some") from error


def progress(path: Path, listed: Listing | None = None) -> tqdm:
    """A bar over the files; of a tar, which does not say how many it has, a count."""
    total = sum(len(entries) for _, entries in listed) if listed else None
    if path.suffix.lower() == ".zip":
        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:  # named when it is read
            total = len(archive.namelist())
    return tqdm(desc=f"decoding {path.name}", total=total, unit=" pictures", disable=None, leave=False)


def open_cache(name: str, path: Path) -> dict:
    """Map the cache of a source, building it first where it is missing or the source changed.

    Returns the fields of datasets.ImageSet.
    """
    require_readable(path)
    stem, listed = f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}", listing(path)
    target = folder("cache") / f"{stem}-{signature(path, listed)[:12]}-v{CACHE_FORMAT}"
    found = map_cache(name, path, target)
    if found:
        return found
    cache = make_folder(target.parent, "TELL_CACHE")
    try:
        with FileLock(cache / ".lock"):
            found = map_cache(name, path, target)  # another process may have built it meanwhile
            return found or build_cache(name, path, target, stem, listed)
    except OSError as error:
        raise TellError(f"{cache}: cannot be written ({error.strerror or error}); free some space "
                        "or set TELL_CACHE to another folder") from error


def map_cache(name: str, path: Path, target: Path) -> dict | None:
    """The fields of an image set in a cache folder; None where there is none or it is not whole."""
    try:
        meta = json.loads((target / "meta.json").read_text())
        # Copy-on-write, because torch wants memory that it could write to.
        table = {key: np.asarray(np.load(target / f"{key}.npy", mmap_mode="c")) for key in COLUMNS}
        if (target / "pixels.u8").stat().st_size != meta["n"] * PICTURE:
            return None
        pixels = np.memmap(target / "pixels.u8", np.uint8, "c", shape=(meta["n"], SIZE, SIZE, 3))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return {"name": name, "source": str(path), "fingerprint": meta["fingerprint"],
            "pixels": pixels.transpose(0, 3, 1, 2),
            "unreadable": tuple(map(tuple, meta["unreadable"])), **table}


def ready(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A cache's pixels (all, 3, h, w) as uint8 (all, h, w, 3); reading `rows` (n,) waits for no disk then."""
    base = pixels
    while not isinstance(base, mmap.mmap) and getattr(base, "base", None) is not None:
        base = base.base
    pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # of a cache this is no copy
    if isinstance(base, mmap.mmap) and len(rows):
        fetch(base, int(rows.min()) * pixels[0].nbytes, int(rows.max() + 1) * pixels[0].nbytes)
    return pixels


def fetch(mapped: mmap.mmap, first: int, last: int) -> None:
    """Have bytes first to last of a map ready at once: a fault for each page costs half a second more."""
    first -= first % mmap.PAGESIZE
    try:
        mapped.madvise(22, first, last - first)  # MADV_POPULATE_READ, Linux 5.14
    except (OSError, ValueError):
        return  # an older kernel takes the faults


def build_cache(name: str, path: Path, target: Path, stem: str, listed: Listing) -> dict:
    """Decode a source into `target`: written beside it, then renamed, so never seen half done."""
    for stale in target.parent.glob(".building-*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a killed process: we hold the lock
    building = target.parent / f".building-{target.name}"
    building.mkdir()
    try:
        entries = write_pixels(path, building / "pixels.u8", listed)
        write_table(path, entries, building)
        outdated = [old for old in target.parent.glob(f"{stem}-*") if old != target]
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for old in outdated:
        shutil.rmtree(old, ignore_errors=True)
    return map_cache(name, path, target)


def write_pixels(path: Path, target: Path, listed: Listing) -> list[tuple]:
    """Write every readable picture to `target`; returns (name, sha256, row or None, note), sorted.

    There is a row for each file; those of unreadable files are unused.
    """
    # A plain file: a full disk is an error here, but would be a crash in a memory map.
    with open(target, "wb") as file:
        entries = [entry for chunk in decode_all(path, target, listed) for entry in chunk]
        file.truncate(len(entries) * PICTURE)
        os.fsync(file.fileno())
    if not entries:
        raise wrong_layout(path)
    if all(row is None for _, _, row, _ in entries):
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
    meta = {"n": len(entries), "fingerprint": fingerprint_of(entries),
            "unreadable": [(name, reason) for name, _, row, reason in entries if row is None]}
    for key, column in columns(good).items():
        with atomic(target / f"{key}.npy") as file:
            np.save(file, column)
    with atomic(target / "meta.json", "w") as file:
        json.dump(meta, file)


def columns(entries: list[tuple]) -> dict[str, np.ndarray]:
    """COLUMNS, of the pictures that could be read."""
    parts = [entry[0].split("/", 2) for entry in entries]
    labels = np.array([part[1] == "FAKE" for part in parts], np.uint8)
    objects = object_classes([part[2] for part in parts])
    sha256 = np.frombuffer(b"".join(entry[1] for entry in entries), np.uint8).reshape(-1, 32)
    splits = carve_validation(np.array([part[0] for part in parts]), labels, objects, sha256)
    paths, _, rows, notes = zip(*entries, strict=True) if entries else ((),) * 4
    found = np.array(rows, np.int64), np.array(paths), splits, labels, objects, sha256, np.array(notes)
    return dict(zip(COLUMNS, found, strict=True))


def object_classes(names: list[str]) -> np.ndarray:
    """int8 (n,): object_class of each file; all unknown (-1) unless all ten classes occur.

    "0001.jpg" is an airplane among CIFAKE's names, and nothing in a folder of numbered pictures.
    """
    found = np.array([object_class(name) for name in names], np.int8)
    return found if {*range(len(OBJECTS))} <= {*found.tolist()} else np.full_like(found, -1)


def object_class(file_name: str) -> int:
    """CIFAKE's names carry the CIFAR-10 class: "12.jpg" airplane, "12 (2).jpg" automobile, ...

    Returns 0..9 (OBJECTS), or -1 for a name of another form.
    """
    suffix = file_name.lstrip("0123456789")
    return SUFFIXES.get(suffix, -1) if suffix != file_name else -1


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
    for stratum in sorted(set(zip(labels.tolist(), objects.tolist(), strict=True))):
        members = np.flatnonzero((splits == "train") & (labels == stratum[0]) & (objects == stratum[1]))
        order = members[np.argsort(hashes[members], kind="stable")]
        moved[order[:ceil(VAL_SHARE * len(members)) if len(members) > 1 else 0]] = True
    going = {*hashes[moved].tolist()}
    moved = (splits == "train") & np.array([value in going for value in hashes.tolist()], bool)
    return np.where(moved, "val", splits)


def fingerprint_of(entries: list[tuple]) -> str:
    """SHA-256 over the sorted lines "path sha256-of-file": equal for equal content, in any form."""
    lines = "".join(f"{name} {digest.hex()}\n" for name, digest, *_ in sorted(entries))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
