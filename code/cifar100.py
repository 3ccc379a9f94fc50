"""CIFAR-100 and what stands in for it: photographs of classes that CIFAKE does not show, all real.

    python code/datasets.py fetch cifar100       downloads CIFAR-100 (161 MB) and checks it

CIFAR-100 (Krizhevsky 2009): `cifar-100-python.tar.gz` as published, or its folder `cifar-100-python`, under
the data root; its pickles are read as data, nothing in them is run. Without it `imagenet1000_32px.npz`
stands in, one photograph of each ImageNet class, in the groups of library/imagenet_groups.txt.
"""
import hashlib
import http.client
import io
import pickle
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np

import sources
from cache import fingerprint_of
from datasets import ImageSet, data_root, load
from files import TellError, atomic, folder, make_folder, remove, shown

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
PUBLISHED = {  # MD5 of the three files, as torchvision 0.29 has them (datasets/cifar.py)
    "train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48"}
PLACES = ("cifar-100-python", "cifar-100-python.tar.gz")
STAND_IN = "imagenet1000_32px.npz"


# --- CIFAR-100's pickles, read without running them -------------------------------------------------

class Recorded:
    """What a pickle asks numpy to make: only the arguments and the state are kept, nothing is called."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state):
        self.state = state


class PlainUnpickler(pickle.Unpickler):
    """Plain values and numpy arrays, the latter Recorded; any other name in a pickle ends the reading."""

    allowed = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return Recorded


def unpickled(data: bytes, where: str) -> dict:
    """The dictionary of a pickle of Python 2, its strings as bytes; TellError for anything else."""
    try:
        content = PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises a dozen types, all of which mean this
        raise damaged(where, f"not a pickle of plain values and arrays ({error})") from error
    if not isinstance(content, dict):
        raise damaged(where, f"a {type(content).__name__}, not a dictionary")
    return content


def damaged(where: str, reason: str) -> TellError:
    return TellError(f"{where}: {reason[:150]}; not CIFAR-100's python version: "
                     "python code/datasets.py fetch cifar100")


def pixels_of(content: dict, where: str) -> np.ndarray:
    """b"data" of a part of CIFAR-100, in C's or in Fortran's order: uint8 (n, 3, 32, 32)."""
    match content.get(b"data"):
        case Recorded(state=(_, (int() as n, 3072), Recorded(arguments=(b"u1", *_)),
                             (0 | 1) as fortran, bytes() as raw)) if len(raw) == 3072 * n > 0:
            rows = np.frombuffer(raw, np.uint8).reshape((n, 3072), order="F" if fortran else "C")
            return np.ascontiguousarray(rows).reshape(n, 3, 32, 32)
    raise damaged(where, "b'data' is not a uint8 array (n, 3072)")


def list_of(content: dict, key: bytes, kind: type, n: int, where: str) -> list:
    """content[key], n values of one kind; labels are below 100."""
    found = content.get(key)
    if not (isinstance(found, list) and len(found) == n and all(type(value) is kind for value in found)):
        raise damaged(where, f"{key!r} is not a list of {n:,} {kind.__name__}")
    return found


def labels_of(content: dict, kind: str, names: list[bytes], n: int, where: str) -> list[str]:
    """The name of each picture's "fine" or "coarse" class."""
    numbers = list_of(content, f"{kind}_labels".encode(), int, n, where)
    if not 0 <= min(numbers) <= max(numbers) < len(names):
        raise damaged(where, f"{kind} labels outside 0 to {len(names) - 1}")
    return [names[i].decode(errors="replace") for i in numbers]


def files_of(path: Path) -> dict[str, bytes]:
    """The three files "train", "test" and "meta" of CIFAR-100's folder or archive."""
    def named(parts: tuple[str, ...]) -> str | None:
        return parts[-1] if parts[-1] in PUBLISHED and parts[-2:-1] in ((), (PLACES[0],)) else None

    found = {name: content if isinstance(content, bytes) else Path(content).read_bytes()
             for name, content in sources.files_of(sources.require_readable(path), named)}
    if missing := sorted(PUBLISHED.keys() - found.keys()):
        raise damaged(str(path), f"without its files {', '.join(missing)}")
    return found


def is_published(files: dict[str, bytes]) -> bool:
    """Whether the files are, byte for byte, those that CIFAR-100's authors published."""
    return all(hashlib.md5(files[name], usedforsecurity=False).hexdigest() == md5
               for name, md5 in PUBLISHED.items())


def read_cifar100(path: Path) -> ImageSet:
    """CIFAR-100 from its folder or archive, all real: paths "SPLIT/REAL/SUPERCLASS/CLASS/FILE".

    TellError for a pickle that asks for more than arrays, and for wrong shapes, types, labels and lengths.
    Files that differ from those published are read too, as a set named "cifar100-changed".
    """
    files = files_of(path)
    meta = unpickled(files["meta"], f"{path}: meta")
    names = {kind: list_of(meta, f"{kind}_label_names".encode(), bytes, n, f"{path}: meta")
             for kind, n in (("fine", 100), ("coarse", 20))}
    pixels, paths = [], []
    for split in ("train", "test"):
        where = f"{path}: {split}"
        content = unpickled(files[split], where)
        pixels.append(pixels_of(content, where))
        n = len(pixels[-1])
        coarse, fine = (labels_of(content, kind, names[kind], n, where) for kind in ("coarse", "fine"))
        own = (name.decode(errors="replace") for name in list_of(content, b"filenames", bytes, n, where))
        paths += [f"{split}/REAL/{'/'.join(parts)}" for parts in zip(coarse, fine, own, strict=True)]
    return photographs("cifar100" if is_published(files) else "cifar100-changed", path,
                       np.concatenate(pixels), paths)


def fetch() -> Path:
    """Download CIFAR-100 into the data root; TellError unless its files are as published."""
    target = make_folder(folder("data"), "TELL_DATA") / PLACES[1]
    by_hand = f"download {URL} by hand and put it into {folder('data')}"
    if target.exists():
        print(f"CIFAR-100 is there already: {shown(target)}")
        return target
    partial = target.with_name(f".partial-{target.name}")
    try:
        with urllib.request.urlopen(URL, timeout=60) as reply:
            content = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise TellError(f"CIFAR-100 could not be downloaded ({error}); {by_hand}") from error
    with atomic(partial) as file:
        file.write(content)
    try:
        if not is_published(files_of(partial)):
            raise TellError(f"{URL}: not CIFAR-100 as published (its MD5 differs); {by_hand}")
        partial.replace(target)
    finally:
        remove(partial)
    print(f"CIFAR-100, complete and as published: {shown(target)}")
    return target


# --- which photographs there are ----------------------------------------------------------------

def open_photographs() -> ImageSet:
    """CIFAR-100's test half where it is; else the stand-in; else real pictures of the built-in sample."""
    root = data_root()
    for place in PLACES:
        if (root / place).exists():
            return read_cifar100(root / place).split("test")
    if (root / STAND_IN).exists():
        return read_stand_in(root / STAND_IN)
    sample = load("sample").split("test")
    return replace(sample.take(sample.labels == 0), name="sample-real")  # not test.py's "sample"


def read_stand_in(path: Path) -> ImageSet:
    """One photograph of each ImageNet class: paths "test/REAL/GROUP/WNID_NAME"; else TellError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, names = file["images"], file["names"].tolist()
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise TellError(f"{path}: not an archive of `images` and `names` ({str(error)[:100]})") from error
    if images.dtype != np.uint8 or images.shape != (len(names), 32, 32, 3):
        raise TellError(f"{path}: images are {images.dtype} {images.shape}, "
                        f"not uint8 ({len(names)}, 32, 32, 3)")
    groups = imagenet_groups()
    paths = [f"test/REAL/{groups.get(name[:9], 'unknown')}/{name}" for name in names]
    return photographs("imagenet1000", path, images.transpose(0, 3, 1, 2), paths)


def imagenet_groups() -> dict[str, str]:
    """{WordNet id: group} of library/imagenet_groups.txt; the classes that it leaves out are objects."""
    wnids = (folder("library") / "imagenet_wnids.txt").read_text().split()
    groups = dict.fromkeys(wnids, "object")
    for line in (folder("library") / "imagenet_groups.txt").read_text().splitlines()[1:]:
        group, places = line.split("\t")
        for first, _, last in (place.partition("-") for place in places.split()):
            groups |= dict.fromkeys(wnids[int(first):int(last or first) + 1], group)
    return groups


def photographs(name: str, path: Path, pixels: np.ndarray, paths: list[str]) -> ImageSet:
    """Real pictures uint8 (n, 3, 32, 32) as an image set; `sha256` is of their pixels."""
    n, digests = len(pixels), [hashlib.sha256(picture.tobytes()).digest() for picture in pixels]
    entries = list(zip(paths, digests, strict=True))
    return ImageSet(name=name, source=str(path), fingerprint=fingerprint_of(entries), pixels=pixels,
                    rows=np.arange(n), paths=np.array(paths),
                    splits=np.array([place.split("/")[0] for place in paths]), labels=np.zeros(n, np.uint8),
                    objects=np.full(n, -1, np.int8), notes=np.full(n, ""), unreadable=(),
                    sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 32))
