"""The defence as a pipeline: image -> map -> pixel deflection -> denoising -> prediction."""

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from pdutils._notation import (
    check_known,
    knobs_of,
    read,
    read_value,
    spell,
    spell_value,
)
from pdutils._utils import (
    Array,
    Rng,
    as_batch,
    as_map_batch,
    check_images,
    check_number,
    check_one_of,
    check_whole,
    streams,
)
from pdutils.activation import (
    DEFAULT_RANKS,
    Classifier,
    Combine,
    Upscale,
    cam,
    number_of_ranks,
    robust_cam,
)
from pdutils.deflection import Reading, check_knobs, deflect
from pdutils.denoising import DENOISERS, denoise_batch

MapKind = Literal["none", "cam", "rcam"]
Aggregate = Literal["mean", "majority"]

#: Maps (N, H, W) or one (H, W), if there are any.
Maps = Array | None


@dataclass(frozen=True, kw_only=True)
class Defense:
    """Pixel deflection with its map and its denoiser, each of which can be left out.

    Attributes
    ----------
    deflections, window, reading
        As in `pdutils.deflection.pixel_deflection`; 0 deflections leave it out.
    activation : {"none", "cam", "rcam"}
        The map that spares pixels: none; the CAM of the most probable class; the robust CAM. It is
        made of the very image that is defended.
    k, combine
        As in `pdutils.activation.robust_cam`.
    upscale
        As in `pdutils.activation.cam`, for either map.
    bias : float
        What is added to the map, -1 to 1, before it is clipped to [0, 1].
    denoiser : str or None
        As `method` in `pdutils.denoising.denoise`; None leaves it out.
    denoiser_options : mapping
        For that denoiser; those that are its defaults are left out.
    runs : int
        How many times the image is defended and classified, at least 1.
    aggregate : {"mean", "majority"}
        How the runs become one prediction: the mean probability of each class, or the share of
        runs in which it was the most probable.
    """

    deflections: int = 200
    window: int = 10
    reading: Reading = "blog"
    activation: MapKind = "none"
    k: int | None = None
    combine: Combine = "paper"
    upscale: Upscale = "half_pixel"
    bias: float = 0.0
    denoiser: str | None = "wavelet"
    denoiser_options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 1
    aggregate: Aggregate = "mean"

    def __post_init__(self) -> None:
        check_knobs(self.deflections, self.window, self.reading)
        check_one_of("activation", self.activation, get_args(MapKind))
        check_one_of("combine", self.combine, get_args(Combine))
        check_one_of("upscale", self.upscale, get_args(Upscale))
        check_one_of("aggregate", self.aggregate, get_args(Aggregate))
        check_whole("runs", self.runs, 1)
        check_number("bias", self.bias, -1, 1)
        known = DENOISERS.get(self.denoiser or "")
        defaults = knobs_of(known).items() if known else ()
        own = {knob: v for knob, v in self.denoiser_options.items() if (knob, v) not in defaults}
        object.__setattr__(self, "denoiser_options", own)

    @classmethod
    def parse(cls, text: str) -> "Defense":
        """Read a defence: one of `NAMES` and the knobs in which it differs from its defaults.

        For example ``pd+rcam+wd:deflections=600,sigma=0.02``.
        """
        name, knobs = read("defense", text)
        check_one_of("defense", name, tuple(NAMES))
        check_known(name, knobs, knobs_of_name(name))
        options = {knob: knobs.pop(knob) for knob in [*knobs] if knob not in _TOLD}
        try:
            defense = replace(NAMES[name], **knobs, denoiser_options=options)  # type: ignore[arg-type]
            defense._denoised(np.full((1, 16, 16, 3), 128, dtype=np.float32))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return defense

    @property
    def text(self) -> str:
        """The canonical text of one run, as `parse` reads it: only what differs from its name.

        What does nothing (the bias of no map) is left out. `ValueError` where no name describes
        the defence: another denoiser, or a value that has no text.
        """
        mine = {knob: getattr(self, knob) for knob in _TOLD}
        for name, base in NAMES.items():
            differs = {knob: value for knob, value in mine.items() if value != getattr(base, knob)}
            differs |= self.denoiser_options
            told = {knob: differs[knob] for knob in differs.keys() & knobs_of_name(name)}
            if differs.keys() - told <= _OF_MAPS and all(map(_has_text, told.values())):
                return spell(name, told)
        raise ValueError(f"expected a defence like one of {', '.join(NAMES)}; got {self}")

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return self.deflections > 0

    @property
    def map_key(self) -> Hashable:
        """What the map depends on besides the image: equal keys share a map. None without one."""
        if self.activation == "none" or self.deflections == 0:
            return None
        k = DEFAULT_RANKS if self.k is None else self.k
        return self.activation, k, self.combine, self.upscale, self.bias

    def check_network(self, classifier: Classifier) -> None:
        """Check that a network has the map which this defence uses."""
        if self.map_key is not None:
            number_of_ranks(self.k, len(classifier.class_ids))
            classifier.network.feature_map()

    def activation_map(self, classifier: Classifier, images: Array) -> Maps:
        """Make the map (H, W) or (N, H, W) that this defence uses, with its bias, or None."""
        if self.map_key is None:
            return None
        if self.activation == "rcam":
            made = robust_cam(
                classifier, images, k=self.k, combine=self.combine, upscale=self.upscale
            )
        else:
            best = np.atleast_2d(classifier.predict(images)).argmax(axis=1)
            made = cam(classifier, images, best, upscale=self.upscale)
        biased: Array = np.clip(made + np.float32(self.bias), 0, 1)
        return biased

    def transform(
        self, classifier: Classifier, images: Array, *, rng: Rng = None, activation_map: Maps = None
    ) -> Array:
        """Defend images once: deflect, then denoise.

        Parameters
        ----------
        classifier : Classifier
            The network that the map is made with.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255].
        rng : int, numpy.random.Generator, list of Generator, or None
            Each image draws from a stream of its own, see `pdutils._utils`.
        activation_map : ndarray of float32, shape (H, W) or (N, H, W), optional
            Use this map, as `activation_map` gives it, instead of making one.

        Returns
        -------
        ndarray of float32, the shape of `images`
            What is denoised may leave [0, 255] a little, see `pdutils.denoising.denoise`.
        """
        batch, single = as_batch(images)
        result = next(self._runs(classifier, batch, rng, activation_map, 1))
        return result[0] if single else result

    def predict(
        self, classifier: Classifier, images: Array, *, rng: Rng = None, activation_map: Maps = None
    ) -> Array:
        """Defend images of the classifier's size `runs` times, as `transform` does, and classify.

        Each run but the first draws from a part of each image's stream; the first run's images are
        those of `transform` with the same `rng`. It gives mean probabilities (K,) or (N, K) of
        float32, or shares of the runs.
        """
        rows = self.predict_runs(classifier, images, rng=rng, activation_map=activation_map)
        if self.aggregate == "majority":
            rows = np.eye(rows.shape[-1], dtype=np.float32)[rows.argmax(axis=-1)]
        mean: Array = rows.mean(axis=0)
        return mean

    def predict_runs(
        self, classifier: Classifier, images: Array, *, rng: Rng = None, activation_map: Maps = None
    ) -> Array:
        """Do as `predict`, but give every run by itself: (runs, K) or (runs, N, K)."""
        batch, single = as_batch(images)
        defended = self._runs(classifier, batch, rng, activation_map, self.runs)
        rows = np.stack([classifier.predict(run) for run in defended])
        return rows[:, 0] if single else rows

    def _runs(
        self, classifier: Classifier, batch: Array, rng: Rng, maps: Maps, runs: int
    ) -> Iterator[Array]:
        """Defend a batch several times; the first is what `transform` gives for the same rng."""
        maps = self.activation_map(classifier, batch) if maps is None else as_map_batch(maps, batch)
        knobs = self.deflections, self.window, maps, self.reading
        by_image = [[stream, *stream.spawn(runs - 1)] for stream in streams(rng, len(batch))]
        for generators in zip(*by_image, strict=True):
            yield self._denoised(deflect(batch, *knobs, generators))

    def _denoised(self, batch: Array) -> Array:
        if self.denoiser is None:
            return batch
        return denoise_batch(batch, self.denoiser, **self.denoiser_options)


#: What a text tells of a defence besides the options of its denoiser.
_TOLD = frozenset(f.name for f in fields(Defense)) - {"denoiser_options", "runs", "aggregate"}

#: What does nothing without the map that it belongs to.
_OF_MAPS = frozenset({"k", "combine", "upscale", "bias"})

#: The defences that have a name: pixel deflection with each map and denoiser, each left out.
NAMES = {"none": Defense(deflections=0, denoiser=None), "wd": Defense(deflections=0)} | {
    f"pd{'' if kind == 'none' else f'+{kind}'}{end}": Defense(
        deflections=200 if kind == "none" else 1500, activation=kind, denoiser=denoiser
    )
    for end, denoiser in (("", None), ("+wd", "wavelet"), ("+dct", "dct"))
    for kind in get_args(MapKind)
}


def knobs_of_name(name: str) -> dict[str, Any]:
    """Give the knobs that a text may have after one of `NAMES`, with their defaults."""
    base = NAMES[name]
    names = ["deflections", "window", "reading"] if base.deflections else []
    names += ["k", "combine"] if base.activation == "rcam" else []
    names += ["upscale", "bias"] if base.activation != "none" else []
    knobs = {name: getattr(base, name) for name in names}
    if "k" in knobs:
        # Left out, it is cut to the number of classes of the network.
        knobs["k"] = DEFAULT_RANKS
    return knobs | (knobs_of(DENOISERS[base.denoiser]) if base.denoiser else {})


def _has_text(value: Any) -> bool:
    try:
        return bool(read_value("", spell_value(value)) == value)
    except ValueError:
        return False


@dataclass(frozen=True)
class OwnDefense:
    """A function of one's own as a defence, beside `Defense` in an evaluation.

    An attacker who knows of it takes the gradient straight through it, as if it were not there.

    Attributes
    ----------
    name : str
        What tables call it.
    function : callable
        From images, rng to images, or from images to images if nothing is drawn. It gets one image
        at a time, as a batch (1, H, W, 3) of float32 in [0, 255], and a `numpy.random.Generator`
        of that image's own; it gives back finite numbers of the same shape.
    text : str
        ``own:NAME@`` and 8 digits of the SHA-256 of its source, its defaults and the local values
        around it that it uses (numbers, texts, arrays, functions, and collections of them): what a
        store keeps it under. What other objects hold, functions of its module that it calls and
        values of its module are not in it: change its name when you change those. A `ValueError`
        says that the source cannot be read.
    """

    name: str
    function: Callable[..., Any]
    text: str = field(init=False)
    map_key: ClassVar[None] = None

    def __post_init__(self) -> None:
        try:
            told = _told_function(self.function)
        except (OSError, TypeError):
            raise ValueError(
                f"{self.name}: expected a function whose source can be read, written in a file or "
                f"a cell of a notebook, got {self.function!r}"
            ) from None
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        object.__setattr__(self, "text", f"own:{self.name}@{digest}")

    @property
    def random(self) -> bool:
        """Whether it takes a generator: as `rng`, or in a second place that has no default."""
        parameters = inspect.signature(self.function).parameters
        return "rng" in parameters or len(required(self.function)) > 1

    def activation_map(self, classifier: Classifier, images: Array) -> None:
        """Make no map."""

    def transform(
        self, classifier: Classifier, images: Array, *, rng: Rng = None, activation_map: Maps = None
    ) -> Array:
        """Defend images once; the arguments are those of `Defense.transform`."""
        batch, single = as_batch(images)
        made = []
        for image, own in zip(batch, streams(rng, len(batch)), strict=True):
            found: Any = np.asarray(called(self.function, image[np.newaxis].copy(), rng=own))
            if found.shape != (1, *image.shape) or found.dtype.kind not in "fiu":
                raise ValueError(
                    f"{self.name}: expected numbers of shape {(1, *image.shape)} back from the "
                    f"function, got {found.dtype} of {found.shape}"
                )
            made.append(check_images(found.astype(np.float32), f"what {self.name} gave"))
        return made[0][0] if single else np.concatenate(made)


def called(function: Callable[..., Any], *given: Any, rng: np.random.Generator) -> Any:
    """Call a function of one's own, with a generator if it takes one."""
    if "rng" in inspect.signature(function).parameters:
        return function(*given, rng=rng)
    return function(*given, rng) if len(required(function)) > len(given) else function(*given)


def required(function: Callable[..., Any]) -> list[str]:
    """List the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return [found.name for found in parameters if found.default is found.empty]


def _told_function(function: Any) -> str:
    """Write a function by its source and the values that it uses."""
    source, around = inspect.getsource(function), inspect.getclosurevars(function).nonlocals
    values = (function.__defaults__ or (), function.__kwdefaults__ or {}, around)
    return source + (_told(values) if any(values) else "")


def _told(value: Any) -> str:
    """Write what a value is, the same in every process."""
    if inspect.isroutine(value) and hasattr(value, "__code__"):
        return _told_function(value)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_told, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{_told(key)}: {_told(item)}' for key, item in value.items())})"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{digest}"
    plain = value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic))
    return repr(value) if plain else type(value).__qualname__
