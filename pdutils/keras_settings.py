"""What Keras is set to, by its file `keras.json`, by the environment or by a program."""

import json
import os
import sys
from pathlib import Path
from typing import Any

#: In what the functions of this package compute, whatever a model of one's own computes in.
_EXPECTED = {"backend": "tensorflow", "floatx": "float32", "image_data_format": "channels_last"}


def keras_home() -> Path:
    """Give the folder of Keras's own settings and downloads.

    Returns
    -------
    Path
        KERAS_HOME if that environment variable is set, else `~/.keras`; a home that cannot be
        written to is replaced by /tmp, as Keras does. The folder need not exist.
    """
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = os.path.expanduser("~")
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


def check_keras_settings() -> None:
    """Check that Keras works on TensorFlow, in float32, with the channels last.

    Before Keras is loaded, what it will read is checked; after, what it is set to.

    Raises
    ------
    ValueError
        If a setting is another; the message says where it can be changed.
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
