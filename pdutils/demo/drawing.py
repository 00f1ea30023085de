"""The demo world: ten animal faces in confusable pairs, drawn by formula.

Every shape is an implicit function (negative inside, positive outside) in units of the head's
radius, evaluated on the pixel grid; its sign, softened over a pixel, says how much of a pixel the
shape covers. Fur is one texture of strands that radiate from the nose: it shades the coat, lifts
it towards the light and frays every outline and marking.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from pdutils._utils import generator, streams

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

BLACK: Colour = (22.0, 20.0, 22.0)
WHITE: Colour = (238.0, 234.0, 226.0)
CREAM: Colour = (226.0, 204.0, 168.0)

# Backgrounds run from the first colour through the second to the third.
PALETTES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((24, 44, 26), (74, 104, 52), (170, 186, 104)),  # meadow
    ((18, 34, 34), (52, 84, 74), (138, 168, 142)),  # fir wood
    ((52, 30, 18), (146, 84, 36), (224, 166, 84)),  # autumn
    ((42, 36, 30), (112, 94, 72), (192, 172, 138)),  # earth and straw
    ((30, 38, 58), (84, 98, 126), (184, 190, 204)),  # dusk
    ((58, 74, 88), (132, 152, 164), (222, 228, 230)),  # river
    ((48, 34, 50), (116, 84, 112), (196, 166, 182)),  # heath
    ((56, 62, 70), (146, 152, 158), (232, 234, 236)),  # snow
)
LEAVES: tuple[Colour, ...] = ((58, 96, 40), (92, 122, 48), (128, 128, 52), (162, 104, 40))


@dataclass(frozen=True)
class Drawing:
    """One drawn animal: an RGB image of whole numbers, what is seen of the animal, its class.

    What stands in front of the animal is left out of the mask; `label` is a place in `CLASS_NAMES`.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    label: int


@dataclass(frozen=True)
class _Species:
    """What tells one animal from another, in units of the head's radius; see `animals.txt`."""

    head: tuple[float, float]  # half width, half height
    cheeks: tuple[float, float, float]  # across, down, radius
    ear_across: float
    ear_down: float
    ear_width: float
    ear_length: float
    ear_lean: float  # radians outward
    ear_point: float  # 0 round, 1 pointed
    ear_outer: Colour
    ear_inner: Colour
    eyes: tuple[float, float, float]  # across, down, radius
    iris: Colour
    nose: tuple[float, float]  # down, half width
    nose_colour: Colour
    muzzle: tuple[float, float]  # half width, half height
    coat: Colour
    body: Colour
    bib: Colour
    strands: float  # contrast of the fur
    ticking: float  # contrast of single light and dark hairs
    fringe: float  # how far hairs stand out of the outline
    whiskers: float
    lift: float  # how far the head sits below the middle of the picture


def _read_species() -> dict[str, _Species]:
    """Read the table: a column an animal, a row a property of one number or of several."""
    lines = Path(__file__).with_name("animals.txt").read_text("utf-8").splitlines()
    (_, *names), *rows = (line.split() for line in lines)
    tables: dict[str, dict[str, Any]] = {name: {} for name in names}
    for part, *cells in rows:
        for name, cell in zip(names, cells, strict=True):
            numbers = tuple(float(number) for number in cell.split(","))
            tables[name][part] = numbers if len(numbers) > 1 else numbers[0]
    return {name: _Species(**table) for name, table in tables.items()}


_SPECIES = _read_species()

CLASS_NAMES: tuple[str, ...] = tuple(_SPECIES)


@dataclass(frozen=True)
class _Pose:
    """Place (pixels), size (pixels per head radius), tilt, turn of the head and light."""

    across: float
    down: float
    scale: float
    tilt: float
    turn: tuple[float, float]
    light: tuple[float, float, float]
    ambient: float


class _Face:
    """Coordinates, fur and coat of one animal while it is drawn."""

    def __init__(self, pose: _Pose, species: _Species, size: int, rng: np.random.Generator):
        self.pose, self.species = pose, species
        self.u, self.v = _head_coordinates(pose, size)
        turned = np.maximum(0.0, 1.0 - (self.u**2 + self.v**2) / 1.3)
        self.x = self.u - pose.turn[0] * turned
        self.y = self.v - pose.turn[1] * turned
        self.a = np.abs(self.x)
        self.fur = _fur(self.x, self.y - species.nose[0], rng)
        self.vary = rng.uniform(-1.0, 1.0, size=8)
        self.coat = _tinted(species.coat, self.vary[:3]) * np.ones_like(self.u)

    def cover(self, distance: Array, soft: float = 1.5) -> Array:
        """Give the share of each pixel inside a shape, its edge softened over `soft` pixels."""
        share: Array = np.clip(0.5 - distance * np.float32(self.pose.scale / soft), 0.0, 1.0)
        return share

    def mark(self, distance: Array, colour: Colour, fray: float = 0.06, alpha: float = 1.0) -> None:
        """Colour the coat inside a shape, along a hairy edge."""
        share = self.cover(distance + np.float32(fray) * self.fur, soft=2.5)
        _blend(self.coat, share * np.float32(alpha), colour)


def draw_animal(
    label: int, *, size: int = 224, rng: int | np.random.Generator | None = None
) -> Drawing:
    """Draw one animal face at a random size, place, tilt and light, partly hidden by plants.

    Parameters
    ----------
    label : int
        Which animal, a place in `CLASS_NAMES`.
    size : int, default 224
        Height and width in pixels, at least 16.
    rng : int, Generator or None
        The same seed draws the same picture.

    Returns
    -------
    Drawing
    """
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label must be in 0..{len(CLASS_NAMES) - 1}, got {label}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    stream, species = generator(rng), _SPECIES[CLASS_NAMES[label]]
    canvas, palette = _background(size, stream)
    face = _Face(_draw_pose(species, size, stream), species, size, stream)
    seen = _paint_animal(canvas, face, _MARKINGS[label])
    _paint_plants(canvas, seen, palette, stream)
    image = np.ascontiguousarray(np.rint(np.clip(canvas, 0.0, 255.0)).transpose(1, 2, 0))
    return Drawing(image, seen > 0.5, label)


def draw_animals(
    n: int, *, size: int = 224, rng: int | np.random.Generator | None = None
) -> list[Drawing]:
    """Draw `n` animals, drawing `i` of class ``i % 10``; it does not depend on `n`.

    Parameters
    ----------
    n : int
        How many.
    size, rng
        As in `draw_animal`.

    Returns
    -------
    list of Drawing
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, got {n}")
    return [
        draw_animal(i % len(CLASS_NAMES), size=size, rng=stream)
        for i, stream in enumerate(streams(rng, n))
    ]


# --- the ground: coordinates, noise, fur


def _draw_pose(species: _Species, size: int, rng: np.random.Generator) -> _Pose:
    scale = size * rng.uniform(0.22, 0.3)
    across = size * rng.uniform(0.4, 0.6)
    down = size * rng.uniform(0.4, 0.54) + species.lift * scale
    turn = (rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.08))
    azimuth = rng.uniform(-2.6, -0.5)  # from above, left or right
    light = (0.62 * np.cos(azimuth), 0.62 * np.sin(azimuth), 0.78)
    tilt = rng.normal(0.0, 0.14)
    return _Pose(across, down, scale, tilt, turn, light, rng.uniform(0.34, 0.52))


def _head_coordinates(pose: _Pose, size: int) -> tuple[Array, Array]:
    """Pixel centres in head radii from the head's middle: to the side, and down the face."""
    axis = np.arange(size, dtype=np.float32)
    dx = (axis[None, :] - np.float32(pose.across)) / np.float32(pose.scale)
    dy = (axis[:, None] - np.float32(pose.down)) / np.float32(pose.scale)
    cos, sin = np.float32(np.cos(pose.tilt)), np.float32(np.sin(pose.tilt))
    return cos * dx + sin * dy, cos * dy - sin * dx


@lru_cache(maxsize=4)
def _one_over_f(size: int) -> Array:
    down, across = fft.fftfreq(size)[:, None], fft.fftfreq(size)[None, :]
    radius = np.hypot(down, across)
    radius[0, 0] = np.inf
    return np.asarray(radius**-1.4, dtype=np.float32)


def _natural_noise(size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two independent fields with a photograph's spectrum, mean 0 and deviation 1."""
    white = rng.standard_normal((2, size, size), dtype=np.float32)
    field = fft.ifft2((white[0] + 1j * white[1]) * _one_over_f(size))
    return field.real / field.real.std(), field.imag / field.imag.std()


@lru_cache(maxsize=1)
def _strands() -> Array:
    """Hairs by distance from the nose (rows) and direction (columns, going round)."""
    white = np.random.default_rng(2018).standard_normal((192, 2048), dtype=np.float32)
    fine = ndimage.gaussian_filter(white, (6.0, 4.5), mode="wrap")
    locks = ndimage.gaussian_filter(white[::-1], (10.0, 14.0), mode="wrap")
    return np.asarray(fine / fine.std() * 0.75 + locks / locks.std() * 0.5, dtype=np.float32)


def _fur(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Strands that radiate from the nose, twice as many further out so that none grows wide."""
    columns = _strands().shape[1]
    radius: Array = np.sqrt(x * x + y * y)
    bend = 0.12 * np.sin(3.0 * radius + np.float32(rng.uniform(0.0, 6.28)))
    turns: Array = (np.arctan2(x, y) + bend) * np.float32(columns / (2.0 * np.pi))
    start = rng.integers(columns, size=2)
    near, far = _hairs(turns, radius, start), _hairs(2.0 * turns, radius, start)
    outward = np.clip(2.5 * radius - 1.4, 0.0, 1.0)
    fur: Array = (near + outward * (far - near)) * np.minimum(1.0, radius * 2.2)
    return fur


def _hairs(turns: Array, radius: Array, start: NDArray[np.int64]) -> Array:
    texture = _strands()
    rows, columns = texture.shape
    row = ((radius * 52.0).astype(np.int32) + int(start[0])) % rows
    column = (turns.astype(np.int32) + int(start[1])) % columns
    hairs: Array = texture[row, column]
    return hairs


def _tinted(colour: Colour, vary: NDArray[np.float64]) -> Array:
    """Make an individual's own shade: a little lighter or darker, warmer or cooler."""
    factor = 1.0 + 0.12 * vary[0] + 0.05 * np.array([vary[1], 0.3 * vary[2], -vary[1]])
    return np.asarray(np.array(colour) * factor, dtype=np.float32)[:, None, None]


# --- shapes


def _ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    dx, dy = (x - np.float32(cx)) * np.float32(1 / rx), (y - np.float32(cy)) * np.float32(1 / ry)
    distance: Array = (np.sqrt(dx * dx + dy * dy) - 1.0) * np.float32(min(rx, ry))
    return distance


def _union(first: Array, second: Array, blend: float) -> Array:
    """Join two shapes, the crease between them filled."""
    share = np.clip(0.5 + (second - first) * np.float32(0.5 / blend), 0.0, 1.0)
    joined: Array = second + (first - second) * share - np.float32(blend) * share * (1.0 - share)
    return joined


def _stroke(x: Array, y: Array, curve: tuple[float, float, float], width: Array | float) -> Array:
    """Band of half `width` along y = c0 + c1 x + c2 x^2."""
    c0, c1, c2 = (np.float32(c) for c in curve)
    slope = c1 + 2.0 * c2 * x
    off = y - (c0 + c1 * x + c2 * x * x)
    return np.asarray(np.abs(off) / np.sqrt(1.0 + slope * slope) - width, dtype=np.float32)


def _lobe(x: Array, y: Array, species: _Species) -> tuple[Array, Array]:
    """Shape an ear and the hollow in it, in mirrored coordinates."""
    cos, sin = np.float32(np.cos(species.ear_lean)), np.float32(np.sin(species.ear_lean))
    dx, dy = x - np.float32(species.ear_across), y - np.float32(species.ear_down)
    along = (dx * sin - dy * cos) * np.float32(1 / species.ear_length)
    across = np.abs(dx * cos + dy * sin)
    rise = np.clip(along, 0.0, 1.0)
    blunt = np.sqrt(1.0 - rise**4) * (0.72 + 0.28 * np.sin(2.2 * rise))
    half = np.float32(species.ear_width) * (
        (1.0 - species.ear_point) * blunt + species.ear_point * (1.0 - rise**1.4)
    )
    beyond = (np.abs(along - 0.4) - 0.6) * np.float32(species.ear_length)
    outer = np.maximum((across - half) * 0.8, beyond)
    hollow = np.maximum(
        (across - 0.62 * half) * 0.8, beyond + 0.18 * np.float32(species.ear_length)
    )
    return outer, hollow


def _blend(planes: Array, share: Array, colour: Colour | Array) -> None:
    """Lay a colour over (3, ...) planes in place, opaque where `share` is 1."""
    paint = np.asarray(colour, dtype=np.float32)
    paint = paint[:, None, None] if paint.ndim == 1 else paint
    planes += share * (paint - planes)


# --- the background


def _background(size: int, rng: np.random.Generator) -> tuple[Array, int]:
    """Noise of natural spectrum in a natural palette, with some discs of soft light."""
    palette = int(rng.integers(len(PALETTES)))
    light, hue = _natural_noise(size, rng)
    rise = np.linspace(0.22, -0.22, size, dtype=np.float32)[:, None] * np.float32(rng.uniform(0, 1))
    level = np.clip(0.42 + 0.13 * light + rise + np.float32(rng.uniform(-0.1, 0.1)), 0.0, 1.0)
    dark, middle, bright = (np.array(c, dtype=np.float32) for c in PALETTES[palette])
    low, high = np.minimum(2.0 * level, 1.0), np.maximum(2.0 * level - 1.0, 0.0)
    canvas = np.empty((3, size, size), dtype=np.float32)
    for c in range(3):
        canvas[c] = dark[c] + low * (middle[c] - dark[c]) + high * (bright[c] - middle[c])
    canvas += hue * np.array([7.0, 1.0, -8.0], dtype=np.float32)[:, None, None]
    for _ in range(int(rng.integers(0, 9))):
        _soft_light(canvas, bright, rng)
    return canvas, palette


def _soft_light(canvas: Array, colour: Array, rng: np.random.Generator) -> None:
    size = canvas.shape[-1]
    radius = size * rng.uniform(0.02, 0.065)
    place = (rng.uniform(0, size), rng.uniform(0, 0.75 * size))
    window, x, y = _window(size, place, radius + 3.0)
    inside = np.clip((radius - np.sqrt(x * x + y * y)) / 3.0, 0.0, 1.0).astype(np.float32)
    _blend(canvas[(slice(None), *window)], inside * rng.uniform(0.12, 0.4), tuple(colour))


def _window(
    size: int, place: tuple[float, float], reach: float
) -> tuple[tuple[slice, slice], Array, Array]:
    """Part of the picture within `reach` of a place, and coordinates about that place."""
    columns, rows = (
        slice(max(0, int(p - reach)), max(0, min(size, int(p + reach) + 2))) for p in place
    )
    x = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(place[0])
    y = np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(place[1])
    return (rows, columns), x[None, :], y[:, None]


# --- the animal


def _paint_animal(canvas: Array, face: _Face, markings: Callable[[_Face], None]) -> Array:
    """Paint body, ears, head and features; return the share of each pixel they cover."""
    head = _head_shape(face)
    light = _shading(face, head)
    seen = _paint_body(canvas, face, head, light)
    seen = np.maximum(seen, _paint_ears(canvas, face, light))
    markings(face)
    share = face.cover(head + np.float32(0.75 * face.species.fringe) * face.fur, soft=2.0)
    _blend(canvas, share, face.coat * light)
    for paint in (_paint_mouth, _paint_nose, _paint_eyes, _paint_whiskers):
        paint(canvas, face)
    return np.maximum(seen, share)


def _head_shape(face: _Face) -> Array:
    width, height = face.species.head
    across, down, radius = face.species.cheeks
    wide = 1.0 + 0.05 * face.vary[3]
    skull = _ellipse(face.u, face.v, 0.0, -0.08, width * wide, height)
    jowl = _ellipse(np.abs(face.u), face.v, across * wide, down, radius, radius * 0.92)
    return _union(skull, jowl, 0.22)


def _shading(face: _Face, head: Array) -> Array:
    """Light on the rounded head: Lambert's law on a dome with a muzzle, fur as relief."""
    species, pose = face.species, face.pose
    width, height = species.muzzle
    dome = 0.85 * np.sqrt(np.clip(-head * 1.6, 0.0, 1.0))
    dx, dy = face.x / np.float32(width), (face.y - np.float32(species.nose[0])) / np.float32(height)
    relief = dome + 0.2 * np.exp(-(dx * dx + dy * dy)) + np.float32(0.012) * face.fur
    gx, gy = np.zeros_like(relief), np.zeros_like(relief)
    gx[:, 1:] = (relief[:, 1:] - relief[:, :-1]) * np.float32(pose.scale)
    gy[1:, :] = (relief[1:, :] - relief[:-1, :]) * np.float32(pose.scale)
    lx, ly, lz = (np.float32(c) for c in _light_in_head(pose))
    lambert = (lz - lx * gx - ly * gy) / np.sqrt(1.0 + gx * gx + gy * gy)
    lit = np.float32(pose.ambient) + np.float32(1.3 - pose.ambient) * np.maximum(lambert, 0.0)
    hairs = np.float32(species.strands) * face.fur
    if species.ticking:
        hairs = hairs + np.float32(species.ticking) * np.sin(7.0 * face.fur)
    shading: Array = lit * (1.0 + hairs)
    return shading


def _light_in_head(pose: _Pose) -> Colour:
    """Light direction in the tilted head's own coordinates."""
    (x, y, z), cos, sin = pose.light, np.cos(pose.tilt), np.sin(pose.tilt)
    return cos * x + sin * y, cos * y - sin * x, z


def _paint_body(canvas: Array, face: _Face, head: Array, light: Array) -> Array:
    """Paint shoulders and chest below the head, in its shadow."""
    species = face.species
    body = _ellipse(face.u, face.v, 0.0, 1.75, 0.98 * species.head[0] + 0.12, 1.35)
    share = face.cover(body + np.float32(1.6 * species.fringe) * face.fur, soft=3.0)
    colour = _tinted(species.body, face.vary[:3]) * np.ones_like(body)
    bib = _ellipse(face.u, face.v, 0.0, 1.25, 0.42 * species.head[0], 0.75)
    _blend(colour, face.cover(bib + 0.12 * face.fur, soft=8.0), species.bib)
    shadow = np.clip(0.5 + 0.9 * head, 0.35, 0.92) * np.clip(0.85 - 0.5 * body, 0.6, 1.15)
    _blend(canvas, share, colour * (shadow * (1.0 + np.float32(1.3 * species.strands) * face.fur)))
    return share


def _paint_ears(canvas: Array, face: _Face, light: Array) -> Array:
    species = face.species
    outer, hollow = _lobe(np.abs(face.u), face.v, species)
    hair = np.float32(0.5 * species.fringe) * face.fur
    share = face.cover(outer + hair, soft=2.0)
    fur = 1.0 + np.float32(species.strands) * face.fur
    lit = 0.95 + 0.3 * np.float32(face.pose.light[0]) * np.sign(face.u)
    _blend(canvas, share, _tinted(species.ear_outer, face.vary[:3]) * (lit * fur))
    deep = np.clip(0.55 - hollow * 3.0, 0.5, 1.0) * lit
    colour = np.array(species.ear_inner, dtype=np.float32)[:, None, None] * (
        deep * (0.4 + 0.6 * fur)
    )
    _blend(canvas, face.cover(hollow + 2.0 * hair, soft=3.0), colour)
    return share


def _paint_mouth(canvas: Array, face: _Face) -> None:
    down, width = face.species.nose
    line = _ellipse(face.x, face.y, 0.0, down + 1.3 * width, 0.012, 0.6 * width)
    smile = _stroke(face.a, face.y, (down + 1.85 * width, 0.55, -2.2), 0.012)
    smile = np.maximum(smile, face.a - np.float32(1.7 * width))
    for shape in (line, smile):
        _blend(canvas, 0.8 * face.cover(shape, soft=2.0), (34.0, 22.0, 22.0))


def _paint_nose(canvas: Array, face: _Face) -> None:
    species = face.species
    down, width = species.nose
    y = face.y - np.float32(down)
    wedge = np.maximum(face.a * 0.84 + y * 0.54, -1.5 * y) - np.float32(0.62 * width)
    _blend(canvas, face.cover(wedge - np.float32(0.15 * width), soft=2.5), species.nose_colour)
    nostril = _ellipse(face.a, y, 0.5 * width, 0.12 * width, 0.2 * width, 0.14 * width)
    _blend(canvas, 0.8 * face.cover(nostril), (14.0, 10.0, 12.0))
    side = 0.3 * width * np.sign(face.pose.light[0])
    gleam = _ellipse(face.x, y, side, -0.28 * width, 0.3 * width, 0.12 * width)
    _blend(canvas, 0.6 * face.cover(gleam, soft=3.0), WHITE)


def _paint_eyes(canvas: Array, face: _Face) -> None:
    across, down, radius = face.species.eyes
    x, y = np.sign(face.x) * (face.a - np.float32(across)), face.y - np.float32(down)
    rim = _ellipse(x, y, 0.0, 0.0, 1.22 * radius, 1.12 * radius)
    _blend(canvas, 0.9 * face.cover(rim, soft=2.5), (18.0, 13.0, 12.0))
    iris = _ellipse(x, y, 0.0, 0.05 * radius, 0.98 * radius, 0.95 * radius)
    glow = np.clip(0.55 + 0.6 * y / np.float32(radius), 0.25, 1.0)
    colour = np.array(face.species.iris, dtype=np.float32)[:, None, None] * glow
    _blend(canvas, face.cover(iris), colour)
    _blend(canvas, face.cover(_ellipse(x, y, 0.0, 0.0, 0.56 * radius, 0.68 * radius)), (8, 7, 9))
    lx, ly, _ = face.pose.light
    gleam = _ellipse(x, y, 0.55 * radius * lx, 0.6 * radius * ly, 0.3 * radius, 0.3 * radius)
    _blend(canvas, face.cover(gleam), (255.0, 255.0, 252.0))
    spark = _ellipse(x, y, -0.5 * radius * lx, 0.45 * radius, 0.14 * radius, 0.12 * radius)
    _blend(canvas, 0.5 * face.cover(spark), WHITE)


def _paint_whiskers(canvas: Array, face: _Face) -> None:
    length, (down, width) = face.species.whiskers, face.species.nose
    start = 1.25 * width
    t = np.clip((face.a - np.float32(start)) / np.float32(length), 0.0, 1.0)
    near = (face.a > start) & (face.a < start + length)
    for i, slope in enumerate((-0.28, -0.05, 0.2, 0.42)):
        root = down + width * (0.55 + 0.34 * i)
        curve = (root - slope * start, slope + 0.08 * face.vary[4 + i], 0.14)
        hair = face.cover(_stroke(face.a, face.y, curve, 0.004), soft=1.6)
        _blend(canvas, hair * near * (0.85 - 0.8 * t), (246.0, 242.0, 236.0))


# --- what stands in front


def _paint_plants(canvas: Array, seen: Array, palette: int, rng: np.random.Generator) -> None:
    """Put grass along the lower edge and now and then a twig of leaves from the side."""
    middle = np.array(PALETTES[palette][1])
    for _ in range(int(rng.integers(3, 15))):
        leaf = np.array(LEAVES[int(rng.integers(len(LEAVES)))])
        share = rng.uniform(0.25, 0.8)
        _paint_blade(
            canvas, seen, (share * leaf + (1 - share) * middle) * rng.uniform(0.7, 1.3), rng
        )
    if rng.uniform() < 0.45:
        _paint_twig(canvas, seen, np.array(LEAVES[int(rng.integers(len(LEAVES)))]), rng)


def _paint_blade(
    canvas: Array, seen: Array, colour: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Paint a blade of grass: a bent strip from the lower edge that narrows to its tip."""
    size = canvas.shape[-1]
    height, width = size * rng.uniform(0.1, 0.52), size * rng.uniform(0.008, 0.022)
    foot, lean, bend = size * rng.uniform(-0.05, 1.05), rng.normal(0, 0.22), rng.normal(0, 0.25)
    top = int(size - height)
    t = ((size - np.arange(top, size)) / height).astype(np.float32)[:, None]
    middle = np.float32(foot) + np.float32(height) * (
        np.float32(lean) * t + np.float32(bend) * t * t
    )
    off = np.arange(size, dtype=np.float32)[None, :] - middle
    half = np.float32(width) * np.clip(1.0 - t, 0.0, 1.0) ** 0.7
    share = np.clip(half - np.abs(off) + 0.5, 0.0, 1.0) * np.minimum(1.0, (1.02 - t) * 8.0)
    shade = np.where(off < 0, np.float32(1.1), np.float32(0.78)) * (0.65 + 0.45 * t)
    _blend(canvas[:, top:], share, colour.astype(np.float32)[:, None, None] * shade)
    seen[top:] *= 1.0 - share


def _paint_twig(
    canvas: Array, seen: Array, colour: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Paint leaves in turn left and right of a stem that comes in from a side."""
    size = canvas.shape[-1]
    side = 1.0 if rng.uniform() < 0.5 else -1.0
    place = np.array([0.0 if side > 0 else size - 1.0, size * rng.uniform(0.15, 0.85)])
    heading = rng.normal(0.0, 0.5) + (0.0 if side > 0 else np.pi)
    step = size * rng.uniform(0.045, 0.065)
    for i in range(int(rng.integers(4, 9))):
        heading += rng.normal(0.0, 0.12)
        place = place + step * np.array([np.cos(heading), np.sin(heading)])
        turn = heading + (0.85 if i % 2 else -0.85)
        shade = colour * rng.uniform(0.75, 1.25)
        _paint_leaf(canvas, seen, place, turn, 2.3 * step * (1.0 - 0.07 * i), shade)


def _paint_leaf(
    canvas: Array,
    seen: Array,
    foot: NDArray[np.float64],
    heading: float,
    length: float,
    colour: NDArray[np.float64],
) -> None:
    window, x, y = _window(canvas.shape[-1], (float(foot[0]), float(foot[1])), length)
    cos, sin = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    t, across = (cos * x + sin * y) / np.float32(length), cos * y - sin * x
    half = np.float32(0.24 * length) * np.sqrt(np.sin(3.1415 * np.clip(t, 0.0, 1.0)))
    share = np.clip(half - np.abs(across) + 0.5, 0.0, 1.0) * ((t > 0) & (t < 1))
    veins = 1.0 - 0.12 * (np.sin(34.0 * t - 0.9 * np.abs(across)) > 0.8)
    shade = np.where(across > 0, np.float32(1.12), np.float32(0.82)) * veins
    shade = np.where(np.abs(across) < 0.7, np.float32(1.35), shade) * (0.75 + 0.35 * t)
    planes = canvas[(slice(None), *window)]
    _blend(planes, share.astype(np.float32), colour.astype(np.float32)[:, None, None] * shade)
    seen[window] *= 1.0 - share


# --- the ten animals


def _badger(face: _Face) -> None:
    wide = 0.22 + 0.05 * face.vary[3]
    lean = np.abs(face.a - (0.35 - 0.22 * face.y))
    stripe = lean - np.float32(wide) * np.clip(1.0 - 0.5 * face.y, 0.5, 1.2)
    face.mark(np.maximum(stripe, face.y - 0.74), BLACK)
    face.mark(0.86 + 0.14 * face.vary[4] - face.y + 0.5 * face.a, (70.0, 66.0, 66.0))


def _skunk(face: _Face) -> None:
    half = 0.09 + 0.04 * face.vary[3] + 0.2 * np.clip(-face.y - 0.2, 0.0, 1.0)
    face.mark(np.maximum(face.a - half, face.y - 0.34), WHITE, fray=0.05)
    if face.vary[4] > -0.4:
        spot = 0.14 + 0.1 * face.vary[4]
        face.mark(_ellipse(face.a, face.y, 0.72, 0.2, spot, 1.6 * spot), WHITE, fray=0.09)


def _polecat(face: _Face) -> None:
    brow = _stroke(face.a, face.y, (-0.42, -0.25, 0.95), 0.13 + 0.03 * face.vary[3])
    face.mark(np.maximum(brow, face.a - 0.95), CREAM, fray=0.09)
    face.mark(_ellipse(face.a, face.y, 0.16, 0.52, 0.3, 0.22), WHITE)
    face.mark(_ellipse(face.a, face.y, 0.0, 0.28, 0.17, 0.34), (62.0, 44.0, 34.0))


def _raccoon(face: _Face) -> None:
    brow = _stroke(face.a, face.y, (-0.3, 0.12, 0.3), 0.1 + 0.025 * face.vary[3])
    face.mark(np.maximum(brow, face.a - 0.9), WHITE, fray=0.08)
    face.mark(_ellipse(face.a, face.y, 0.2, 0.45, 0.42, 0.26), WHITE)
    mask = _stroke(face.a, face.y, (0.0, -0.12, 0.62), 0.19 + 0.03 * face.vary[4])
    face.mark(np.maximum(mask, face.a - 0.86), BLACK)
    face.mark(_ellipse(face.a, face.y, 0.0, 0.05, 0.13, 0.42), (48.0, 42.0, 40.0))


def _mink(face: _Face) -> None:
    face.mark(_ellipse(face.a, face.y, 0.0, 0.95, 0.2 + 0.06 * face.vary[3], 0.24), WHITE)


def _otter(face: _Face) -> None:
    pale = (162.0, 136.0, 108.0)
    face.mark(0.42 + 0.05 * face.vary[3] - face.y - 0.16 * face.a, pale, fray=0.14, alpha=0.85)
    face.mark(_ellipse(face.a, face.y, 0.24, 0.5, 0.34, 0.24), (178.0, 152.0, 124.0), alpha=0.9)


def _weasel(face: _Face) -> None:
    chin = 0.42 + 0.06 * face.vary[3]
    face.mark(np.float32(chin) - face.y + 0.25 * face.a, WHITE, fray=0.05)


def _fox(face: _Face) -> None:
    cheek = _stroke(face.a, face.y, (0.42, 0.35, -0.55), 0.25 + 0.04 * face.vary[3])
    face.mark(np.maximum(cheek, 0.14 - face.a), WHITE, fray=0.1)
    face.mark(0.62 - face.y, WHITE)
    tear = _stroke(face.y, face.a, (0.2, 0.12, 0.0), 0.03)
    face.mark(np.maximum(tear, np.abs(face.y - 0.2) - 0.22), (88.0, 52.0, 34.0), alpha=0.8)


def _hamster(face: _Face) -> None:
    face.mark(_ellipse(face.a, face.y, 0.5, 0.58, 0.5, 0.42), WHITE, fray=0.09)
    face.mark(_ellipse(face.a, face.y, 0.0, 0.6, 0.4, 0.5), WHITE)
    if face.vary[3] > 0:
        face.mark(_ellipse(face.a, face.y, 0.0, -0.35, 0.09, 0.55), CREAM)


def _rabbit(face: _Face) -> None:
    across, down, radius = face.species.eyes
    face.mark(_ellipse(face.a, face.y, across, down, 1.9 * radius, 1.75 * radius), CREAM)
    face.mark(_ellipse(face.a, face.y, 0.15, 0.55, 0.26, 0.2), WHITE)
    face.mark(0.72 - face.y, WHITE, fray=0.1)


_MARKINGS = (_badger, _skunk, _polecat, _raccoon, _mink, _otter, _weasel, _fox, _hamster, _rabbit)
