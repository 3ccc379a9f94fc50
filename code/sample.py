"""The built-in sample: 7,200 REAL and FAKE pictures, made offline, for a machine without data.

FOR SMOKE RUNS, NOT FOR CONCLUSIONS.

    python code/sample.py                        make it, count it, show what gives nothing away
    python code/sample.py --train-autoencoder    train the autoencoder that makes the FAKE pictures

REAL: 32x32 crops of photographs that come with scikit-image and scikit-learn, split by photograph.
FAKE: the same crops through the autoencoder, which blurs, adds stripes and noise. The two files of
a pair have one name, one size and, within a level, one mean colour, so only the picture tells.
Made in 9.8 s on one AMD EPYC core, numpy 2.4.6, simplejpeg 1.9.0. The base LeNet (lr 0.001, batches
of 32, torch 2.15) has 94 to 100 % of the 1,600 test pictures after 6 epochs, n = 4 seeds.
"""
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg

from decode import decode
from files import Parser, TellError, atomic, command_line, folder

SAMPLE_SHA256 = "b1c6fce282c4a21510d7c4a02fea051d654466a482fbe4e3c1be17cad0599298"
MADE_WITH = ("scikit-image 0.26.0, scikit-learn 1.9.1, simplejpeg 1.9.0, pillow 12.3.0, "
             "numpy 2.4.6 or 2.5.5")
# {split: {"package/path": pairs}}: genuine photographs inside the wheels, each on one side only.
PHOTOS = {
    "train": {"skimage/data/astronaut.png": 600, "skimage/data/ihc.png": 600,
              "skimage/data/motorcycle_left.png": 600, "sklearn/datasets/images/china.jpg": 600},
    "val": {"skimage/data/retina.jpg": 200, "skimage/data/rocket.jpg": 200},
    "test": {"skimage/data/chelsea.png": 300, "skimage/data/coffee.png": 250,
             "sklearn/datasets/images/flower.jpg": 250}}
SIZE, SEED, WEIGHTS = 32, 2024, "sample_autoencoder.npz"
FLAT = 12                            # crops of a smaller standard deviation are skipped
BATCH, MOST_BATCHES = 1000, 10       # crops tried at a time, and how often at most for one photo
JPEG = {"quality": 75, "colorspace": "RGB", "colorsubsampling": "420", "fastdct": False}
WIDTH, LATENT, STRIPES = 16, 6, 22   # autoencoder: channels at its 8x8 places; grey levels of stripes
UNIT, SCALE, UPDATES = 64, 256, 2000  # activations are whole 1/64 levels, weights whole 1/256


def photo(name: str) -> np.ndarray:
    """A photograph of an installed wheel, "package/path": uint8 (h, w, 3)."""
    package, inside = name.split("/", 1)
    spec = find_spec(package)  # says where it lies without the second that importing takes
    path = Path(spec.submodule_search_locations[0]) / inside if spec else Path(name)
    if not path.is_file():
        raise TellError(f"{name}: not installed; the built-in sample needs {MADE_WITH}")
    return decode(path.read_bytes())[0]


def scales(pixels: np.ndarray) -> list[np.ndarray]:
    """A photo at full size, 1/2, ... 1/8, as long as its shorter side spans two crops."""
    return [shrink(pixels, factor) for factor in range(1, 9)
            if min(pixels.shape[:2]) // factor >= 2 * SIZE]


def shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor blocks, in whole numbers: the same on every machine."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[:height * factor, :width * factor].reshape(height, factor, width, factor, 3)
    return ((blocks.sum((1, 3), dtype=np.int64) + factor**2 // 2) // factor**2).astype(np.uint8)


def crops(pyramid: list[np.ndarray], rng: np.random.Generator, seen: set) -> np.ndarray:
    """New crops out of BATCH tries, at any scale, half of them mirrored: uint8 (n, 32, 32, 3)."""
    found = []
    for _ in range(BATCH):
        scale = int(rng.integers(len(pyramid)))
        y, x = (int(rng.integers(side - SIZE + 1)) for side in pyramid[scale].shape[:2])
        direction = 1 if rng.integers(2) else -1
        crop = pyramid[scale][y:y + SIZE, x:x + SIZE][:, ::direction]
        if (scale, y, x) not in seen and not is_flat(crop):
            found.append(crop)
        seen.add((scale, y, x))
    return np.array(found, np.uint8).reshape(-1, SIZE, SIZE, 3)


def is_flat(crop: np.ndarray) -> bool:
    """A standard deviation below FLAT, in whole numbers, because sums of floats depend on order."""
    values = crop.astype(np.int64).ravel()
    return values.size * (values @ values) - values.sum()**2 < (FLAT * values.size)**2


def weights() -> dict[str, np.ndarray]:
    """The committed autoencoder: whole numbers, as float64 for the products."""
    with np.load(folder("library") / WEIGHTS) as arrays:
        return {name: arrays[name].astype(np.float64) for name in arrays.files}


def reconstruct(centred: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """Crops less their channel means, whole numbers -> what the autoencoder makes of them."""
    hidden = np.maximum(layer(blocks_of(centred), w["encode"], w["encode_bias"]), 0)
    latent = np.maximum(layer(neighbours(hidden), w["squeeze"], w["squeeze_bias"]), 0)
    return from_blocks(layer(latent, w["decode"], w["decode_bias"]))


def layer(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    # Whole numbers below 2**15 (weights) and 2**20 (activations), at most 144 products: every sum
    # stays below 2**43 < 2**53, so float64 is exact in any order of summation, on any machine.
    return np.floor((inputs @ weight + bias) / SCALE)


def blocks_of(pictures: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 3) -> (n, 8, 8, 48): each 4x4 block becomes one place."""
    return pictures.reshape(-1, 8, 4, 8, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 8, 8, 48)


def from_blocks(places: np.ndarray) -> np.ndarray:
    """The inverse of blocks_of; after a product it makes a transposed convolution of stride 4."""
    return places.reshape(-1, 8, 8, 3, 4, 4).transpose(0, 1, 4, 2, 5, 3).reshape(-1, SIZE, SIZE, 3)


def neighbours(places: np.ndarray) -> np.ndarray:
    """(n, 8, 8, c) -> (n, 8, 8, 9 c): each place with the eight around it, zeros outside."""
    padded = np.pad(places, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[:, y:y + 8, x:x + 8] for y in range(3) for x in range(3)], 3)


def with_sums(target: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """uint8 pictures whose channel sums are near `target`: half a level a pixel, if few are clipped."""
    for _ in range(2):  # clipping moves the mean again, less each time
        missing = target - channel_sums(pictures)
        pictures = np.clip(pictures + np.floor(missing / SIZE**2 + 0.5), 0, 255)
    return pictures.astype(np.uint8)


def channel_sums(pictures: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 3) -> (n, 1, 1, 3), exact for whole numbers."""
    flat = pictures.astype(np.float64, copy=False).reshape(-1, SIZE**2, 3)
    return (np.ones((1, SIZE**2)) @ flat)[:, None]  # many times the speed of np.sum


def pairs(crop: np.ndarray, rng: np.random.Generator, w: dict) -> list[tuple[bytes, bytes]]:
    """(REAL, FAKE) files of those crops whose two files can be given exactly the same size.

    A blurred picture makes a smaller file, so the size alone would tell: grey noise is added to
    the FAKE, its strength found by bisection. Dropped: a crop without an exact hit, and one whose
    mean colours differ by more than a level once decoded.
    """
    sums = channel_sums(crop)
    plain = reconstruct(crop - np.floor(sums / SIZE**2 + 0.5), w)
    noise = rng.integers(-64, 65, (len(crop), SIZE, SIZE, 1)).astype(np.float64)
    real, fake = jpegs(crop), {}
    strength, rest = np.zeros((len(crop), 1, 1, 1)), np.arange(len(crop))
    for step in (64, 32, 16, 8, 4, 2, 1):
        grain = np.floor(noise[rest] * (strength[rest] + step) / 256)
        tries = jpegs(with_sums(sums[rest], plain[rest] + grain))
        excess = np.array([len(data) - len(real[i]) for i, data in zip(rest, tries, strict=True)])
        fake |= {rest[k]: tries[k] for k in np.flatnonzero(excess == 0)}
        strength[rest[excess < 0]] += step
        rest = rest[excess != 0]
    return [(real[i], fake[i]) for i in sorted(fake)
            if abs(mean_colour(real[i]) - mean_colour(fake[i])).max() <= 1]


def mean_colour(data: bytes) -> np.ndarray:
    return decode(data)[0].mean((0, 1))


def jpegs(pictures: np.ndarray) -> list[bytes]:
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(picture), **JPEG) for picture in pictures]


def pairs_of_photo(name: str, n: int, rng: np.random.Generator, w: dict) -> list[tuple[bytes, bytes]]:
    pyramid, seen, found = scales(photo(name)), set(), []
    for _ in range(MOST_BATCHES):
        if len(found) < n:
            found += pairs(crops(pyramid, rng, seen), rng, w)
    return found[:n]


def pictures() -> Iterator[tuple[str, bytes]]:
    """("test/FAKE/coffee-0012.jpg", its bytes), ...; the REAL one of a pair has the same name."""
    rng, w = np.random.Generator(np.random.PCG64(SEED)), weights()
    for split, photos in PHOTOS.items():
        for name, n in photos.items():
            for i, pair in enumerate(pairs_of_photo(name, n, rng, w)):
                for label, data in zip(("REAL", "FAKE"), pair, strict=True):
                    yield f"{split}/{label}/{Path(name).stem}-{i:04d}.jpg", data


def archive(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar that holds nothing of this machine: no time, owner or file order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # time 0, owner 0, mode 644
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


def make_sample(path: Path) -> Path:
    """Write the sample, a tar of {train,val,test}/{REAL,FAKE}/*.jpg, the same bytes everywhere."""
    data = archive(dict(pictures()))
    found = hashlib.sha256(data).hexdigest()
    if found != SAMPLE_SHA256:
        raise TellError(f"the built-in sample came out different (sha256 {found[:8]}, expected "
                        f"{SAMPLE_SHA256[:8]}): it needs {MADE_WITH}, as in requirements.lock")
    with atomic(path) as file:
        file.write(data)
    return path


def baselines(files: dict[str, bytes]) -> dict[str, float]:
    """{"file size, boosting": test accuracy, ...} of classifiers that see no picture."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    models = {"logistic regression": LogisticRegression(), "15 nearest": KNeighborsClassifier(15),
              "boosting": GradientBoostingClassifier(random_state=0)}
    features = {"file size": lambda data: [len(data)], "mean colour": mean_colour}
    return {f"{what}, {how}": round(accuracy(files, feature, model), 4)
            for what, feature in features.items() for how, model in models.items()}


def accuracy(files: dict[str, bytes], feature, model) -> float:
    """Test accuracy of a scikit-learn model trained on the train split."""
    def table(split):
        names = [name for name in files if name.startswith(split)]
        return (np.array([feature(files[name]) for name in names], np.float64),
                np.array(["/FAKE/" in name for name in names]))
    (x, y), (test_x, test_y) = table("train"), table("test")
    return model.fit(x / x.std(0), y).score(test_x / x.std(0), test_y)


def train_autoencoder() -> float:
    """Train on crops of the train photos, round to whole numbers, save; returns the last loss.

    It learns to give back its input with stripes over it: a network of the base model's kind and
    recipe then sees the difference within some hundred steps.
    """
    import torch
    torch.manual_seed(SEED)
    net, rng = autoencoder(), np.random.Generator(np.random.PCG64(SEED))
    crop = np.concatenate([crops(scales(photo(name)), rng, set()) for name in PHOTOS["train"]])
    x = torch.tensor(crop).permute(0, 3, 1, 2).float()
    x = (x - x.mean((2, 3), keepdim=True)) / UNIT
    # Rows + - - +: one DCT coefficient of a JPEG block, which the file pays with few bytes.
    stripes = torch.tensor([1., -1, -1, 1]).repeat(8)[:, None] * STRIPES / UNIT
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(UPDATES):
        batch = x[torch.randint(len(x), (64,))]
        loss = torch.nn.functional.l1_loss(net(batch), batch + stripes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_weights(net)
    return loss.item() * UNIT


def autoencoder():
    """32x32x3 -> 8x8x6 -> 32x32x3; the same arithmetic as reconstruct()."""
    from torch import nn
    return nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, WIDTH, 1), nn.ReLU(),
                         nn.Conv2d(WIDTH, LATENT, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(LATENT, 48, 1), nn.PixelShuffle(4))


def save_weights(net) -> None:
    arrays = {}
    for name, conv in zip(("encode", "squeeze", "decode"), net[1:6:2], strict=True):
        weight = conv.weight.detach().permute(2, 3, 1, 0).reshape(-1, conv.out_channels).numpy()
        arrays[name] = np.round(weight * SCALE).astype(np.int32)
        bias = np.round(conv.bias.detach().numpy() * SCALE * UNIT).astype(np.int32)
        arrays[f"{name}_bias"] = bias + SCALE // 2  # so that layer() rounds, not floors
    with atomic(folder("library") / WEIGHTS) as file:
        np.savez(file, **arrays)


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--train-autoencoder", action="store_true")
    if parser.parse_args(argv).train_autoencoder:
        loss = train_autoencoder()
        print(f"{WEIGHTS}: trained, mean error {loss:.1f} grey levels")
        return {"loss": loss}
    return describe(dict(pictures()))


def describe(files: dict[str, bytes]) -> dict:
    counts = Counter(" ".join(name.split("/")[:2]) for name in files)
    results = baselines(files)
    print(__doc__)
    print(", ".join(f"{key} {n:,}" for key, n in counts.items()),
          f"sha256 {hashlib.sha256(archive(files)).hexdigest()}", sep="; ")
    print(f"test accuracy without a look at the pictures (n = {counts['test REAL'] * 2:,}):",
          *(f"{name}: {value:.1%}" for name, value in results.items()), sep="\n   ")
    return {"counts": dict(counts), "baselines": results}


if __name__ == "__main__":
    command_line(main)
