"""Attacks and defences by name, as a command line, a store of results or a worker spells them.

A text is a name and, after a colon, knobs: ``igsm:eps=4,iterations=10`` or
``pd+rcam+wd:deflections=600,sigma=0.02``. What it stands for can be pickled. A function of one's
own stands beside them under a name of its choice, with a digest of its source.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils._notation import Value, check_known, check_name, knobs_of, read, spell, spell_value
from pdutils._utils import Array, Rng, as_batch, on_grid, streams
from pdutils.activation import number_of_ranks
from pdutils.classifiers import Classifier, Labels
from pdutils.defenses.pipeline import (
    NAMES,
    Defense,
    OwnDefense,
    called,
    knobs_of_name,
    required,
)
from pdutils.defenses.transformations import PEERS

#: Where the attack of each name lives, as the function of that name. Some of the modules load
#: whole frameworks, so each is imported when its attack is asked for.
_ATTACKS = {
    "fgsm": "pdutils.attacks.gradient",
    "igsm": "pdutils.attacks.gradient",
    "pgd": "pdutils.attacks.gradient",
    "fgsm_smallest": "pdutils.attacks.minimum_norm",
    "deepfool": "pdutils.attacks.minimum_norm",
    "carlini_wagner": "pdutils.attacks.minimum_norm",
    "jsma": "pdutils.attacks.minimum_norm",
    "lbfgs": "pdutils.attacks.minimum_norm",
    "bpda": "pdutils.attacks.adaptive",
}


class Adversaries(NamedTuple):
    """Images of whole values in [0, 255], and the classes that a targeted attack was to reach."""

    images: Array
    targets: NDArray[np.int64] | None


@dataclass(frozen=True)
class _Named:
    """A name and its knobs; two are equal if their canonical texts are."""

    name: str
    knobs: dict[str, Value] = field(default_factory=dict, compare=False)
    text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", spell(self.name, self.knobs))


@dataclass(frozen=True)
class NamedAttack(_Named):
    """An attack with its knobs, whose values are checked when it is made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("attack", self.name, attack_names())
        check_known(self.name, self.knobs, _attack_knobs(self.name))
        targeted = self.knobs.get("targeted", False)
        if not isinstance(targeted, bool):
            raise ValueError(f"{self.name}: targeted: expected true or false, got {targeted}")

    @property
    def adaptive(self) -> bool:
        """Whether the adversary is made against one defence."""
        return self.name == "bpda"

    def make(
        self,
        classifier: Classifier,
        images: Array,
        labels: int | Sequence[int] | Labels,
        rng: Rng,
        *,
        defense: Any = None,
        batch_size: int = 32,
    ) -> Adversaries:
        """Attack images, rounded to 8 bits first; an adaptive attack attacks the defence.

        A targeted attack, too, gets the true classes: the class to reach is drawn for each image
        from its stream, every other class with the same chance. Where an attack fails it leaves
        the last image that it tried, or the clean one.
        """
        batch, single = as_batch(images)
        goals = classifier.check_labels(labels, len(batch))
        generators = streams(rng, len(batch))
        targets = None
        if self.knobs.get("targeted"):
            goals = targets = _other_classes(goals, len(classifier.class_ids), generators)
        options: dict[str, Any] = {"rng": generators, "batch_size": batch_size}
        adversaries = self._function(defense)(classifier, on_grid(batch), goals, **options)
        return Adversaries(adversaries[0] if single else adversaries, targets)

    def _function(self, defense: Any) -> Callable[..., Array]:
        """Give the attack as a function that takes rng and batch_size, whether it needs them."""
        if self.name == "none":
            return lambda classifier, images, labels, **_: images
        function = _attack_function(self.name)
        knobs: dict[str, Any] = dict(self.knobs)
        if self.adaptive:
            nothing = defense is None or getattr(defense, "text", None) == "none"
            knobs["defense"] = None if nothing else defense
            if nothing:
                # The gradient need not go back through anything, in whatever way.
                knobs.pop("gradient", None)
        taken = inspect.signature(function).parameters

        def attack(classifier: Classifier, images: Array, labels: Labels, **options: Any) -> Array:
            wanted = {name: value for name, value in options.items() if name in taken}
            return function(classifier, images, labels, **knobs, **wanted)

        return attack


@dataclass(frozen=True)
class OwnAttack:
    """A function of one's own as an attack: images, rng -> images, or with the network.

    That is classifier, images, labels, rng -> images. It is called with one image at a time, shape
    (1, H, W, 3), its label and its random stream, so that what it draws depends on no other image.
    What comes back is rounded to 8 bits.
    """

    name: str
    function: Callable[..., Array] = field(compare=False)
    text: str = field(init=False)
    adaptive = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", OwnDefense(self.name, self.function).text)

    def make(
        self, classifier: Classifier, images: Array, labels: Labels, rng: Rng, **_: Any
    ) -> Adversaries:
        """Attack a batch of images."""
        alone = len(required(self.function)) <= 2
        made = []
        for i, (image, stream) in enumerate(zip(images, streams(rng, len(images)), strict=True)):
            batch = image[np.newaxis].copy()
            given = (batch,) if alone else (classifier, batch, labels[i : i + 1])
            made.append(_checked(self.name, image, called(self.function, *given, rng=stream)))
        return Adversaries(on_grid(np.stack(made)), None)


@dataclass(frozen=True)
class NamedDefense(_Named):
    """A defence with its knobs; `k` alone is checked later, against the classes of the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("defense", self.name, defense_names())
        check_known(self.name, self.knobs, _defense_knobs(self.name))
        if self.defense is None:
            # A wrong value is found now, before hours of work.
            try:
                self._peer(np.full((16, 16, 3), 128, dtype=np.float32), rng=0)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None

    @cached_property
    def defense(self) -> Defense | None:
        """The pipeline of pixel deflection, or None for one of the peers' transformations."""
        return Defense.parse(self.text) if self.name in NAMES else None

    @property
    def random(self) -> bool:
        """Whether the defence draws random numbers."""
        if self.defense is not None:
            return self.defense.random
        return "rng" in inspect.signature(PEERS[self.name]).parameters

    @property
    def map_key(self) -> Hashable:
        """What the map depends on besides the image: equal keys share a map. None without one."""
        return None if self.defense is None else self.defense.map_key

    def activation_map(self, classifier: Classifier, images: Array) -> Array | None:
        """Make the map that this defence uses, with its bias, or None."""
        return None if self.defense is None else self.defense.activation_map(classifier, images)

    def transform(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Defend images once; the peers do not look at the classifier or the map."""
        if self.defense is None:
            return self._peer(images, rng)
        return self.defense.transform(classifier, images, rng=rng, activation_map=activation_map)

    def _peer(self, images: Array, rng: Rng) -> Array:
        options: dict[str, Any] = {"rng": rng} if self.random else {}
        return PEERS[self.name](images, **self.knobs, **options)


Attack = NamedAttack | OwnAttack
AnyDefense = NamedDefense | OwnDefense


def check_network(defense: AnyDefense, classifier: Classifier) -> None:
    """Check that a network has the map which a defence uses."""
    pipeline = getattr(defense, "defense", None)
    if pipeline is None or pipeline.map_key is None:
        return
    try:
        number_of_ranks(pipeline.k, len(classifier.class_ids))
        classifier.network.feature_map()
    except ValueError as error:
        raise ValueError(f"{defense.text} on {classifier.name}: {error}") from None


def attack_names() -> list[str]:
    """List the names of the attacks, "none" first."""
    return ["none", *_ATTACKS]


def defense_names() -> list[str]:
    """List the names of the defences: "none", pixel deflection, then the peers."""
    return [*NAMES, *PEERS]


def parse_attack(text: str) -> NamedAttack:
    """Read an attack such as ``igsm:eps=4,stop_at=success``."""
    return NamedAttack(*read("attack", text))


def parse_defense(text: str) -> NamedDefense:
    """Read a defence such as ``pd+rcam+wd:deflections=600,sigma=0.02``."""
    return NamedDefense(*read("defense", text))


def read_attack(name: object, given: str | Callable[..., Array]) -> Attack:
    """Read an attack, or take a function of one's own under a name."""
    return OwnAttack(str(name), given) if callable(given) else parse_attack(given)


def read_defense(name: object, given: str | Callable[..., Array]) -> AnyDefense:
    """Read a defence, or take a function of one's own under a name."""
    return OwnDefense(str(name), given) if callable(given) else parse_defense(given)


def unlike_knobs(texts: Mapping[Hashable, str]) -> dict[Hashable, dict[str, str]]:
    """Give the knobs that are not the same in all, if two differ in several things, by name.

    `pd+wd` has 200 deflections and `pd+rcam+wd` 1500: their difference is not the map's alone.
    """
    known = {name: _settings(text) for name, text in texts.items()}
    unlike: set[str] = set()
    for (kind, first), (other, second) in combinations(known.values(), 2):
        knobs = {knob for knob in {*first} & {*second} if first[knob] != second[knob]}
        if len(knobs) + (kind != other) > 1:
            unlike |= knobs
    return {
        name: {knob: spell_value(own[knob]) for knob in sorted(unlike & {*own})}
        for name, (_, own) in known.items()
    }


def unlike_settings(texts: Mapping[Hashable, str]) -> list[str]:
    """Say in a sentence, if there is something to say, what `unlike_knobs` gives."""
    values: dict[str, dict[str, list[str]]] = {}
    for name, knobs in unlike_knobs(texts).items():
        for knob, value in knobs.items():
            values.setdefault(knob, {}).setdefault(value, []).append(str(name))
    said = []
    for knob, found in sorted(values.items()):
        listed = (f"{value} in {', '.join(names)}" for value, names in found.items())
        said.append(f"{knob} is {' and '.join(listed)}")
    return [f"More than one thing differs: {'; '.join(said)}."] if said else []


@cache
def _settings(text: str) -> tuple[str, dict[str, Value]]:
    """Give a name and all its knobs, also those that a text leaves out; none of one's own."""
    name = text.partition(":")[0]
    if name not in (*_ATTACKS, *defense_names()):
        return text, {}
    known = _attack_knobs if name in _ATTACKS else _defense_knobs
    return name, known(name) | read("", text)[1]


def attacks_help() -> str:
    """Describe the attacks for the help of a command line, with knobs and defaults."""
    lines = {name: _summary(_attack_function(name)) for name in _ATTACKS}
    return _described({"none": "The clean image itself."} | lines, _attack_knobs)


def defenses_help() -> str:
    """Describe the defences for the help of a command line, with knobs and defaults."""
    lines = {name: _in_words(pipeline) for name, pipeline in NAMES.items()}
    lines |= {name: _summary(function) for name, function in PEERS.items()}
    return _described(lines, _defense_knobs)


def _checked(name: str, image: Array, made: Any) -> Array:
    """Check what a function of one's own gives for one image, which need not be on the grid."""
    found = np.asarray(made, dtype=np.float32)
    if found.shape != (1, *image.shape) or not np.isfinite(found).all():
        what = f"shape {found.shape}" if np.isfinite(found).all() else "NaN or infinity"
        raise ValueError(f"{name}: expected images of shape {(1, *image.shape)} back, got {what}")
    clipped: Array = np.clip(found[0], 0, 255)
    return clipped


def _attack_function(name: str) -> Callable[..., Array]:
    function: Callable[..., Array] = getattr(importlib.import_module(_ATTACKS[name]), name)
    return function


def _attack_knobs(name: str) -> dict[str, Any]:
    return {} if name == "none" else knobs_of(_attack_function(name))


def _defense_knobs(name: str) -> dict[str, Any]:
    return knobs_of(PEERS[name]) if name in PEERS else knobs_of_name(name)


def _other_classes(
    labels: Labels, classes: int, generators: Sequence[np.random.Generator]
) -> Labels:
    """Draw a class for each image, any but its own."""
    if classes < 2:
        raise ValueError(f"expected a network of at least 2 classes to target, got {classes}")
    draws = np.array([stream.integers(classes - 1) for stream in generators], dtype=np.int64)
    return draws + (draws >= labels)


def _summary(function: Callable[..., Array]) -> str:
    """Give the first line of a docstring, without its citation."""
    line = (inspect.getdoc(function) or "").partition("\n")[0].replace("`", "")
    return re.sub(r" \([^()]*\b\d{4}\b[^()]*\)", "", line)


def _in_words(pipeline: Defense) -> str:
    steps = []
    if pipeline.deflections:
        by_map = {"none": "", "cam": ", spared by CAM", "rcam": ", spared by robust CAM"}
        steps.append(f"pixel deflection{by_map[pipeline.activation]}")
    if pipeline.denoiser:
        steps.append({"wavelet": "wavelet denoising", "dct": "cosine denoising"}[pipeline.denoiser])
    sentence = ", then ".join(steps) or "nothing: the image itself"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _described(lines: Mapping[str, str], knobs: Callable[[str], dict[str, Any]]) -> str:
    width = max(map(len, lines)) + 2
    text = []
    for name, line in lines.items():
        text.append(f"{name:{width}}{line}")
        pairs = [f"{knob}={spell_value(default)}" for knob, default in knobs(name).items()]
        text += [f"{'':{width}}{part}" for part in textwrap.wrap(", ".join(pairs), 98 - width)]
    return "\n".join(text)
