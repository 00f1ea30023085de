"""Pixel deflection: some pixels are replaced by random neighbours, fewer where a map is hot.

Source: Prakash, Moran, Garber, DiLillo, Storer, CVPR 2018, arXiv 1801.08926, Algorithm 1; and the
authors' code and blog.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pdutils._utils import Array, Rng, as_batch, as_map_batch, check_one_of, check_whole, streams

Reading = Literal["blog", "repo", "paper"]
Ints = NDArray[np.int64]

_ALL_CHANNELS = -1


@dataclass(frozen=True)
class Writes:
    """The writes of one deflection, in their order: each copies a place to another.

    A neighbour is copied as it is when its turn comes. The channel is 0, 1 or 2; -1 for all three.
    """

    to_row: Ints
    to_column: Ints
    from_row: Ints
    from_column: Ints
    channel: Ints

    def __len__(self) -> int:
        return len(self.channel)


def pixel_deflection(
    images: Array,
    deflections: int = 200,
    window: int = 10,
    *,
    activation_map: Array | None = None,
    reading: Reading = "blog",
    rng: Rng = None,
) -> Array:
    """Replace random pixels by random neighbours.

    Later draws see earlier writes: a pixel that was replaced can be copied on.

    Parameters
    ----------
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        RGB in [0, 255].
    deflections : int
        How many, at least 0; what is counted depends on `reading`. The paper takes 100, the
        authors' program 200, the blog 200, 600 and 1500.
    window : int
        How far a neighbour may be away in either direction, in pixels, at least 1. A window that
        reaches over the border ends there.
    activation_map : ndarray of float32, shape (H, W) or (N, H, W), optional
        A place is spared with this probability. None spares no place.
    reading : {"blog", "repo", "paper"}
        What one deflection is.

        - ``blog`` (the authors' notebook): each channel draws a place of its own; three such
          draws are one deflection; a draw that the map rejects is counted and skipped.
        - ``repo`` (their `methods.py`): the same, but one write of one channel is one deflection,
          counted at the end of each round of three, and a draw that the map rejects is not
          counted: `deflections` to `deflections` + 2 writes.
        - ``paper`` (Algorithm 1): one place and one neighbour for the whole pixel; exactly
          `deflections` of them, the places drawn in proportion to 1 - `activation_map`.

        `repo` and `paper` raise a ValueError for a map of 1 everywhere (the authors' code does not
        end then). In both codes of the authors row 0 and column 0 are written but never read from;
        here too, unless the image has no other.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image draws from a stream of its own, see `pdutils._utils`.

    Returns
    -------
    ndarray of float32, the shape of `images`
    """
    batch, single = as_batch(images)
    maps = as_map_batch(activation_map, batch)
    result = deflect(batch, deflections, window, maps, reading, streams(rng, len(batch)))
    return result[0] if single else result


def deflect(
    batch: Array,
    deflections: int,
    window: int,
    maps: Array | None,
    reading: Reading,
    generators: Sequence[Generator],
) -> Array:
    """Do as `pixel_deflection`, for images and maps (N, ...) that were checked before."""
    chances = [None] * len(batch) if maps is None else maps
    result = batch.copy()
    for image, place, one, rng in zip(batch, result, chances, generators, strict=True):
        writes = draw_writes(image.shape[:2], deflections, window, one, reading, rng)
        apply_writes(image, writes, place)
    return result


def draw_writes(
    shape: tuple[int, ...],
    deflections: int,
    window: int,
    activation_map: Array | None,
    reading: Reading,
    rng: Generator,
) -> Writes:
    """Draw the writes of one image (H, W); the arguments are those of `pixel_deflection`."""
    check_knobs(deflections, window, reading)
    spared = None if activation_map is None else activation_map.reshape(-1)
    draw = {"blog": _blog_places, "repo": _repo_places, "paper": _paper_places}[reading]
    places, channel = draw(deflections, math.prod(shape), spared, rng)
    row, column = np.divmod(places, shape[1])

    def near(position: Ints, size: int) -> Ints:
        # Only the paper's reading copies from row and column 0.
        low = np.maximum(position - min(window, size), min(reading != "paper", size - 1))
        high = np.minimum(position + min(window, size), size - 1)
        # A draw in [0, 1) scaled to the range is several times as fast as integers(low, high).
        steps: Ints = (rng.random(len(position)) * (high - low + 1)).astype(np.int64)
        return low + steps

    return Writes(row, column, near(row, shape[0]), near(column, shape[1]), channel)


def apply_writes(image: Array, writes: Writes, result: Array | None = None) -> Array:
    """Give what a loop over the writes makes of an image (H, W, 3), bit for bit, without a loop.

    `result` is a copy of the image to carry them out in.
    """
    result = image.copy() if result is None else result
    width, channels = image.shape[1:]
    target = writes.to_row * width + writes.to_column
    source = writes.from_row * width + writes.from_column
    # A place is a pixel with all its channels, or one of them.
    whole = len(writes) > 0 and writes.channel[0] == _ALL_CHANNELS
    if not whole:
        target, source = target * channels + writes.channel, source * channels + writes.channel
    places, written = (a.reshape((-1, channels) if whole else -1) for a in (image, result))
    # Of values assigned to one place NumPy keeps the last, as the loop does.
    written[target] = places[_first_sources(target, source, len(places))]
    return result


def _first_sources(target: Ints, source: Ints, places: int) -> Ints:
    """Find the place of the untouched image from which each write's value comes in the end."""
    n, earlier = len(target), np.arange(len(target))
    written = np.zeros(places, dtype=np.bool_)
    written[target] = True
    # Few writes read a place that another one writes to: only those need the search.
    reader = np.flatnonzero(written[source])
    if len(reader) == 0:
        return source
    written[:] = False
    written[source[reader]] = True
    writer = np.flatnonzero(written[target])
    # Keys sort by place, then by time: what stands before (source, j) is the last write to that
    # source before j, if there is one.
    keys = np.sort(target[writer] * n + writer)
    found = keys[np.searchsorted(keys, source[reader] * n + reader) - 1]
    before = (found // n == source[reader]) & (found % n < reader)
    earlier[reader] = np.where(before, found % n, reader)
    while not np.array_equal(further := earlier[earlier], earlier):
        earlier = further
    return source[earlier]


def _blog_places(n: int, pixels: int, spared: Array | None, rng: Generator) -> tuple[Ints, Ints]:
    places, channel = rng.integers(0, pixels, size=3 * n), np.tile(np.arange(3), n)
    if spared is None:
        return places, channel
    kept = rng.random(len(places)) >= spared[places]
    return places[kept], channel[kept]


def _repo_places(n: int, pixels: int, spared: Array | None, rng: Generator) -> tuple[Ints, Ints]:
    if n == 0:
        return _blog_places(0, pixels, None, rng)
    # Instead of drawing until enough draws are accepted, which need not end, draw how many
    # draws each acceptance takes, and where it falls: the distribution is the same.
    chance = 1.0 if spared is None else float(np.mean(_chances(spared)))
    waits = rng.geometric(chance, size=n + 2)
    # Beyond 3 only the channel that a wait leads to matters; the sum of long ones overflows.
    trial = np.cumsum(np.minimum(waits, 3 + waits % 3)) - 1
    trial = trial[trial // 3 <= trial[n - 1] // 3]
    return _paper_places(len(trial), pixels, spared, rng)[0], trial % 3


def _paper_places(n: int, pixels: int, spared: Array | None, rng: Generator) -> tuple[Ints, Ints]:
    if spared is None:
        places: Ints = rng.integers(0, pixels, size=n)
    else:
        heights = np.cumsum(_chances(spared))
        places = np.searchsorted(heights, rng.random(n) * heights[-1], side="right")
    return places, np.full(n, _ALL_CHANNELS)


def _chances(spared: Array) -> NDArray[np.float64]:
    chances = 1.0 - spared.astype(np.float64)
    if not chances.any():
        raise ValueError(
            "activation_map is 1 everywhere, so every place is spared; expected at least one "
            "value below 1 where the reading ('repo' or 'paper') asks for a number of writes"
        )
    return chances


def check_knobs(deflections: int, window: int, reading: str) -> None:
    """Check the knobs of `pixel_deflection`."""
    check_whole("deflections", deflections, 0)
    check_whole("window", window, 1)
    check_one_of("reading", reading, get_args(Reading))
