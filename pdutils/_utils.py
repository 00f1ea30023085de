"""Checks of arguments, random streams, progress bars, and what TensorFlow and Keras are set to."""

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from tqdm.auto import tqdm

#: The greatest whole number that the libraries below can take.
LARGEST = 2**63 - 1


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, of NumPy or not; True and False are none."""
    return is_whole(value) or isinstance(value, (float, np.floating))


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that the libraries below can take.

    It is neither NaN nor infinite, and a whole one has at most 64 bits.
    """
    if is_whole(value):
        return -LARGEST <= value <= LARGEST
    return is_number(value) and math.isfinite(value)


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check a whole number of at least `low`, at most `high` or what 64 bits hold."""
    greatest = LARGEST if high is None else high
    if not is_whole(value) or not low <= value <= greatest:
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a whole number {span}, got {value!r}")


def check_odd(name: str, value: object) -> None:
    """Check the side of a window that has a pixel in its middle."""
    if not is_whole(value) or not 1 <= value <= LARGEST or value % 2 == 0:
        raise ValueError(f"{name}: expected an odd number of pixels, got {value!r}")


def check_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Check a word."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {tuple(known)}, got {value!r}")


Rng = int | np.random.Generator | Sequence[np.random.Generator] | None


def streams(rng: Rng, n: int) -> list[np.random.Generator]:
    """Give `n` independent generators, one an image.

    The i-th stream of a seed does not depend on `n`, so an image gets the same draws alone and
    in a batch. A Generator is spawned from: handing the same one to batch after batch gives the
    same streams as one call on all the images, whatever the batch size. A sequence of `n` is
    returned as it is.
    """
    check_whole("n", n, 0)
    if isinstance(rng, Sequence) and not isinstance(rng, (str, bytes)):
        if len(rng) != n or not all(isinstance(g, np.random.Generator) for g in rng):
            raise ValueError(f"rng: expected a sequence of {n} generators, got {rng!r}")
        return list(rng)
    return generator(rng).spawn(n)


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Turn a seed, a generator or None into a generator."""
    if isinstance(rng, np.random.Generator):
        return rng
    is_seed = isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0
    if rng is not None and not is_seed:
        raise ValueError(
            f"rng: expected an int seed >= 0, a numpy.random.Generator or None, got {rng!r}"
        )
    return np.random.default_rng(rng)


def progress_bar(*, shown: bool | None = None, **options: Any) -> "tqdm[Any]":
    """Make a bar of tqdm, a widget in a notebook.

    It is shown where somebody looks, on a terminal and in a notebook, unless the environment
    variable TQDM_DISABLE is set, as it is in a run without a screen.
    """
    if shown is None:
        # tqdm itself reads this variable only where `disable` is not given.
        shown = False if os.environ.get("TQDM_DISABLE") else None
    return tqdm(disable=None if shown is None else not shown, **options)


_left_behind = False


def check_fork() -> None:
    """Refuse to wait for threads that only the parent of this process has."""
    if _left_behind:
        raise RuntimeError(
            "TensorFlow ran before this process was forked and would wait here for ever, for its "
            'threads are those of the parent: start the process with "spawn" '
            '(multiprocessing.get_context("spawn")), or fork before a classifier is loaded'
        )


def _note_fork() -> None:
    global _left_behind
    _left_behind = _left_behind or _has_run()


def _has_run() -> bool:
    # TensorFlow itself says it nowhere without being set up by the question.
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    return getattr(context, "_context_handle", None) is not None


# Not on Windows, which knows no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


#: In what the functions of this package compute, whatever a model of one's own computes in.
_EXPECTED = {"backend": "tensorflow", "floatx": "float32", "image_data_format": "channels_last"}


def keras_home() -> Path:
    """Give the folder of Keras's own settings and downloads."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = os.path.expanduser("~")
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


def check_keras_settings() -> None:
    """Check that Keras works on TensorFlow, in float32, with the channels last.

    Before Keras is loaded, what it will read is checked; after, what it is set to.
    """
    written = _written()
    settings = _in_use() if "keras" in sys.modules else _EXPECTED | written | _environment()
    for name, expected in _EXPECTED.items():
        if settings[name] != expected:
            raise ValueError(
                f"Keras's {name}: expected {expected!r}, got {settings[name]!r}; "
                f"{_cure(name, settings[name], written)}"
            )


def _written() -> dict[str, Any]:
    """Read `keras.json` as Keras does: a file that is no JSON counts for nothing."""
    try:
        found = json.loads((keras_home() / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _environment() -> dict[str, Any]:
    backend = os.environ.get("KERAS_BACKEND")
    return {"backend": backend} if backend else {}


def _in_use() -> dict[str, Any]:
    import keras

    return {name: getattr(keras.config, name)() for name in _EXPECTED}


def _cure(name: str, value: Any, written: dict[str, Any]) -> str:
    if _environment().get(name) == value:
        return f"set the environment variable KERAS_BACKEND to {_EXPECTED[name]}"
    if written.get(name) == value:
        return f'write "{name}": "{_EXPECTED[name]}" in {keras_home() / "keras.json"}'
    return f"call keras.config.set_{name}({_EXPECTED[name]!r})"


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up chatter, which no log level silences.

    TensorFlow writes it to the process's standard error before it reads its log level. Should the
    import fail, all of it is shown. A wrong setting of Keras and a fork too late are refused here.
    """
    check_fork()
    check_keras_settings()
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
