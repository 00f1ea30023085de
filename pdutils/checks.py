"""Checks of arguments; every error says what was expected and what came."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

#: The greatest whole number that the libraries below can take.
LARGEST = 2**63 - 1


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number; True and False are none.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    bool
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, of NumPy or not; True and False are none.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    bool
    """
    return is_whole(value) or isinstance(value, (float, np.floating))


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that the libraries below can take.

    It is neither NaN nor infinite, and a whole one has at most 64 bits.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    bool
    """
    if is_whole(value):
        return -LARGEST <= value <= LARGEST
    return is_number(value) and math.isfinite(value)


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check a whole number.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : object
        What came.
    low, high : int
        The least and the greatest that is allowed; None: whatever 64 bits hold.

    Raises
    ------
    ValueError
        If it is no whole number, or out of its range.
    """
    greatest = LARGEST if high is None else high
    if not is_whole(value) or not low <= value <= greatest:
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a whole number {span}, got {value!r}")


def check_odd(name: str, value: object) -> None:
    """Check the side of a window that has a pixel in its middle.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : object
        What came.

    Raises
    ------
    ValueError
        If it is no odd whole number above 0.
    """
    if not is_whole(value) or not 1 <= value <= LARGEST or value % 2 == 0:
        raise ValueError(f"{name}: expected an odd number of pixels, got {value!r}")


def check_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Check a word.

    Parameters
    ----------
    name : str
        What the caller calls it.
    value : object
        What came.
    known : sequence of str
        What is allowed.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if value not in known:
        raise ValueError(f"{name}: expected one of {tuple(known)}, got {value!r}")
