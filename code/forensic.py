"""Hand-made statistics of a picture's finest detail, which cameras and generators make differently.

forensics(pixels) is the comparison that general.py puts beside learnt features: noise residuals, how colours
and neighbours agree in them, and their spectrum. Nothing of it is fitted, and nothing looks at the JPEG grid.
After Fridrich and Kodovsky, "Rich Models", IEEE TIFS 7, 2012, and Durall et al., CVPR 2020.
"""
import numpy as np

RINGS = 24  # of the spectrum, from 0 to half the sampling rate in each direction's diagonal
LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2), (0, 3), (3, 0))  # rows, columns
YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
FLOOR = 0.05  # grey levels: below it a residual is rounding


def forensics(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) RGB, at least 16 x 16 -> float32 (k,), of any picture the same k, all finite."""
    rgb = pixels.astype(np.float32)
    ycc = rgb @ YCC.T
    parts = [strength(ycc), agreement(rgb), neighbours(ycc[..., 0]), smooth_places(ycc[..., 0]),
             *(spectrum(ycc[..., i]) for i in range(3))]
    return np.concatenate(parts).astype(np.float32)


def residuals(x: np.ndarray) -> list[np.ndarray]:
    """First, second and mixed differences of (h, w, c) along both axes, and rich models' square filter."""
    across, down = np.diff(x, axis=1), np.diff(x, axis=0)
    second, mixed = np.diff(across, axis=1), np.diff(across, axis=0)
    return [across, down, second, np.diff(down, axis=0), mixed, np.diff(np.diff(second, axis=0), axis=0) / 4]


def strength(ycc: np.ndarray) -> np.ndarray:
    """Log standard deviation of each residual and channel, and how heavy its tails are."""
    found = []
    for one in residuals(ycc):
        spread, typical = one.std(axis=(0, 1)), abs(one).mean(axis=(0, 1))
        found += [np.log(spread + FLOOR), np.log((typical + FLOOR) / (spread + FLOOR))]
    return np.concatenate(found)


def agreement(rgb: np.ndarray) -> np.ndarray:
    """Correlation of the mixed residual between red, green and blue: a camera interpolates two of three."""
    mixed = residuals(rgb)[4].reshape(-1, 3)
    mixed = (mixed - mixed.mean(axis=0)) / (mixed.std(axis=0) + FLOOR)
    table = mixed.T @ mixed / len(mixed)
    return table[[0, 1, 0], [1, 2, 2]]


def blurred(x: np.ndarray) -> np.ndarray:
    """(h, w) -> the mean of each 3 x 3 square with weights 1 2 1, reflected at the edge."""
    for _ in range(2):
        x = np.pad(x, ((1, 1), (0, 0)), "reflect")
        x = ((x[:-2] + x[2:]) / 4 + x[1:-1] / 2).T
    return x


def neighbours(grey: np.ndarray) -> np.ndarray:
    """Autocorrelation of what blurring removes, at LAGS."""
    fine = grey - blurred(grey)
    h, w = fine.shape
    return np.array([(fine[y:, x:] * fine[:h - y, :w - x]).mean() for y, x in LAGS]) / (fine.var() + FLOOR)


def smooth_places(grey: np.ndarray) -> np.ndarray:
    """Quantiles of the residual's log strength over squares of 8 x 8: sensors are noisy in smooth ones."""
    mixed = residuals(grey[..., None])[4][..., 0] ** 2
    h, w = mixed.shape[0] // 8, mixed.shape[1] // 8
    squares = np.sqrt(mixed[:8 * h, :8 * w].reshape(h, 8, w, 8).mean(axis=(1, 3)))
    return np.quantile(np.log(squares + FLOOR), [0.05, 0.25, 0.5, 0.75, 0.95])


def spectrum(channel: np.ndarray) -> np.ndarray:
    """Log power of what blurring removes in RINGS rings of frequency, less their mean, and that mean."""
    h, w = channel.shape
    window = np.hanning(h)[:, None] * np.hanning(w)
    power = abs(np.fft.rfft2((channel - blurred(channel)) * window)) ** 2 / (h * w)
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)) / np.hypot(0.5, 0.5)
    ring = np.minimum((radius * RINGS).astype(int), RINGS - 1).ravel()
    found = np.log(np.bincount(ring, power.ravel(), RINGS) / np.bincount(ring, minlength=RINGS) + FLOOR**2)
    return np.append(found - found.mean(), found.mean())
