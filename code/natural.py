"""Pictures of natural size: opened and checked once, split, and decoded on the fly in batches.

A folder, zip or tar of {train,val,test}/{real,fake}/ pictures (any format, any size; sources.py), or
GenImage's tree GENERATOR/{train,val}/{ai,nature}/ (Zhu et al., NeurIPS 2023), one generator or many.

7 ms of CPU a picture at 224 pixels, augmented or not; 135 pictures/s with one worker, 132 with two, while a
training kept both cores busy (2 cores of an AMD EPYC, 334 pictures of 0.5 megapixels, 21 November 2026).
"""
import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from filelock import FileLock
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader

import cache
import sources
from classes import Batches, normalise
from datasets import SPLITS, ImageSet, find_set, set_name
from decode import DecodeError, decode, decode_jpeg
from files import TellError, atomic, folder, make_folder, remove
from genimage import GENERATORS, generator_of, imagenet_class, name_of

AUGMENTED = ("crop", "flip", "blur", "jpeg")  # what `augmented` does, by the names that checkpoints record
MANIFESTS = {"manifest.tsv": "\t", "manifest.csv": ","}  # and what parts their columns


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one source, of any size, or some of them: datasets.ImageSet without the pixels."""
    name: str
    source: str
    fingerprint: str
    unreadable: tuple[tuple[str, str], ...]  # (path, reason), of the whole source
    root: str               # the source's folder, or the blob into which its archive was unpacked
    files: np.ndarray       # str (n,), paths below root, or int64 (n, 2), first byte and length in it
    paths: np.ndarray       # str (n,), "split/LABEL/rest" as in the source, sorted
    splits: np.ndarray      # str (n,) of train, val, test
    labels: np.ndarray      # uint8 (n,), fake = 1, real = 0
    objects: np.ndarray     # int16 (n,), ImageNet class 0..999, -1 unknown
    generators: np.ndarray  # int8 (n,), index into GENERATORS, 0 = real, -1 unknown
    groups: np.ndarray      # str (n,), what may have to stay on one side of a split, "" for nothing
    sha256: np.ndarray      # uint8 (n, 32), of the file's bytes
    heights: np.ndarray     # int64 (n,), pixels, as decoded
    widths: np.ndarray      # int64 (n,)
    formats: np.ndarray     # str (n,), Pillow's names: "JPEG", "PNG", "WEBP", ...
    sizes: np.ndarray       # int64 (n,), bytes
    notes: np.ndarray       # str (n,), what decoding converts, "" for nothing

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: np.ndarray) -> "PictureSet":
        """The pictures at `index` (integers or a mask over this set)."""
        return replace(self, **{key: column[index] for key, column in vars(self).items()
                                if isinstance(column, np.ndarray)})

    split, head, require_both_classes = ImageSet.split, ImageSet.head, ImageSet.require_both_classes

    def pixels(self, i: int) -> np.ndarray:
        """Decode picture i: uint8 (h, w, 3) RGB; TellError where that is no longer possible."""
        packed = self.files.ndim == 2
        path = self.root if packed else os.path.join(self.root, self.files[i])
        try:
            data = np.memmap(path, np.uint8, "r", *self.files[i].tolist()) if packed else cache.read(path)
            return decode(bytes(data))[0]
        except (OSError, ValueError, DecodeError) as error:
            raise TellError(f"{path}: {self.paths[i]} could be read when the set was opened, but not now "
                            f"({getattr(error, 'strerror', None) or error}); restore it") from error


def open_pictures(name_or_path: str) -> PictureSet:
    """Open a folder, zip or tar by its path, or by its name under the data root.

    The first time every picture is decoded, to name in `unreadable` each one that cannot be, and an archive
    is unpacked; table and blob stay in the cache until a name, size or time in the source changes.
    """
    path = find_set(name_or_path)
    name, state = set_name(name_or_path), sources.signature(sources.require_readable(path))[:12]
    stem = f"natural-{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    target = make_folder(folder("cache"), "TELL_CACHE") / f"{stem}-{state}-v1"
    if found := stored(name, path, target):
        return found
    try:
        with FileLock(target.parent / ".lock"):  # another process may have built it meanwhile
            return stored(name, path, target) or build(name, path, target, stem)
    except OSError as error:
        raise TellError(f"{target.parent}: cannot be written ({error.strerror}); set TELL_CACHE") from error


def stored(name: str, path: Path, target: Path) -> PictureSet | None:
    """The set as the cache has it; None where it is not there or not whole."""
    try:
        with np.load(f"{target}.npz") as file:
            table = {key: file[key] for key in file.files}
        if os.path.getsize(f"{target}.blob") != table.pop("bytes"):
            return None
        table["unreadable"] = tuple(map(tuple, table["unreadable"].tolist()))
        root = path if path.is_dir() else f"{target}.blob"
        return PictureSet(name, str(path), str(table.pop("fingerprint")), root=str(root), **table)
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile, *sources.DAMAGE):
        return None


def build(name: str, path: Path, target: Path, stem: str) -> PictureSet:
    """Decode a source and write its table and blob; both have to be there to count."""
    for outdated in target.parent.glob(f"*{stem}-*"):
        remove(outdated)
    with atomic(Path(f"{target}.blob")) as blob, atomic(Path(f"{target}.npz")) as file:
        entries, manifests = inspect_all(path, blob)
        readable = [entry for entry in entries if entry[3]]
        if not readable:
            raise TellError(f"{path}: none of its {len(entries)} files is a readable picture "
                            f"({': '.join(entries[0][:3:2])})") if entries else cache.wrong_layout(path)
        if twice := [one[0] for one, other in pairwise(entries) if one[0] == other[0]]:
            raise TellError(f"{path}: two files claim the place {twice[0]}; keep one data set in one folder")
        table = columns(readable, manifest_rows(path, manifests, readable) if manifests else {})
        bad = np.array([entry[:3:2] for entry in entries if not entry[3]], str).reshape(-1, 2)
        np.savez(file, bytes=blob.tell(), unreadable=bad, fingerprint=cache.fingerprint_of(entries), **table)
    return stored(name, path, target)


def inspect_all(path: Path, blob: io.BufferedWriter) -> tuple[list[tuple], dict]:
    """Fill the blob: [(name, sha256, note or reason, facts or None)] by name, {manifest: its content}."""
    entries, manifests = [], {}
    files = sources.files_of(path, partial(picture_or_manifest, path))
    with cache.progress(path) as bar:
        for name, data, *entry, facts in in_workers(Inspected(), files, len(os.sched_getaffinity(0))):
            bar.update()
            if name.startswith("/"):
                manifests[name] = data
                continue
            place = os.path.relpath(data, path) if path.is_dir() else (blob.tell(), len(data))
            if facts and not path.is_dir():
                blob.write(data)
            entries.append((name, *entry, facts and (place, *facts)))
    return sorted(entries, key=lambda entry: entry[0]), manifests


class Inspected:
    """(name, content) -> (name, content, sha256, note or reason, (height, width, bytes, format) or None)."""

    def __getitem__(self, file: tuple[str, bytes | str]) -> tuple:
        try:
            data = file[1] if isinstance(file[1], bytes) else cache.read(file[1])
        except OSError as error:
            return *file, b"\0" * 32, f"cannot be read: {error.strerror}", None
        digest = hashlib.sha256(data).digest()
        try:
            pixels, note = decode(data)
        except DecodeError as error:
            return *file, digest, str(error), None
        # Pillow does not open each JPEG that simplejpeg decodes.
        kind = "JPEG" if data[:3] == b"\xff\xd8\xff" else Image.open(io.BytesIO(data)).format
        return *file, digest, note, (*pixels.shape[:2], len(data), kind)


def columns(entries: list[tuple], manifest: dict[str, dict]) -> dict[str, np.ndarray]:
    """The columns of PictureSet, of readable pictures in path order."""
    paths, digests, notes, facts = zip(*entries, strict=True)
    files, heights, widths, sizes, formats = map(np.array, zip(*facts, strict=True))
    splits, words, rests = zip(*(path.split("/", 2) for path in paths), strict=True)
    labels = np.array([word == "FAKE" for word in words], np.uint8)
    wnids = {wnid: i for i, wnid in enumerate((folder("library") / "imagenet_wnids.txt").read_text().split())}
    objects = np.array([imagenet_class(rest.split("/")[-1], wnids) for rest in rests], np.int16)
    sha256 = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    known = [(manifest.get(path, {}), rest.rpartition("/")[0].split("/")[0])
             for path, rest in zip(paths, rests, strict=True)]
    makers = np.array([generator_of(row.get("generator") or below) or -1 for row, below in known], np.int8)
    makers = np.where(labels == 1, makers, np.int8(0))
    return {"files": files, "paths": np.array(paths), "labels": labels, "objects": objects, "sha256": sha256,
            "splits": cache.carve_validation(np.array(splits), labels, makers, sha256), "generators": makers,
            "groups": np.array([row.get("set") or below for row, below in known]), "notes": np.array(notes),
            "heights": heights, "widths": widths, "formats": formats, "sizes": sizes}


def picture_or_manifest(path: Path, parts: tuple[str, ...]) -> str | None:
    """A picture's name, or "/" and the path of a manifest; None for any other file."""
    return "/" + "/".join(parts) if parts[-1] in MANIFESTS else name_of(path, parts)


def manifest_rows(path: Path, manifests: dict[str, bytes | str], entries: list[tuple]) -> dict[str, dict]:
    """{canonical path: {"generator": ..., "set": ...}} of the topmost manifest."""
    name = min(manifests, key=lambda name: (name.count("/"), name))
    try:
        data = manifests[name] if isinstance(manifests[name], bytes) else cache.read(manifests[name])
        lines, comma = data.decode("utf-8-sig").splitlines(), MANIFESTS[name.rsplit("/", 1)[-1]]
        rows = {name_of(path, (*sources.rooted(path), *row["path"].split("/"))): row
                for row in csv.DictReader(lines, delimiter=comma)}
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise TellError(f"{path}{name}: not a UTF-8 table with a `path` in each row ({error})") from error
    if not any(entry[0] in rows for entry in entries):
        raise TellError(f"{path}{name}: none of its paths is a picture here; they start at the top folder")
    return rows


def with_split(data: PictureSet, seed: int, shares=(0.6, 0.2, 0.2), group: str = "content",
               left_out: str | None = None) -> PictureSet:
    """The same pictures, split anew into train, val and test in these shares, each class alike.

    Identical files go to one side; with group="set" whole groups do, and shares are approached. Contents,
    groups and seed decide, not order or machine. All pictures of the generator left_out go to test, since
    leave_out trains on none of them. `paths` keep the source's split folder.
    """
    if group not in ("content", "set") or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise TellError(f"a split is by content or set, its shares add up to 1; not {group!r}, {shares}")
    units, keys = units_of(data, group == "set")
    counts = np.zeros((len(keys), 2))
    np.add.at(counts, (units, data.labels), 1)
    left, side = np.outer(shares, counts.sum(0)), np.zeros(len(keys), int)
    for unit in sorted(range(len(keys)), key=lambda i: hashlib.sha256(b"%d " % seed + keys[i]).digest()):
        side[unit] = (left * counts[unit] / np.maximum(counts.sum(0), 1)).sum(1).argmax()
        left[side[unit]] -= counts[unit]
    own = data.generators == index_of(left_out) if left_out else np.zeros(len(data), bool)
    return replace(data, splits=np.where(own, "test", np.array(SPLITS)[side[units]]))


def held_part(data, facts: dict, split: str):
    """One part of a set, an ImageSet or a PictureSet; split as it was for the checkpoint, if for that.

    A folder without train/ is all test, but for the network that train.py trained on a part of it.
    facts: as checkpoints.load gives them.
    """
    seen = facts.get("fingerprint") == data.fingerprint and isinstance(data, PictureSet)
    if seen and not (data.splits == "train").any():
        recipe = facts["recipe"]
        data = with_split(data, 0, group=recipe["group"], left_out=recipe.get("leave_out"))
    return data.split(split)


def units_of(data: PictureSet, sets: bool) -> tuple[np.ndarray, np.ndarray]:
    """What has to stay together: int (n,), the unit of each picture; S32 (units,), its least hash."""
    hashes, same = np.unique(np.ascontiguousarray(data.sha256).view("S32").ravel(), return_inverse=True)
    names, groups = np.unique(data.groups, return_inverse=True)
    groups = np.where(sets & (data.groups != ""), groups, same + len(names))
    units, before = same, None
    while before is None or (units != before).any():  # a file in two sets binds them together
        before = units
        for bound in (groups, same):
            least = np.full(bound.max() + 1, len(hashes))
            np.minimum.at(least, bound, units)
            units = least[bound]
    firsts, units = np.unique(units, return_inverse=True)
    return units, hashes[firsts]


def leave_out(data: PictureSet, generator: str) -> tuple[PictureSet, PictureSet]:
    """Leave one generator out: (train and val without its fakes, test with its fakes and all reals).

    No file of the second part is in the first. TellError where a part lacks a class.
    """
    own, test = data.generators == index_of(generator), data.splits == "test"
    tested, (content, _) = test & (own | (data.labels == 0)), units_of(data, sets=False)
    parts = data.take(~test & ~own & ~np.isin(content, content[tested])), data.take(tested)
    for part in parts:
        part.require_both_classes()
    return parts


def index_of(generator: str) -> int:
    """Its place in GENERATORS; TellError for a name that is not there."""
    if generator not in GENERATORS[1:]:
        raise TellError(f"no generator is called {generator!r}; there are {', '.join(GENERATORS[1:])}")
    return GENERATORS.index(generator)


class PictureBatches(Batches):
    """Normalised batches of pictures that worker processes decode, on the device.

    Each is (pixels, targets): float32 (b, 3, size, size) in channels_last, int64 (b, len(heads)) in the
    order of `heads` from "fake", "object", "generator", -1 unknown. Order, length and `part` as in Batches.
    The shorter side becomes `size`, and the centre is taken; `augment`, which needs a seed: see `augmented`.
    workers: how many processes decode, 0 for this one; without it as many as `own_cores`.
    """

    columns = Batches.columns | {"generator": "generators"}

    def __init__(self, data: PictureSet, batch_size: int, size: int, normalisation: dict,
                 device: torch.device | str = "cpu", seed: int | None = None, heads=("fake",),
                 augment: bool | tuple[str, ...] = False, part: tuple[int, int] = (0, 1),
                 workers: int | None = None):
        self.size, self.workers, self.plan = size, own_cores() if workers is None else workers, []
        super().__init__(data, batch_size, normalisation, device, seed, heads, augment, part)

    def read(self, data: PictureSet) -> None:
        views = Views(data, self.size, self.seed, bool(self.augment))
        self.loader = in_workers(views, self.plan, self.workers, pinned=self.device.type == "cuda")

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of epoch `number`, one epoch at a time; TellError for a picture that is gone."""
        rows = self.order(number).split(self.batch_size // self.part[1])
        plan = self.plan[:] = [(number, picked.tolist()) for picked in rows]
        for picked, pixels in zip(rows, self.loader, strict=True):
            if self.plan[0] is not plan[0]:
                raise RuntimeError("another epoch of these batches was started meanwhile")
            if isinstance(pixels, TellError):
                raise TellError(*pixels.args)  # not itself, whose traceback would keep the workers
            pixels = pixels.to(self.device, non_blocking=True)
            yield normalise(pixels, self.normalisation), self.targets[picked]


@dataclass
class Views:
    """(epoch, rows) -> uint8 (b, size, size, 3), or the TellError of a picture that is gone."""
    data: PictureSet
    size: int
    seed: int | None
    augment: bool

    def __getitem__(self, job: tuple[int, list[int]]) -> torch.Tensor | TellError:
        try:
            return torch.from_numpy(np.stack([self.view(job[0], row) for row in job[1]]))
        except TellError as error:
            return error  # raised in a worker, it would arrive as a page of traceback

    def view(self, epoch: int, row: int) -> np.ndarray:
        picture = Image.fromarray(self.data.pixels(row))
        if self.augment:
            content = int.from_bytes(self.data.sha256[row, :8].tobytes())
            return augmented(picture, self.size, np.random.default_rng([self.seed, epoch, content]))
        # Crops first: of a 1 x 10,000 picture the whole would take gigabytes.
        return np.asarray(ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BICUBIC))


def augmented(picture: Image.Image, size: int, random: np.random.Generator) -> np.ndarray:
    """A random view for training, the same for both classes: uint8 (size, size, 3).

    A crop of 0.5 to 1 of the area (less of a very long picture), sides from 3:4 to 4:3; mirrored with
    p = 0.5; blurred, sigma 0.1 to 2, with p = 0.1; then JPEG, quality 50 to 95, 4:2:0, with p = 0.5.
    """
    area, aspect = random.uniform(0.5, 1) * picture.height * picture.width, (4 / 3) ** random.uniform(-1, 1)
    w, h = min(picture.width, (area * aspect) ** 0.5), min(picture.height, (area / aspect) ** 0.5)
    w, h = min(w, h * 4 / 3), min(h, w * 4 / 3)
    left, top = random.random() * (picture.width - w), random.random() * (picture.height - h)
    box = left, top, min(picture.width, left + w), min(picture.height, top + h)
    view = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    if random.random() < 0.5:
        view = ImageOps.mirror(view)
    if random.random() < 0.1:
        view = view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
    if random.random() < 0.5:
        return np.asarray(view)
    quality = int(random.integers(50, 96))
    return decode_jpeg(simplejpeg.encode_jpeg(np.ascontiguousarray(view), quality, colorsubsampling="420"))


def own_cores() -> int:
    """The cores that this process may use, shared with the training processes beside it on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def in_workers(source, jobs: Iterable, workers: int, pinned: bool = False) -> DataLoader:
    """source[job] for each job, in order and ahead of need, in processes (here for workers=0)."""
    # A generator of its own: else each epoch would draw from the one that dropout uses.
    return DataLoader(source, batch_size=None, sampler=jobs, collate_fn=lambda batch: batch,
                      num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned,
                      multiprocessing_context="fork" if workers else None, generator=torch.Generator(),
                      worker_init_fn=lambda worker: cache.depend_on_parent())
