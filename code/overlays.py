"""Drawn over a picture of any size: a heat map, or the tiles that voted, each in its colour.

Orange towards FAKE, blue towards REAL, over the picture in grey; what a network did not look at is pale.
"""
import numpy as np
from PIL import Image

SKETCH = 512  # pixels of a heat map's longer side
SHEET = 1024  # of one that shows tiles
CELL_MIN = 24  # pixels a side of a tile there
CELL = 8      # pixels a side, of a tile's map over a larger picture
OPACITY = 0.7
EDGE = 2      # pixels of a tile's outline
FAKE_COLOUR, REAL_COLOUR = (213, 94, 0), (0, 114, 178)  # those of figures.py


def sketch(picture: np.ndarray, boxes: np.ndarray, side: int = SKETCH) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 (h, w, 3) at the size that heat maps have, and `boxes` (k, 4) in its pixels.

    The longer side becomes at most `side`; a picture of less than half of that is enlarged by a whole factor.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    filter = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    ends = np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:])) * scale
    ends = ends.round().astype(int)
    return np.asarray(Image.fromarray(picture).resize(shape, filter)), np.hstack(
        (ends[:, :2], np.maximum(ends[:, 2:] - ends[:, :2], 1)))


def legible(maps: np.ndarray) -> np.ndarray:
    """Maps (k, s, s) of a picture's views; of several tiles means over CELL x CELL pixels.

    A map of single pixels would not be seen over a picture of hundreds.
    """
    if len(maps) == 1:
        return maps
    k, side = len(maps), maps.shape[1] // CELL
    whole = maps[:, :side * CELL, :side * CELL]  # of a side that CELL does not divide a few pixels are lost
    return whole.reshape(k, side, CELL, side, CELL).mean(axis=(2, 4))


def overlay(picture: np.ndarray, boxes: np.ndarray, maps: np.ndarray) -> Image.Image:
    """Signed maps (k, rows, columns) of boxes (k, 4) over a picture uint8 (h, w, 3), as sketch() gives both.

    Orange towards FAKE, blue towards REAL, over the picture in grey; full colour from the 98th percentile of
    absolute values on. What was not seen is pale.
    """
    heat, seen = np.zeros(picture.shape[:2], np.float32), np.zeros(picture.shape[:2], bool)
    for (top, left, height, width), one in zip(boxes, maps, strict=True):
        place = np.s_[top:top + height, left:left + width]
        heat[place] = Image.fromarray(one).resize(heat[place].shape[::-1], Image.Resampling.BILINEAR)
        seen[place] = True
    strength = OPACITY * np.minimum(abs(heat) / (np.quantile(abs(heat[seen]), 0.98) or 1), 1)[..., None]
    colour = np.where(heat[..., None] > 0, *np.array((FAKE_COLOUR, REAL_COLOUR), np.float32))
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    pale = 255 - (255 - grey) / 3
    shaded = np.where(seen[..., None], grey + (colour - grey) * strength, pale)
    return Image.fromarray(shaded.round().astype(np.uint8))


def sheet(picture: np.ndarray, boxes: np.ndarray, logits: np.ndarray) -> Image.Image:
    """The tiles that voted on a picture, each in the colour of its own logit of FAKE, over the picture.

    Takes what sketch() gives and logits (k,). Orange FAKE, blue REAL, the fuller the surer, outlined, at
    least CELL_MIN pixels a side; what was not looked at is grey and pale.
    """
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)
    drawn, light = np.repeat((255 - (255 - grey) / 3)[..., None], 3, axis=2), 255 - (255 - grey) * 0.6
    for (top, left, height, width), logit in zip(boxes, logits, strict=True):
        rows, columns = (slice(*grown(*ends)) for ends in (
            (top, height, len(grey)), (left, width, grey.shape[1])))
        colour = np.array(FAKE_COLOUR if logit > 0 else REAL_COLOUR, np.float32)
        strength = OPACITY * abs(np.tanh(logit / 2))  # the distance of P(fake) from 1/2
        drawn[rows, columns] = colour
        inside = np.s_[rows.start + EDGE:rows.stop - EDGE, columns.start + EDGE:columns.stop - EDGE]
        drawn[inside] = light[inside][..., None] * (1 - strength) + colour * strength
    return Image.fromarray(drawn.round().astype(np.uint8))


def grown(start: int, length: int, end: int) -> tuple[int, int]:
    """A stretch of at least CELL_MIN about the same middle, inside 0 to `end` as far as that is as long."""
    size = max(length, CELL_MIN)
    first = int(np.clip(start + (length - size) // 2, 0, max(0, end - size)))
    return first, min(first + size, end)
