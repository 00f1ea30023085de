"""From settings to a result: one image attacked, defended and classified, a stage at a time.

What a reader does by hand in notebooks 1 to 7 is one call here, `Explorer.result`. The explorer
keeps what each stage gave, so that a changed setting costs only the stages that it touches.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import ABOVE_0, Array, check_number, check_one_of, check_whole, streams
from pdutils.attacks.gradient import fgsm, igsm
from pdutils.classifiers import Classifier, load_classifier
from pdutils.classifiers import is_at_hand as is_at_hand
from pdutils.defenses.pipeline import DENOISERS, Defense
from pdutils.demo import examples
from pdutils.demo.examples import ITERATIONS, linf, load_case, load_clean, relative_l2
from pdutils.explorer.workshop import Workshop

#: Told what is being done, how much of it is done, and how much there is (0: nobody knows).
Progress = Callable[[str, int, int], None]

#: Said between the runs of a defence.
DEFENDING = "Defending"

#: The two networks that need no download, and those that the blog's notebook can be run with.
CLASSIFIERS = ("efficientnet_lite0", "demo", "resnet50", "mobilenet_v2", "inception_v3", "xception",
               "vgg19")  # fmt: skip

#: The least and the greatest whole number that a setting takes; a page that anybody may open must
#: not be asked for an hour's work.
RANGES = {"eps": (1, 64), "steps": (1, 100), "deflections": (0, 20_000), "window": (1, 1_000)}
RANGES |= {"k": (1, 1_000), "runs": (1, 50), "seed": (0, 2**53 - 1)}

_TEXTS = ("classifier", "weights", "image", "label")

_KINDS = get_type_hints(Defense) | get_type_hints(DENOISERS["wavelet"])

#: The words that a setting takes.
WORDS = {"attack": ("shipped", "igsm", "fgsm", "none"), "denoiser": ("none", *DENOISERS)}
WORDS |= {name: get_args(_KINDS[name]) for name in ("reading", "activation", "combine")}
WORDS |= {name: get_args(_KINDS[name]) for name in ("mode", "sigma_scale")}

#: The denoisers that are told how much noise to expect.
WITH_SIGMA = ("wavelet", "dct", "nl_means")

#: Who says what a picture shows: its file or collection, the settings, or the network itself.
Truth = Literal["known", "chosen", "first"]

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
    eps, steps, stop
        Greatest change of a channel by `igsm` and `fgsm`, in grey levels; how many steps of 1
        `igsm` takes, and whether it stops once the network is fooled: a weak attack, else a strong.
    deflections, window, reading, activation, combine, k, runs
        As in `pdutils.defenses.pipeline.Defense`.
    denoiser, sigma, mode, sigma_scale
        `method` in `pdutils.denoising.denoise` or ``none``; the noise that those of `WITH_SIGMA`
        are to expect, in (0, 1]; the others as in `denoise_wavelet`.
    seed : int
        Of the deflections.
    """

    classifier: str = "demo"
    weights: str = ""
    image: str = ""
    label: str = ""
    attack: str = "shipped"
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
    mode: str = "soft"
    sigma_scale: str = "channel"
    runs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text, got {getattr(self, name)!r}")
        for name, words in WORDS.items():
            check_one_of(name, getattr(self, name), words)
        for name, bounds in RANGES.items():
            check_whole(name, getattr(self, name), *bounds)
        if not isinstance(self.stop, bool):
            raise ValueError(f"stop: expected true or false, got {self.stop!r}")
        check_number("sigma", self.sigma, ABOVE_0, 1)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Settings":
        """Make settings of what `dataclasses.asdict` gave, or of a part of it."""
        known = [field.name for field in fields(cls)]
        for unknown in sorted(set(settings) - set(known)):
            raise ValueError(f"no setting {unknown!r}; known: {', '.join(known)}")
        return cls(**settings)

    def defense(self) -> Defense:
        """Give the defence that these settings describe."""
        options: dict[str, Any] = {"sigma": self.sigma} if self.denoiser in WITH_SIGMA else {}
        if self.denoiser == "wavelet":
            options |= {"mode": self.mode, "sigma_scale": self.sigma_scale}
        same = {field.name for field in fields(self)} & {field.name for field in fields(Defense)}
        knobs: dict[str, Any] = {name: getattr(self, name) for name in same - {"denoiser"}}
        denoiser = None if self.denoiser == "none" else self.denoiser
        return Defense(**knobs, denoiser=denoiser, denoiser_options=options)


class Step(NamedTuple):
    """What the network sees after a step: the name of the step and its probabilities (K,)."""

    name: str
    probabilities: Array


@dataclass(frozen=True)
class Result:
    """One image attacked, defended and classified; images are RGB in [0, 255], (H, W, 3).

    `label` is known, chosen in the settings, or else the network's own first answer: `truth`.
    `deflected` and `defended` are the first run's, `runs` is what the network sees in each, (runs,
    K); the last steps are means over them. `seconds` are those of the defence and its predictions
    when they were computed, `computed` the stages that this result needed anew.
    """

    settings: Settings
    network: Classifier
    name: str
    clean: Array
    adversary: Array
    origin: str
    label: int
    truth: Truth
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
        return self.steps[-1].probabilities

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
        seen, names = (self.steps[1].probabilities, self.probabilities), self.network.class_names
        before, after = (f"{names[row.argmax()]} {row.max():.2f}" for row in seen)
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
        if final == attacked:
            return f"The network still sees {names[attacked]}."
        if final != true:
            return f"Neither one nor the other: the network now sees {names[final]}."
        how = "deflection alone had done it before the denoiser came."
        if self.settings.deflections == 0:
            how = "denoising alone did it."
        elif self.settings.denoiser == "none":
            how = "deflection alone did it."
        elif deflected != true:
            how = f"deflection alone still gave {names[deflected]}; it took the denoiser too."
        return f"{names[true]} is back: {how}"


class Choice(NamedTuple):
    """A picture that can be chosen: its name in the settings, what it shows, its file."""

    name: str
    title: str
    path: Path


class Explorer:
    """Computes results, each stage only when something that it depends on has changed.

    `networks` are loaded already, by their name and file of weights. Explorers may share a
    `workshop`: what one has computed costs the others nothing, and they take turns.
    """

    def __init__(
        self,
        networks: Mapping[tuple[str, str], Classifier] | None = None,
        *,
        workshop: Workshop | None = None,
    ) -> None:
        self.workshop = workshop or Workshop(networks)

    def result(self, settings: Settings, *, progress: Progress | None = None) -> Result:
        """Attack, defend and classify; the result is equal to what the lines of `as_code` give.

        `progress` is told of what takes long. What it raises ends the computation; the stages that
        are done are kept.
        """
        with self.workshop.turns:
            return _Stages(settings, self.workshop, progress).result()

    def warm(self, settings: Settings) -> None:
        """Have TensorFlow compile what later results on this network and image will need."""
        with self.workshop.turns:
            stages = _Stages(settings, self.workshop)
            image, label, *_ = stages.clean
            stages.network.loss_gradient(image, label)
            stages.network.features(image)


def adversary_key(settings: Settings) -> tuple[Any, ...]:
    """Give what the adversary depends on: settings of equal keys have the same one."""
    used = {"igsm": ("eps", "steps", "stop"), "fgsm": ("eps",)}.get(settings.attack, ())
    return tuple(getattr(settings, name) for name in (*_TEXTS, "attack", *used))


def choices(network: str) -> list[Choice]:
    """List the pictures at hand: the demo's drawings, or photos of ImageNet's classes."""
    if network == "demo":
        return [Choice(Path(d.name).stem, d.label, d.image) for d in examples.demo_images()]
    paths = {path.stem: path for path, _ in examples.photos_at_hand()}
    own = {name: Choice(name, name, paths[name]) for name in examples.PHOTOS}
    named = {name: Choice(str(path), f"the authors' {name}", path) for name, path in paths.items()}
    return list((named | own).values())


def as_code(settings: Settings) -> str:
    """Give the lines of Python that do the same in a notebook.

    They leave `network`, `case`, `adversary`, `defended` (the first run's image) and `found` (the
    mean probabilities).
    """
    attack, defense = settings.attack, _spelled(settings.defense())
    knobs = f"eps={settings.eps}"
    if attack == "igsm":
        knobs += f", iterations={settings.steps}" + (', stop_at="success"' if settings.stop else "")
    given = {"none": "case.clean", "shipped": "case.adversary"}.get(attack)
    weights = f", {settings.weights!r}" if settings.weights else ""
    label = f", label={settings.label!r}" if settings.label else ""
    lines = [
        "from dataclasses import replace\n" if defense.startswith("replace") else None,
        None if given else f"from pdutils.attacks import {attack}",
        "from pdutils.classifiers import load_classifier",
        "from pdutils.defenses import Defense",
        "from pdutils.demo import load_case",
        "",
        f"network = load_classifier({settings.classifier!r}{weights})",
        f"case = load_case(network, {settings.image!r}{label})",
        None if given else "seen = int(network.predict(case.clean).argmax())",
        f"adversary = {given or f'{attack}(network, case.clean, seen, {knobs})'}",
        f"defense = {defense}",
        f"defended = defense.transform(network, adversary, rng={settings.seed})",
        f"found = defense.predict(network, adversary, rng={settings.seed})",
        "for best in network.top(found):",
        '    print(f"{best.class_name} {best.probability:.2f}")',
    ]
    return "".join(f"{line}\n" for line in lines if line is not None)


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


class _Stages:
    """The stages of one result, each taken from what was kept or made anew."""

    def __init__(
        self, settings: Settings, workshop: Workshop, progress: Progress | None = None
    ) -> None:
        self.workshop = workshop
        self.tell = progress or (lambda what, done, total: None)
        self.computed: list[str] = []
        self.seconds: dict[Any, float] = {}
        self.settings = settings
        self.network = workshop.network(settings.classifier, settings.weights, self.load)
        # A network of few classes has a map over all of them.
        k = min(settings.k, len(self.network.class_ids))
        image = settings.image or choices(self.network.name)[0].name
        self.settings = replace(settings, k=k, image=image)
        self.defense = self.settings.defense()

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell of a long job, and let others have their turns in its middle."""
        self.tell(what, done, total)
        self.workshop.turns.pass_on()

    def load(self) -> Classifier:
        self.tell(f"Loading {self.settings.classifier}", 0, 0)
        self.computed.append("network")
        return load_classifier(self.settings.classifier, self.settings.weights or None)

    @property
    def clean(self) -> tuple[Array, int, Array, Truth]:
        """The clean image, its class, what the network sees in it, and who says its class."""

        def load() -> tuple[Array, int, Array, Truth]:
            image, label = load_clean(self.network, self.settings.image, label=self.settings.label)
            seen = self.network.predict(image)
            if label is None:
                return image, int(seen.argmax()), seen, "first"
            return image, label, seen, "chosen" if self.settings.label else "known"

        return self.once("clean", adversary_key(self.settings)[: len(_TEXTS)], load)

    @property
    def adversary(self) -> tuple[Array, str, Array]:
        """The adversary, where it comes from, and what the network sees in it."""
        settings, attack, (clean, _, answer, _) = self.settings, self.settings.attack, self.clean

        def make() -> tuple[Array, str, Array]:
            # Where the network is wrong about the clean image, it is led away from what it saw.
            seen = int(answer.argmax())
            origin = f"made now, by {attack.upper()} against {self.network.name}"
            if attack == "none":
                image, origin = clean, "none: the clean image"
            elif attack == "shipped":
                case = load_case(self.watched(ITERATIONS), settings.image, label=settings.label)
                image, origin = case.adversary, case.origin
            elif attack == "fgsm":
                image = fgsm(self.watched(1), clean, seen, eps=settings.eps)
            else:
                stop_at: Literal["success"] | None = "success" if settings.stop else None
                own: dict[str, Any] = {"eps": settings.eps, "iterations": settings.steps}
                image = igsm(self.watched(settings.steps), clean, seen, **own, stop_at=stop_at)
            return image, origin, self.network.predict(image)

        return self.once("adversary", adversary_key(settings), make)

    def watched(self, steps: int) -> Classifier:
        """Give the network so that it says how many of its gradients have been asked for."""
        network, done = copy.copy(self.network), itertools.count()

        def gradient(*args: Any, **options: Any) -> tuple[Array, Array]:
            self.progress("Making the adversary", next(done), steps)
            return self.network.loss_gradient(*args, **options)

        network.loss_gradient = gradient  # type: ignore[method-assign]
        return network

    @property
    def activation_map(self) -> Array | None:
        key = (*adversary_key(self.settings), self.defense.map_key)
        make = partial(self.defense.activation_map, self.network, self.adversary[0])
        return self.once("map", key, make, counts=True)

    def run(self, rng: np.random.Generator, number: int) -> tuple[Array, Array, Array, Array]:
        """Give one run's deflected and defended image, and what the network sees in each."""
        network, image, chances = self.network, self.adversary[0], self.activation_map
        if number:
            self.progress(DEFENDING, number, self.settings.runs)
        deflection = replace(self.defense, denoiser=None, denoiser_options={})
        denoising = replace(self.defense, deflections=0)
        key = (*adversary_key(self.settings), deflection.text, self.settings.seed, number)

        deflect = partial(deflection.transform, network, image, rng=[rng], activation_map=chances)
        method, options = denoising.denoiser, denoising.denoiser_options
        last = method is None
        deflected = self.once("deflected", key, deflect, counts=True)
        halfway = self.once("halfway", key, lambda: network.predict(deflected), counts=last)
        if last:
            return deflected, deflected, halfway, halfway
        key = (*key, method, *options.items())
        denoise = partial(denoising.transform, network, deflected)
        defended = self.once("denoised", key, denoise, counts=True)
        seen = self.once("probabilities", key, lambda: network.predict(defended), counts=True)
        return deflected, defended, halfway, seen

    def result(self) -> Result:
        (clean, label, first, truth), (adversary, origin, second) = self.clean, self.adversary
        # The random numbers that `Defense.predict` gives the runs.
        (rng,) = streams(self.settings.seed, 1)
        generators = [rng, *rng.spawn(self.settings.runs - 1)]
        runs = [self.run(own, number) for number, own in enumerate(generators)]
        halfway, final = (np.stack([run[i] for run in runs]) for i in (2, 3))
        rows = (first, second, halfway.mean(axis=0), final.mean(axis=0))
        names = ("clean", "adversary", "deflected", "denoised")[: 4 if self.defense.denoiser else 3]
        return Result(
            settings=self.settings,
            network=self.network,
            name=Path(self.settings.image).stem,
            clean=clean,
            adversary=adversary,
            origin=origin,
            label=label,
            truth=truth,
            activation_map=self.activation_map,
            deflected=runs[0][0],
            defended=runs[0][1],
            runs=final,
            steps=tuple(map(Step, names, rows)),
            seconds=sum(self.seconds.values()),
            computed=tuple(dict.fromkeys(self.computed)),
        )

    def once(self, stage: str, key: Any, make: Callable[[], _T], *, counts: bool = False) -> _T:
        """Give what a stage makes, made anew only for a new key; its time counts either way."""
        value, seconds, is_new = self.workshop.once((stage, *key), make)
        if is_new:
            self.computed.append(stage)
        if counts:
            self.seconds[stage, *key] = seconds
        return value
