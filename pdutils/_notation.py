"""The one spelling of attacks and defences: a name and, after a colon, its knobs.

`igsm:eps=4,iterations=10` or `pd+rcam+wd:deflections=600`. Stores of results hold such texts, and
random streams are made from them: what is written for a name and its knobs must never change.
"""

import ast
import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

Value = bool | int | float | str | None

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_WORD = re.compile(r"[\w.+-]+")


def read(kind: str, text: str) -> tuple[str, dict[str, Value]]:
    """Part a text into its name and its knobs; `kind` says in errors what it should be."""
    form = f"{kind}: expected NAME or NAME:KNOB=VALUE,KNOB=VALUE, got {text!r}"
    if not isinstance(text, str):
        raise ValueError(form)
    name, colon, rest = (part.strip() for part in text.partition(":"))
    knobs: dict[str, Value] = {}
    for pair in rest.split(",") if colon else []:
        knob, equals, value = (part.strip() for part in pair.partition("="))
        if not knob or not equals:
            raise ValueError(form)
        if knob in knobs:
            raise ValueError(f"{name}: {knob} is given twice, in {text!r}")
        knobs[knob] = read_value(f"{name}: {knob}", value)
    return name, knobs


def literal(text: str) -> Any:
    """Read true, false, none or a literal of Python; all else is the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        with warnings.catch_warnings():
            # A number that runs into a word is a word here, which Python warns of.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_value(where: str, text: str) -> Value:
    """Read a value: a number, one of three words that Python knows, or a word of ours."""
    value = literal(text)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, str) and _WORD.fullmatch(text):
        return text
    raise ValueError(f"{where}: expected a number, true, false, none or a word, got {text!r}")


def spell(name: str, knobs: Mapping[str, Value]) -> str:
    """Write the canonical text, its knobs in the order of the alphabet."""
    pairs = ",".join(f"{knob}={spell_value(knobs[knob])}" for knob in sorted(knobs))
    return f"{name}:{pairs}" if pairs else name


def spell_value(value: Value) -> str:
    """Write a value as `read_value` reads it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def check_known(name: str, knobs: Mapping[str, Value], known: Collection[str]) -> None:
    """Check that what is called `name` has these knobs."""
    if unknown := sorted(set(knobs) - set(known)):
        listed = f"known: {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{name}: no knob {', '.join(unknown)}; {listed}")


def knobs_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Give the keywords of a function with their defaults, but for those that are not knobs."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("rng", "batch_size", "defense")
    }
