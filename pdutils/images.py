"""The image contract: check, load, save, and read the label from a file name.

An image is a float32 array (H, W, 3), RGB, values in [0, 255]; a batch is (N, H, W, 3). A map is
float32 (H, W) or (N, H, W) in [0, 1].
"""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[np.float32]

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")

#: How far apart values may lie, as a share of the size of what they were made of, and differ by
#: rounding alone: sums of many float32 terms, on any processor.
ROUNDING = float(64 * np.finfo(np.float32).eps)

#: How far a denoised image may leave [0, 255]: thresholded wavelets ring a little.
OVERSHOOT = 128.0

#: A picture of more pixels is refused before it is decoded (a 64-megapixel photo needs 0.8 GB).
MAX_PIXELS = 64_000_000

#: How the names of pictures end: whatever Pillow decodes by itself as a still picture. No vector
#: graphics, films, floats, or formats for which Pillow has but a stub.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".icb", ".vda", ".vst", ".pcx", ".dcx", ".qoi", ".psd", ".sgi",
    ".rgb", ".rgba", ".bw", ".ras", ".dds", ".blp", ".ftc", ".ftu", ".gbr", ".ico", ".cur",
    ".icns", ".msp", ".xbm", ".xpm", ".pcd", ".pxr",
})
# fmt: on

#: Whole numbers of a file that does not say how many bits they have: up to the first, they are
#: 8 bits; above the second, 16.
_SURELY_8_BITS, _NOT_SURELY_16_BITS = 255, 32767


def check_images(images: Array, name: str = "images") -> Array:
    """Check the image contract and return the images as they are.

    A denoised image may leave [0, 255] by up to 128. What was scaled for a model is told apart.
    """
    _check_array(images, name, "(H, W, 3) or (N, H, W, 3)")
    if images.ndim == 4:
        check_some(images, name)
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.size == 0:
        raise ValueError(
            f"{name}: expected shape (H, W, 3) or (N, H, W, 3) with at least one pixel, "
            f"got {images.shape}"
        )
    low, high = _extremes(images, name)
    if low < -OVERSHOOT or high > 255 + OVERSHOOT:
        raise ValueError(f"{name}: expected values in [0, 255], got [{low:g}, {high:g}]")
    if high <= 1 and np.mean(images != np.rint(images)) > 0.5:
        raise ValueError(
            f"{name}: expected values in [0, 255], got [{low:g}, {high:g}], which looks scaled "
            "for a model; bring it back to [0, 255] first"
        )
    return images


def check_some(images: Sequence[Any] | NDArray[Any], name: str = "images") -> None:
    """Refuse a batch or a list without an image."""
    if len(images) == 0:
        shape = f" (shape {images.shape})" if isinstance(images, np.ndarray) else ""
        raise ValueError(f"{name}: expected at least one image, got none{shape}")


def as_batch(images: Array, name: str = "images") -> tuple[Array, bool]:
    """Check images and give them as a batch (N, H, W, 3), a view; and whether it was one image."""
    check_images(images, name)
    single = images.ndim == 3
    return (images[np.newaxis] if single else images), single


def as_map_batch(maps: Array | None, batch: Array, name: str = "activation_map") -> Array | None:
    """Check that maps fit a batch of images, (H, W) a batch of one, and give them as (N, H, W)."""
    if maps is None:
        return None
    n, height, width, _ = batch.shape
    expected = f"({n}, {height}, {width})" + (f" or ({height}, {width})" if n == 1 else "")
    _check_array(maps, name, expected)
    stacked = maps[np.newaxis] if maps.ndim == 2 else maps
    if stacked.shape != (n, height, width):
        raise ValueError(f"{name}: expected shape {expected} as the images, got {maps.shape}")
    _check_unit_range(maps, name)
    return stacked


def on_grid(images: Array) -> Array:
    """Clip to [0, 255] and round to whole numbers: what an 8-bit file holds."""
    return np.rint(np.clip(images, 0, 255)).astype(np.float32)


def load_image(path: str | os.PathLike[str], size: int | tuple[int, int] | None = None) -> Array:
    """Load a picture as an RGB image in [0, 255].

    Grey becomes three equal channels, 16 bits become 8, CMYK and palettes become RGB, what is
    transparent is laid over white, and a camera's rotation flag is obeyed. Grey of 32 bits is
    taken for 8 bits if it holds no more than 255, for 16 if it holds more than 32767.

    Parameters
    ----------
    path : str or path
        A still picture in any format that Pillow reads.
    size : int or (int, int), optional
        The height and width wanted. The picture is scaled (bilinear, antialiased) until it
        exceeds them by an eighth, as is usual for ImageNet (256 for 224), and its centre is cut
        out. A picture of that very size is left as it is. By default every picture keeps its size.

    Returns
    -------
    ndarray of float32, shape (H, W, 3), values 0 to 255

    Raises
    ------
    ValueError
        If the file is empty, cut off, no picture, animated, of floats, of 32-bit grey that is
        neither surely 8 nor surely 16 bits, or has more than 64 million pixels.
    """
    picture = _decoded(path)
    with _reading(path):
        rgb = _to_rgb(picture)
    if size is not None:
        rgb = _resized(rgb, _height_and_width(size))
    return np.asarray(rgb, dtype=np.float32)


def load_map(path: str | os.PathLike[str]) -> Array:
    """Load a map, such as the authors' 16-bit grey PNG, min-max normalised to [0, 1].

    The authors' notebook normalises the maps in the same way. A constant map becomes zeros: it
    prefers no pixel.

    Parameters
    ----------
    path : str or path
        A grey still picture of 8 or 16 bits.

    Returns
    -------
    ndarray of float32, shape (H, W), values in [0, 1]
    """
    picture = _decoded(path)
    if picture.mode not in ("L", *_DEEP_GREY):
        raise ValueError(f"{path}: expected a grey picture, got mode {picture.mode}")
    return min_max(np.asarray(picture, dtype=np.float64))


def min_max(values: NDArray[Any], size: NDArray[Any] | None = None) -> Array:
    """Stretch each trailing (H, W) linearly so that its least value is 0 and its greatest 1.

    One that is constant, if only but for rounding, becomes zeros. The rounding goes with `size`, of
    what the values were made of: of a sum, that of its terms; by default their own magnitude.
    """
    low = values.min(axis=(-2, -1), keepdims=True)
    high = values.max(axis=(-2, -1), keepdims=True)
    if size is None:
        size = np.maximum(np.abs(low), np.abs(high))
    span = high - low
    stretched = np.zeros(values.shape, dtype=np.float64)
    np.divide(values - low, span, out=stretched, where=span > ROUNDING * size)
    return stretched.astype(np.float32)


def save_image(path: str | os.PathLike[str], image: Array) -> None:
    """Save an image, clipped and rounded to 8 bits; a PNG gives back exactly these values.

    The file appears whole or not at all.

    Parameters
    ----------
    path : str or path
        The suffix picks the format: .png, .jpg, ...
    image : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    """
    check_images(image, "image")
    if image.ndim != 3:
        raise ValueError(f"image: expected shape (H, W, 3), got {image.shape}")
    _save(Image.fromarray(on_grid(image).astype(np.uint8)), Path(path))


def save_map(path: str | os.PathLike[str], activation_map: Array) -> None:
    """Save a map as a 16-bit grey PNG, 0 to 65535, as the authors did.

    Parameters
    ----------
    path : str or path
        A name that ends in .png.
    activation_map : ndarray of float32, shape (H, W)
        Values in [0, 1].
    """
    _check_array(activation_map, "activation_map", "(H, W)")
    if activation_map.ndim != 2 or activation_map.size == 0:
        raise ValueError(f"activation_map: expected shape (H, W), got {activation_map.shape}")
    _check_unit_range(activation_map, "activation_map")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: expected a name that ends in .png, got {Path(path).suffix!r}")
    _save(Image.fromarray(np.rint(activation_map * 65535).astype(np.uint16)), Path(path))


def label_from_name(path: str | os.PathLike[str]) -> str:
    """Read the label from a file name: what stands before the first underscore."""
    label, underscore, _ = Path(path).name.partition("_")
    if not underscore or not label:
        raise ValueError(f"expected a file name like <label>_<anything>.png, got {Path(path).name}")
    return label


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place if the block ends well."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A long name would grow beyond what file systems take.
        start = f".{path.stem[:40]}-"
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path, instead_of=name):
            yield temporary
        with naming(path):
            # mkstemp makes a private file; a finished one gets the rights of any other new file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str], *, instead_of: str | None = None) -> Iterator[None]:
    """Let an error of the system name the file that was asked for."""
    try:
        yield
    except OSError as error:
        named = error.filename is None or instead_of in (None, str(error.filename))
        if error.errno is None or not named:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_array(values: Any, name: str, shape: str) -> None:
    if not isinstance(values, np.ndarray):
        raise ValueError(
            f"{name}: expected a float32 array of shape {shape}, got {type(values).__name__}"
        )
    if values.dtype != np.float32:
        raise ValueError(
            f"{name}: expected dtype float32, got {values.dtype}; use astype('float32')"
        )


def _extremes(values: Array, name: str) -> tuple[float, float]:
    # NaN and infinity come through min and max, which costs less than asking every value.
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return low, high


def _check_unit_range(maps: Array, name: str) -> None:
    low, high = _extremes(maps, name)
    if low < 0 or high > 1:
        raise ValueError(f"{name}: expected values in [0, 1], got [{low:g}, {high:g}]")


def _decoded(path: str | os.PathLike[str]) -> Image.Image:
    """Open, check and decode a picture, turned as its camera says."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a picture, got a folder")
    with _reading(path), Image.open(path) as picture:
        complaint = _complaint(picture)
        turned = None if complaint else ImageOps.exif_transpose(picture)
        # Pillow brings the deep grey of a PGM, of any depth, to 16 bits in its mode of 32.
        if turned is not None and (picture.format, turned.mode) == ("PPM", "I"):
            turned = Image.fromarray(np.asarray(turned).astype(np.uint16))
    if turned is None:
        raise ValueError(f"{path}: {complaint}")
    return turned


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong in Pillow into an error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: expected at most {MAX_PIXELS:,} pixels: {error}") from None
    except Exception as error:
        # A damaged file makes Pillow's parsers raise anything, an IndexError too.
        raise ValueError(f"{path}: expected a picture that can be read: {error}") from error


def _complaint(picture: Image.Image) -> str | None:
    """Say, before a picture is decoded, why it is not taken."""
    if picture.width * picture.height > MAX_PIXELS:
        return f"expected at most {MAX_PIXELS:,} pixels, got {picture.width} x {picture.height}"
    if picture.mode == "F":
        return "expected 8 or 16 bits a channel, got floats (mode F)"
    # Many telephones write their photos as MPO: the photo first, then a smaller one or a depth map.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    return f"expected a still picture, got an animation of {frames} frames" if frames > 1 else None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _DEEP_GREY:
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(picture, dtype=np.float64)
        step = _grey_step(values) if picture.mode == "I" else 257
        picture = Image.fromarray(np.rint(values / step).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(paper, layer)
    return picture.convert("RGB")


def _grey_step(values: NDArray[Any]) -> int:
    """Tell what one grey level of 8 bits is in a picture of 32 bits, which does not say it."""
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"it holds {low:g} to {high:g}, not 16 bits")
    if _SURELY_8_BITS < high <= _NOT_SURELY_16_BITS:
        raise ValueError(
            f"it holds {low:g} to {high:g} in 32 bits, which does not tell its range: save it with "
            "8 or 16 bits"
        )
    return 1 if high <= _SURELY_8_BITS else 257


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = np.asarray(size)
    whole = pair.dtype.kind in "iu" and pair.shape in ((), (2,))
    height, width = (int(side) for side in np.broadcast_to(pair, 2)) if whole else (0, 0)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"size: expected a whole number of pixels or (height, width), from 1 to "
            f"{MAX_PIXELS:,} in all, got {size!r}"
        )
    return height, width


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if picture.size == (width, height):
        return picture
    # The centre is scaled alone: all of a very long picture could fill the memory.
    zoom = 8 / 7 * max(width / picture.width, height / picture.height)
    across, down = width / zoom, height / zoom
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    box = (left, top, left + across, top + down)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def check_target(path: str | os.PathLike[str]) -> None:
    """Check, before there is an image to save, that a file of that name could be written."""
    target = Path(path)
    Image.init()
    form = Image.registered_extensions().get(target.suffix.lower())
    if target.suffix.lower() not in IMAGE_SUFFIXES or form not in Image.SAVE:
        raise ValueError(
            f"{path}: expected a name that ends in .png or .jpg, got {target.suffix!r}"
        )
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _save(picture: Image.Image, path: Path) -> None:
    check_target(path)
    with whole_file(path) as temporary:
        try:
            picture.save(temporary)
        except OSError as error:
            if error.errno is not None:
                raise
            # Some formats hold no colours, or no picture of this size.
            raise ValueError(f"{path}: expected a format for RGB pictures: {error}") from error
