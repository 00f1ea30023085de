"""Random streams: one independent generator an image, from one seed."""

from collections.abc import Sequence

import numpy as np

from pdutils.checks import check_whole

Rng = int | np.random.Generator | Sequence[np.random.Generator] | None


def streams(rng: Rng, n: int) -> list[np.random.Generator]:
    """Give `n` independent generators, one an image.

    The i-th stream of a seed does not depend on `n`, so an image gets the same draws alone and
    in a batch. A Generator is spawned from: handing the same one to batch after batch gives the
    same streams as one call on all the images, whatever the batch size.

    Parameters
    ----------
    rng : int, numpy.random.Generator, sequence of Generator, or None
        A seed; a generator to spawn from; `n` generators that are returned as they are; or None
        for fresh entropy.
    n : int
        The number of streams, at least 0.

    Returns
    -------
    list of numpy.random.Generator

    Raises
    ------
    ValueError
        If `rng` is none of the above, a negative seed, or a sequence of another length, or `n` is
        no number of streams.
    """
    check_whole("n", n, 0)
    if isinstance(rng, Sequence) and not isinstance(rng, (str, bytes)):
        if len(rng) != n or not all(isinstance(g, np.random.Generator) for g in rng):
            raise ValueError(f"rng: expected a sequence of {n} generators, got {rng!r}")
        return list(rng)
    return generator(rng).spawn(n)


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Turn a seed, a generator or None into a generator.

    Parameters
    ----------
    rng : int, numpy.random.Generator or None
        An int is a seed; a Generator is returned as it is; None takes fresh entropy.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    ValueError
        If `rng` is none of the above or a negative seed.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    is_seed = isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0
    if rng is not None and not is_seed:
        raise ValueError(
            f"rng: expected an int seed >= 0, a numpy.random.Generator or None, got {rng!r}"
        )
    return np.random.default_rng(rng)
