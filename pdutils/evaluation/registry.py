"""Attacks and defences by name, as a command line, a store of results or a worker spells them.

A text is a name and, after a colon, knobs: ``igsm:eps=4,iterations=10`` or
``pd+rcam+wd:deflections=600,sigma=0.02``. What it stands for can be pickled. A function of one's
own stands beside them under a name of its choice, with a digest of its source.
"""

import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils import attacks
from pdutils._notation import Value, check_known, knobs_of, read, spell, spell_value
from pdutils._utils import (
    ABOVE_0,
    Array,
    Rng,
    as_batch,
    check_number,
    check_one_of,
    on_grid,
    streams,
)
from pdutils.defenses.pipeline import (
    NAMES,
    Classifier,
    Defense,
    OwnDefense,
    called,
    knobs_of_name,
    required,
)
from pdutils.defenses.transformations import PEERS

#: But for "none" the functions of `pdutils.attacks`, each loaded when its attack is asked for.
ATTACKS = ("none", "fgsm", "igsm", "pgd", "fgsm_smallest", "deepfool", "carlini_wagner", "jsma",
           "lbfgs", "bpda")  # fmt: skip

#: "none", pixel deflection, then the peers.
DEFENSES = (*NAMES, *PEERS)


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
        attack = isinstance(self, NamedAttack)
        check_one_of("attack" if attack else "defense", self.name, ATTACKS if attack else DEFENSES)
        check_known(self.name, self.knobs, _knobs(self.name))
        object.__setattr__(self, "text", spell(self.name, self.knobs))


@dataclass(frozen=True)
class NamedAttack(_Named):
    """An attack with its knobs, whose values are checked when it is made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        targeted = self.knobs.get("targeted", False)
        if not isinstance(targeted, bool):
            raise ValueError(f"{self.name}: targeted: expected true or false, got {targeted}")
        if self.knobs.get("l2") is not None:
            check_number(f"{self.name}: l2", self.knobs["l2"], ABOVE_0)

    @property
    def found(self) -> "NamedAttack":
        """The attack as it is, before its perturbation is made longer or shorter."""
        return replace(self, knobs={n: x for n, x in self.knobs.items() if n != "l2"})

    def at_its_length(self, images: Array, adversaries: Array) -> Array:
        """Give the perturbations that `found` makes of 8-bit images the relative L2 asked for."""
        l2: Any = self.knobs.get("l2")
        return adversaries if l2 is None else attacks.rescale(images, adversaries, l2)

    @property
    def adaptive(self) -> bool:
        """Whether the adversary is made against one defence."""
        return self.name == "bpda"

    def make(
        self, classifier: Classifier, images: Array, labels: Any, rng: Rng, **options: Any
    ) -> Adversaries:
        """Attack images, rounded to 8 bits first; an adaptive attack attacks the `defense`.

        A targeted attack, too, gets the true classes: the class to reach is drawn for each image
        from its stream, every other class with the same chance. Where an attack fails it leaves
        the last image that it tried, or the clean one. `options` are `defense` and `batch_size`.
        """
        if self.name == "none":
            return Adversaries(on_grid(images), None)
        batch, single = as_batch(images)
        goals, targets = classifier.check_labels(labels, len(batch)), None
        generators, knobs = streams(rng, len(batch)), dict[str, Any](self.found.knobs)
        if knobs.get("targeted"):
            goals = targets = _other_classes(goals, len(classifier.class_ids), generators)
        defense = _defending(options.get("defense"))
        if defense is None:
            # The gradient need not go back through anything, in whatever way.
            knobs.pop("gradient", None)
        function = getattr(attacks, self.name)
        options |= {"rng": generators, "defense": defense}
        taken = options.keys() & inspect.signature(function).parameters.keys()
        knobs |= {name: options[name] for name in taken}
        adversaries = function(classifier, on_grid(batch), goals, **knobs)
        adversaries = self.at_its_length(on_grid(batch), adversaries)
        return Adversaries(adversaries[0] if single else adversaries, targets)


@dataclass(frozen=True)
class OwnAttack:
    """A function of one's own as an attack: [classifier,] images, [labels,] rng -> images.

    It gets one image at a time, shape (1, H, W, 3), with its label and random stream, so that what
    it draws depends on no other image; what comes back is rounded to 8 bits. If it has a parameter
    `defense`, it also gets the defence that it attacks, as `bpda` does; None stands for none.
    """

    name: str
    function: Callable[..., Array] = field(compare=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", OwnDefense(self.name, self.function).text)

    @property
    def found(self) -> "OwnAttack":
        """Itself: its perturbations stay as long as they are."""
        return self

    def at_its_length(self, images: Array, adversaries: Array) -> Array:
        """Give the adversaries as they are."""
        return adversaries

    @property
    def adaptive(self) -> bool:
        """Whether the adversary is made against one defence."""
        return "defense" in inspect.signature(self.function).parameters

    def make(
        self,
        classifier: Classifier,
        images: Array,
        labels: NDArray[np.int64],
        rng: Rng,
        *,
        defense: Any = None,
        **_: Any,
    ) -> Adversaries:
        """Attack a batch of images; an adaptive attack attacks the `defense`."""
        function = self.function
        if self.adaptive:
            function = partial(function, defense=_defending(defense))
        alone, made = len(required(function)) <= 2, []
        for i, stream in enumerate(streams(rng, len(images))):
            one = images[i : i + 1].copy()
            given = (one,) if alone else (classifier, one, labels[i : i + 1])
            found = np.asarray(called(function, *given, rng=stream), dtype=np.float32)
            finite = np.isfinite(found).all()
            if found.shape != one.shape or not finite:
                got = f"shape {found.shape}" if finite else "NaN or infinity"
                wanted = f"expected images of shape {one.shape} back"
                raise ValueError(f"{self.name}: {wanted}, got {got}")
            made.append(found)
        return Adversaries(on_grid(np.concatenate(made)), None)


@dataclass(frozen=True)
class NamedDefense(_Named):
    """A defence with its knobs; `k` alone is checked later, against the classes of the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.defense is None:
            # A wrong value is found now, before hours of work.
            try:
                self.transform(None, np.full((16, 16, 3), 128, dtype=np.float32), rng=0)
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
        self, classifier: Any, images: Array, *, rng: Rng = None, activation_map: Any = None
    ) -> Array:
        """Defend images once; the peers do not look at the classifier or the map."""
        if self.defense is None:
            drawn: dict[str, Any] = {"rng": rng} if self.random else {}
            return PEERS[self.name](images, **self.knobs, **drawn)
        return self.defense.transform(classifier, images, rng=rng, activation_map=activation_map)


Attack = NamedAttack | OwnAttack
AnyDefense = NamedDefense | OwnDefense


def check_network(defense: AnyDefense, classifier: Classifier) -> None:
    """Check that a network has the map which a defence uses."""
    try:
        if pipeline := getattr(defense, "defense", None):
            pipeline.check_network(classifier)
    except ValueError as error:
        raise ValueError(f"{defense.text} on {classifier.name}: {error}") from None


def parse_attack(text: str) -> NamedAttack:
    """Read an attack such as ``igsm:eps=4,stop_at=success``."""
    return NamedAttack(*read("attack", text))


def parse_defense(text: str) -> NamedDefense:
    """Read a defence such as ``pd+rcam+wd:deflections=600,sigma=0.02``."""
    return NamedDefense(*read("defense", text))


def without_digest(text: str) -> str:
    """Give a text of an attack or a defence; of a function of one's own the name it was given."""
    return re.sub(r"own:(.+)@[0-9a-f]{8}", r"\1", text, flags=re.DOTALL)


def unlike_knobs(texts: Mapping[Hashable, str]) -> dict[Hashable, dict[str, str]]:
    """Give the knobs that are not the same in all, if two differ in several things, by name.

    `pd+wd` has 200 deflections and `pd+rcam+wd` 1500: their difference is not the map's alone.
    """
    known: dict[Hashable, tuple[str, dict[str, Value]]] = {}
    for name, text in texts.items():
        kind = text.partition(":")[0]
        ours = kind in (*ATTACKS, *DEFENSES)
        known[name] = (kind, _knobs(kind) | read("", text)[1]) if ours else (text, {})
    unlike: set[str] = set()
    for (kind, first), (other, second) in combinations(known.values(), 2):
        knobs = {knob for knob in first.keys() & second if first[knob] != second[knob]}
        if len(knobs) + (kind != other) > 1:
            unlike |= knobs
    return {
        name: {knob: spell_value(own[knob]) for knob in sorted(unlike & own.keys())}
        for name, (_, own) in known.items()
    }


def unlike_settings(texts: Mapping[Hashable, str]) -> list[str]:
    """Say in a sentence, if there is something to say, what `unlike_knobs` gives."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, knobs in unlike_knobs(texts).items():
        for knob, value in knobs.items():
            values[knob][value].append(str(name))
    said = []
    for knob, found in sorted(values.items()):
        listed = (f"{value} in {', '.join(names)}" for value, names in found.items())
        said.append(f"{knob} is {' and '.join(listed)}")
    return [f"More than one thing differs: {'; '.join(said)}."] if said else []


def attacks_help() -> str:
    """Describe the attacks for the help of a command line, with knobs and defaults."""
    found = {name: _summary(getattr(attacks, name)) for name in ATTACKS[1:]}
    return _described({"none": "The clean image itself"} | found)


def defenses_help() -> str:
    """Describe the defences for the help of a command line, with knobs and defaults."""
    lines = {name: "".join(_STEPS[step] for step in re.findall(r"\+?\w+", name)) for name in NAMES}
    return _described(lines | {name: _summary(PEERS[name]) for name in PEERS})


_LENGTH = {"l2": None}

_STEPS = {"none": "Nothing: the image itself", "wd": "Wavelet denoising", "pd": "Pixel deflection",
          "+cam": ", spared by CAM", "+rcam": ", spared by robust CAM",
          "+wd": ", then wavelet denoising", "+dct": ", then cosine denoising"}  # fmt: skip


def _described(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines)) + 2
    text = []
    for name, line in lines.items():
        text.append(f"{name:{width}}{line.removesuffix('.')}.")
        pairs = ", ".join(f"{knob}={spell_value(value)}" for knob, value in _knobs(name).items())
        text += [f"{'':{width}}{part}" for part in textwrap.wrap(pairs, 98 - width)]
    return "\n".join(text)


def _summary(function: Callable[..., Array]) -> str:
    """Give the first line of a docstring, without its citation."""
    line = (function.__doc__ or "").partition("\n")[0].replace("`", "")
    return re.sub(r" \([^()]*\b\d{4}\b[^()]*\)", "", line)


def _knobs(name: str) -> dict[str, Any]:
    """Give the knobs of an attack or a defence with their defaults; "none" has none.

    Each attack has `l2` besides, to which its perturbation is made longer or shorter.
    """
    if name in NAMES:
        return knobs_of_name(name)
    return knobs_of(PEERS[name]) if name in PEERS else knobs_of(getattr(attacks, name)) | _LENGTH


def _defending(defense: Any) -> Any:
    """Give a defence as an attack takes it: None if it does nothing."""
    return None if getattr(defense, "text", "") == "none" else defense


def _other_classes(
    labels: NDArray[np.int64], classes: int, generators: Sequence[np.random.Generator]
) -> NDArray[np.int64]:
    """Draw a class for each image, any but its own."""
    if classes < 2:
        raise ValueError(f"expected a network of at least 2 classes to target, got {classes}")
    draws = np.array([stream.integers(classes - 1) for stream in generators], dtype=np.int64)
    return draws + (draws >= labels)
