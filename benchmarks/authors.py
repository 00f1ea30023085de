"""The slow side: pixel deflection a pixel at a time, wavelets an image at a time.

What the authors' code does (GitHub iamaaditya/pixel-deflection, see the blog's reading in
`pdutils.deflection`), in other words. It imports no TensorFlow, so that the processes which share
a folder start quickly and stay small.
"""

import random
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from skimage.restoration import denoise_wavelet

from pdutils._utils import Array


class Draw(Protocol):
    """What the loop draws with: the module `random`, or an instance of `random.Random`."""

    def randint(self, a: int, b: int, /) -> int:
        """Draw a whole number from a to b, both included."""

    def uniform(self, a: float, b: float, /) -> float:
        """Draw a number between a and b."""


def deflect(
    image: Array,
    deflections: int,
    window: int = 10,
    activation_map: Array | None = None,
    *,
    draw: Draw = random,
) -> Array:
    """Deflect the pixels of one image by a loop over the writes, in the blog's reading.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        It is not changed.
    deflections, window
        As in `pdutils.deflection.pixel_deflection`.
    activation_map : ndarray of float32, shape (H, W), optional
        A place is spared with this probability.
    draw : Draw
        The source of the random numbers.

    Returns
    -------
    ndarray of float32, shape (H, W, 3)
    """
    result = image.copy()
    height, width, channels = image.shape
    for _ in range(deflections):
        for channel in range(channels):
            row, column = draw.randint(0, height - 1), draw.randint(0, width - 1)
            if activation_map is not None and draw.uniform(0, 1) < activation_map[row, column]:
                continue
            while True:
                down, right = draw.randint(-window, window), draw.randint(-window, window)
                # Row and column 0 are never read from.
                if 0 < row + down < height and 0 < column + right < width:
                    break
            result[row, column, channel] = result[row + down, column + right, channel]
    return result


def denoise(image: Array, sigma: float = 0.04) -> Array:
    """Denoise one image by scikit-image, in today's meaning of sigma.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    sigma : float
        Of RGB values in [0, 1].

    Returns
    -------
    ndarray of float32, shape (H, W, 3)
    """
    denoised: Array = denoise_wavelet(
        image / 255,
        sigma=sigma,
        method="BayesShrink",
        mode="soft",
        channel_axis=-1,
        convert2ycbcr=True,
    )
    return denoised * 255


def defend_file(path: Path) -> Array:
    """Load a picture, then deflect 200 times and denoise.

    Parameters
    ----------
    path : Path
        A picture of the size that the network takes.

    Returns
    -------
    ndarray of float32, shape (H, W, 3)
    """
    with Image.open(path) as picture:
        image = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return denoise(deflect(image, 200))


def defend_files(paths: list[Path], pool: Executor) -> Array:
    """Do as `defend_file` with many files, shared among processes.

    Parameters
    ----------
    paths : list of Path
        Pictures of one size.
    pool : Executor
        Processes that are ready.

    Returns
    -------
    ndarray of float32, shape (N, H, W, 3)
    """
    return np.stack(list(pool.map(defend_file, paths, chunksize=8)))
