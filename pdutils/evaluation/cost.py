"""What an evaluation will cost, measured on its first few images before it is begun."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from pdutils._network import Network, Step
from pdutils.classifiers import Classifier, Labels
from pdutils.evaluation.datasets import Source
from pdutils.evaluation.evaluate import stream_seed
from pdutils.evaluation.registry import NamedAttack, NamedDefense, parse_attack, parse_defense
from pdutils.evaluation.store import BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD
from pdutils.images import Array, on_grid
from pdutils.metrics import psnr, ssim

Result = TypeVar("Result")

_UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


@dataclass(frozen=True)
class Cost:
    """Passes of single images through the network, and time.

    Attributes
    ----------
    forward, backward : float
        Predictions, feature maps and gradients all take a forward pass; gradients a backward pass
        too.
    seconds : float
        In this process, at work on this alone.
    """

    forward: float = 0.0
    backward: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(times * self.forward, times * self.backward, times * self.seconds)


@dataclass(frozen=True)
class Estimate:
    """What an evaluation will cost from its beginning, by what it is spent on.

    Attributes
    ----------
    images, sample : int
        How many images it has, and on how many of them it was measured.
    reading : Cost
        To read the images and classify them.
    attacks : dict of str to Cost
        To make the adversaries and classify them. Those of an adaptive attack are made once for
        each defence.
    defenses : dict of str to Cost
        Maps, runs and predictions under all attacks, and the comparison with the clean images.
    records, bytes : int
        How many records there will be, and about how large their file.
    """

    images: int
    sample: int
    reading: Cost
    attacks: dict[str, Cost]
    defenses: dict[str, Cost]
    records: int
    bytes: int

    @property
    def total(self) -> Cost:
        """The cost of everything."""
        return sum([*self.attacks.values(), *self.defenses.values()], start=self.reading)

    def __str__(self) -> str:
        rows = {"reading": self.reading}
        rows |= {f"attack {text}": cost for text, cost in self.attacks.items()}
        rows |= {f"defense {text}": cost for text, cost in self.defenses.items()}
        rows["total"] = self.total
        width = max(map(len, rows))
        lines = [f"{'':{width}}{'forward':>14}{'backward':>14}{'time':>10}"]
        lines += [f"{name:{width}}{_cells(cost)}" for name, cost in rows.items()]
        return "\n".join(
            [
                *lines,
                "",
                f"{self.images:,} images, {self.records:,} records, a file of about "
                f"{_size(self.bytes)}.",
                f"Passes are counted and times taken on the first {self.sample} images and scaled "
                "up: attacks that stop early take more on some images and less on others. The time "
                "is that of this process alone; workers share it.",
            ]
        )


def estimate(
    classifier: Classifier,
    source: Source,
    attacks: Sequence[str],
    defenses: Sequence[str],
    *,
    runs: int = 10,
    seed: int = 0,
    sample: int = 4,
) -> Estimate:
    """Estimate what `pdutils.evaluation.evaluate.evaluate` would cost, without carrying it out.

    The first images that can be read go through every attack and, once, through every defence.

    Parameters
    ----------
    classifier, source, attacks, defenses, runs, seed
        As in `pdutils.evaluation.evaluate.evaluate`, but for the classifier, which must be loaded.
    sample : int
        On how many images to measure, at least 1.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If an attack, a defence or a number is out of range, or not one image can be read.
    """
    for name, value in (("runs", runs), ("sample", sample)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    named_attacks = _named(parse_attack, attacks)
    named_defenses = _named(parse_defense, defenses)
    for defense in named_defenses:
        defense.check_network(classifier)
    meter = _Meter(classifier)
    few, reading = _first(source, meter, sample)
    _load_frameworks()
    spent = _Spent(meter, few, seed, runs, named_defenses)
    for attack in named_attacks:
        spent.add(attack)
    n = len(source.names)
    scale = n / len(few.names)
    cases = n * len(named_attacks)
    per_case = [runs if defense.random else 1 for defense in named_defenses]
    return Estimate(
        images=n,
        sample=len(few.names),
        reading=reading * scale,
        attacks={text: cost * scale for text, cost in spent.attacks.items()},
        defenses={text: cost * scale for text, cost in spent.defenses.items()},
        records=cases * sum(per_case),
        bytes=cases * sum(times * _bytes(times) for times in per_case),
    )


@dataclass(frozen=True)
class _Few:
    """The images that are measured on."""

    names: list[str]
    labels: Labels
    images: Array


class _CountedNetwork(Network):
    """A network that counts the images which pass through it; it shares what is compiled."""

    def __init__(self, network: Network) -> None:
        vars(self).update(vars(network))
        self.forward = self.backward = 0
        self.warming = 0.0
        self._warm: set[str] = set()

    def step(self, name: str) -> Step:
        run = super().step(name)
        self._warm_up(name, run)

        def counted(images: Any, *labels: Any) -> Any:
            n = int(images.shape[0] or 0)
            self.forward += n
            self.backward += n * ("gradient" in name)
            return run(images, *labels)

        return counted

    def _warm_up(self, name: str, run: Step) -> None:
        """Compile at the first use, and remember how long that took: it happens once."""
        if name in self._warm:
            return
        self._warm.add(name)
        start = perf_counter()
        labels = [np.zeros(1, dtype=np.int64)] if "gradient" in name else []
        run(np.zeros((1, *self.size, 3), dtype=np.float32), *labels)
        self.warming += perf_counter() - start


class _Meter:
    """Measures what calls cost that use its classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._network = _CountedNetwork(classifier.network)
        self.classifier = copy.copy(classifier)
        self.classifier.network = self._network

    def measured(self, function: Callable[[], Result]) -> tuple[Result, Cost]:
        network = self._network
        before = network.forward, network.backward, network.warming, perf_counter()
        result = function()
        after = network.forward, network.backward, network.warming, perf_counter()
        forward, backward, warming, seconds = np.subtract(after, before).tolist()
        return result, Cost(forward, backward, seconds - warming)


class _Spent:
    """Adds up what attacks and defences cost on a few images."""

    def __init__(
        self, meter: _Meter, few: _Few, seed: int, runs: int, defenses: list[NamedDefense]
    ) -> None:
        self._meter = meter
        self._few = few
        self._seed = seed
        self._runs = runs
        self._named = defenses
        self.attacks: dict[str, Cost] = {}
        self.defenses = {defense.text: Cost() for defense in defenses}

    def add(self, attack: NamedAttack) -> None:
        """Make adversaries, and defend them once with every defence."""
        self.attacks[attack.text] = Cost()
        adversaries: Array | None = None
        for defense in self._named:
            if adversaries is None or attack.adaptive:
                adversaries, cost = self._adversaries(attack, defense)
                self.attacks[attack.text] += cost
                maps: dict[Any, Array | None] = {}
            self.defenses[defense.text] += self._defended(attack, defense, adversaries, maps)

    def _adversaries(self, attack: NamedAttack, defense: NamedDefense) -> tuple[Array, Cost]:
        few, classifier = self._few, self._meter.classifier
        if attack.name == "none":
            return few.images, Cost()
        against = [defense.text] if attack.adaptive else []

        def make() -> Array:
            made = attack.make(
                classifier,
                few.images,
                few.labels,
                self._streams(attack.text, *against),
                defense=defense if attack.adaptive else None,
            )
            classifier.predict(made.images)
            return made.images

        return self._meter.measured(make)

    def _defended(
        self,
        attack: NamedAttack,
        defense: NamedDefense,
        adversaries: Array,
        maps: dict[Any, Array | None],
    ) -> Cost:
        classifier, cost = self._meter.classifier, Cost()
        key = defense.map_key
        if key is not None and key not in maps:
            maps[key], cost = self._meter.measured(
                lambda: defense.activation_map(classifier, adversaries)
            )

        def run() -> None:
            defended = adversaries
            if defense.text != "none":
                streams = self._streams(attack.text, defense.text, 0)
                defended = defense.transform(
                    classifier, adversaries, rng=streams, activation_map=maps.get(key)
                )
                classifier.predict(defended)
            psnr(self._few.images, defended)
            ssim(self._few.images, defended)

        _, once = self._meter.measured(run)
        return cost + once * (self._runs if defense.random else 1)

    def _streams(self, *parts: str | int) -> list[np.random.Generator]:
        seeds = [stream_seed(self._seed, name, *parts) for name in self._few.names]
        return [np.random.default_rng(seed) for seed in seeds]


def _named(parse: Callable[[str], Result], texts: Sequence[str]) -> list[Result]:
    """Read the texts, "none" before them, each once."""
    return list(dict.fromkeys(parse(text) for text in ["none", *texts]))


def _first(source: Source, meter: _Meter, sample: int) -> tuple[_Few, Cost]:
    """Read and classify the first images that can be read."""
    places: list[int] = []
    images: list[Array] = []

    def read() -> None:
        for i in range(len(source.names)):
            if len(images) == sample:
                return
            try:
                images.append(on_grid(source.load(i)))
            except (ValueError, OSError):
                continue
            places.append(i)

    _, reading = meter.measured(read)
    if not images:
        raise ValueError("expected images that can be read, got none")
    batch = np.stack(images)
    _, seeing = meter.measured(lambda: meter.classifier.predict(batch))
    names = [source.names[i] for i in places]
    labels = np.array([source.labels[i] for i in places], dtype=np.int64)
    return _Few(names, labels, batch), reading + seeing


def _load_frameworks() -> None:
    """Load now what the attacks of another library would load within the time measured."""
    if "pdutils.attacks.minimum_norm" in sys.modules:
        import pdutils.attacks._art  # noqa: F401


def _bytes(runs: int) -> int:
    return BYTES_PER_SINGLE_RECORD if runs == 1 else BYTES_PER_RECORD


def _cells(cost: Cost) -> str:
    return f"{cost.forward:>14,.0f}{cost.backward:>14,.0f}{_duration(cost.seconds):>10}"


def _duration(seconds: float) -> str:
    for name, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} s"


def _size(count: int) -> str:
    size, names = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(names) > 1:
        size, names = size / 1000, names[1:]
    return f"{size:,.0f} {names[0]}" if names[0] == "bytes" else f"{size:,.1f} {names[0]}"
