"""How like the clean image a defended one is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pdutils.images import Array, check_some

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
