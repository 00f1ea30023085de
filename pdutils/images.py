"""A user's pictures: load and save images and maps, and look through folders of them."""

import errno
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pdutils._utils import Array, Pixels, check_images, check_map, min_max, on_grid, whole_file

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")

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


# --- one picture


def load_image(path: str | os.PathLike[str], size: int | tuple[int, int] | None = None) -> Array:
    """Load a picture as an RGB image in [0, 255].

    Grey becomes three equal channels, 16 bits become 8, CMYK and palettes become RGB, what is
    transparent is laid over white, and a camera's rotation flag is obeyed. Grey of 32 bits is
    taken for 8 bits if it holds no more than 255, for 16 if it holds more than 32767.

    Parameters
    ----------
    path : str or path
        A still picture in any format that Pillow reads, of at most 64 million pixels.
    size : int or (int, int), optional
        The height and width wanted. The picture is scaled (bilinear, antialiased) until it
        exceeds them by an eighth, as is usual for ImageNet (256 for 224), and its centre is cut
        out. A picture of that very size is left as it is. By default every picture keeps its size.

    Returns
    -------
    ndarray of float32, shape (H, W, 3), values 0 to 255
    """
    picture = _decoded(path)
    with _reading(path):
        rgb = _to_rgb(picture)
    return np.asarray(rgb if size is None else _resized(rgb, size), dtype=np.float32)


def show_cut(
    path: str | os.PathLike[str], size: tuple[int, int], longest: int
) -> tuple[str, Pixels] | None:
    """Say and draw what `load_image` takes of a picture for a size: the rest of it is dark.

    The drawing (h, w, 3) has `longest` pixels on its longer side. None where nothing is cut off.
    """
    picture = _decoded(path)
    if picture.size == size[::-1]:
        return None
    box = _centre(picture, *size)
    across, down = round(box[2] - box[0]), round(box[3] - box[1])
    words = f"the middle {across} x {down} of {picture.width} x {picture.height} pixels"
    picture.thumbnail((longest, longest), reducing_gap=2)
    with _reading(path):
        whole = np.asarray(_to_rgb(picture))
    left, top, right, bottom = _centre(picture, *size)
    rows, columns = np.arange(whole.shape[0])[:, None], np.arange(whole.shape[1])
    taken = (rows >= top - 0.5) & (rows < bottom - 0.5)
    taken = taken & (columns >= left - 0.5) & (columns < right - 0.5)
    return words, np.where(taken[..., None], whole, whole // 4)


def load_map(path: str | os.PathLike[str]) -> Array:
    """Load a map (H, W) from a grey picture of 8 or 16 bits, min-max normalised to [0, 1].

    The authors' notebook normalises its maps, 16-bit PNGs, in the same way. A constant map becomes
    zeros: it prefers no pixel.
    """
    picture = _decoded(path)
    if picture.mode not in ("L", *_DEEP_GREY):
        raise ValueError(f"{path}: expected a grey picture, got mode {picture.mode}")
    return min_max(np.asarray(picture, dtype=np.float64))


def save_image(path: str | os.PathLike[str], image: Array) -> None:
    """Save an image (H, W, 3), clipped and rounded to 8 bits, in the format of the name's ending.

    A PNG gives back exactly these values. The file appears whole or not at all.
    """
    check_images(image, "image")
    if image.ndim != 3:
        raise ValueError(f"image: expected shape (H, W, 3), got {image.shape}")
    _save(Image.fromarray(on_grid(image).astype(np.uint8)), Path(path))


def save_map(path: str | os.PathLike[str], activation_map: Array) -> None:
    """Save a map (H, W) in [0, 1] as a 16-bit grey PNG, 0 to 65535, as the authors did."""
    check_map(activation_map, "activation_map")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: expected a name that ends in .png, got {Path(path).suffix!r}")
    _save(Image.fromarray(np.rint(activation_map * 65535).astype(np.uint16)), Path(path))


def check_target(path: str | os.PathLike[str]) -> None:
    """Check, before there is an image to save, that a file of that name could be written."""
    target = Path(path)
    Image.init()
    form = Image.registered_extensions().get(target.suffix.lower())
    if target.suffix.lower() not in IMAGE_SUFFIXES or form not in Image.SAVE:
        raise ValueError(
            f"{path}: expected a name that ends in .png or .jpg, got {target.suffix!r}"
        )
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    obstacles = {
        errno.EISDIR: target.is_dir(),
        errno.ENOTDIR: not folder.is_dir(),
        errno.EACCES: not os.access(folder, os.W_OK | os.X_OK),
    }
    for code, in_the_way in obstacles.items():
        if in_the_way:
            raise OSError(code, os.strerror(code), str(path))


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


def _decoded(path: str | os.PathLike[str]) -> Image.Image:
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a picture, got a folder")
    with _reading(path), Image.open(path) as picture:
        complaint = _complaint(picture)
        turned = picture if complaint else ImageOps.exif_transpose(picture)
        # Pillow brings the deep grey of a PGM, of any depth, to 16 bits in its mode of 32.
        if not complaint and (picture.format, turned.mode) == ("PPM", "I"):
            turned = Image.fromarray(np.asarray(turned).astype(np.uint16))
    if complaint:
        raise ValueError(f"{path}: {complaint}")
    return turned


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
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


def _complaint(picture: Image.Image) -> str:
    # Before it is decoded.
    # Many telephones write their photos as MPO: the photo first, then a smaller one or a depth map.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if picture.width * picture.height > MAX_PIXELS:
        return f"expected at most {MAX_PIXELS:,} pixels, got {picture.width} x {picture.height}"
    if picture.mode == "F":
        return "expected 8 or 16 bits a channel, got floats (mode F)"
    return f"expected a still picture, got an animation of {frames} frames" if frames > 1 else ""


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _DEEP_GREY:
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(picture, dtype=np.float64)
        low, high = values.min(), values.max()
        # A picture of 32 bits does not say what one grey level of 8 bits is in it.
        unsure = picture.mode == "I"
        if unsure and (low < 0 or high > 65535):
            raise ValueError(f"it holds {low:g} to {high:g}, not 16 bits")
        if unsure and _SURELY_8_BITS < high <= _NOT_SURELY_16_BITS:
            raise ValueError(
                f"it holds {low:g} to {high:g} in 32 bits, which does not tell its range: save it "
                "with 8 or 16 bits"
            )
        step = 1 if unsure and high <= _SURELY_8_BITS else 257
        picture = Image.fromarray(np.rint(values / step).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _resized(picture: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    pair = np.asarray(size)
    whole = pair.dtype.kind in "iu" and pair.shape in ((), (2,))
    height, width = (int(side) for side in np.broadcast_to(pair, 2)) if whole else (0, 0)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"size: expected a whole number of pixels or (height, width), from 1 to "
            f"{MAX_PIXELS:,} in all, got {size!r}"
        )
    if picture.size == (width, height):
        return picture
    # The centre is scaled alone: all of a very long picture could fill the memory.
    box = _centre(picture, height, width)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _centre(picture: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    zoom = 8 / 7 * max(width / picture.width, height / picture.height)
    across, down = width / zoom, height / zoom
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    return left, top, left + across, top + down


# --- folders of pictures


@dataclass
class Pictures:
    """The pictures in a folder and the folders below it, and how much of what else there is.

    `folders` names those directly in it, with pictures or without; hidden files do not count.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        total = self.passed_over.total()
        if not total:
            return ""
        kinds = ", ".join(f"{n} {displayed(k)}" for k, n in sorted(self.passed_over.items()))
        return f"passed over {total} {'entry' if total == 1 else 'entries'}: {kinds}"

    def take(self, paths: Iterable[Path]) -> None:
        """Take those files that are pictures."""
        for path in paths:
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                self.files.append(path)
            elif path.is_symlink() and not path.exists():
                self.passed_over["links that lead nowhere"] += 1
            else:
                self.passed_over[path.suffix.lower() or "without an ending"] += 1

    def labelled(self) -> list[tuple[Path, str]]:
        """List the pictures with their labels: of their folder in the root, or of their names."""
        places = [(path, path.relative_to(self.root).parts) for path in self.files]
        return [(p, label_from_name(p) if len(parts) == 1 else parts[0]) for p, parts in places]


def labelled_files(folder: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """List the pictures of a folder with their labels, sorted by path.

    They are named `<label>_<anything>.png|...`, or lie in one sub-folder a class, as ImageNet's,
    whose name is the label of every picture in it. Symbolic links are followed, loops of them are
    not. Hidden files are passed over, and those whose ending is not in `IMAGE_SUFFIXES`.
    """
    return find_pictures(folder).labelled()


def label_from_name(path: str | os.PathLike[str]) -> str:
    """Read the label from a file name: what stands before the first underscore."""
    label, underscore, _ = Path(path).name.partition("_")
    if not underscore or not label:
        raise ValueError(f"expected a file name like <label>_<anything>.png, got {Path(path).name}")
    return label


def find_pictures(folder: str | os.PathLike[str]) -> Pictures:
    """Find the pictures in a folder and below it, and count what else is there.

    Symbolic links are followed, loops are not. A folder that a link leads to is looked through
    once, unless it stands directly in `folder`, as the folder of a class.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder of pictures, got a file")
    found, links = Pictures(root), [root]
    starts: list[Path] = []
    seen: set[Path] = set()
    while links:
        # Level by level; the folders of classes first, for what they hold is theirs.
        level, links = sorted(links, key=lambda link: (len(link.parts), link)), []
        for link in level:
            target, is_class = Path(os.path.realpath(link)), link.parent == root
            # A class folder may be known under two names, but must not hold the root.
            above = starts[:1] if is_class else starts
            if (target in seen and not is_class) or any(s.is_relative_to(target) for s in above):
                found.passed_over["links to folders that are looked through anyway"] += 1
                continue
            starts.append(target)
            for where, folders, files in os.walk(link, onerror=_refuse):
                here = Path(where)
                seen.add(target / here.relative_to(link))
                if here.parent == root != here:
                    found.folders.append(here.name)
                folders[:] = [name for name in folders if not name.startswith(".")]
                links += [here / name for name in folders if (here / name).is_symlink()]
                found.take(here / name for name in files if not name.startswith("."))
    found.files.sort()
    found.folders.sort()
    if not found.files:
        others = f"; {found}" if found.passed_over else ""
        raise ValueError(f"{root}: expected pictures (.png, .jpg, ...), found none{others}")
    return found


def _refuse(error: OSError) -> None:
    raise error


def displayed(text: str) -> str:
    r"""Write a file name that is not UTF-8 as a text: each byte that is none becomes `\xNN`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
