"""From settings to a result: one image attacked, defended and classified, a stage at a time.

What a reader does by hand in notebooks 1 to 7 is one call here, `Explorer.result`. The explorer
keeps what each stage gave, so that a changed setting costs only the stages that it touches.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pdutils import _efficientnet, downloads
from pdutils._utils import check_one_of, check_whole, is_number, streams
from pdutils.activation import Combine
from pdutils.attacks.gradient import fgsm, igsm
from pdutils.classifiers import Classifier, Prediction, load_classifier
from pdutils.defenses.pipeline import Defense, MapKind
from pdutils.deflection import Reading
from pdutils.demo import shipped
from pdutils.demo.examples import ITERATIONS, PHOTOS, load_case, load_clean, photo_path
from pdutils.denoising import DENOISERS, Mode, SigmaScale, denoise
from pdutils.images import Array
from pdutils.metrics import linf, relative_l2

Attack = Literal["shipped", "igsm", "fgsm", "none"]

#: Told what is being done, how much of it is done, and how much there is (0: nobody knows).
Progress = Callable[[str, int, int], None]

#: The two networks that need no download, and those that the blog's notebook can be run with.
CLASSIFIERS = (
    "efficientnet_lite0",
    "demo",
    "resnet50",
    "mobilenet_v2",
    "inception_v3",
    "xception",
    "vgg19",
)

#: The least and the greatest whole number that a setting takes; a page that anybody may open must
#: not be asked for an hour's work.
RANGES = {
    "eps": (1, 64),
    "steps": (1, 100),
    "deflections": (0, 20_000),
    "window": (1, 1_000),
    "k": (1, 1_000),
    "runs": (1, 50),
    "seed": (0, 2**53 - 1),
}

WORDS: dict[str, tuple[str, ...]] = {
    "attack": get_args(Attack),
    "reading": get_args(Reading),
    "activation": get_args(MapKind),
    "combine": get_args(Combine),
    "denoiser": ("none", *DENOISERS),
    "mode": get_args(Mode),
    "sigma_scale": get_args(SigmaScale),
}

#: The denoisers that are told how much noise to expect.
WITH_SIGMA = ("wavelet", "dct", "nl_means")

#: How many values of a stage are kept: more than the runs that a result can have.
_KEPT = 64

#: Networks are large.
_NETWORKS_KEPT = 3

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a result depends on.

    Attributes
    ----------
    classifier, weights : str
        As in `pdutils.classifiers.load_classifier`; no weights are the empty string.
    image, label : str
        As in `pdutils.demo.examples.load_case`; no image is the first of `choices`.
    attack : {"shipped", "igsm", "fgsm", "none"}
        ``shipped``: the adversary that comes with the image; where none does, one that stops as
        soon as the network is fooled. ``igsm``, ``fgsm``: made now. ``none``: the clean image.
    eps : int
        Greatest change of a channel by `igsm` and `fgsm`, in grey levels of 255.
    steps : int
        How many steps of 1 grey level `igsm` takes.
    stop : bool
        Whether `igsm` stops as soon as the network is fooled: a weak attack. One that goes on is
        strong.
    deflections, window, reading
        As in `pdutils.deflection.pixel_deflection`.
    activation, combine, k
        As in `pdutils.defenses.pipeline.Defense`.
    denoiser : str
        As `method` in `pdutils.denoising.denoise`, or ``none``.
    sigma : float
        Noise that the denoisers of `WITH_SIGMA` are to expect, in (0, 1].
    mode, sigma_scale
        As in `pdutils.denoising.denoise_wavelet`.
    runs : int
        How many times the image is defended; the probabilities are the mean.
    seed : int
        Of the deflections.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    """

    classifier: str = "demo"
    weights: str = ""
    image: str = ""
    label: str = ""
    attack: Attack = "shipped"
    eps: int = 8
    steps: int = 10
    stop: bool = True
    deflections: int = 200
    window: int = 10
    reading: Reading = "blog"
    activation: MapKind = "none"
    combine: Combine = "paper"
    k: int = 5
    denoiser: str = "none"
    sigma: float = 0.04
    mode: Mode = "soft"
    sigma_scale: SigmaScale = "channel"
    runs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("classifier", "weights", "image", "label"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text, got {getattr(self, name)!r}")
        for name, words in WORDS.items():
            check_one_of(name, getattr(self, name), words)
        for name, bounds in RANGES.items():
            check_whole(name, getattr(self, name), *bounds)
        if not isinstance(self.stop, bool):
            raise ValueError(f"stop: expected true or false, got {self.stop!r}")
        if not is_number(self.sigma) or not 0 < self.sigma <= 1:
            raise ValueError(f"sigma: expected a number in (0, 1], got {self.sigma!r}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Settings":
        """Make settings of what `dataclasses.asdict` gave, or a part of it.

        Parameters
        ----------
        settings : mapping of str to value
            What is not named keeps its default.

        Returns
        -------
        Settings

        Raises
        ------
        ValueError
            If there is no setting of that name, or it is out of its range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"no setting {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**settings)

    def defense(self) -> Defense:
        """Give the defence that these settings describe.

        Returns
        -------
        Defense
        """
        return Defense(
            deflections=self.deflections,
            window=self.window,
            reading=self.reading,
            activation=self.activation,
            k=self.k,
            combine=self.combine,
            denoiser=None if self.denoiser == "none" else self.denoiser,
            denoiser_options=self.denoiser_options(),
            runs=self.runs,
        )

    def denoiser_options(self) -> dict[str, Any]:
        """Give what the denoiser is told.

        Returns
        -------
        dict
            Options for `pdutils.denoising.denoise`.
        """
        options: dict[str, Any] = {"sigma": self.sigma} if self.denoiser in WITH_SIGMA else {}
        if self.denoiser == "wavelet":
            options |= {"mode": self.mode, "sigma_scale": self.sigma_scale}
        return options


@dataclass(frozen=True)
class Step:
    """What the network sees after a step: the name of the step and its probabilities (K,)."""

    name: str
    probabilities: Array


@dataclass(frozen=True)
class Result:
    """One image attacked, defended and classified.

    Attributes
    ----------
    settings : Settings
        What gave it.
    network : Classifier
        The network that was asked.
    name : str
        Of the image.
    clean, adversary : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; without an attack they are equal.
    origin : str
        Where the adversary comes from, in words.
    label : int
        The true class.
    activation_map : ndarray of float32, shape (H, W), or None
        The map that spares pixels.
    deflected, defended : ndarray of float32, shape (H, W, 3)
        The first run, after its deflections and at its end.
    runs : ndarray of float32, shape (runs, K)
        What the network sees in each defended image.
    steps : tuple of Step
        Clean, adversary, deflected, and, with a denoiser, denoised; the last two are means over
        the runs.
    seconds : float
        What the defence took, its last predictions included, when it was computed.
    computed : tuple of str
        The stages that this result needed anew.
    """

    settings: Settings
    network: Classifier
    name: str
    clean: Array
    adversary: Array
    origin: str
    label: int
    activation_map: Array | None
    deflected: Array
    defended: Array
    runs: Array
    steps: tuple[Step, ...]
    seconds: float
    computed: tuple[str, ...]

    @property
    def probabilities(self) -> Array:
        """What the network sees in the end: the mean over the runs, shape (K,)."""
        mean: Array = self.runs.mean(axis=0)
        return mean

    @property
    def attacked_label(self) -> int | None:
        """The class that the network sees in the adversary, or None if that is the true one."""
        seen = int(self.steps[1].probabilities.argmax())
        return None if seen == self.label else seen

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Where the first run's deflections changed a pixel, shape (H, W)."""
        changed: NDArray[np.bool_] = (self.deflected != self.adversary).any(axis=-1)
        return changed

    @property
    def remaining(self) -> Array:
        """What still tells the defended image from the clean one, shape (H, W, 3)."""
        return self.defended - self.clean

    @cached_property
    def strength(self) -> dict[str, float]:
        """How far the adversary and the defended image are from the clean one."""
        return {
            "attack_l2": float(relative_l2(self.clean, self.adversary)),
            "attack_linf": float(linf(self.clean, self.adversary)),
            "remaining_l2": float(relative_l2(self.clean, self.defended)),
        }

    @property
    def sentence(self) -> str:
        """What happened, such as `skunk 0.51 -> badger 0.70, in 48 ms`."""
        before, after = self._best(self.steps[1].probabilities), self._best(self.probabilities)
        return (
            f"{before.class_name} {before.probability:.2f} -> "
            f"{after.class_name} {after.probability:.2f}, in {1000 * self.seconds:.0f} ms"
        )

    @property
    def verdict(self) -> str:
        """What that means, and which part of the defence did it."""
        names, true = self.network.class_names, self.label
        clean, attacked, deflected = (int(s.probabilities.argmax()) for s in self.steps[:3])
        final = int(self.probabilities.argmax())
        if clean != true:
            return f"Wrong from the start: the network takes {names[true]} for {names[clean]}."
        if self.settings.attack == "none":
            return _without_attack(names[true], names[final], kept=final == true)
        if attacked == true:
            back = "" if final == true else f" The defence itself turns it into {names[final]}."
            return f"The attack did not fool the network.{back}"
        if final == true:
            return f"{names[true]} is back: {self._what_did_it(deflected)}"
        if final == attacked:
            return f"The network still sees {names[attacked]}."
        return f"Neither one nor the other: the network now sees {names[final]}."

    def _what_did_it(self, deflected: int) -> str:
        if self.settings.deflections == 0:
            return "denoising alone did it."
        if self.settings.denoiser == "none":
            return "deflection alone did it."
        if deflected == self.label:
            return "deflection alone had done it before the denoiser came."
        seen = self.network.class_names[deflected]
        return f"deflection alone still gave {seen}; it took the denoiser too."

    def _best(self, probabilities: Array) -> Prediction:
        return self.network.top(probabilities, 1)[0]


@dataclass(frozen=True)
class Choice:
    """A picture that can be chosen: its name in the settings, what it shows, its file."""

    name: str
    title: str
    path: Path


class Explorer:
    """Computes results, each stage only when something that it depends on has changed.

    Parameters
    ----------
    networks : mapping of (str, str) to Classifier, optional
        Networks that are loaded already, by their name and file of weights. They may be shared;
        the explorer itself belongs to one visitor.
    """

    def __init__(self, networks: Mapping[tuple[str, str], Classifier] | None = None) -> None:
        self._kept: _Kept = {
            "network": OrderedDict((key, (n, 0.0)) for key, n in (networks or {}).items())
        }
        self._lock = threading.RLock()

    def result(self, settings: Settings, *, progress: Progress | None = None) -> Result:
        """Attack, defend and classify.

        Parameters
        ----------
        settings : Settings
            What is wanted.
        progress : callable, optional
            Told of what takes long. What it raises ends the computation; the stages that are done
            are kept.

        Returns
        -------
        Result
            Equal to what the lines of `as_code` give.

        Raises
        ------
        ValueError, OSError
            If the picture cannot be read, the network has no such class, or as the functions of
            the stages.
        pdutils.downloads.DownloadError
            If the network's weights are neither cached nor to be had.
        """
        with self._lock:
            stages = _Stages(settings, self._kept, progress or _silent)
            return _result(stages)

    def warm(self, settings: Settings) -> None:
        """Have TensorFlow compile what later results will need, so that the first is quick too.

        Parameters
        ----------
        settings : Settings
            They say which network and image.

        Raises
        ------
        ValueError, OSError, pdutils.downloads.DownloadError
            As `result`.
        """
        with self._lock:
            stages = _Stages(settings, self._kept, _silent)
            stages.network.loss_gradient(stages.clean.image, stages.clean.label)
            stages.network.features(stages.clean.image)


def adversary_key(settings: Settings) -> tuple[Any, ...]:
    """Give what the adversary depends on: settings of equal keys have the same one.

    Parameters
    ----------
    settings : Settings
        Any.

    Returns
    -------
    tuple
        Hashable.
    """
    knobs: dict[str, tuple[Any, ...]] = {
        "igsm": (settings.eps, settings.steps, settings.stop),
        "fgsm": (settings.eps,),
    }
    return (*_clean_key(settings), settings.attack, *knobs.get(settings.attack, ()))


def choices(network: str) -> list[Choice]:
    """List the pictures that a network can be shown and that are at hand.

    Parameters
    ----------
    network : str
        Its name. The demo has its drawings; every other is taken to know ImageNet's classes.

    Returns
    -------
    list of Choice
        For ImageNet, scikit-image's photos, and the authors' images if they are cached.
    """
    if network == "demo":
        return [Choice(Path(d.name).stem, d.label, d.image) for d in shipped.demo_images()]
    cached = [downloads.authors_file("originals", name) for name in downloads.AUTHORS_IMAGES]
    authors = [Choice(str(path), f"the authors' {path.stem}", path) for path in cached if path]
    return [Choice(name, name, photo_path(name)) for name in PHOTOS] + authors


def is_at_hand(classifier: str) -> bool:
    """Tell whether a network's weights lie on this machine.

    Parameters
    ----------
    classifier : str
        One of `CLASSIFIERS`.

    Returns
    -------
    bool
        For what Keras publishes, whether a file of that name is in the cache.
    """
    if classifier == "efficientnet_lite0":
        return _efficientnet.is_installed()
    files = (downloads.cache_dir() / "models").glob(f"{classifier}_weights*")
    return classifier == "demo" or any("notop" not in path.name for path in files)


def as_code(settings: Settings) -> str:
    """Give the lines that do the same in a notebook.

    Parameters
    ----------
    settings : Settings
        What is wanted.

    Returns
    -------
    str
        Python, which leaves `network`, `case`, `adversary`, `defended` (the first run's image) and
        `found` (the mean probabilities).
    """
    imports = [
        "from pdutils.demo.examples import load_case",
        "from pdutils.classifiers import load_classifier",
        "from pdutils.defenses.pipeline import Defense",
    ]
    if settings.attack in ("igsm", "fgsm"):
        imports.insert(0, f"from pdutils.attacks.gradient import {settings.attack}")
    weights = f", {settings.weights!r}" if settings.weights else ""
    label = f", label={settings.label!r}" if settings.label else ""
    seed = settings.seed
    lines = [
        *imports,
        "",
        f"network = load_classifier({settings.classifier!r}{weights})",
        f"case = load_case(network, {settings.image!r}{label})",
        *_attack_lines(settings),
        *_defense_lines(settings),
        f"defended = defense.transform(network, adversary, rng={seed})",
        f"found = defense.predict(network, adversary, rng={seed})",
        "for best in network.top(found):",
        '    print(f"{best.class_name} {best.probability:.2f}")',
    ]
    return "\n".join(lines) + "\n"


_Kept = dict[str, OrderedDict[Any, tuple[Any, float]]]


class _Clean(NamedTuple):
    image: Array
    label: int
    probabilities: Array


class _Adversary(NamedTuple):
    image: Array
    origin: str
    probabilities: Array


class _Run(NamedTuple):
    deflected: Array
    defended: Array
    halfway: Array
    probabilities: Array


class _Stages:
    """The stages of one result, each taken from what was kept or made anew."""

    def __init__(self, settings: Settings, kept: _Kept, progress: Progress) -> None:
        self._kept = kept
        self._progress = progress
        self.computed: list[str] = []
        self.seconds = 0.0
        self.settings = settings
        # A network of few classes has a map over all of them.
        k = min(settings.k, len(self.network.class_ids))
        image = settings.image or choices(self.network.name)[0].name
        self.settings = replace(settings, k=k, image=image)

    @cached_property
    def network(self) -> Classifier:
        name, weights = self.settings.classifier, self.settings.weights

        def load() -> Classifier:
            self._progress(f"Loading {name}", 0, 0)
            return load_classifier(name, weights or None)

        return self._once("network", (name, weights), load)

    @cached_property
    def clean(self) -> _Clean:
        def load() -> _Clean:
            s = self.settings
            image, label = load_clean(self.network, s.image, label=s.label)
            probabilities = self.network.predict(image)
            seen = int(probabilities.argmax())
            return _Clean(image, seen if label is None else label, probabilities)

        return self._once("clean", _clean_key(self.settings), load)

    @cached_property
    def adversary(self) -> _Adversary:
        def make() -> _Adversary:
            image, origin = _attacked(self.settings, self.network, self.clean, self._progress)
            return _Adversary(image, origin, self.network.predict(image))

        return self._once("adversary", adversary_key(self.settings), make)

    @cached_property
    def activation_map(self) -> Array | None:
        defense, image = self.settings.defense(), self.adversary.image
        return self._once(
            "map",
            self._map_key,
            lambda: defense.activation_map(self.network, image),
            counts=True,
        )

    @property
    def _map_key(self) -> tuple[Any, ...]:
        s = self.settings
        knobs: dict[str, tuple[Any, ...]] = {"rcam": (s.k, s.combine)}
        kind = s.activation if s.deflections else "none"
        return (*adversary_key(s), kind, *knobs.get(kind, ()))

    def run(self, number: int, rng: np.random.Generator) -> _Run:
        """Defend and classify once, with random numbers that only this run draws."""
        s, network = self.settings, self.network
        attacked, activation_map = self.adversary.image, self.activation_map
        deflection = replace(s.defense(), denoiser=None)
        key = (*self._map_key, s.deflections, s.window, s.reading, s.seed, number)
        deflected = self._once(
            "deflected",
            key,
            lambda: deflection.transform(
                network, attacked, rng=[rng], activation_map=activation_map
            ),
            counts=True,
        )
        if s.denoiser == "none":
            seen = self._once("halfway", key, lambda: network.predict(deflected), counts=True)
            return _Run(deflected, deflected, seen, seen)
        halfway = self._once("halfway", key, lambda: network.predict(deflected))
        options = s.denoiser_options()
        key = (*key, s.denoiser, *options.items())
        defended = self._once(
            "denoised", key, lambda: denoise(deflected, s.denoiser, **options), counts=True
        )
        seen = self._once("probabilities", key, lambda: network.predict(defended), counts=True)
        return _Run(deflected, defended, halfway, seen)

    def runs(self) -> list[_Run]:
        """Do all runs, with the random numbers that `Defense.predict` gives them."""
        (first,) = streams(self.settings.seed, 1)
        found = []
        for number, rng in enumerate([first, *first.spawn(self.settings.runs - 1)]):
            if number:
                self._progress("Defending", number, self.settings.runs)
            found.append(self.run(number, rng))
        return found

    def _once(self, stage: str, key: Any, make: Callable[[], _T], *, counts: bool = False) -> _T:
        """Give what a stage makes, made anew only for a new key; its time counts either way."""
        kept = self._kept.setdefault(stage, OrderedDict())
        if key not in kept:
            start = time.perf_counter()
            value = make()
            kept[key] = value, time.perf_counter() - start
            self.computed.append(stage)
            if len(kept) > (_NETWORKS_KEPT if stage == "network" else _KEPT):
                kept.popitem(last=False)
        kept.move_to_end(key)
        found: tuple[_T, float] = kept[key]
        self.seconds += found[1] if counts else 0.0
        return found[0]


def _result(stages: _Stages) -> Result:
    clean, adversary, activation_map = stages.clean, stages.adversary, stages.activation_map
    runs = stages.runs()
    halfway, final = (_mean([run[i] for run in runs]) for i in (2, 3))
    steps = [Step("clean", clean.probabilities), Step("adversary", adversary.probabilities)]
    steps.append(Step("deflected", halfway))
    if stages.settings.denoiser != "none":
        steps.append(Step("denoised", final))
    return Result(
        settings=stages.settings,
        network=stages.network,
        name=Path(stages.settings.image).stem,
        clean=clean.image,
        adversary=adversary.image,
        origin=adversary.origin,
        label=clean.label,
        activation_map=activation_map,
        deflected=runs[0].deflected,
        defended=runs[0].defended,
        runs=np.stack([run.probabilities for run in runs]),
        steps=tuple(steps),
        seconds=stages.seconds,
        computed=tuple(dict.fromkeys(stages.computed)),
    )


def _mean(rows: list[Array]) -> Array:
    mean: Array = np.stack(rows).mean(axis=0)
    return mean


class _Watched:
    """A network that says how many gradients it has been asked for."""

    def __init__(self, network: Classifier, steps: int, progress: Progress) -> None:
        self._network, self._steps, self._progress = network, steps, progress
        self._done = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def loss_gradient(self, *args: Any, **options: Any) -> tuple[Array, Array]:
        self._progress("Making the adversary", self._done, self._steps)
        self._done += 1
        return self._network.loss_gradient(*args, **options)


def _attacked(
    settings: Settings, network: Classifier, clean: _Clean, progress: Progress
) -> tuple[Array, str]:
    """Give the adversary and where it comes from."""
    if settings.attack == "none":
        return clean.image, "none: the clean image"
    steps = {"igsm": settings.steps, "fgsm": 1, "shipped": ITERATIONS}[settings.attack]
    watched = cast(Classifier, _Watched(network, steps, progress))
    if settings.attack == "shipped":
        case = load_case(watched, settings.image, label=settings.label)
        return case.adversary, case.origin
    # Where the network is wrong about the clean image, it is led away from what it saw there.
    seen = int(clean.probabilities.argmax())
    origin = f"made now, by {settings.attack.upper()} against {network.name}"
    if settings.attack == "fgsm":
        return fgsm(watched, clean.image, seen, eps=settings.eps), origin
    stop_at: Literal["success"] | None = "success" if settings.stop else None
    adversary = igsm(
        watched, clean.image, seen, eps=settings.eps, iterations=settings.steps, stop_at=stop_at
    )
    return adversary, origin


def _clean_key(settings: Settings) -> tuple[Any, ...]:
    return settings.classifier, settings.weights, settings.image, settings.label


def _attack_lines(settings: Settings) -> list[str]:
    if settings.attack in ("none", "shipped"):
        return [f"adversary = case.{'clean' if settings.attack == 'none' else 'adversary'}"]
    knobs = f"eps={settings.eps}"
    if settings.attack == "igsm":
        knobs += f", iterations={settings.steps}" + (', stop_at="success"' if settings.stop else "")
    return [
        "seen = int(network.predict(case.clean).argmax())",
        f"adversary = {settings.attack}(network, case.clean, seen, {knobs})",
    ]


def _defense_lines(settings: Settings) -> list[str]:
    """Spell the defence with the knobs that count, in the order of its attributes."""
    knobs: dict[str, Any] = {"deflections": settings.deflections, "window": settings.window}
    knobs |= {"reading": settings.reading, "activation": settings.activation}
    if settings.activation == "rcam":
        knobs |= {"k": settings.k, "combine": settings.combine}
    knobs["denoiser"] = None if settings.denoiser == "none" else settings.denoiser
    if settings.denoiser_options():
        knobs["denoiser_options"] = settings.denoiser_options()
    knobs["runs"] = settings.runs
    return ["defense = Defense(", *(f"    {name}={value!r}," for name, value in knobs.items()), ")"]


def _without_attack(true: str, final: str, *, kept: bool) -> str:
    if kept:
        return f"No attack: the defence leaves {true} alone."
    return f"No attack, and the defence does harm: {true} becomes {final}."


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
