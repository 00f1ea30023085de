"""How far images are from one another, and how alike two maps are.

All but `correlation` take two images (H, W, 3) or two batches (N, H, W, 3) of float32, RGB in
[0, 255], the clean ones first, and give one number, or N.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pdutils.images import ROUNDING, Array, as_batch

#: The window of SSIM, in pixels: smaller images have none.
SMALLEST_SIDE = 11

#: Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def relative_l2(images: Array, others: Array) -> Array:
    """Measure a perturbation as the paper does: ||x - x'|| / ||x||, Euclidean norms, float32.

    It is infinite where a black image was changed.
    """
    batch, changed, single = _pair(images, others)
    axes = (1, 2, 3)
    change = np.sqrt(np.square(changed - batch, dtype=np.float64).sum(axes))
    norm = np.sqrt(np.square(batch, dtype=np.float64).sum(axes))
    with np.errstate(divide="ignore"):
        ratio = np.divide(change, norm, out=np.zeros_like(change), where=change > 0)
    relative: Array = ratio.astype(np.float32)
    return relative[0] if single else relative


def linf(images: Array, others: Array) -> Array:
    """Measure a perturbation by its greatest change of a channel, in grey levels of 255."""
    batch, changed, single = _pair(images, others)
    greatest: Array = np.abs(changed - batch).max(axis=(1, 2, 3))
    return greatest[0] if single else greatest


def psnr(images: Array, others: Array) -> NDArray[np.float64]:
    """Measure the peak signal-to-noise ratio over all channels, in dB.

    It is infinite where the two are equal.
    """
    batch, changed, single = _pair(images, others)
    error = np.square(changed - batch).mean(axis=(1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):
        ratio: NDArray[np.float64] = 10 * np.log10(255.0**2 / error)
    return ratio[0] if single else ratio


def ssim(images: Array, others: Array) -> NDArray[np.float64]:
    """Measure the structural similarity of the luma, on all cores; 1 where the two are equal.

    Source: Wang et al. 2004, DOI 10.1109/TIP.2003.819861, with its Gaussian window of 11 x 11: the
    images have at least 11 pixels a side.
    """
    batch, changed, single = _pair(images, others)
    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(_ssim, batch @ _LUMA, changed @ _LUMA)), dtype=np.float64)
    return found[0] if single else found


def _ssim(clean: Array, other: Array) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(clean, other, data_range=255, **options))


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


def _pair(images: Array, others: Array) -> tuple[Array, Array, bool]:
    batch, single = as_batch(images)
    changed, _ = as_batch(others, "others")
    if images.shape != others.shape:
        raise ValueError(f"others: expected the shape {images.shape}, got {others.shape}")
    return batch, changed, single
