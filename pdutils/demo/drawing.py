"""The demo world: ten animal faces in confusable pairs, drawn by formula.

Every shape is an implicit function (negative inside, positive outside) in units of the head's
radius, evaluated on the pixel grid; its sign, softened over a pixel, says how much of a pixel the
shape covers. Fur is one texture of strands that radiate from the nose: it shades the coat, lifts
it towards the light and frays every outline and marking. The pictures of a seed stay the same to
the last bit, so whether a number is a float32 or a float64 here is not to be changed.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from pdutils._utils import generator, streams

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

BLACK: Colour = (22, 20, 22)
WHITE: Colour = (238, 234, 226)
CREAM: Colour = (226, 204, 168)

#: Backgrounds run from the first colour through the second to the third.
PALETTES = np.array([
    ((24, 44, 26), (74, 104, 52), (170, 186, 104)),  # meadow
    ((18, 34, 34), (52, 84, 74), (138, 168, 142)),  # fir wood
    ((52, 30, 18), (146, 84, 36), (224, 166, 84)),  # autumn
    ((42, 36, 30), (112, 94, 72), (192, 172, 138)),  # earth and straw
    ((30, 38, 58), (84, 98, 126), (184, 190, 204)),  # dusk
    ((58, 74, 88), (132, 152, 164), (222, 228, 230)),  # river
    ((48, 34, 50), (116, 84, 112), (196, 166, 182)),  # heath
    ((56, 62, 70), (146, 152, 158), (232, 234, 236)),  # snow
])  # fmt: skip
LEAVES = np.array([(58, 96, 40), (92, 122, 48), (128, 128, 52), (162, 104, 40)])


@dataclass(frozen=True)
class Drawing:
    """One drawn animal: an RGB image of whole numbers, what is seen of the animal, its class.

    What stands in front of the animal is left out of the mask; `label` is a place in `CLASS_NAMES`.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    label: int


def _read_species() -> dict[str, SimpleNamespace]:
    # Each has the rows of the table as attributes: a number, or several.
    table = Path(__file__).with_name("animals.txt").read_text("utf-8").splitlines()
    (_, *names), *rows = (line.split() for line in table if not line.startswith("#"))
    animals = {name: SimpleNamespace() for name in names}
    for part, *cells in rows:
        for name, cell in zip(names, cells, strict=True):
            numbers = tuple(float(number) for number in cell.split(","))
            setattr(animals[name], part, numbers if len(numbers) > 1 else numbers[0])
    return animals


_SPECIES = _read_species()

CLASS_NAMES: tuple[str, ...] = tuple(_SPECIES)


def draw_animal(
    label: int, *, size: int = 224, rng: int | np.random.Generator | None = None
) -> Drawing:
    """Draw one animal face at a random size, place, tilt and light, partly hidden by plants.

    `label` is a place in `CLASS_NAMES`, `size` the height and width in pixels, at least 16; the
    same seed draws the same picture.
    """
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label must be in 0..{len(CLASS_NAMES) - 1}, got {label}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    stream = generator(rng)
    canvas, colours = _background(size, stream)
    seen = _Face(canvas, CLASS_NAMES[label], stream).paint()
    _paint_plants(canvas, seen, colours[1], stream)
    image = np.ascontiguousarray(np.rint(np.clip(canvas, 0.0, 255.0)).transpose(1, 2, 0))
    return Drawing(image, seen > 0.5, label)


def draw_animals(
    n: int, *, size: int = 224, rng: int | np.random.Generator | None = None
) -> list[Drawing]:
    """Draw `n` animals, drawing `i` of class ``i % 10``; it does not depend on `n`."""
    turns = enumerate(streams(rng, n))
    return [draw_animal(i % len(CLASS_NAMES), size=size, rng=stream) for i, stream in turns]


# --- colours, fur and shapes


def _blend(planes: Array, share: Any, colour: Any) -> None:
    """Lay a colour over (3, ...) planes in place, opaque where `share` is 1."""
    paint = np.asarray(colour, dtype=np.float32)
    planes += share * ((paint[:, None, None] if paint.ndim == 1 else paint) - planes)


@lru_cache(maxsize=1)
def _strands() -> Array:
    """Hairs by distance from the nose (rows) and direction (columns, going round)."""
    white = np.random.default_rng(2018).standard_normal((192, 2048), dtype=np.float32)
    fine = ndimage.gaussian_filter(white, (6.0, 4.5), mode="wrap")
    locks = ndimage.gaussian_filter(white[::-1], (10.0, 14.0), mode="wrap")
    return np.asarray(fine / fine.std() * 0.75 + locks / locks.std() * 0.5, dtype=np.float32)


def _fur(x: Array, y: Array, rng: np.random.Generator) -> Any:
    """Strands that radiate from the nose, twice as many further out so that none grows wide."""
    texture = _strands()
    rows, columns = texture.shape
    radius = np.sqrt(x * x + y * y)
    bend = 0.12 * np.sin(3.0 * radius + rng.uniform(0.0, 6.28))
    turns = (np.arctan2(x, y) + bend) * (columns / (2.0 * np.pi))
    down, across = (int(start) for start in rng.integers(columns, size=2))
    row = ((radius * 52.0).astype(np.int32) + down) % rows
    near, far = (
        texture[row, ((times * turns).astype(np.int32) + across) % columns] for times in (1, 2)
    )
    outward = np.clip(2.5 * radius - 1.4, 0.0, 1.0)
    return (near + outward * (far - near)) * np.minimum(1.0, radius * 2.2)


def _turned(x: Any, y: Any, angle: float) -> tuple[Any, Any]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _ellipse(x: Any, y: Any, cx: float, cy: float, rx: float, ry: float) -> Any:
    dx, dy = (x - np.float32(cx)) * np.float32(1 / rx), (y - np.float32(cy)) * np.float32(1 / ry)
    return (np.sqrt(dx * dx + dy * dy) - 1.0) * np.float32(min(rx, ry))


def _stroke(x: Any, y: Any, curve: tuple[float, float, float], width: Any) -> Array:
    """Band of half `width` along y = c0 + c1 x + c2 x^2."""
    c0, c1, c2 = (np.float32(c) for c in curve)
    off, slope = y - (c0 + c1 * x + c2 * x * x), c1 + 2.0 * c2 * x
    return np.asarray(np.abs(off) / np.sqrt(1.0 + slope * slope) - width, dtype=np.float32)


def _window(size: int, place: Any, reach: float) -> tuple[Any, Array, Array]:
    """Index what lies within `reach` of a place, and give its coordinates about that place."""
    starts, stops = (np.clip([int(p + r) for p in place], 0, size) for r in (-reach, reach + 2))
    columns, rows = (slice(*ends) for ends in zip(starts, stops, strict=True))
    x, y = (
        np.arange(span.start, span.stop, dtype=np.float32) - np.float32(p)
        for span, p in zip((columns, rows), place, strict=True)
    )
    return (slice(None), rows, columns), x, y[:, None]


# --- the background, and what stands in front


def _background(size: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Paint noise of a photograph's spectrum in a palette, with some discs of soft light."""
    palette = PALETTES[rng.integers(len(PALETTES))]
    white = rng.standard_normal((2, size, size), dtype=np.float32)
    field = fft.ifft2((white[0] + 1j * white[1]) * _one_over_f(size))
    light, hue = field.real / field.real.std(), field.imag / field.imag.std()
    rise = np.linspace(0.22, -0.22, size, dtype=np.float32)[:, None] * np.float32(rng.uniform(0, 1))
    level = np.clip(0.42 + 0.13 * light + rise + rng.uniform(-0.1, 0.1), 0.0, 1.0)
    dark, middle, bright = palette.astype(np.float32)[:, :, None, None]
    low, high = np.minimum(2.0 * level, 1.0), np.maximum(2.0 * level - 1.0, 0.0)
    canvas = dark + low * (middle - dark) + high * (bright - middle)
    canvas += hue * np.array([7.0, 1.0, -8.0], dtype=np.float32)[:, None, None]
    for _ in range(rng.integers(0, 9)):
        radius = size * rng.uniform(0.02, 0.065)
        place = rng.uniform(0, size), rng.uniform(0, 0.75 * size)
        window, x, y = _window(size, place, radius + 3.0)
        inside = np.clip((radius - np.sqrt(x * x + y * y)) / 3.0, 0.0, 1.0)
        _blend(canvas[window], inside * rng.uniform(0.12, 0.4), bright)
    return canvas, palette


@lru_cache(maxsize=4)
def _one_over_f(size: int) -> Array:
    radius = np.hypot(fft.fftfreq(size)[:, None], fft.fftfreq(size))
    radius[0, 0] = np.inf
    return np.asarray(radius**-1.4, dtype=np.float32)


def _paint_plants(canvas: Array, seen: Array, middle: Any, rng: np.random.Generator) -> None:
    """Put grass along the lower edge and now and then a twig of leaves from the side."""
    size = canvas.shape[-1]
    for _ in range(rng.integers(3, 15)):
        leaf, share = LEAVES[rng.integers(len(LEAVES))], rng.uniform(0.25, 0.8)
        colour = (share * leaf + (1 - share) * middle) * rng.uniform(0.7, 1.3)
        height, width = size * rng.uniform(0.1, 0.52), size * rng.uniform(0.008, 0.022)
        foot, lean, bend = size * rng.uniform(-0.05, 1.05), rng.normal(0, 0.22), rng.normal(0, 0.25)
        # A blade is a bent strip from the lower edge that narrows to its tip.
        top = int(size - height)
        t = ((size - np.arange(top, size)) / height).astype(np.float32)[:, None]
        off = np.arange(size, dtype=np.float32) - (foot + height * (lean * t + bend * t * t))
        half = width * np.clip(1.0 - t, 0.0, 1.0) ** 0.7
        inside = np.clip(half - np.abs(off) + 0.5, 0.0, 1.0) * np.minimum(1.0, (1.02 - t) * 8.0)
        shade = np.where(off < 0, np.float32(1.1), np.float32(0.78)) * (0.65 + 0.45 * t)
        _blend(canvas[:, top:], inside, colour.astype(np.float32)[:, None, None] * shade)
        seen[top:] *= 1.0 - inside
    if rng.uniform() < 0.45:
        _paint_twig(canvas, seen, LEAVES[rng.integers(len(LEAVES))], rng)


def _paint_twig(canvas: Array, seen: Array, colour: Any, rng: np.random.Generator) -> None:
    """Paint leaves in turn left and right of a stem that comes in from a side."""
    size, right = canvas.shape[-1], rng.uniform() >= 0.5
    place = np.array([size - 1.0 if right else 0.0, size * rng.uniform(0.15, 0.85)])
    heading = rng.normal(0.0, 0.5) + (np.pi if right else 0.0)
    step = size * rng.uniform(0.045, 0.065)
    for i in range(rng.integers(4, 9)):
        heading += rng.normal(0.0, 0.12)
        place = place + step * np.array([np.cos(heading), np.sin(heading)])
        length = 2.3 * step * (1.0 - 0.07 * i)
        window, x, y = _window(size, place.tolist(), length)
        along, across = _turned(x, y, heading + (0.85 if i % 2 else -0.85))
        t, off = along / length, np.abs(across)
        half = 0.24 * length * np.sqrt(np.sin(3.1415 * np.clip(t, 0.0, 1.0)))
        inside = np.clip(half - off + 0.5, 0.0, 1.0) * ((t > 0) & (t < 1))
        veins = 1.0 - 0.12 * (np.sin(34.0 * t - 0.9 * off) > 0.8)
        shade = np.where(across > 0, np.float32(1.12), np.float32(0.82)) * veins
        shade = np.where(off < 0.7, np.float32(1.35), shade) * (0.75 + 0.35 * t)
        tint = (colour * rng.uniform(0.75, 1.25)).astype(np.float32)[:, None, None]
        _blend(canvas[window], inside.astype(np.float32), tint * shade)
        seen[window[1:]] *= 1.0 - inside


# --- the animal


class _Face:
    """One animal while it is drawn: its pose and light, coordinates, fur and coat."""

    def __init__(self, canvas: Array, name: str, rng: np.random.Generator):
        size, species = canvas.shape[-1], _SPECIES[name]
        self.canvas, self.name, self.species = canvas, name, species
        self.scale = size * rng.uniform(0.22, 0.3)  # pixels a head radius
        across = size * rng.uniform(0.4, 0.6)
        down = size * rng.uniform(0.4, 0.54) + species.lift * self.scale
        turn = rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.08)
        azimuth = rng.uniform(-2.6, -0.5)  # from above, left or right
        self.light = (0.62 * np.cos(azimuth), 0.62 * np.sin(azimuth), 0.78)
        self.tilt = rng.normal(0.0, 0.14)
        self.ambient = rng.uniform(0.34, 0.52)
        # Head radii from the middle of the head: (u, v) of the skull, (x, y) of the turned face.
        axis = np.arange(size, dtype=np.float32)
        dx, dy = (axis - across) / self.scale, (axis[:, None] - down) / self.scale
        self.u, self.v = _turned(dx, dy, self.tilt)
        near = np.maximum(0.0, 1.0 - (self.u**2 + self.v**2) / 1.3)
        self.x, self.y = self.u - turn[0] * near, self.v - turn[1] * near
        self.a = np.abs(self.x)
        self.fur = _fur(self.x, self.y - species.nose[0], rng)
        self.vary = rng.uniform(-1.0, 1.0, size=8)
        self.coat = self.tinted(species.coat) * np.ones_like(self.u)

    def tinted(self, colour: Colour) -> Any:
        """Make an individual's own shade: a little lighter or darker, warmer or cooler."""
        lighter, warmer, greener = self.vary[:3]
        factor = 1.0 + 0.12 * lighter + 0.05 * np.array([warmer, 0.3 * greener, -warmer])
        return np.asarray(np.array(colour) * factor, dtype=np.float32)[:, None, None]

    def lay(
        self, planes: Array, shape: Any, colour: Any, soft: float = 1.5, alpha: Any = 1.0
    ) -> Any:
        """Colour a shape, its edge softened over `soft` pixels; give the share of each pixel."""
        share = np.clip(0.5 - shape * np.float32(self.scale / soft), 0.0, 1.0)
        _blend(planes, share * np.asarray(alpha, dtype=np.float32), colour)
        return share

    def spot(
        self, at: tuple[Any, Any], ellipse: Any, colour: Any, soft: float = 1.5, alpha: float = 1.0
    ) -> None:
        self.lay(self.canvas, _ellipse(*at, *ellipse), colour, soft, alpha)

    def paint(self) -> Any:
        """Paint body, ears, head and features; give the share of each pixel that they cover."""
        wide = 1.0 + 0.05 * self.vary[3]
        (width, height), (across, down, radius) = self.species.head, self.species.cheeks
        skull = _ellipse(self.u, self.v, 0.0, -0.08, width * wide, height)
        jowl = _ellipse(np.abs(self.u), self.v, across * wide, down, radius, radius * 0.92)
        # The crease between the two is filled.
        part = np.clip(0.5 + (jowl - skull) * np.float32(0.5 / 0.22), 0.0, 1.0)
        head = jowl + (skull - jowl) * part - 0.22 * part * (1.0 - part)
        body, ears = self.paint_body(head), self.paint_ears()
        self.paint_markings()
        fringe = 0.75 * self.species.fringe * self.fur
        share = self.lay(self.canvas, head + fringe, self.coat * self.shading(head), 2.0)
        self.paint_snout()
        self.paint_eyes()
        self.paint_whiskers()
        return np.maximum(np.maximum(body, ears), share)

    def shading(self, head: Array) -> Any:
        """Light the rounded head: Lambert's law on a dome with a muzzle, fur as relief."""
        width, height = self.species.muzzle
        dx, dy = self.x / width, (self.y - self.species.nose[0]) / height
        dome = 0.85 * np.sqrt(np.clip(-head * 1.6, 0.0, 1.0))
        relief = dome + 0.2 * np.exp(-(dx * dx + dy * dy)) + 0.012 * self.fur
        gx = np.diff(relief, axis=1, prepend=relief[:, :1]) * self.scale
        gy = np.diff(relief, axis=0, prepend=relief[:1]) * self.scale
        # The light in the coordinates of the tilted head.
        (x, y, z), cos, sin = self.light, np.cos(self.tilt), np.sin(self.tilt)
        lx, ly = np.float32(cos * x + sin * y), np.float32(cos * y - sin * x)
        lambert = (z - lx * gx - ly * gy) / np.sqrt(1.0 + gx * gx + gy * gy)
        lit = self.ambient + (1.3 - self.ambient) * np.maximum(lambert, 0.0)
        ticked = self.species.ticking * np.sin(7.0 * self.fur)
        return lit * (1.0 + (self.species.strands * self.fur + ticked))

    def paint_body(self, head: Array) -> Any:
        species, fur, width = self.species, self.fur, self.species.head[0]
        body = _ellipse(self.u, self.v, 0.0, 1.75, 0.98 * width + 0.12, 1.35)
        colour = self.tinted(species.body) * np.ones_like(body)
        bib = _ellipse(self.u, self.v, 0.0, 1.25, 0.42 * width, 0.75)
        self.lay(colour, bib + 0.12 * fur, species.bib, 8.0)
        shadow = np.clip(0.5 + 0.9 * head, 0.35, 0.92) * np.clip(0.85 - 0.5 * body, 0.6, 1.15)
        colour *= shadow * (1.0 + 1.3 * species.strands * fur)
        return self.lay(self.canvas, body + 1.6 * species.fringe * fur, colour, 3.0)

    def paint_ears(self) -> Any:
        species, width, length = self.species, self.species.ear_width, self.species.ear_length
        dx, dy = np.abs(self.u) - species.ear_across, self.v - species.ear_down
        across, down = _turned(dx, dy, species.ear_lean)
        across, along = np.abs(across), -down * np.float32(1 / length)
        rise = np.clip(along, 0.0, 1.0)
        blunt = np.sqrt(1.0 - rise**4) * (0.72 + 0.28 * np.sin(2.2 * rise))
        point = species.ear_point
        half = width * ((1.0 - point) * blunt + point * (1.0 - rise**1.4))
        beyond = (np.abs(along - 0.4) - 0.6) * length
        outer = np.maximum((across - half) * 0.8, beyond)
        hollow = np.maximum((across - 0.62 * half) * 0.8, beyond + 0.18 * length)
        hair, fur = 0.5 * species.fringe * self.fur, 1.0 + species.strands * self.fur
        lit = 0.95 + 0.3 * np.float32(self.light[0]) * np.sign(self.u)
        share = self.lay(self.canvas, outer + hair, self.tinted(species.ear_outer) * (lit * fur), 2)
        deep = np.clip(0.55 - hollow * 3.0, 0.5, 1.0) * lit * (0.4 + 0.6 * fur)
        inner = np.array(species.ear_inner, dtype=np.float32)[:, None, None]
        self.lay(self.canvas, hollow + 2.0 * hair, inner * deep, 3.0)
        return share

    def paint_snout(self) -> None:
        down, width = self.species.nose
        line = _ellipse(self.x, self.y, 0.0, down + 1.3 * width, 0.012, 0.6 * width)
        smile = _stroke(self.a, self.y, (down + 1.85 * width, 0.55, -2.2), 0.012)
        for shape in (line, np.maximum(smile, self.a - 1.7 * width)):
            self.lay(self.canvas, shape, (34, 22, 22), 2.0, 0.8)
        y = self.y - down
        wedge = np.maximum(self.a * 0.84 + y * 0.54, -1.5 * y) - np.float32(0.62 * width)
        self.lay(self.canvas, wedge - np.float32(0.15 * width), self.species.nose_colour, 2.5)
        nostril = (0.5 * width, 0.12 * width, 0.2 * width, 0.14 * width)
        self.spot((self.a, y), nostril, (14, 10, 12), alpha=0.8)
        side = 0.3 * width * np.sign(self.light[0])
        gleam = (side, -0.28 * width, 0.3 * width, 0.12 * width)
        self.spot((self.x, y), gleam, WHITE, 3.0, 0.6)

    def paint_eyes(self) -> None:
        across, down, r = self.species.eyes
        y = self.y - down
        at = np.sign(self.x) * (self.a - across), y
        # Rim, iris, pupil and two reflections of the light.
        self.spot(at, (0.0, 0.0, 1.22 * r, 1.12 * r), (18, 13, 12), 2.5, 0.9)
        glow = np.clip(0.55 + 0.6 * y / r, 0.25, 1.0)
        iris = np.array(self.species.iris, dtype=np.float32)[:, None, None] * glow
        self.spot(at, (0.0, 0.05 * r, 0.98 * r, 0.95 * r), iris)
        self.spot(at, (0.0, 0.0, 0.56 * r, 0.68 * r), (8, 7, 9))
        lx, ly, _ = self.light
        self.spot(at, (0.55 * r * lx, 0.6 * r * ly, 0.3 * r, 0.3 * r), (255, 255, 252))
        self.spot(at, (-0.5 * r * lx, 0.45 * r, 0.14 * r, 0.12 * r), WHITE, alpha=0.5)

    def paint_whiskers(self) -> None:
        a, length, (down, width) = self.a, self.species.whiskers, self.species.nose
        start = 1.25 * width
        fading = 0.85 - 0.8 * np.clip((a - start) / length, 0.0, 1.0)
        alpha = ((a > start) & (a < start + length)) * fading
        for i, slope in enumerate((-0.28, -0.05, 0.2, 0.42)):
            root = down + width * (0.55 + 0.34 * i)
            curve = (root - slope * start, slope + 0.08 * self.vary[4 + i], 0.14)
            self.lay(self.canvas, _stroke(a, self.y, curve, 0.004), (246, 242, 236), 1.6, alpha)

    def paint_markings(self) -> None:
        """Paint on the coat, along hairy edges, what tells one animal from another."""
        a, y, vary = self.a, self.y, self.vary

        def mark(shape: Any, colour: Colour, fray: float = 0.06, alpha: float = 1.0) -> None:
            self.lay(self.coat, shape + np.float32(fray) * self.fur, colour, 2.5, alpha)

        def spot(at: tuple[float, float], axes: Any, colour: Colour, **edge: float) -> None:
            mark(_ellipse(a, y, *at, *axes), colour, **edge)

        def band(curve: Any, width: float, end: float, colour: Colour, **edge: float) -> None:
            mark(np.maximum(_stroke(a, y, curve, width), a - end), colour, **edge)

        match self.name:
            case "badger":
                wide = np.float32(0.22 + 0.05 * vary[3]) * np.clip(1.0 - 0.5 * y, 0.5, 1.2)
                stripe = np.abs(a - (0.35 - 0.22 * y)) - wide
                mark(np.maximum(stripe, y - 0.74), BLACK)
                mark(0.86 + 0.14 * vary[4] - y + 0.5 * a, (70, 66, 66))
            case "skunk":
                half = 0.09 + 0.04 * vary[3] + 0.2 * np.clip(-y - 0.2, 0.0, 1.0)
                mark(np.maximum(a - half, y - 0.34), WHITE, fray=0.05)
                if vary[4] > -0.4:
                    wide = 0.14 + 0.1 * vary[4]
                    spot((0.72, 0.2), (wide, 1.6 * wide), WHITE, fray=0.09)
            case "polecat":
                band((-0.42, -0.25, 0.95), 0.13 + 0.03 * vary[3], 0.95, CREAM, fray=0.09)
                spot((0.16, 0.52), (0.3, 0.22), WHITE)
                spot((0.0, 0.28), (0.17, 0.34), (62, 44, 34))
            case "raccoon":
                band((-0.3, 0.12, 0.3), 0.1 + 0.025 * vary[3], 0.9, WHITE, fray=0.08)
                spot((0.2, 0.45), (0.42, 0.26), WHITE)
                band((0.0, -0.12, 0.62), 0.19 + 0.03 * vary[4], 0.86, BLACK)
                spot((0.0, 0.05), (0.13, 0.42), (48, 42, 40))
            case "mink":
                spot((0.0, 0.95), (0.2 + 0.06 * vary[3], 0.24), WHITE)
            case "otter":
                mark(0.42 + 0.05 * vary[3] - y - 0.16 * a, (162, 136, 108), fray=0.14, alpha=0.85)
                spot((0.24, 0.5), (0.34, 0.24), (178, 152, 124), alpha=0.9)
            case "weasel":
                mark(np.float32(0.42 + 0.06 * vary[3]) - y + 0.25 * a, WHITE, fray=0.05)
            case "fox":
                cheek = _stroke(a, y, (0.42, 0.35, -0.55), 0.25 + 0.04 * vary[3])
                mark(np.maximum(cheek, 0.14 - a), WHITE, fray=0.1)
                mark(0.62 - y, WHITE)
                tear = _stroke(y, a, (0.2, 0.12, 0.0), 0.03)
                mark(np.maximum(tear, np.abs(y - 0.2) - 0.22), (88, 52, 34), alpha=0.8)
            case "hamster":
                spot((0.5, 0.58), (0.5, 0.42), WHITE, fray=0.09)
                spot((0.0, 0.6), (0.4, 0.5), WHITE)
                if vary[3] > 0:
                    spot((0.0, -0.35), (0.09, 0.55), CREAM)
            case "rabbit":
                across, down, radius = self.species.eyes
                spot((across, down), (1.9 * radius, 1.75 * radius), CREAM)
                spot((0.15, 0.55), (0.26, 0.2), WHITE)
                mark(0.72 - y, WHITE, fray=0.1)
