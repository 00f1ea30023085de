"""Image quilting: an image put together anew from patches of clean photos.

Guo, Rana, Cisse, van der Maaten 2018 (arXiv 1711.00117) defend with the quilting of Efros, Freeman
2001 (DOI 10.1145/383259.383296). Theirs are patches of 5 x 5 pixels that overlap by 2, of a million
from ImageNet's training images, one of the 10 nearest for each place; these three numbers are the
defaults here. (Their published code takes the nearest one where it is not told otherwise; 10 have
Athalye, Carlini, Wagner 2018, arXiv 1802.00420, who broke this defence.) They also train networks
on quilted images; here any network is defended as it is.

The bank is ours, and far smaller: it is made of two photos that scikit-image carries, the astronaut
and the left one of `stereo_motorcycle`. No defence is tried on either here; the photos that the
notebooks and the explorer show, `coffee`, `chelsea` and `rocket`, are left out for that reason.
Since the two lack some colours, green above all, each patch has its channels in a random order.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d
from scipy.spatial import cKDTree
from skimage import data

from pdutils._utils import Array, Pixels, Rng, as_batch, check_whole, streams

#: How many places the bank is taken from, half of them in each photo, by the draws of a fixed seed.
#: Patches that are alike count once, which leaves a few less.
PLACES, _SEED = 40_000, 0

#: Nearest is by the first principal components of the bank: 24 of the 75 of 5 x 5 pixels hold more
#: than 0.99 of its variance. By all 75 a search takes three times as long for hardly nearer ones.
COMPONENTS = 24


def quilting(
    images: Array, *, patch: int = 5, overlap: int = 2, nearest: int = 10, rng: Rng = None
) -> Array:
    """Put each image together anew from patches of clean photos.

    Source: Guo et al. 2018: for each place of a grid one of the `nearest` patches, from 1 to 100,
    is drawn, all equally likely. A patch's side is from 1 to 16 pixels; it overlaps its neighbours
    by at most half of that. As Efros, Freeman 2001 have it, two neighbours meet along the path
    through their overlap on which they differ least, in the sum of squares over the channels; what
    lies on the path belongs to the right or lower one. First the patches of a row are joined, then
    the rows, each along one path through all of the image; Guo et al. look for a minimal cut of a
    graph instead. Where the grid reaches beyond the image, it is mirrored there.
    """
    check_whole("patch", patch, 1, 16)
    check_whole("overlap", overlap, 0, patch // 2)
    check_whole("nearest", nearest, 1, 100)
    batch, single = as_batch(images)
    drawn, known = zip(batch, streams(rng, len(batch)), strict=True), bank(patch)
    result = np.stack([_quilted(image, known, overlap, nearest, stream) for image, stream in drawn])
    return result[0] if single else result


class Bank(NamedTuple):
    """Patches, uint8 (n, side, side, 3), and a tree of their principal components."""

    patches: Pixels
    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    tree: cKDTree

    def find(self, patches: Array, nearest: int) -> NDArray[np.int64]:
        """Give the numbers (n, nearest) of the patches in the bank that are nearest to others."""
        flat = patches.reshape(len(patches), -1) - self.centre
        found: NDArray[np.int64] = self.tree.query(flat @ self.axes, k=range(1, nearest + 1))[1]
        return found


@lru_cache(maxsize=2)
def bank(side: int) -> Bank:
    """Make the bank of patches of a side, once a process."""
    rng = np.random.default_rng(_SEED)
    photos = data.astronaut(), data.stereo_motorcycle()[0]
    patches = np.concatenate([_drawn(photo, side, PLACES // len(photos), rng) for photo in photos])
    patches = np.unique(patches.reshape(PLACES, -1), axis=0)
    values = patches.astype(np.float64)
    centre = values.mean(axis=0)
    # From the least component to the greatest.
    axes = np.linalg.eigh(np.cov(values, rowvar=False))[1][:, -COMPONENTS:]
    tree = cKDTree((values - centre) @ axes)
    return Bank(patches.reshape(-1, side, side, 3), centre, axes, tree)


def _drawn(photo: Pixels, side: int, count: int, rng: np.random.Generator) -> Pixels:
    """Draw patches from different places of a photo, each with its channels in a random order."""
    windows = _windows(photo, side)
    sites = rng.choice(math.prod(windows.shape[:2]), count, replace=False)
    patches = windows[np.unravel_index(sites, windows.shape[:2])]
    order = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
    return np.take_along_axis(patches, order[:, np.newaxis, np.newaxis], axis=-1)


def _windows(image: NDArray[Any], side: int, step: int = 1) -> NDArray[Any]:
    """Give the patches (rows, columns, side, side, 3) of an image, a view."""
    view = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1))
    return np.moveaxis(view[::step, ::step], 2, -1)


def _quilted(
    image: Array, bank: Bank, overlap: int, nearest: int, rng: np.random.Generator
) -> Array:
    (height, width), patch = image.shape[:2], bank.patches.shape[1]
    step = patch - overlap
    beyond = [max(patch - length, (patch - length) % step) for length in (height, width)]
    mirrored = np.pad(image, [*((0, more) for more in beyond), (0, 0)], mode="symmetric")
    places = _windows(mirrored, patch, step)
    found = bank.find(places.reshape(-1, patch, patch, 3), nearest)
    chosen = np.take_along_axis(found, rng.integers(nearest, size=(len(found), 1)), axis=1)
    pieces = bank.patches[chosen[:, 0]].reshape(places.shape).astype(np.float32)
    rows = _sewn(pieces, overlap)
    # The rows, too, lie side by side once rows and columns are swapped.
    turned = _sewn(rows.swapaxes(1, 2)[np.newaxis], overlap)[0]
    return np.ascontiguousarray(turned.swapaxes(0, 1)[:height, :width])


def _sewn(pieces: Array, overlap: int) -> Array:
    """Join pieces (n, count, length, width, 3) that lie side by side into n images."""
    n, count, length, width, _ = pieces.shape
    step = width - overlap
    sewn = pieces.copy()
    if overlap:
        left, right = pieces[:, :-1, :, step:], pieces[:, 1:, :, :overlap]
        seam = _seams(np.square(left - right).sum(axis=-1))
        from_left = np.arange(overlap) < seam[..., np.newaxis]
        # An overlap of at most half keeps the two sides of a piece apart.
        sewn[:, 1:, :, :overlap] = np.where(from_left[..., np.newaxis], left, right)
    body = sewn[..., :step, :].swapaxes(1, 2).reshape(n, length, count * step, 3)
    return np.concatenate([body, sewn[:, -1, :, step:]], axis=2)


def _seams(errors: Array) -> NDArray[np.intp]:
    """Give the place at each step (..., length) of the path of the least sum of errors.

    The errors are (..., length, places); from step to step a path moves by one place at most.
    """
    # Whole numbers, whose sums are exact.
    total = errors.astype(np.float64)
    length, places = total.shape[-2:]
    for i in range(1, length):
        total[..., i, :] += minimum_filter1d(total[..., i - 1, :], 3, mode="nearest")
    path = np.empty(total.shape[:-1], dtype=np.intp)
    path[..., -1] = total[..., -1, :].argmin(axis=-1)
    for i in reversed(range(length - 1)):
        near = np.abs(np.arange(places) - path[..., i + 1, np.newaxis]) <= 1
        path[..., i] = np.where(near, total[..., i, :], np.inf).argmin(axis=-1)
    return path
