"""How far images are from one another, and how alike two maps are.

All but `correlation` take two images (H, W, 3) or two batches (N, H, W, 3) of float32, RGB in
[0, 255], the clean ones first, and give one number, or N.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import ROUNDING, Array, check_images

#: The window of SSIM, in pixels: smaller images have none.
SMALLEST_SIDE = 11

#: Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

#: How many rows are averaged at once, and the weights of the rows around for each of them: those of
#: a Gaussian of 1.5 pixels.
_BAND = 16
_GAUSSIAN = np.exp(-np.square(np.arange(SMALLEST_SIDE) - SMALLEST_SIDE // 2) / (2 * 1.5**2))
_WINDOW = np.stack([np.pad(_GAUSSIAN / _GAUSSIAN.sum(), (i, _BAND - 1 - i)) for i in range(_BAND)])

_IMAGE = (-3, -2, -1)


def relative_l2(images: Array, others: Array) -> Array:
    """Measure a perturbation as the paper does: ||x - x'|| / ||x||, Euclidean norms, float32.

    It is infinite where a black image was changed.
    """
    both = _change(images, others), images
    change, norm = (np.sqrt(np.square(x, dtype=np.float64).sum(_IMAGE)) for x in both)
    with np.errstate(divide="ignore"):
        ratio = np.divide(change, norm, out=np.zeros_like(change), where=change > 0)
    relative: Array = ratio.astype(np.float32)[()]
    return relative


def linf(images: Array, others: Array) -> Array:
    """Measure a perturbation by its greatest change of a channel, in grey levels of 255."""
    greatest: Array = np.abs(_change(images, others)).max(_IMAGE)
    return greatest


def psnr(images: Array, others: Array) -> NDArray[np.float64]:
    """Measure the peak signal-to-noise ratio over all channels, in dB; infinite between equals."""
    error = np.square(_change(images, others)).mean(_IMAGE, dtype=np.float64)
    with np.errstate(divide="ignore"):
        ratio: NDArray[np.float64] = 10 * np.log10(255.0**2 / error)
    return ratio


def ssim(images: Array, others: Array) -> NDArray[np.float64]:
    """Measure the structural similarity of the luma, on all cores; 1 between equals.

    Source: Wang et al. 2004, DOI 10.1109/TIP.2003.819861, with its Gaussian window of 11 x 11: the
    images have at least 11 pixels a side.
    """
    _change(images, others)
    pairs = (x.reshape(-1, *x.shape[-3:]) for x in (images, others))
    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(_ssim, *pairs)), dtype=np.float64)
    likeness: NDArray[np.float64] = found.reshape(images.shape[:-3])[()]
    return likeness


def _ssim(image: Array, other: Array) -> float:
    """Measure one pair; what is averaged with the window lies inside the image all over."""
    # In float32 a white ground would differ from itself by the rounding of its squares.
    x, y = ((rgb @ _LUMA).astype(np.float64) for rgb in (image, other))
    fields = np.stack([x, y, x * x + y * y, x * y])
    mean_x, mean_y, squares, product = _windowed(_windowed(fields).swapaxes(1, 2))
    both, each = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * both + light) * (2 * (product - both) + contrast)
    below = (each + light) * (squares - each + contrast)
    return float(np.mean(above / below))


def _windowed(fields: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average rows (F, H, W) with the window: (F, H - 10, W)."""
    beyond = SMALLEST_SIDE - 1
    rows = fields.shape[1] - beyond
    averaged = np.empty((len(fields), rows, fields.shape[2]))
    # A product with a small table of weights is quicker than a sum over the window.
    for top in range(0, rows, _BAND):
        n = min(_BAND, rows - top)
        weights, taken = _WINDOW[:n, : n + beyond], fields[:, top : top + n + beyond]
        np.matmul(weights, taken, out=averaged[:, top : top + n])
    return averaged


def correlation(field: NDArray[Any], other: NDArray[Any]) -> float:
    """Correlate two fields of one shape, such as maps, over their pixels (Pearson).

    It is 0 if one of them is constant, if only but for rounding, since nothing varies with it.
    """
    if field.shape != other.shape:
        raise ValueError(f"expected two fields of one shape, got {field.shape} and {other.shape}")
    pair = np.stack([field.ravel(), other.ravel()]).astype(np.float64)
    if (np.ptp(pair, axis=1) <= ROUNDING * np.abs(pair).max(axis=1)).any():
        return 0.0
    return float(np.asarray(np.corrcoef(pair))[0, 1])


def _change(images: Array, others: Array) -> Array:
    check_images(images)
    check_images(others, "others")
    if images.shape != others.shape:
        raise ValueError(f"others: expected the shape {images.shape}, got {others.shape}")
    return others - images
