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
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from pdutils import _efficientnet, downloads
from pdutils._utils import Array, check_one_of, check_whole, is_number, streams
from pdutils.attacks.gradient import fgsm, igsm
from pdutils.classifiers import Classifier, load_classifier
from pdutils.defenses.pipeline import Defense
from pdutils.demo.examples import (
    ITERATIONS,
    PHOTOS,
    demo_images,
    load_case,
    load_clean,
    photo_path,
)
from pdutils.denoising import DENOISERS, Mode, SigmaScale, denoise
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

#: Settings that are knobs of the defence, by the same names.
_KNOBS = ("deflections", "window", "reading", "activation", "k", "combine", "runs")

_KINDS = get_type_hints(Defense)

WORDS: dict[str, tuple[str, ...]] = {
    "attack": get_args(Attack),
    **{name: get_args(_KINDS[name]) for name in ("reading", "activation", "combine")},
    "denoiser": ("none", *DENOISERS),
    "mode": get_args(Mode),
    "sigma_scale": get_args(SigmaScale),
}

#: The denoisers that are told how much noise to expect.
WITH_SIGMA = ("wavelet", "dct", "nl_means")

#: How many values of a stage are kept, more than the runs that a result can have; and of networks,
#: which are large.
_KEPT, _NETWORKS_KEPT = 64, 3

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
    deflections, window, reading, activation, combine, k, runs
        As in `pdutils.defenses.pipeline.Defense`.
    denoiser : str
        As `method` in `pdutils.denoising.denoise`, or ``none``.
    sigma : float
        Noise that the denoisers of `WITH_SIGMA` are to expect, in (0, 1].
    mode, sigma_scale
        As in `pdutils.denoising.denoise_wavelet`.
    seed : int
        Of the deflections.
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
    reading: str = "blog"
    activation: str = "none"
    combine: str = "paper"
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
        """Make settings of what `dataclasses.asdict` gave, or of a part of it."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"no setting {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**settings)

    def defense(self) -> Defense:
        """Give the defence that these settings describe."""
        options: dict[str, Any] = {"sigma": self.sigma} if self.denoiser in WITH_SIGMA else {}
        if self.denoiser == "wavelet":
            options |= {"mode": self.mode, "sigma_scale": self.sigma_scale}
        knobs: dict[str, Any] = {name: getattr(self, name) for name in _KNOBS}
        denoiser = None if self.denoiser == "none" else self.denoiser
        return Defense(**knobs, denoiser=denoiser, denoiser_options=options)


class Step(NamedTuple):
    """What the network sees after a step: the name of the step and its probabilities (K,)."""

    name: str
    probabilities: Array


@dataclass(frozen=True)
class Result:
    """One image attacked, defended and classified; images are RGB in [0, 255], (H, W, 3).

    Without an attack the adversary is the clean image; `origin` says where it comes from. The map
    (H, W) spares pixels. `deflected` and `defended` are the first run's, `runs` what the network
    sees in each run, (runs, K). The steps are clean, adversary, deflected, and, with a denoiser,
    denoised; the last two are means over the runs. `seconds` are those of the defence and its last
    predictions when they were computed, `computed` the stages that this result needed anew.
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
        best = [
            self.network.top(p, 1)[0] for p in (self.steps[1].probabilities, self.probabilities)
        ]
        before, after = (f"{found.class_name} {found.probability:.2f}" for found in best)
        return f"{before} -> {after}, in {1000 * self.seconds:.0f} ms"

    @property
    def verdict(self) -> str:
        """What that means, and which part of the defence did it."""
        names, true = self.network.class_names, self.label
        clean, attacked, deflected = (int(s.probabilities.argmax()) for s in self.steps[:3])
        final = int(self.probabilities.argmax())
        if clean != true:
            return f"Wrong from the start: the network takes {names[true]} for {names[clean]}."
        if self.settings.attack == "none":
            if final == true:
                return f"No attack: the defence leaves {names[true]} alone."
            return f"No attack, and the defence does harm: {names[true]} becomes {names[final]}."
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


class Choice(NamedTuple):
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
        """Attack, defend and classify; the result is equal to what the lines of `as_code` give.

        `progress` is told of what takes long. What it raises ends the computation; the stages that
        are done are kept.
        """
        with self._lock:
            return _Stages(settings, self._kept, progress).result()

    def warm(self, settings: Settings) -> None:
        """Have TensorFlow compile what later results on this network and image will need."""
        with self._lock:
            stages = _Stages(settings, self._kept)
            stages.network.loss_gradient(stages.clean.image, stages.clean.label)
            stages.network.features(stages.clean.image)


def adversary_key(settings: Settings) -> tuple[Any, ...]:
    """Give what the adversary depends on: settings of equal keys have the same one."""
    knobs: dict[str, tuple[Any, ...]] = {
        "igsm": (settings.eps, settings.steps, settings.stop),
        "fgsm": (settings.eps,),
    }
    return (*_clean_key(settings), settings.attack, *knobs.get(settings.attack, ()))


def _clean_key(settings: Settings) -> tuple[Any, ...]:
    return settings.classifier, settings.weights, settings.image, settings.label


def choices(network: str) -> list[Choice]:
    """List the pictures that a network can be shown and that are at hand.

    The demo has its drawings; every other network is taken to know ImageNet's classes, and gets
    scikit-image's photos, and the authors' images if they are cached.
    """
    if network == "demo":
        return [Choice(Path(d.name).stem, d.label, d.image) for d in demo_images()]
    cached = [downloads.authors_file("originals", name) for name in downloads.AUTHORS_IMAGES]
    authors = [Choice(str(path), f"the authors' {path.stem}", path) for path in cached if path]
    return [Choice(name, name, photo_path(name)) for name in PHOTOS] + authors


def is_at_hand(classifier: str) -> bool:
    """Tell whether the weights of one of `CLASSIFIERS` lie on this machine."""
    if classifier == "efficientnet_lite0":
        return _efficientnet.is_installed()
    files = (downloads.cache_dir() / "models").glob(f"{classifier}_weights*")
    return classifier == "demo" or any("notop" not in path.name for path in files)


def as_code(settings: Settings) -> str:
    """Give the lines of Python that do the same in a notebook.

    They leave `network`, `case`, `adversary`, `defended` (the first run's image) and `found` (the
    mean probabilities).
    """
    attack, imports = settings.attack, ["from pdutils.classifiers import load_classifier"]
    if attack in ("igsm", "fgsm"):
        imports.insert(0, f"from pdutils.attacks import {attack}")
    defense = _spelled(settings.defense())
    if defense.startswith("replace"):
        imports.insert(0, "from dataclasses import replace\n")
    knobs = f"eps={settings.eps}"
    if attack == "igsm":
        knobs += f", iterations={settings.steps}" + (', stop_at="success"' if settings.stop else "")
    made = [
        "seen = int(network.predict(case.clean).argmax())",
        f"adversary = {attack}(network, case.clean, seen, {knobs})",
    ]
    given = {"none": ["adversary = case.clean"], "shipped": ["adversary = case.adversary"]}
    weights = f", {settings.weights!r}" if settings.weights else ""
    label = f", label={settings.label!r}" if settings.label else ""
    lines = [
        *imports,
        "from pdutils.defenses import Defense",
        "from pdutils.demo import load_case",
        "",
        f"network = load_classifier({settings.classifier!r}{weights})",
        f"case = load_case(network, {settings.image!r}{label})",
        *given.get(attack, made),
        f"defense = {defense}",
        f"defended = defense.transform(network, adversary, rng={settings.seed})",
        f"found = defense.predict(network, adversary, rng={settings.seed})",
        "for best in network.top(found):",
        '    print(f"{best.class_name} {best.probability:.2f}")',
    ]
    return "\n".join(lines) + "\n"


def _spelled(defense: Defense) -> str:
    """Write a defence as code: by its text, and what no text says."""
    rest: dict[str, Any] = {"runs": defense.runs} if defense.runs > 1 else {}
    try:
        text = defense.text
    except ValueError:
        # No name has that denoiser.
        text = replace(defense, denoiser=None, denoiser_options={}).text
        rest |= {"denoiser": defense.denoiser, "denoiser_options": defense.denoiser_options}
    parsed, knobs = f"Defense.parse({text!r})", "".join(f", {n}={v!r}" for n, v in rest.items())
    return f"replace({parsed}{knobs})" if knobs else parsed


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

    def __init__(self, settings: Settings, kept: _Kept, progress: Progress | None = None) -> None:
        self._kept = kept
        self._progress = progress or (lambda what, done, total: None)
        self.computed: list[str] = []
        self.seconds = 0.0
        self.settings = settings
        # A network of few classes has a map over all of them.
        k = min(settings.k, len(self.network.class_ids))
        image = settings.image or choices(self.network.name)[0].name
        self.settings = replace(settings, k=k, image=image)
        self.defense = self.settings.defense()

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
        image = self.adversary.image
        return self._once(
            "map",
            (*adversary_key(self.settings), self.defense.map_key),
            lambda: self.defense.activation_map(self.network, image),
            counts=True,
        )

    def run(self, number: int, rng: np.random.Generator) -> _Run:
        """Defend and classify once, with random numbers that only this run draws."""
        network, chances = self.network, self.activation_map
        method, options = self.defense.denoiser, self.defense.denoiser_options
        deflection = replace(self.defense, denoiser=None, denoiser_options={})
        key = (*adversary_key(self.settings), deflection.text, self.settings.seed, number)

        def deflect() -> Array:
            image = self.adversary.image
            return deflection.transform(network, image, rng=[rng], activation_map=chances)

        deflected = self._once("deflected", key, deflect, counts=True)
        halfway = self._once(
            "halfway", key, lambda: network.predict(deflected), counts=method is None
        )
        if method is None:
            return _Run(deflected, deflected, halfway, halfway)
        key = (*key, method, *options.items())
        defended = self._once(
            "denoised", key, lambda: denoise(deflected, method, **options), counts=True
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

    def result(self) -> Result:
        clean, adversary, chances, runs = (
            self.clean, self.adversary, self.activation_map, self.runs()
        )  # fmt: skip
        halfway, final = (np.stack([run[i] for run in runs]) for i in (2, 3))
        seen = {"clean": clean.probabilities, "adversary": adversary.probabilities}
        seen["deflected"] = halfway.mean(axis=0)
        if self.defense.denoiser:
            seen["denoised"] = final.mean(axis=0)
        return Result(
            settings=self.settings,
            network=self.network,
            name=Path(self.settings.image).stem,
            clean=clean.image,
            adversary=adversary.image,
            origin=adversary.origin,
            label=clean.label,
            activation_map=chances,
            deflected=runs[0].deflected,
            defended=runs[0].defended,
            runs=final,
            steps=tuple(Step(*step) for step in seen.items()),
            seconds=self.seconds,
            computed=tuple(dict.fromkeys(self.computed)),
        )

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
