"""The files of a data set, from a folder, a zip or a tar as it is, in one canonical naming.

Layout: any prefix, then {train,val,test}/{REAL,FAKE}/NAME (upper or lower case; without a split
folder everything counts as test). Labels come from the folder's name, never from an order.
"""
import bz2
import gzip
import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from files import TellError

SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
LABELS = {"real": "REAL", "fake": "FAKE"}
OPENERS = {".tar": open, ".tar.xz": lzma.open, ".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.bz2": bz2.open}
ARCHIVES = (".zip", *OPENERS)
DAMAGE = (lzma.LZMAError, zlib.error, EOFError, OSError)
Listing = list[tuple[tuple[str, ...], list[os.DirEntry]]]  # what walk() yields


def canonical(parts: tuple[str, ...]) -> str | None:
    """Path parts -> "split/LABEL/name"; None for what lies outside real/ and fake/ folders.

    Files whose name starts with a dot, and __MACOSX, are the file manager's, not pictures.
    """
    place = place_of(parts[:-1])
    return f"{place}/{parts[-1]}" if place and not parts[-1].startswith(".") else None


@lru_cache(maxsize=4096)
def place_of(folders: tuple[str, ...]) -> str | None:
    """canonical() of a file's folders, "split/LABEL" and what is below."""
    folders = tuple(part for part in folders if part not in ("", "."))  # as in "./REAL/1.jpg"
    if any(part.startswith(".") or part == "__MACOSX" for part in folders):
        return None
    for i in range(len(folders) - 1, -1, -1):
        label = LABELS.get(folders[i].casefold())
        if label:
            split = SPLITS.get(folders[i - 1].casefold(), "test") if i else "test"
            return "/".join((split, label, *folders[i + 1:]))
    return None


def ending(path: Path) -> str:
    """".zip", ".tar.xz", ... of an archive's name; one clear line for any other file."""
    found = next((known for known in ARCHIVES if path.name.lower().endswith(known)), None)
    if not found:
        raise TellError(f"{path}: neither a folder nor a .zip or .tar archive")
    return found


def files_of(path: Path, named: Callable[[tuple[str, ...]], str | None] = canonical,
             listed: Listing | None = None) -> Iterator[tuple[str, bytes | str]]:
    """Yield (named(its path's parts), bytes or the path to read them from) for each file that gets a name.

    listed: listing(path), where that is known.
    """
    if path.is_dir():
        return folder_files(listing(path) if listed is None else listed, named)
    return zip_files(path, named) if ending(path) == ".zip" else tar_files(path, named)


def listing(path: Path) -> Listing:
    """Every file of a folder, in sorted order, as walk() yields them; of an archive, nothing."""
    return list(walk(os.fspath(path), rooted(path))) if path.is_dir() else []


def entries_of(folder: str) -> list[os.DirEntry]:
    """What stands in a folder; one clear line where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise TellError(f"{folder}: cannot be listed ({error.strerror})") from error


def is_folder(entry: os.DirEntry) -> bool:
    """A folder, or a link to one that does not lead back to where it stands."""
    if entry.is_file(follow_symlinks=False):
        return False
    if not entry.is_symlink():
        return entry.is_dir()
    return os.path.isdir(entry.path) and not Path(entry.path).is_relative_to(os.path.realpath(entry.path))


def walk(root: str, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[os.DirEntry]]]:
    """Every file below root in sorted order (os.walk's is not): the parts of a folder's path, files there.

    Not one by one, because a tuple for each of 120,000 files keeps Python's garbage collector busy.
    """
    for folders, entries in groupby(sorted(entries_of(root), key=attrgetter("name")), is_folder):
        if not folders:
            yield parts, list(entries)
            continue
        for entry in entries:
            yield from walk(entry.path, (*parts, entry.name))


def folder_files(listed: Listing, named: Callable) -> Iterator[tuple[str, str]]:
    for parts, entries in listed:
        for entry in entries:
            if name := named((*parts, entry.name)):
                yield name, entry.path


def rooted(root: Path) -> tuple[str, ...]:
    """`root` may itself be a split folder (…/test); then its own name says which."""
    return (root.name,) if root.name.casefold() in SPLITS else ()


def zip_files(path: Path, named: Callable = canonical) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = None if member.is_dir() else named(tuple(member.filename.split("/")))
                if name:
                    yield name, archive.read(member)
    # RuntimeError, or a kind of it, is zipfile's for an encrypted member and for an unknown compression.
    except (zipfile.BadZipFile, *DAMAGE, RuntimeError) as error:
        raise broken(path, error) from error


class Header(tarfile.TarInfo):
    """A tar's header, for which only blocks of zeros end an archive.

    tarfile takes any unreadable header after the first for the end, so a cut or damaged archive would
    lose its remaining pictures in silence.
    """

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark: {error}") from error


def tar_files(path: Path, named: Callable = canonical) -> Iterator[tuple[str, bytes]]:
    try:
        with OPENERS[ending(path)](path, "rb") as raw:
            with tarfile.open(fileobj=raw, mode="r|", tarinfo=Header) as archive:
                for member in archive:
                    name = named(tuple(member.name.split("/"))) if member.isfile() else None
                    if name:
                        yield name, archive.extractfile(member).read()
            while raw.read(1 << 20):  # to the end, where gzip and xz keep their checksums
                pass
    except (tarfile.TarError, *DAMAGE) as error:
        raise broken(path, error) from error


def broken(path: Path, error: Exception) -> TellError:
    return TellError(f"{path}: not a whole archive ({str(error) or type(error).__name__}; "
                     f"{path.stat().st_size:,} bytes); the download may have been cut: "
                     "delete it and fetch it again")


def signature(path: Path, listed: Listing | None = None) -> str:
    """Changes when any file of the source does: names, sizes and times, not contents.

    listed: listing(path), where that is known.
    """
    listed = listing(path) if listed is None else listed
    stats = [stat_of(entry) for _, entries in listed for entry in entries] or [times(path.stat())]
    text = "\n".join([os.fspath(path), *stats])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def stat_of(entry: os.DirEntry) -> str:
    """"path size times" of a file; one question to the system each, which is half of a warm start."""
    dangling = entry.is_symlink() and not os.path.exists(entry.path)
    return f"{entry.path} {times(entry.stat(follow_symlinks=not dangling))}"


def times(stat: os.stat_result) -> str:
    # st_ctime_ns as well: a program can put a file's other time back, not this one.
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def require_readable(path: Path) -> Path:
    """`path` if it is there and can be read; else one clear line."""
    if not path.exists():
        raise TellError(f"{path}: no such file or folder")
    if not os.access(path, os.R_OK):
        raise TellError(f"{path}: no permission to read it")
    return path
