"""What every room uses: the contract of what comes in, random streams, files that are whole.

An image is a float32 array (H, W, 3), RGB, values in [0, 255]; a batch is (N, H, W, 3). A map is
float32 (H, W) or (N, H, W) in [0, 1]. Also here: progress bars, what TensorFlow and Keras are set
to, and what an extra brings.
"""

import codecs
import hashlib
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

#: How far apart values may lie, as a share of the size of what they were made of, and differ by
#: rounding alone: sums of many float32 terms, on any processor.
ROUNDING = float(64 * np.finfo(np.float32).eps)

#: How far a denoised image may leave [0, 255]: thresholded wavelets ring a little.
OVERSHOOT = 128.0

#: The greatest whole number that the libraries below can take.
LARGEST = 2**63 - 1


# --- images and maps


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
    low, high = _check_range(images, name, 255, OVERSHOOT)
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
    single = check_images(images, name).ndim == 3
    return (images[np.newaxis] if single else images), single


def check_map(values: Array, name: str, *shapes: tuple[int, ...]) -> None:
    """Check a map: float32 in [0, 1], of one of the shapes of images, by default any (H, W)."""
    expected = " or ".join(map(str, shapes)) + " as the images" if shapes else "(H, W)"
    _check_array(values, name, expected)
    if values.shape not in shapes if shapes else values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: expected shape {expected}, got {values.shape}")
    _check_range(values, name, 1)


def as_map_batch(maps: Array | None, batch: Array, name: str = "activation_map") -> Array | None:
    """Check that maps fit a batch of images, (H, W) a batch of one, and give them as (N, H, W)."""
    if maps is None:
        return None
    shape = batch.shape[:3]
    check_map(maps, name, shape, *([shape[1:]] if len(batch) == 1 else []))
    return maps.reshape(shape)


def on_grid(images: Array) -> Array:
    """Clip to [0, 255] and round to whole numbers: what an 8-bit file holds."""
    return np.rint(np.clip(images, 0, 255)).astype(np.float32)


def min_max(values: NDArray[Any], size: NDArray[Any] | None = None) -> Array:
    """Stretch each trailing (H, W) linearly so that its least value is 0 and its greatest 1.

    One that is constant, if only but for rounding, becomes zeros. The rounding goes with `size`, of
    what the values were made of: of a sum, that of its terms; by default their own magnitude.
    """
    low = values.min(axis=(-2, -1), keepdims=True)
    span = values.max(axis=(-2, -1), keepdims=True) - low
    if size is None:
        size = np.abs(values).max(axis=(-2, -1), keepdims=True)
    # Whatever is divided by infinity is 0.
    span = np.where(span > ROUNDING * size, span, np.inf)
    return np.asarray((values - low) / span, dtype=np.float32)


def _check_array(values: Any, name: str, shape: str) -> None:
    if not isinstance(values, np.ndarray):
        got = type(values).__name__
        raise ValueError(f"{name}: expected a float32 array of shape {shape}, got {got}")
    if values.dtype != np.float32:
        raise ValueError(
            f"{name}: expected dtype float32, got {values.dtype}; use astype('float32')"
        )


def _check_range(
    values: Array, name: str, greatest: int, slack: float = 0.0
) -> tuple[float, float]:
    # NaN and infinity come through min and max, which costs less than asking every value.
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if low < -slack or high > greatest + slack:
        raise ValueError(f"{name}: expected values in [0, {greatest}], got [{low:g}, {high:g}]")
    return low, high


# --- numbers and words


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, of NumPy or not; True and False are none."""
    return is_whole(value) or isinstance(value, (float, np.floating))


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number; a whole one has at most 64 bits."""
    if is_whole(value):
        return -LARGEST <= value <= LARGEST
    return is_number(value) and math.isfinite(value)


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check a whole number of at least `low`, at most `high` or what 64 bits hold."""
    if not is_whole(value) or not low <= value <= (LARGEST if high is None else high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a whole number {span}, got {value!r}")


#: The least number above 0.
ABOVE_0 = math.ulp(0.0)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Check a number of at least `low`, which may be `ABOVE_0`, and at most `high`."""
    if not is_finite(value) or not low <= value <= high:
        span = "above 0" if low == ABOVE_0 else f"of at least {low:g}"
        if high < math.inf:
            span = f"{span} and at most {high:g}" if low == ABOVE_0 else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number {span}, got {value!r}")


def check_odd(name: str, value: object) -> None:
    """Check the side of a window that has a pixel in its middle."""
    if not is_whole(value) or not 1 <= value <= LARGEST or value % 2 == 0:
        raise ValueError(f"{name}: expected an odd number of pixels, got {value!r}")


def check_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Check a word."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {tuple(known)}, got {value!r}")


# --- random streams

Rng = int | np.random.Generator | Sequence[np.random.Generator] | None


def streams(rng: Rng, n: int) -> list[np.random.Generator]:
    """Give `n` independent generators, one an image.

    The i-th stream of a seed does not depend on `n`, so an image gets the same draws alone and
    in a batch. A Generator is spawned from: handing the same one to batch after batch gives the
    same streams as one call on all the images, whatever the batch size. A sequence of `n` is
    returned as it is.
    """
    if isinstance(rng, Sequence) and not isinstance(rng, (str, bytes)):
        if len(rng) != n or not all(isinstance(g, np.random.Generator) for g in rng):
            raise ValueError(f"rng: expected a sequence of {n} generators, got {rng!r}")
        return list(rng)
    return generator(rng).spawn(n)


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Turn a seed, a generator or None into a generator."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and not (is_whole(rng) and rng >= 0):
        raise ValueError(
            f"rng: expected an int seed >= 0, a numpy.random.Generator or None, got {rng!r}"
        )
    return np.random.default_rng(rng)


# --- files


class DataError(ValueError):
    """A file that is shipped or installed is missing, or is not the expected one."""


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, and no other."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a text file, got a folder")
    raw, encoding = Path(path).read_bytes(), "utf-8-sig"
    # The mark of UTF-32 begins as that of UTF-16 does.
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = raw.decode(encoding)
        wrong = "zero bytes without a mark" if "\0" in text else ""
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        wrong = f"{error.reason} in line {line}"
    if wrong:
        raise ValueError(
            f"{path}: expected a text in UTF-8, or in UTF-16 with a byte-order mark, got {wrong}; "
            "save it as UTF-8"
        )
    return re.sub(r"\r\n?", "\n", text)


def has_hash(path: Path, known_hash: str) -> bool:
    """Tell whether a file has a hash, `algorithm:hex`."""
    algorithm, _, digest = known_hash.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == digest


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


# --- surroundings


def ahead(function: Callable[[_Given], _Made], given: Iterable[_Given]) -> Iterator[_Made]:
    """Map a function in a thread of its own, a call ahead of whoever takes what it gives.

    An error comes where its result would have come. Whoever stops before the end waits for the call
    that is being made, at most.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        coming = deque[Future[_Made]]()
        for one in given:
            coming.append(pool.submit(function, one))
            if len(coming) > 1:
                yield coming.popleft().result()
        for future in coming:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def progress_bar(*, shown: bool | None = None, **options: Any) -> "tqdm[Any]":
    """Make a bar of tqdm, a widget in a notebook.

    It is shown where somebody looks, on a terminal and in a notebook, unless the environment
    variable TQDM_DISABLE is set, as it is in a run without a screen.
    """
    # tqdm itself reads this variable only where `disable` is not given.
    if shown is None and os.environ.get("TQDM_DISABLE"):
        shown = False
    return tqdm(disable=None if shown is None else not shown, **options)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say, where an import fails, which extra of pdutils brings what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; bring it with: pip install 'pdutils[{name}]'",
            name=error.name,
        ) from error


def processor() -> str:
    """Give the processor's name, which Python knows on some systems only."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator() -> str:
    """Give the name of the first GPU that Keras's backend has found, or ""."""
    backend = check_keras_settings()
    if backend not in sys.modules:
        return ""
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return "" if device.platform == "cpu" else str(device.device_kind)
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(found[0]) if found else {}
    return str(details.get("device_name", ""))


_left_behind = False


def check_fork() -> None:
    """Refuse to wait for threads that only the parent of this process has."""
    if _left_behind:
        raise RuntimeError(
            "TensorFlow or JAX ran before this process was forked and would wait here for ever, "
            'for its threads are those of the parent: start the process with "spawn" '
            '(multiprocessing.get_context("spawn")), or fork before a classifier is loaded'
        )


def _note_fork() -> None:
    global _left_behind
    # TensorFlow itself says nowhere that it has run without being set up by the question.
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    started = getattr(context, "_context_handle", None) is not None
    started = started or bool(getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None))
    _left_behind = _left_behind or started


# Not on Windows, which knows no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

#: In what the functions of this package compute, whatever a model of one's own computes in.
_EXPECTED = {
    "backend": ("tensorflow", "jax"),
    "floatx": ("float32",),
    "image_data_format": ("channels_last",),
}


def keras_home() -> Path:
    """Give the folder of Keras's own settings and downloads."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = os.path.expanduser("~")
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


def check_keras_settings(backends: tuple[str, ...] = _EXPECTED["backend"]) -> str:
    """Check what Keras works on, in float32, with the channels last; give what it works on.

    Before Keras is loaded, what it will read is checked; after, what it is set to.
    """
    file, chosen = keras_home() / "keras.json", os.environ.get("KERAS_BACKEND")
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # To Keras, too, a file that is no JSON counts for nothing.
        written = {}
    expected = _EXPECTED | {"backend": backends}
    settings = {name: first for name, (first, *_) in expected.items()} | written
    settings |= {"backend": chosen} if chosen else {}
    if "keras" in sys.modules:
        import keras

        settings = {name: getattr(keras.config, name)() for name in expected}
    for name, right in expected.items():
        got = settings[name]
        if got in right:
            continue
        if name == "backend" and got == chosen:
            cure = f"set the environment variable KERAS_BACKEND to {right[0]}"
        elif got == written.get(name):
            cure = f'write "{name}": "{right[0]}" in {file}'
        else:
            cure = f"call keras.config.set_{name}({right[0]!r})"
        wanted = " or ".join(map(repr, right))
        raise ValueError(f"Keras's {name}: expected {wanted}, got {got!r}; {cure}")
    return str(settings["backend"])


def load_backend() -> str:
    """Import what Keras works on, "tensorflow" or "jax", and give its name.

    JAX is told to compute in float32: on a GPU its own choice is coarser.
    """
    if check_keras_settings() == "tensorflow":
        load_tensorflow()
        return "tensorflow"
    check_fork()
    # Else the first process takes most of a GPU's memory, and none is left for those beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with extra("jax"):
        import jax
    jax.config.update("jax_default_matmul_precision", "float32")
    return "jax"


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up chatter, which no log level silences.

    TensorFlow writes it to the process's standard error before it reads its log level. Should the
    import fail, all of it is shown. A wrong setting of Keras and a fork too late are refused here.
    """
    check_fork()
    check_keras_settings(("tensorflow",))
    # Else the first process takes all of a GPU's memory, and none is left for those beside it.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as chatter:
        kept = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def installed(package: str) -> str:
    """Give the version of a package that is installed, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
