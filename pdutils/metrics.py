"""How far images are from one another, and how alike two maps are.

All but `correlation` take two images (H, W, 3) or two batches (N, H, W, 3) of float32, RGB in
[0, 255], the clean ones first, and give one number, or N.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pdutils._utils import ROUNDING, Array, check_images

#: The window of SSIM, in pixels: smaller images have none.
SMALLEST_SIDE = 11

#: Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

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
    pair = ((x @ _LUMA).reshape(-1, *x.shape[-3:-1]) for x in (images, others))
    measure = partial(structural_similarity, data_range=255, gaussian_weights=True, sigma=1.5,
                      use_sample_covariance=False)  # fmt: skip
    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(measure, *pair)), dtype=np.float64)
    likeness: NDArray[np.float64] = found.reshape(images.shape[:-3])[()]
    return likeness


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
