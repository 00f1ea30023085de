"""Pixel deflection: some pixels are replaced by random neighbours, fewer where a map is hot.

Source: Prakash, Moran, Garber, DiLillo, Storer: Deflecting Adversarial Attacks with Pixel
Deflection, CVPR 2018, arXiv 1801.08926, Algorithm 1; and the authors' code and blog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import LARGEST, Rng, check_one_of, check_whole, is_whole, streams
from pdutils.images import Array, as_batch, as_map_batch

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
        RGB in [0, 255]. They are not changed.
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

        In both codes of the authors row 0 and column 0 are written but never read from; here too,
        unless the image has no other.
    rng : int, numpy.random.Generator, list of Generator, or None
        Each image draws from a stream of its own, see `pdutils._utils`.

    Returns
    -------
    ndarray of float32, the shape of `images`

    Raises
    ------
    ValueError
        Also if the map is 1 everywhere although `repo` or `paper` ask for a fixed number of writes
        (the authors' code does not end then).
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
    generators: Sequence[np.random.Generator],
) -> Array:
    """Do as `pixel_deflection`, for images and maps (N, ...) that were checked before."""
    result = batch.copy()
    for i, rng in enumerate(generators):
        chances = None if maps is None else maps[i]
        writes = draw_writes(batch.shape[1:3], deflections, window, chances, reading, rng)
        _write(result[i], batch[i], writes)
    return result


def draw_writes(
    shape: tuple[int, ...],
    deflections: int,
    window: int,
    activation_map: Array | None,
    reading: Reading,
    rng: np.random.Generator,
) -> Writes:
    """Draw the writes of one image (H, W); the arguments are those of `pixel_deflection`."""
    check_knobs(deflections, window, reading)
    height, width = shape
    # A window beyond the image adds nothing, and a huge one overflows when added to a place.
    window = min(window, max(shape))
    draw = {"blog": _blog_places, "repo": _repo_places, "paper": _paper_places}[reading]
    places, channel = draw(deflections, height * width, activation_map, rng)
    row, column = np.divmod(places, width)
    # Only the paper's reading copies from row and column 0.
    first = 0 if reading == "paper" else 1
    return Writes(
        to_row=row,
        to_column=column,
        from_row=_near(row, height, window, first, rng),
        from_column=_near(column, width, window, first, rng),
        channel=channel,
    )


def apply_writes(image: Array, writes: Writes) -> Array:
    """Give what a loop over the writes makes of an image (H, W, 3), bit for bit, without a loop."""
    result = image.copy()
    _write(result, image, writes)
    return result


def _write(result: Array, image: Array, writes: Writes) -> None:
    """Carry out writes in `result`, which is a contiguous copy of `image`."""
    if len(writes) == 0:
        return
    width, channels = image.shape[1:]
    target = writes.to_row * width + writes.to_column
    source = writes.from_row * width + writes.from_column
    # A place is a pixel with all its channels, or one of them.
    places: tuple[int, ...] = (-1, channels)
    if writes.channel[0] != _ALL_CHANNELS:
        target, source = target * channels + writes.channel, source * channels + writes.channel
        places = (-1,)
    flat, origin = result.reshape(places), image.reshape(places)
    # Of values assigned to one place NumPy keeps the last, as the loop does.
    flat[target] = origin[_first_sources(target, source, len(flat))]


def _first_sources(target: Ints, source: Ints, places: int) -> Ints:
    """Find the place of the untouched image from which each write's value comes in the end."""
    written = np.zeros(places, dtype=np.bool_)
    written[target] = True
    # Few writes read a place that another one writes to: only those need the search.
    reader = np.flatnonzero(written[source])
    if len(reader) == 0:
        return source
    written[:] = False
    written[source[reader]] = True
    writer = np.flatnonzero(written[target])
    return _resolved(source, target[writer], writer, reader)


def _resolved(source: Ints, target: Ints, writer: Ints, reader: Ints) -> Ints:
    """Follow each reader to the last writer of its source before it, and on to the first source."""
    n = len(source)
    # Keys sort by place, then by time: what stands before (source, j) is the last write to that
    # source before j, if there is one.
    keys = np.sort(target * n + writer)
    before = np.searchsorted(keys, source[reader] * n + reader) - 1
    found = keys[np.maximum(before, 0)]
    earlier = np.arange(n)
    earlier[reader] = np.where((before >= 0) & (found // n == source[reader]), found % n, reader)
    while True:
        further = earlier[earlier]
        if np.array_equal(further, earlier):
            return source[earlier]
        earlier = further


def _blog_places(
    deflections: int, pixels: int, activation_map: Array | None, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    places = rng.integers(0, pixels, size=3 * deflections)
    channel = np.tile(np.arange(3), deflections)
    if activation_map is None:
        return places, channel
    kept = rng.random(len(places)) >= activation_map.reshape(-1)[places]
    return places[kept], channel[kept]


def _repo_places(
    deflections: int, pixels: int, activation_map: Array | None, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    if deflections == 0:
        return _blog_places(0, pixels, None, rng)
    # Instead of drawing until enough draws are accepted, which need not end, draw how many
    # draws each acceptance takes, and where it falls: the distribution is the same.
    chance = 1.0 if activation_map is None else float(np.mean(_chances(activation_map)))
    waits = rng.geometric(chance, size=deflections + 2)
    # Beyond 3 only the channel that a wait leads to matters; the sum of long ones overflows.
    trial = np.cumsum(np.minimum(waits, 3 + waits % 3)) - 1
    last_round = trial[deflections - 1] // 3
    trial = trial[trial // 3 <= last_round]
    return _accepted(len(trial), pixels, activation_map, rng), trial % 3


def _paper_places(
    deflections: int, pixels: int, activation_map: Array | None, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    places = _accepted(deflections, pixels, activation_map, rng)
    return places, np.full(deflections, _ALL_CHANNELS)


def _accepted(n: int, pixels: int, activation_map: Array | None, rng: np.random.Generator) -> Ints:
    """Draw n places in proportion to 1 - map."""
    if activation_map is None:
        return rng.integers(0, pixels, size=n)
    heights = np.cumsum(_chances(activation_map))
    places: Ints = np.searchsorted(heights, rng.random(n) * heights[-1], side="right")
    return places


def _chances(activation_map: Array) -> NDArray[np.float64]:
    chances = 1.0 - activation_map.reshape(-1).astype(np.float64)
    if not chances.any():
        raise ValueError(
            "activation_map is 1 everywhere, so every place is spared; expected at least one "
            "value below 1 where the reading ('repo' or 'paper') asks for a number of writes"
        )
    return chances


def _near(position: Ints, size: int, window: int, first: int, rng: np.random.Generator) -> Ints:
    first = min(first, size - 1)
    low = np.maximum(position - window, first)
    high = np.minimum(position + window, size - 1)
    # A draw in [0, 1) scaled to the range is several times as fast as integers(low, high).
    steps = (rng.random(len(position)) * (high - low + 1)).astype(np.int64)
    near: Ints = low + steps
    return near


def check_knobs(deflections: int, window: int, reading: str) -> None:
    """Check the knobs of `pixel_deflection`."""
    check_whole("deflections", deflections, 0)
    # However far a window reaches, it is cut to the image.
    check_whole("window", min(window, LARGEST) if is_whole(window) else window, 1)
    check_one_of("reading", reading, get_args(Reading))
