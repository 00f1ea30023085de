"""The transformations of images that the paper's Table 4 sets pixel deflection against.

Feature squeezing (Xu, Evans, Qi 2018, arXiv 1704.01155), randomization (Xie et al. 2018, arXiv
1711.01991) and crops (Guo et al. 2018, arXiv 1711.00117) on images of the network's own size, one
draw a call; the other filters are those of `pdutils.denoising`. Image quilting, which Guo et al.
use too, alone and after the others, is in `pdutils.defenses.quilting`.

All take and give images of float32, shape (H, W, 3) or (N, H, W, 3), RGB in [0, 255]; with `rng`,
each image draws from a stream of its own, see `pdutils._utils`.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from pdutils._utils import (
    ABOVE_0,
    Array,
    Rng,
    as_batch,
    check_number,
    check_odd,
    check_whole,
    streams,
)
from pdutils.defenses.quilting import quilting
from pdutils.denoising import DENOISERS

#: What zero is to a network whose input is scaled to [-1, 1], as that of Xie et al. is.
MID_GREY = 127.5


def bit_depth(images: Array, *, bits: int = 5) -> Array:
    """Keep the most significant bits of each channel.

    Source: Xu, Evans, Qi 2018: a value in [0, 1] becomes the nearest of 2^bits values from 0 to 1,
    so that black and white stay; 1 to 8 bits, in the paper's table 2 and 5.
    """
    check_whole("bits", bits, 1, 8)
    batch, single = as_batch(images)
    step = np.float32(255 / (2**bits - 1))
    result: Array = np.rint(np.clip(batch, 0, 255) / step) * step
    return result[0] if single else result


def nl_means(images: Array, *, search: int = 11, patch: int = 3, strength: float = 4.0) -> Array:
    """Average those pixels of a window whose patches look alike.

    Source: Buades, Coll, Morel 2005, DOI 10.1109/CVPR.2005.38, with the three numbers by which Xu,
    Evans, Qi 2018 name it: 11-3-2, 11-3-4, 13-3-4. The sides of the window and of a patch are odd
    and reach no further than the image is long; at its border it is mirrored. A neighbour weighs
    exp(-d / strength^2), the strength in grey levels, where d is the mean square of the differences
    between the two patches, over their pixels and channels, as in OpenCV, which they used (for
    colour pictures it goes through the Lab colours and 8 bits; this stays in RGB).
    """
    check_odd("search", search)
    check_odd("patch", patch)
    check_number("strength", strength, ABOVE_0)
    batch, single = as_batch(images)
    result = np.stack([_nl_means(image, search, patch, strength) for image in batch])
    return result[0] if single else result


def squeeze(
    images: Array,
    *,
    bits: int = 5,
    size: int = 2,
    search: int = 11,
    patch: int = 3,
    strength: float = 4.0,
) -> Array:
    """Reduce the bits, take the median, then the non-local means, one after the other.

    These are the three squeezers that Xu, Evans, Qi 2018 found best together on ImageNet. They
    detect adversaries by three predictions, one a squeezer; a defence that gives one image can only
    apply them in a row. What pixel deflection's paper did with "the best three" is not known. The
    knobs are those of `bit_depth`, `pdutils.denoising.denoise_median` and `nl_means`.
    """
    reduced = DENOISERS["median"](bit_depth(images, bits=bits), size=size)
    return nl_means(reduced, search=search, patch=patch, strength=strength)


def random_resize(
    images: Array, *, smallest: float = 0.9, fill: float = MID_GREY, rng: Rng = None
) -> Array:
    """Show each image at a random size, in the middle of a grey ground.

    Source: Xie et al. 2018, who enlarge 299 pixels to 299 up to 330, for a network that takes any
    size. To one of a fixed size things can still be shown at a random scale: each whole height from
    `smallest`, in (0, 1], as a share of the image's up to one pixel less than the image's is
    equally likely; the width keeps the proportions. The ground is of the grey level `fill`.
    """
    return _laid_on_ground(images, smallest, fill, rng, sizes=True, places=False)


def random_pad(
    images: Array, *, smallest: float = 0.9, fill: float = MID_GREY, rng: Rng = None
) -> Array:
    """Show each image at one smaller size, at a random place of a grey ground.

    Source: Xie et al. 2018, who put 299 pixels at a random place of 331. For a network of a fixed
    size the whole is scaled to that: the share of the ground is the same, nine tenths. The height
    is `smallest`, in (0, 1], as a share of the image's.
    """
    return _laid_on_ground(images, smallest, fill, rng, sizes=False, places=True)


def random_resize_pad(
    images: Array, *, smallest: float = 0.9, fill: float = MID_GREY, rng: Rng = None
) -> Array:
    """Show each image at a random size, at a random place of a grey ground.

    Source: Xie et al. 2018, who enlarge 299 pixels to 299 up to 330 and put them at a random place
    of 331, scaled as in the other two. The knobs are those of `random_resize`.
    """
    return _laid_on_ground(images, smallest, fill, rng, sizes=True, places=True)


def crop_rescale(images: Array, *, side: float = 0.4, rng: Rng = None) -> Array:
    """Cut a part out of each image at a random place and scale it back to the image's size.

    Source: Guo et al. 2018, who cut 90 x 90 of 224 x 224 pixels and average the predictions of 30
    crops; this gives one, its sides in (0, 1] as a share of the image's.
    """
    check_number("side", side, ABOVE_0, 1)
    batch, single = as_batch(images)
    frame = batch.shape[1:3]
    height, width = (max(1, round(length * side)) for length in frame)
    result = np.empty_like(batch)
    for i, stream in enumerate(streams(rng, len(batch))):
        top = stream.integers(frame[0] - height + 1)
        left = stream.integers(frame[1] - width + 1)
        result[i] = _resized(batch[i, top : top + height, left : left + width], frame)
    return result[0] if single else result


def tv_quilting(
    images: Array,
    *,
    weight: float = 0.1,
    patch: int = 5,
    overlap: int = 2,
    nearest: int = 10,
    rng: Rng = None,
) -> Array:
    """Denoise by total variation, then quilt.

    The two that pixel deflection's paper has from Guo et al. 2018, who drop half of the pixels
    before they minimise the total variation; `pdutils.denoising.denoise_tv`, whose knob is
    `weight`, keeps all. The others are those of `pdutils.defenses.quilting.quilting`.
    """
    smooth = DENOISERS["tv"](images, weight=weight)
    return quilting(smooth, patch=patch, overlap=overlap, nearest=nearest, rng=rng)


def crop_tv_quilting(
    images: Array,
    *,
    side: float = 0.4,
    weight: float = 0.1,
    patch: int = 5,
    overlap: int = 2,
    nearest: int = 10,
    rng: Rng = None,
) -> Array:
    """Cut a part out, scale it to the whole, denoise by total variation, then quilt.

    The order is that of pixel deflection's paper, which does not say how it joined them; Guo et al.
    2018 crop last and average the predictions of many crops. Both draw from an image's own stream,
    the crop first. The knobs are those of `crop_rescale` and `tv_quilting`.
    """
    batch, single = as_batch(images)
    generators = streams(rng, len(batch))
    parts = crop_rescale(batch, side=side, rng=generators)
    result = tv_quilting(
        parts, weight=weight, patch=patch, overlap=overlap, nearest=nearest, rng=generators
    )
    return result[0] if single else result


PEERS: dict[str, Callable[..., Array]] = {
    "bit_depth": bit_depth,
    "median": DENOISERS["median"],
    "nl_means": nl_means,
    "squeeze": squeeze,
    **{name: DENOISERS[name] for name in ("bilateral", "tv", "wiener", "jpeg", "dct")},
    "random_resize": random_resize,
    "random_pad": random_pad,
    "random_resize_pad": random_resize_pad,
    "crop_rescale": crop_rescale,
    "quilting": quilting,
    "tv_quilting": tv_quilting,
    "crop_tv_quilting": crop_tv_quilting,
}


def _nl_means(image: Array, search: int, patch: int, strength: float) -> Array:
    # scikit-image 0.26 compares patches one pixel narrower than it is asked to, but divides by
    # the pixels of the whole patch: of 3 x 3 it takes less than half of the difference.
    height, width, _ = image.shape
    reach, rim = (
        [min(side // 2, length - 1) for length in (height, width)] for side in (search, patch)
    )
    rows, columns = height + 2 * rim[0], width + 2 * rim[1]
    # A plane a channel: NumPy is slow on an axis of three.
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    around = [(r + m, r + m) for r, m in zip(reach, rim, strict=True)]
    mirrored = np.pad(planes, [(0, 0), *around], mode="reflect")
    centre = mirrored[:, reach[0] : reach[0] + rows, reach[1] : reach[1] + columns]
    total, weights = np.zeros_like(planes), np.zeros((height, width), dtype=np.float32)
    sides = 2 * rim[0] + 1, 2 * rim[1] + 1
    scale = np.float32(-1 / (len(planes) * math.prod(sides) * strength**2))
    for down, right in np.ndindex(2 * reach[0] + 1, 2 * reach[1] + 1):
        other = mirrored[:, down : down + rows, right : right + columns]
        difference = other - centre
        unlike = _box_sum(np.einsum("chw,chw->hw", difference, difference), sides)
        weight = np.exp(scale * unlike)
        total += weight * other[:, rim[0] : rim[0] + height, rim[1] : rim[1] + width]
        weights += weight
    averaged: Array = np.moveaxis(total / weights, 0, -1)
    return np.ascontiguousarray(averaged)


def _box_sum(values: Array, sides: tuple[int, int]) -> Array:
    """Sum the values of each box of these sides that lies inside."""
    for axis, side in enumerate(sides):
        length = values.shape[axis] - side + 1
        parts = [values.take(range(i, i + length), axis=axis) for i in range(side)]
        values = np.sum(parts, axis=0)
    return values


def _laid_on_ground(
    images: Array, smallest: float, fill: float, rng: Rng, *, sizes: bool, places: bool
) -> Array:
    """Lay each image, made smaller, on a grey ground: at a random size, place, or both."""
    check_number("smallest", smallest, ABOVE_0, 1)
    check_number("fill", fill, 0, 255)
    batch, single = as_batch(images)
    frame = batch.shape[1:3]
    result = np.full_like(batch, fill)
    for i, stream in enumerate(streams(rng, len(batch))):
        height = max(1, round(frame[0] * smallest))
        if sizes:
            height = stream.integers(height, max(frame[0], height + 1))
        width = max(1, round(frame[1] * (height / frame[0])))
        free = frame[0] - height, frame[1] - width
        top, left = (stream.integers(f + 1) if places else f // 2 for f in free)
        result[i, top : top + height, left : left + width] = _resized(batch[i], (height, width))
    return result[0] if single else result


def _resized(image: Array, size: tuple[int, ...]) -> Array:
    """Scale an image bilinearly, in floating point, a channel at a time."""
    planes, way = np.ascontiguousarray(np.moveaxis(image, -1, 0)), Image.Resampling.BILINEAR
    scaled = [Image.fromarray(plane).resize((size[1], size[0]), way) for plane in planes]
    return np.stack([np.asarray(plane) for plane in scaled], axis=-1)
