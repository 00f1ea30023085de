"""Wavelet denoising, in both meanings that its sigma has had, and the other denoisers.

The thresholds are scikit-image's: BayesShrink (Chang, Yu, Vetterli 2000,
DOI 10.1109/83.862633) and VisuShrink (Donoho, Johnstone 1994, DOI 10.1093/biomet/81.3.425).
"""

import inspect
import io
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import pywt
from PIL import Image
from scipy import fft, ndimage
from skimage import color as colors
from skimage import restoration

from pdutils._utils import (
    ABOVE_0,
    ROUNDING,
    Array,
    as_batch,
    check_number,
    check_odd,
    check_one_of,
    check_whole,
)

Shrinkage = Literal["BayesShrink", "VisuShrink"]
Mode = Literal["soft", "hard"]
Color = Literal["ycbcr", "rgb"]
SigmaScale = Literal["channel", "rgb"]

_Denoiser = TypeVar("_Denoiser", bound=Callable[..., Any])

#: From RGB to YCbCr and back, rows on the left; the offset of YCbCr only moves the mean, which
#: wavelet denoising leaves alone.
TO_YCBCR = (colors.rgb2ycbcr(np.eye(3)) - colors.rgb2ycbcr(np.zeros(3))) / 255
FROM_YCBCR = np.linalg.inv(TO_YCBCR)

#: The noise that each channel of YCbCr has of noise of 1 in RGB.
_SPREAD = np.sqrt(np.square(TO_YCBCR).sum(axis=0))

#: A sigma that leaves no detail, while its square in grey levels is still a float32.
BOUNDLESS = 1e15

#: Haar's wavelet, by its names.
_HAAR = ("db1", "haar")

#: The side of a block whose cosine coefficients are thresholded, as in JPEG; and how many images'
#: coefficients fit into a core's cache together.
_BLOCK, _PART = 8, 8

#: From the 8 values of a row or column of a block to their cosine coefficients, rows on the right.
_COSINES = fft.dct(np.eye(_BLOCK, dtype=np.float32), axis=0, norm="ortho")


def _at_the_door(denoiser: _Denoiser) -> _Denoiser:
    """Let a denoiser of batches take one image too, and check what comes.

    The denoiser itself, for images that were checked before, is `__wrapped__`.
    """

    @wraps(denoiser)
    def checked(images: Array, *args: Any, **options: Any) -> Array:
        batch, single = as_batch(images)
        result: Array = denoiser(batch, *args, **options)
        return result[0] if single else result

    return cast(_Denoiser, checked)


def _each(denoiser: _Denoiser) -> _Denoiser:
    """Let a denoiser of one image, of values in [0, 1], denoise a batch in grey levels."""

    @wraps(denoiser)
    def each(batch: Array, **options: Any) -> Array:
        result = [denoiser(rgb / np.float32(255), **options) for rgb in batch]
        return np.stack(result).astype(np.float32) * np.float32(255)

    return cast(_Denoiser, each)


@_at_the_door
def denoise(images: Array, method: str = "wavelet", **options: Any) -> Array:
    """Denoise images, float32 (H, W, 3) or (N, H, W, 3), RGB in [0, 255], by the method of a name.

    Each of the methods "wavelet", "tv", "bilateral", "nl_means", "wiener", "median", "jpeg" and
    "dct" is a function of this module, `denoise_<method>`, that documents its options, such as
    `sigma=0.04, sigma_scale="channel"` for wavelets. Those of "rgb" and cosines may leave [0, 255]
    a little.
    """
    return denoise_batch(images, method, **options)


def denoise_batch(batch: Array, method: str = "wavelet", **options: Any) -> Array:
    """Do as `denoise`, for images (N, H, W, 3) that were checked before."""
    check_one_of("method", method, tuple(DENOISERS))
    denoiser: Any = DENOISERS[method]
    known = list(inspect.signature(denoiser).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{method}: no option {', '.join(unknown)}; known: {', '.join(known)}")
    result: Array = denoiser.__wrapped__(batch, **options)
    return result


@_at_the_door
def denoise_wavelet(
    images: Array,
    *,
    sigma: float = 0.04,
    wavelet: str = "db1",
    mode: Mode = "soft",
    shrinkage: Shrinkage = "BayesShrink",
    color: Color = "ycbcr",
    sigma_scale: SigmaScale = "channel",
) -> Array:
    """Shrink the wavelet coefficients of each channel.

    `sigma` is the standard deviation of the noise, at least 0, in the range that `sigma_scale`
    names; the paper and the blog take 0.04. `wavelet` is any discrete one of PyWavelets; the
    thresholds are made for orthogonal ones, which all but the biorthogonal are. `mode` "soft"
    shrinks what it keeps by the threshold, "hard" leaves it. `shrinkage` "BayesShrink" takes a
    threshold for each subband, "VisuShrink" one for all. `color` "ycbcr" or "rgb" is the colour
    space whose channels are denoised. With "ycbcr", `sigma_scale` is

    - ``channel``: as scikit-image did until 0.15, which the paper and the blog used. Each channel
      of YCbCr is stretched to [0, 1] first and clipped to that afterwards, that is, to its own
      least and greatest value; RGB is clipped to [0, 255] at the end. That library gave NaN for a
      constant channel, as Cb and Cr of a grey image are; here it stays as it is.
    - ``rgb``: as scikit-image has done since 0.16. Sigma is noise in RGB in [0, 1] and converted,
      so that a photo is denoised less in Y; nothing is clipped: it may leave [0, 255] a little.

    With "rgb" the two differ by the clip to [0, 255] alone, as they do for a sigma of 0.
    """
    check_one_of("wavelet", wavelet, tuple(pywt.wavelist(kind="discrete")))
    check_one_of("shrinkage", shrinkage, get_args(Shrinkage))
    check_one_of("color", color, get_args(Color))
    check_wavelet_knobs(sigma, mode, sigma_scale)
    if sigma < float(np.finfo(np.float32).eps) or images.shape[1:3] == (1, 1):
        # Nothing is small enough to be shrunk, and the copy is exact.
        return np.clip(images, 0, 255) if sigma_scale == "channel" else images.copy()
    shrink = partial(_shrink, sigma, wavelet, mode, shrinkage)
    with warnings.catch_warnings():
        # In an image of a few pixels PyWavelets warns that every coefficient sees the border.
        warnings.filterwarnings("ignore", "Level value of", UserWarning)
        return _in_parts(partial(_wavelet_shrunk, shrink, color, sigma_scale), images)


def _in_parts(function: Callable[[Array], Array], batch: Array) -> Array:
    """Call a function with a few images at a time, on all cores."""
    parts = [batch[i : i + _PART] for i in range(0, len(batch), _PART)]
    if len(parts) == 1:
        return function(batch)
    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(function, parts)))


def _wavelet_shrunk(
    shrink: Callable[[Array, Array], Array], color: Color, sigma_scale: SigmaScale, batch: Array
) -> Array:
    # Scaling an image scales its coefficients and thresholds alike, so nothing is stretched: what
    # sigma is a share of stands in its place.
    channels = batch if color == "rgb" else batch @ TO_YCBCR.astype(np.float32)
    # A plane a channel lies together in memory, which the transform reads row by row.
    planes = np.ascontiguousarray(np.moveaxis(channels, -1, 1))
    if color == "ycbcr" and sigma_scale == "channel":
        low, high = (end(planes, axis=(2, 3), keepdims=True) for end in (np.min, np.max))
        # A channel that is constant but for rounding has no range.
        least = ROUNDING * np.abs(batch).max(axis=(1, 2, 3), keepdims=True)
        ranges = np.where(high - low > least, high - low, np.float32(0))
        shrunk = shrink(planes, ranges).clip(low, high)
    else:
        whole = 255 * (_SPREAD if color == "ycbcr" else np.ones(1))
        shrunk = shrink(planes, whole.astype(np.float32).reshape(1, -1, 1, 1))
    pixels = np.moveaxis(shrunk, 1, -1)
    result: Array = pixels if color == "rgb" else pixels @ FROM_YCBCR.astype(np.float32)
    return result.clip(0, 255) if sigma_scale == "channel" else result


def _shrink(
    share: float, wavelet: str, mode: Mode, shrinkage: Shrinkage, planes: Array, ranges: Array
) -> Array:
    """Transform a whole batch (N, 3, H, W), shrink its details, and transform it back."""
    sigma = np.float32(min(share, BOUNDLESS)) * ranges
    height, width = planes.shape[2:]
    # As scikit-image: the three coarsest levels are left alone, but one is always taken.
    level = max(pywt.dwtn_max_level((height, width), wavelet) - 3, 1)
    is_haar = wavelet in _HAAR
    split = _haar_split if is_haar else partial(pywt.dwtn, wavelet=wavelet, axes=(2, 3))
    join = _haar_joined if is_haar else partial(pywt.idwtn, wavelet=wavelet, axes=(2, 3))
    coarse, details = planes, []
    for _ in range(level):
        bands = split(coarse)
        coarse = bands.pop("aa")
        details.append(bands)
    threshold = sigma * np.sqrt(2 * np.log(height * width))
    for bands in details:
        for key, band in bands.items():
            if shrinkage == "BayesShrink":
                variance = np.mean(np.square(band), axis=(2, 3), keepdims=True)
                least = np.square(ranges) * np.finfo(np.float32).eps
                signal = np.maximum(variance - np.square(sigma), least)
                threshold = np.zeros_like(signal)
                np.divide(np.square(sigma), np.sqrt(signal), out=threshold, where=signal > 0)
            if mode == "hard":
                bands[key] = np.where(np.abs(band) < threshold, np.float32(0), band)
            else:
                bands[key] = band - np.clip(band, -threshold, threshold)
    for bands in reversed(details):
        # An odd size comes back one larger.
        rows, columns = bands["dd"].shape[2:]
        coarse = join({"aa": coarse[:, :, :rows, :columns], **bands})
    result: Array = coarse[:, :, :height, :width].astype(np.float32, copy=False)
    return result


def _haar_split(planes: Array) -> dict[str, Array]:
    """Do as `pywt.dwtn` for Haar's wavelet, several times as fast; signs may differ.

    Of each 2 x 2 pixels (N, 3, H, W) half the sum, and half the differences across, down and both.
    """
    odd = [side % 2 for side in planes.shape[2:]]
    if any(odd):
        planes = np.pad(planes, ((0, 0), (0, 0), *((0, more) for more in odd)), mode="edge")
    halves = planes * np.float32(0.5)
    top, bottom = halves[:, :, ::2], halves[:, :, 1::2]
    bands: dict[str, Array] = {}
    for key, rows in (("a", top + bottom), ("d", top - bottom)):
        left, right = rows[..., ::2], rows[..., 1::2]
        bands |= {f"{key}a": left + right, f"{key}d": left - right}
    return bands


def _haar_joined(bands: dict[str, Array]) -> Array:
    """Undo `_haar_split`, up to a side that was odd."""
    n, channels, rows, columns = bands["aa"].shape
    joined = np.empty((n, channels, 2 * rows, 2 * columns), dtype=np.float32)
    top, bottom = (np.empty((n, channels, rows, 2 * columns), dtype=np.float32) for _ in range(2))
    for key, both in (("a", top), ("d", bottom)):
        np.add(bands[f"{key}a"], bands[f"{key}d"], out=both[..., ::2])
        np.subtract(bands[f"{key}a"], bands[f"{key}d"], out=both[..., 1::2])
    np.add(top, bottom, out=joined[:, :, ::2])
    np.subtract(top, bottom, out=joined[:, :, 1::2])
    joined *= np.float32(0.5)
    return joined


@_at_the_door
@_each
def denoise_tv(images: Array, *, weight: float = 0.1) -> Array:
    """Denoise by total variation (Chambolle 2004, DOI 10.1023/B:JMIV.0000011325.36760.1e).

    `weight` is above 0, on images in [0, 1]: the greater, the smoother.
    """
    check_number("weight", weight, ABOVE_0)
    result: Array = restoration.denoise_tv_chambolle(images, weight=weight, channel_axis=-1)
    return result


@_at_the_door
@_each
def denoise_bilateral(
    images: Array, *, sigma_color: float | Literal["std"] = 0.05, sigma_spatial: float = 1.0
) -> Array:
    """Average neighbours that look alike (Tomasi, Manduchi 1998, DOI 10.1109/ICCV.1998.710815).

    `sigma_color`, above 0 on images in [0, 1], says how unlike a neighbour may be; "std" is the
    standard deviation of an image's own values, scikit-image's default, as in the authors' code.
    `sigma_spatial`, above 0 in pixels, says how far away; none counts beyond three times this, nor
    beyond the side of the image, which is mirrored at its border.
    """
    values = images.astype(np.float64)
    if sigma_color == "std":
        # An image of one value is its own average, by whatever measure.
        sigma_color = float(values.std()) or 1.0
    check_number("sigma_color", sigma_color, ABOVE_0)
    check_number("sigma_spatial", sigma_spatial, ABOVE_0)
    # scikit-image 0.26 reads its table of spatial weights askew, which smears the picture.
    height, width, _ = values.shape
    down, across = (math.ceil(min(3 * sigma_spatial, side - 1)) for side in (height, width))
    mirrored = np.pad(values, ([down] * 2, [across] * 2, (0, 0)), mode="symmetric")
    total, weights = np.zeros_like(values), np.zeros((height, width, 1))
    for row, column in np.ndindex(2 * down + 1, 2 * across + 1):
        neighbour = mirrored[row : row + height, column : column + width]
        far = math.hypot(row - down, column - across) / sigma_spatial
        # Measured by a tiny sigma all is infinitely unlike.
        with np.errstate(over="ignore"):
            unlike = np.linalg.norm(neighbour - values, axis=-1, keepdims=True) / sigma_color
            weight = np.exp(-(far * far + unlike * unlike) / 2)
        total += weight * neighbour
        weights += weight
    return (total / weights).astype(np.float32)


@_at_the_door
@_each
def denoise_nl_means(
    images: Array,
    *,
    sigma: float = 0.04,
    patch_size: int = 5,
    patch_distance: int = 6,
    h: float | None = None,
) -> Array:
    """Average patches that look alike (Buades, Coll, Morel 2005, DOI 10.1109/CVPR.2005.38).

    `sigma`, on images in [0, 1], is the standard deviation of the noise, whose share in the
    difference of two patches does not count: above 0; with an `h`, at least 0. `h`, above 0, says
    how unlike a patch may be: by default 0.8 times sigma. A patch's side and how far away another
    may be are at least 1 pixel and reach no further than the image is long. The authors of pixel
    deflection took `sigma=0, h=0.1, patch_size=7, patch_distance=11`.
    """
    check_number("sigma", sigma, ABOVE_0 if h is None else 0)
    check_whole("patch_size", patch_size, 1)
    check_whole("patch_distance", patch_distance, 1)
    h = 0.8 * sigma if h is None else h
    check_number("h", h, ABOVE_0)
    sides = images.shape[:2]
    if min(sides) < 2:
        # The library answers NaN for a single row or column.
        raise ValueError(f"nl_means: expected at least 2 x 2 pixels, got {sides}")
    area = min(patch_size, 2 * max(sides) - 1), min(patch_distance, max(sides) - 1)
    result: Array = restoration.denoise_nl_means(images, *area, h, sigma=sigma, channel_axis=-1)
    return result


@_at_the_door
@_each
def denoise_wiener(images: Array, *, size: int = 3) -> Array:
    """Shrink each pixel towards its neighbourhood's mean (Wiener; Lim 1990).

    As in SciPy, the noise is the mean of the neighbourhoods' variances; unlike there, the image is
    mirrored at its border, where zeros darken it. `size`, the neighbourhood's side, is an odd
    number of pixels; it reaches no further than the image is long.
    """
    check_odd("size", size)
    values, area = images.astype(np.float64), _area(images, size)
    mean = ndimage.uniform_filter(values, area)
    variance = np.maximum(ndimage.uniform_filter(values**2, area) - mean**2, 0)
    signal = np.maximum(variance - variance.mean(axis=(0, 1)), 0)
    gain = np.divide(signal, variance, out=np.zeros_like(signal), where=signal > 0)
    result: Array = mean + gain * (values - mean)
    return result


@_at_the_door
@_each
def denoise_median(images: Array, *, size: int = 3) -> Array:
    """Take the median of each pixel's neighbourhood of `size` pixels a side, a channel at a time.

    At its border the image is mirrored; the neighbourhood reaches no further than it is long.
    """
    check_whole("size", size, 1)
    result: Array = ndimage.median_filter(images, size=_area(images, size))
    return result


def _area(rgb: Array, size: int) -> tuple[int, int, int]:
    """Give the sides of a square window that is cut where it reaches beyond all of the image."""
    return min(size, 2 * len(rgb) - 1), min(size, 2 * len(rgb[0]) - 1), 1


@_at_the_door
@_each
def denoise_jpeg(images: Array, *, quality: int = 75) -> Array:
    """Clip, round to 8 bits, save and load as a JPEG of a `quality` from 1 to 95."""
    check_whole("quality", quality, 1, 95)
    file = io.BytesIO()
    rounded = np.rint(np.clip(images * 255, 0, 255)).astype(np.uint8)
    Image.fromarray(rounded).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return np.asarray(picture, dtype=np.float32) / np.float32(255)


@_at_the_door
def denoise_dct(images: Array, *, sigma: float = 0.04, step: int = 2) -> Array:
    """Drop the small cosine coefficients of overlapping 8 x 8 blocks and average the blocks.

    Source: Yu, Sapiro 2011, DOI 10.5201/ipol.2011.ys-dct: a coefficient below three times the
    standard deviation of the noise becomes 0, the others and a block's mean stay. They take every
    block, and decorrelate colours otherwise; here they are YCbCr, each with its noise. The paper on
    pixel deflection tries the DCT in place of wavelets; its settings are not known.

    `sigma` is the noise in RGB, on images in [0, 1]; 0 gives the images back. A block is `step`
    pixels (1, 2, 4 or 8) away from the next, either way: the time goes with (8 / step)^2.
    """
    check_number("sigma", sigma, 0)
    if not isinstance(step, (int, np.integer)) or step not in (1, 2, 4, 8):
        raise ValueError(f"step: expected a number of pixels out of 1, 2, 4, 8, got {step!r}")
    if sigma == 0:
        return images.copy()
    thresholds = (3 * 255 * min(sigma, BOUNDLESS) * _SPREAD).astype(np.float32)
    shrink = partial(_dct_thresholded, thresholds, step)
    return _in_parts(lambda part: np.stack([shrink(image) for image in part]), images)


def _dct_thresholded(thresholds: Array, step: int, image: Array) -> Array:
    """Threshold the blocks of an image (H, W, 3), a grid of them for each way to lay it."""
    planes = np.moveaxis(image @ TO_YCBCR.astype(np.float32), -1, 0)
    height, width, _ = image.shape
    # So far out, the blocks over the border are as many as those over any other place.
    margin = _BLOCK - step
    down, across = (-(-(side + margin) // _BLOCK) for side in (height, width))
    rows, columns = down * _BLOCK, across * _BLOCK
    pads = [(margin, full + step - side) for full, side in ((rows, height), (columns, width))]
    mirrored = np.pad(planes, ((0, 0), *pads), mode="symmetric")
    total = np.zeros_like(mirrored)
    # Of each coefficient across (8) and those down (3 * rows); a block's mean always stays.
    least = np.tile(np.repeat(thresholds, rows), (_BLOCK, 1))
    least[0, ::_BLOCK] = 0
    for top in range(0, _BLOCK, step):
        # The grids that begin in this row share the transform of their columns. With these lying
        # side by side, a transform is a product with a small table, far quicker than one by one.
        lines = np.s_[:, top : top + rows]
        upright = _COSINES @ mirrored[lines].reshape(3, down, _BLOCK, -1)
        upright = np.ascontiguousarray(upright.reshape(3 * rows, -1).T)
        shrunk = np.zeros_like(upright)
        for left in range(0, _BLOCK, step):
            grid = np.s_[left : left + columns]
            cosines = _COSINES @ upright[grid].reshape(across, _BLOCK, -1)
            cosines *= np.abs(cosines) >= least
            shrunk[grid] += (_COSINES.T @ cosines).reshape(columns, -1)
        shrunk = np.ascontiguousarray(shrunk.T).reshape(3, down, _BLOCK, -1)
        total[lines] += (_COSINES.T @ shrunk).reshape(3, rows, -1)
    total /= np.float32((_BLOCK // step) ** 2)
    averaged = total[:, margin : margin + height, margin : margin + width]
    result: Array = np.moveaxis(averaged, 0, -1) @ FROM_YCBCR.astype(np.float32)
    return result


_ALL = (denoise_wavelet, denoise_tv, denoise_bilateral, denoise_nl_means, denoise_wiener,
        denoise_median, denoise_jpeg, denoise_dct)  # fmt: skip

#: Each takes images and its own options by name.
DENOISERS: dict[str, Callable[..., Array]] = {
    denoiser.__name__.removeprefix("denoise_"): denoiser for denoiser in _ALL
}


def check_wavelet_knobs(sigma: float, mode: str, sigma_scale: str) -> None:
    """Check the knobs that the wavelet denoiser and its Keras layer share."""
    check_one_of("mode", mode, get_args(Mode))
    check_one_of("sigma_scale", sigma_scale, get_args(SigmaScale))
    check_number("sigma", sigma, 0)
