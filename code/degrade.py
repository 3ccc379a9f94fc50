"""What happens to pictures on their way: saved again, resized, blurred, sent on; for testing and training.

    python code/degrade.py                               draws the curves again from paper/results/
    python code/degrade.py -mf base_model attn_model     measures these networks first (robustness.py)

A degradation sees pixels, strength and random numbers, never the label, so both classes fare alike.
From 17 us (brightness) to 0.34 ms (WebP) for a 32-pixel picture. In training: batches of 18,700 pictures
a second with it, 68,000 without (seconds of one core, AMD EPYC, 21 November 2026).
"""
from collections.abc import Callable
from io import BytesIO
from numbers import Real
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from decode import decode_jpeg
from files import TellError, command_line

SHARE = 0.5  # of the pictures that `augmented` degrades


# --- one picture: uint8 (h, w, 3), strength, random numbers -> uint8 of the same shape -------------

def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    size = max(1, width), max(1, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    return resized(pixels, *(round(side * factor) for side in pixels.shape[:2]))


def saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, quality: float, random: np.random.Generator | None = None) -> np.ndarray:
    # Not by simplejpeg: below quality 96 it takes libjpeg's fast DCT (whatever its `fastdct`), which few
    # programs do, and whose pixels are a grey level away.
    return decode_jpeg(saved(pixels, "JPEG", quality=round(quality), subsampling="4:2:0"))


def webp(pixels: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(saved(pixels, "WEBP", quality=round(quality)))).convert("RGB"))


def resize(pixels: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    return resized(scaled(pixels, factor), *pixels.shape[:2])


def blur(pixels: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(float(sigma))))


def noise(pixels: np.ndarray, sd: float, random: np.random.Generator) -> np.ndarray:
    noisy = pixels + np.float32(sd) * random.standard_normal(pixels.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def tone(pixels: np.ndarray, factor: float, gamma: float = 1.0) -> np.ndarray:
    """Each grey level v becomes 255 factor (v / 255)^gamma, rounded and clipped."""
    levels = 255 * factor * (np.arange(256) / 255) ** gamma
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[pixels]


def brightness(pixels: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    return tone(pixels, factor)


def crop(pixels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    whole = pixels.shape[:2]
    height, width = (max(1, round(side * share)) for side in whole)
    top, left = random.integers((whole[0] - height + 1, whole[1] - width + 1))
    return resized(pixels[top:top + height, left:left + width], *whole)


def messenger(pixels: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    return resized(jpeg(jpeg(scaled(pixels, factor), 70), 60), *pixels.shape[:2])


def screenshot(pixels: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    # The file of a screenshot is a PNG, which loses nothing: no step of its own.
    return jpeg(resized(tone(scaled(pixels, factor), 1.03, 1.05), *pixels.shape[:2]), 90)


class Degradation(NamedTuple):
    """apply: (uint8 (h, w, 3), strength, Generator) -> uint8 (h, w, 3); strengths: from mild to strong."""
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    strengths: tuple[float, ...]
    unit: str
    what: str


QUALITIES = (95, 85, 75, 60, 45, 30)
DEGRADATIONS = {
    "JPEG": Degradation(jpeg, QUALITIES, "quality", "saved as JPEG, colours at half size (4:2:0)"),
    "WebP": Degradation(webp, QUALITIES, "quality", "saved as lossy WebP"),
    "smaller": Degradation(resize, (0.9, 0.75, 0.6, 0.5, 0.35, 0.25), "size in between (factor)",
                           "made smaller and brought back, bicubic: a thumbnail shown large"),
    "larger": Degradation(resize, (1.1, 1.25, 1.5, 2, 3), "size in between (factor)",
                          "made larger and brought back, bicubic"),
    "blur": Degradation(blur, (0.3, 0.5, 0.7, 1, 1.5, 2), "sigma (pixels)",
                        "Gaussian blur, as Pillow approximates it"),
    "noise": Degradation(noise, (2, 4, 8, 12, 16, 24), "sd (grey levels)",
                         "Gaussian noise, each pixel and colour on its own"),
    "darker": Degradation(brightness, (0.9, 0.8, 0.7, 0.6, 0.45, 0.3), "brightness (factor)",
                          "grey levels multiplied"),
    "brighter": Degradation(brightness, (1.1, 1.2, 1.35, 1.5, 1.75, 2), "brightness (factor)",
                            "grey levels multiplied, clipped at white"),
    "crop": Degradation(crop, (0.95, 0.9, 0.8, 0.7, 0.6, 0.5), "side kept (share)",
                        "a part at a random place, brought back to the whole's size, bicubic"),
    "messenger": Degradation(messenger, (0.9, 0.75, 0.6, 0.5, 0.35, 0.25), "size sent (factor)",
                             "made smaller, JPEG 70, JPEG 60 (sent on), brought back"),
    "screenshot": Degradation(screenshot, (1.5, 1.25, 0.9, 0.75, 0.6, 0.45), "size on screen (factor)",
                              "drawn at that size, gamma 1.05, 3 % brighter, brought back, JPEG 90"),
}
# WebP and the chains stay out, so that they show how training carries over to what it did not see.
AUGMENTED = ("JPEG", "smaller", "larger", "blur", "noise", "darker", "brighter", "crop")


def require_known(name: str, strength: float) -> None:
    """TellError unless `name` is in DEGRADATIONS and `strength` within the range of its strengths."""
    if name not in DEGRADATIONS:
        raise TellError(f"no degradation is called {name!r}; there are {', '.join(DEGRADATIONS)}")
    low, high = min(DEGRADATIONS[name].strengths), max(DEGRADATIONS[name].strengths)
    if not (isinstance(strength, Real) and low <= strength <= high):
        raise TellError(f"{name}: the strength {strength!r} is not a number from {low:g} to {high:g}, "
                        f"{DEGRADATIONS[name].unit}")


def degrade(pixels: np.ndarray, name: str, strength: float, seed: int, sha256: np.ndarray) -> np.ndarray:
    """One picture, uint8 (h, w, 3), degraded: the same shape.

    Random numbers depend on seed and content (sha256 uint8 (32,) of the picture's file) alone, so that a
    picture's noise is the same field at each strength. Name and strength as require_known wants them.
    """
    random = np.random.default_rng([seed, int.from_bytes(sha256[:8].tobytes())])
    return DEGRADATIONS[name].apply(pixels, strength, random)


def augmented(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For training: one picture, uint8 (h, w, 3), with probability SHARE degraded, else as it is.

    Each of AUGMENTED is as likely, its strength uniform from the mildest to the middle one of its list.
    """
    degrades, which, how = random.random(3)
    if degrades >= SHARE:
        return pixels
    apply, strengths, *_ = DEGRADATIONS[AUGMENTED[int(which * len(AUGMENTED))]]
    return apply(pixels, strengths[0] + how * (strengths[len(strengths) // 2] - strengths[0]), random)


if __name__ == "__main__":
    from robustness import main  # here, because it imports this module
    command_line(main)
