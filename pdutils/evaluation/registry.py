"""Attacks and defences by name, as a command line, a store of results or a worker spells them.

A text is a name and, after a colon, knobs: ``igsm:eps=4,iterations=10`` or
``pd+rcam+wd:deflections=600,sigma=0.02``. What it stands for can be pickled.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdutils._notation import Value, check_known, check_name, knobs_of, read, spell, spell_value
from pdutils._utils import Rng, streams
from pdutils.activation import number_of_ranks
from pdutils.attacks.gradient import LabelsLike
from pdutils.classifiers import Classifier, Labels
from pdutils.defenses.pipeline import NAMES, Defense, knobs_of_name
from pdutils.defenses.transformations import PEERS
from pdutils.images import Array, as_batch, on_grid

Key = TypeVar("Key", bound=Hashable)

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
    """What an attack made.

    Attributes
    ----------
    images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
        Whole values in [0, 255].
    targets : ndarray of int64, shape (N,), or None
        The classes that a targeted attack was to reach.
    """

    images: Array
    targets: NDArray[np.int64] | None


@dataclass(frozen=True)
class _Named:
    """A name and its knobs; two are equal if their texts are."""

    name: str
    knobs: dict[str, Value] = field(default_factory=dict, compare=False)
    text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", spell(self.name, self.knobs))


@dataclass(frozen=True)
class NamedAttack(_Named):
    """An attack with its knobs.

    Attributes
    ----------
    name : str
        One of `attack_names`.
    knobs : dict
        Those that differ from, or repeat, the defaults of the function of that name.
    text : str
        The canonical text: the knobs sorted by name, whole numbers without a point. Equal texts
        are equal attacks.

    Raises
    ------
    ValueError
        If the name or a knob is unknown, or `targeted` is neither true nor false. The other values
        are checked by the function when it is called.
    """

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

    @property
    def targeted(self) -> bool:
        """Whether the attack goes for a class of its own choice instead of away from the label."""
        return self.knobs.get("targeted") is True

    def make(
        self,
        classifier: Classifier,
        images: Array,
        labels: LabelsLike,
        rng: Rng,
        *,
        defense: "NamedDefense | Defense | None" = None,
        batch_size: int = 32,
    ) -> Adversaries:
        """Attack images.

        Parameters
        ----------
        classifier : Classifier
            The network to fool.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255]; they are rounded to 8 bits first. `none` gives them back.
        labels : int, or N of them
            The true classes, for a targeted attack too: the class to reach is drawn for each image
            from its stream, every other class with the same chance.
        rng : int, numpy.random.Generator, list of Generator, or None
            Each image draws from a stream of its own, see `pdutils._utils`.
        defense : NamedDefense, Defense or None
            What an adaptive attack is made against; None is no defence. Other attacks do not look
            at it.
        batch_size : int
            How many images the network sees at once.

        Returns
        -------
        Adversaries
            Where the attack fails, the last image that it tried, or the clean one.

        Raises
        ------
        ValueError
            As the function of that name, or if a targeted attack has no other class to reach.
        """
        batch, single = as_batch(images)
        goals = classifier.check_labels(labels, len(batch))
        generators = streams(rng, len(batch))
        targets = None
        if self.targeted:
            goals = targets = _other_classes(goals, len(classifier.class_ids), generators)
        options: dict[str, Any] = {"rng": generators, "batch_size": batch_size}
        adversaries = self._function(defense)(classifier, on_grid(batch), goals, **options)
        return Adversaries(adversaries[0] if single else adversaries, targets)

    def _function(self, defense: "NamedDefense | Defense | None") -> Callable[..., Array]:
        """Give the attack as a function that takes rng and batch_size, whether it needs them."""
        if self.name == "none":
            return lambda classifier, images, labels, **_: images
        function = _attack_function(self.name)
        knobs: dict[str, Any] = dict(self.knobs)
        if self.adaptive:
            nothing = isinstance(defense, NamedDefense) and defense.name == "none"
            knobs["defense"] = None if nothing else defense
            if knobs["defense"] is None:
                # The gradient need not go back through anything, in whatever way.
                knobs.pop("gradient", None)
        taken = inspect.signature(function).parameters

        def attack(classifier: Classifier, images: Array, labels: Labels, **options: Any) -> Array:
            wanted = {name: value for name, value in options.items() if name in taken}
            return function(classifier, images, labels, **knobs, **wanted)

        return attack


@dataclass(frozen=True)
class NamedDefense(_Named):
    """A defence with its knobs.

    Attributes
    ----------
    name : str
        One of `defense_names`.
    knobs : dict
        Those that differ from, or repeat, the defaults.
    text : str
        The canonical text, as that of `NamedAttack`.

    Raises
    ------
    ValueError
        If the name or a knob is unknown, or a value out of its range; `k` is checked by
        `check_network`, against the classes of the network.
    """

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
        pipeline = self.defense
        if pipeline is not None:
            return pipeline.random
        return "rng" in inspect.signature(PEERS[self.name]).parameters

    @property
    def map_key(self) -> Hashable:
        """What the map depends on besides the image: equal keys share a map. None without one."""
        return None if self.defense is None else self.defense.map_key

    def check_network(self, classifier: Classifier) -> None:
        """Check that a network has the map which this defence uses, before hours of work.

        Parameters
        ----------
        classifier : Classifier
            The network to defend.

        Raises
        ------
        ValueError
            If `k` exceeds the number of its classes, or it has no feature map; the message names
            the defence.
        """
        pipeline = self.defense
        if pipeline is None or pipeline.map_key is None:
            return
        try:
            number_of_ranks(pipeline.k, len(classifier.class_ids))
            classifier.network.feature_map()
        except ValueError as error:
            raise ValueError(f"{self.text} on {classifier.name}: {error}") from None

    def activation_map(self, classifier: Classifier, images: Array) -> Array | None:
        """Make the map that this defence uses.

        Parameters
        ----------
        classifier : Classifier
            The network whose map it is.
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], as they are to be defended.

        Returns
        -------
        ndarray of float32, shape (H, W) or (N, H, W), or None without a map
            With the bias, if there is one.

        Raises
        ------
        ValueError
            As `pdutils.activation.robust_cam`.
        """
        pipeline = self.defense
        return None if pipeline is None else pipeline.activation_map(classifier, images)

    def transform(
        self,
        classifier: Classifier,
        images: Array,
        *,
        rng: Rng = None,
        activation_map: Array | None = None,
    ) -> Array:
        """Defend images once.

        Parameters
        ----------
        classifier : Classifier
            The network that a map is made with; the peers do not look at it.
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

        Raises
        ------
        ValueError
            As the functions that it calls.
        """
        pipeline = self.defense
        if pipeline is not None:
            return pipeline.transform(classifier, images, rng=rng, activation_map=activation_map)
        return self._peer(images, rng)

    def _peer(self, images: Array, rng: Rng) -> Array:
        options: dict[str, Any] = {"rng": rng} if self.random else {}
        return PEERS[self.name](images, **self.knobs, **options)


def attack_names() -> list[str]:
    """List the names of the attacks.

    Returns
    -------
    list of str
        "none" first.
    """
    return ["none", *_ATTACKS]


def defense_names() -> list[str]:
    """List the names of the defences.

    Returns
    -------
    list of str
        "none" first, then pixel deflection, then the peers.
    """
    return [*NAMES, *PEERS]


def parse_attack(text: str) -> NamedAttack:
    """Read an attack.

    Parameters
    ----------
    text : str
        A name, or a name and knobs: ``igsm``, ``igsm:eps=4,stop_at=success``. A value is a number,
        true, false, none, or a word.

    Returns
    -------
    NamedAttack

    Raises
    ------
    ValueError
        If the text is not of that form, or names an attack or a knob that there is not.
    """
    return NamedAttack(*read("attack", text))


def parse_defense(text: str) -> NamedDefense:
    """Read a defence.

    Parameters
    ----------
    text : str
        A name, or a name and knobs: ``pd+wd``, ``pd+rcam+wd:deflections=600,sigma=0.02``. A value
        is a number, true, false, none, or a word.

    Returns
    -------
    NamedDefense

    Raises
    ------
    ValueError
        If the text is not of that form, names a defence or a knob that there is not, or gives a
        knob a value out of its range.
    """
    return NamedDefense(*read("defense", text))


def attack_texts(attacks: Mapping[Key, str]) -> dict[Key, str]:
    """Spell attacks as the records of an evaluation do.

    Parameters
    ----------
    attacks : mapping of key to str
        Attacks as `parse_attack` reads them, by whatever one calls them.

    Returns
    -------
    dict of key to str
        Their canonical texts.

    Raises
    ------
    ValueError
        As `parse_attack`.
    """
    return {key: parse_attack(text).text for key, text in attacks.items()}


def defense_texts(defenses: Mapping[Key, str]) -> dict[Key, str]:
    """Spell defences as the records of an evaluation do.

    Parameters
    ----------
    defenses : mapping of key to str
        Defences as `parse_defense` reads them, by whatever one calls them.

    Returns
    -------
    dict of key to str
        Their canonical texts.

    Raises
    ------
    ValueError
        As `parse_defense`.
    """
    return {key: parse_defense(text).text for key, text in defenses.items()}


def attacks_help() -> str:
    """Describe the attacks for the help of a command line.

    Returns
    -------
    str
        For each, its name, what it does, and its knobs with their defaults.
    """
    lines = {name: _summary(_attack_function(name)) for name in _ATTACKS}
    return _described({"none": "The clean image itself."} | lines, _attack_knobs)


def defenses_help() -> str:
    """Describe the defences for the help of a command line.

    Returns
    -------
    str
        For each, its name, what it does, and its knobs with their defaults.
    """
    lines = {name: _in_words(pipeline) for name, pipeline in NAMES.items()}
    lines |= {name: _summary(function) for name, function in PEERS.items()}
    return _described(lines, _defense_knobs)


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
