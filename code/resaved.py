"""Pictures of several sources, each as it is and as it may come from the net.

gather() pools sets of pictures with what has to be left out together. Every picture is seen as it is and
re-saved at random: cropped, resized, saved as JPEG, WebP or PNG, so that format, size and quality tell
nothing. measure() gives what each method sees of these views.
"""
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

import checkpoints
import genimage
import sources
from datasets import find_set
from decode import decode
from files import TellError, atomic, folder, make_folder
from forensic import forensics
from genimage import GENERATORS
from metadata import header
from natural import PictureSet, open_pictures
from tiles import vote

VIEWS = 2        # re-saved copies of a picture for each seed
LEAST = 192      # pixels of the shorter side that re-saving leaves
ONE_CLASS = "one-class sources"  # sources without real or without fake pictures, left out together
SAME_ORIGIN = {"vqa": ONE_CLASS, ONE_CLASS: "vqa"}  # photographs of ImageNet: neither fits for the other
WAYS = ("squash", "tiles")  # of showing a picture to a network for 32 pixels
KINDS = ("JPEG", "PNG", "WEBP")
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


# --- pictures -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Pool:
    """Pictures of several sets."""
    sets: list[PictureSet]
    labels: np.ndarray      # bool (n,), fake = True
    sources: np.ndarray     # str (n,), what is left out together
    generators: np.ndarray  # str (n,), "" where it is not known
    sha256: np.ndarray      # uint8 (n, 32)

    def __len__(self) -> int:
        return len(self.labels)

    def files(self) -> Iterator[tuple[np.ndarray, tuple]]:
        """(pixels, what its file says from outside) of each picture, in order."""
        for data in self.sets:
            for i in range(len(data)):
                yield data.pixels(i), (data.formats[i], data.sizes[i], data.widths[i], data.heights[i])


def gather(names: list[str], questions: list[str]) -> Pool:
    """Sets of natural.py by name or path, and question-answering sets of genimage.py, as one pool.

    A set without sources is one source. A file that stands under both labels is left out and named.
    """
    sets = [consistent(open_pictures(name)) for name in names] + [asked_about(name) for name in questions]
    labels = np.concatenate([data.labels for data in sets]).astype(bool)
    groups = [np.where(one_source(data), data.name, data.groups) for data in sets]
    groups = np.concatenate(groups).astype(str)
    mixed = [name for name in np.unique(groups) if len(np.unique(labels[groups == name])) == 2]
    groups = np.where(np.isin(groups, mixed), groups, ONE_CLASS)
    if len(mixed) < 3 or any(len(np.unique(labels[groups == group])) < 2 for group in np.unique(groups)):
        raise TellError(f"{', '.join(names + questions)}: unseen sources need three or more with real "
                        "and fake pictures, named by a manifest, and of one-class sources both kinds or none")
    makers = np.concatenate([np.where(data.generators > 0, np.array(GENERATORS)[data.generators], "")
                             for data in sets])
    return Pool(sets, labels, groups, makers, np.concatenate([data.sha256 for data in sets]))


def one_source(data: PictureSet) -> np.ndarray:
    """Pictures that no manifest names a source for: their folders say the generator, not the origin."""
    return (data.groups == "") | np.isin(data.groups, GENERATORS)


def consistent(data: PictureSet) -> PictureSet:
    """The pictures whose very file is not there under the other label too."""
    same = np.unique(np.ascontiguousarray(data.sha256).view("S32").ravel(), return_inverse=True)[1]
    both = (np.bincount(same, data.labels == 0) > 0) & (np.bincount(same, data.labels == 1) > 0)
    for path in data.paths[both[same]]:
        print(f"left out, the same file is there as real and as fake: {path}")
    return data.take(~both[same])


def asked_about(name: str) -> PictureSet:
    """The pictures of a question-answering set, which are sorted into the cache first."""
    source = find_set(name)
    target = folder("cache") / "questions" / sources.signature(source)[:12] / source.name.split(".")[0]
    genimage.sort_questions(source, target)
    return consistent(open_pictures(str(target)))


# --- a picture's views ---------------------------------------------------------------------------

def resaved(pixels: np.ndarray, random: np.random.Generator) -> bytes:
    """A picture uint8 (h, w, 3) as it may come from the net, the file's bytes; the same for both classes.

    Cropped to sides of 0.7 to 1; resized by 0.5 to 1.25 in 7 of 10, not below LEAST; mirrored in half; saved
    as JPEG in 60 %, WebP in 25 %, both of quality 50 to 100, else as PNG.
    """
    picture = Image.fromarray(pixels)
    share = random.uniform(0.7, 1)
    w, h = (min(side, max(LEAST, round(side * share))) for side in picture.size)
    left, top = int(random.integers(picture.width - w + 1)), int(random.integers(picture.height - h + 1))
    picture = picture.crop((left, top, left + w, top + h))
    if random.random() < 0.7:
        factor = max(np.exp(random.uniform(np.log(0.5), np.log(1.25))), LEAST / min(w, h))
        picture = picture.resize((round(w * factor), round(h * factor)), FILTERS[random.integers(3)])
    if random.random() < 0.5:
        picture = ImageOps.mirror(picture)
    kind, quality = random.choice(KINDS, p=(0.6, 0.15, 0.25)), int(random.integers(50, 101))
    options = {"compress_level": 1} if kind == "PNG" else {"quality": quality}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def facts(kind: str, size: int, width: int, height: int) -> list[float]:
    """What a file says without its pixels, as numbers."""
    known = KINDS.index(kind) if kind in KINDS else -1
    return [known, size / (width * height), size, width, height, width / height]


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """As natural.py shows a picture to a network: uint8 (size, size, 3)."""
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), Image.Resampling.BICUBIC))


def measure(network: nn.Module, pool: Pool, seeds: int, beside: list[str]) -> dict[str, np.ndarray]:
    """{method: float32 (n, 1 + seeds * VIEWS, k)}: of each picture as it is, then of re-saved ones.

    network: a General, for its features; beside: checkpoints, for their logits. Kept in the cache.
    """
    own = f"{network.size} {network.read} {network.normalisation}"
    found = kept(pool, seeds, own, (network.stem, network.stages), partial(own_features, network))
    for name in beside:
        other = checkpoints.load(name)[0]
        found |= kept(pool, seeds, f"{name} {other.normalisation}", (other,),
                      partial(others_logits, name, other))
    return found


def views(pool: Pool, seeds: int) -> Iterator[tuple[list[np.ndarray], list[tuple]]]:
    """(pictures, what their files say from outside) of each picture: as it is, then re-saved."""
    for row, (pixels, outside) in enumerate(tqdm(pool.files(), "views", len(pool), leave=False)):
        random = [np.random.default_rng([i, *pool.sha256[row, :8]]) for i in range(seeds * VIEWS)]
        files = [resaved(pixels, one) for one in random]
        yield ([pixels, *(decode(file)[0] for file in files)],
               [outside, *((found[0], *found[2:5]) for found in map(header, files))])


def kept(pool: Pool, seeds: int, own: str, parts: tuple[nn.Module, ...], look: Callable
         ) -> dict[str, np.ndarray]:
    """{name: float32 (n, 1 + seeds * VIEWS, k)} of what look(pictures, files) gives; from the cache if there.

    parts: the networks that it depends on; own: what else of them, in words.
    """
    digest = hashlib.sha256(pool.sha256.tobytes() + f"{seeds} {VIEWS} {LEAST} 1 {own}".encode())
    for value in (value for part in parts for value in part.state_dict().values()):
        digest.update(value.contiguous().numpy().tobytes())
    path = make_folder(folder("cache"), "TELL_CACHE") / f"general-{digest.hexdigest()[:24]}.npz"
    if not path.exists():
        found = {}
        for pictures, files in views(pool, seeds):
            for name, values in look(pictures, files).items():
                found.setdefault(name, []).append(values)
        with atomic(path) as file:
            np.savez(file, **{name: np.array(values, np.float32) for name, values in found.items()})
    with np.load(path) as file:
        return dict(file)


def own_features(network: nn.Module, pictures: list[np.ndarray], files: list[tuple]) -> dict[str, np.ndarray]:
    squares = np.stack([fitted(picture, network.size) for picture in pictures])
    return {"metadata": np.array([facts(*file) for file in files]), "middle": read(network, squares),
            "forensic": np.array([forensics(square) for square in squares])}


def others_logits(name: str, network: nn.Module, pictures: list[np.ndarray], files: list[tuple]
                  ) -> dict[str, np.ndarray]:
    return {f"{name}, {way}": np.array([[one.logit] for one in vote(network, pictures, way)])
            for way in WAYS}


@torch.inference_mode()
def read(network: nn.Module, squares: np.ndarray) -> np.ndarray:
    """General.features of uint8 (b, size, size, 3): float32 (b, k)."""
    mean, std = (torch.tensor(network.normalisation[key]).view(3, 1, 1) for key in ("mean", "std"))
    return network.features((torch.from_numpy(squares).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
