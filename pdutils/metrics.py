"""How far images are from one another, and how alike two maps are."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pdutils.images import ROUNDING, Array, as_batch, check_some

#: The window of SSIM, in pixels: smaller images have none.
SMALLEST_SIDE = 11


#: Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def psnr(clean: Array, defended: Array) -> NDArray[np.float64]:
    """Measure the peak signal-to-noise ratio over all channels.

    Parameters
    ----------
    clean, defended : ndarray of float32, shape (N, H, W, 3)
        RGB in [0, 255].

    Returns
    -------
    ndarray of float64, shape (N,)
        In dB; infinite where the two are equal.
    """
    check_some(clean, "clean")
    error = np.square(defended - clean).mean(axis=(1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):
        ratio: NDArray[np.float64] = 10 * np.log10(255.0**2 / error)
    return ratio


def ssim(clean: Array, defended: Array) -> NDArray[np.float64]:
    """Measure the structural similarity of the luma, on all cores.

    Source: Wang et al. 2004, DOI 10.1109/TIP.2003.819861, with its Gaussian window of 11 x 11.

    Parameters
    ----------
    clean, defended : ndarray of float32, shape (N, H, W, 3)
        RGB in [0, 255], at least 11 pixels a side.

    Returns
    -------
    ndarray of float64, shape (N,)
        1 where the two are equal.
    """
    check_some(clean, "clean")
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(_ssim, clean @ _LUMA, defended @ _LUMA)), dtype=np.float64)


def _ssim(clean: Array, defended: Array) -> float:
    return float(
        structural_similarity(
            clean,
            defended,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def correlation(field: NDArray[Any], other: NDArray[Any]) -> float:
    """Correlate two fields over their pixels (Pearson).

    Parameters
    ----------
    field, other : ndarray, the same shape
        Such as two maps of the same image.

    Returns
    -------
    float
        From -1 to 1; 0 if one of them is constant, if only but for rounding, since nothing varies
        with it.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if field.shape != other.shape:
        raise ValueError(f"expected two fields of one shape, got {field.shape} and {other.shape}")
    pair = np.stack([field.ravel(), other.ravel()]).astype(np.float64)
    if (np.ptp(pair, axis=1) <= ROUNDING * np.abs(pair).max(axis=1)).any():
        return 0.0
    return float(np.asarray(np.corrcoef(pair))[0, 1])


def relative_l2(images: Array, others: Array) -> Array:
    """Measure a perturbation as the paper does: ||x - x'|| / ||x||, Euclidean norms.

    It is infinite where a black image was changed.

    Parameters
    ----------
    images, others : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        The clean images and the changed ones.

    Returns
    -------
    ndarray of float32, shape () or (N,)

    Raises
    ------
    ValueError
        If the two have different shapes or break the contract.
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
    """Measure a perturbation by its greatest change of a channel, in grey levels of 255.

    Parameters
    ----------
    images, others : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        The clean images and the changed ones.

    Returns
    -------
    ndarray of float32, shape () or (N,)

    Raises
    ------
    ValueError
        If the two have different shapes or break the contract.
    """
    batch, changed, single = _pair(images, others)
    greatest: Array = np.abs(changed - batch).max(axis=(1, 2, 3))
    return greatest[0] if single else greatest


def _pair(images: Array, others: Array) -> tuple[Array, Array, bool]:
    batch, single = as_batch(images)
    changed, _ = as_batch(others, "others")
    if images.shape != others.shape:
        raise ValueError(f"others: expected the shape {images.shape}, got {others.shape}")
    return batch, changed, single
