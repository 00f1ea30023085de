"""What an evaluation will cost, measured on its first few images before it is begun."""

import copy
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from pdutils._network import Network, Step
from pdutils._utils import check_whole
from pdutils.classifiers import Classifier
from pdutils.evaluation.datasets import read
from pdutils.evaluation.evaluate import Attacked, Bench, Job
from pdutils.evaluation.registry import AnyDefense, Attack, check_network
from pdutils.evaluation.store import BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD

Result = TypeVar("Result")

_UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


@dataclass(frozen=True)
class Cost:
    """Passes of single images through the network, and time in this process, at work alone.

    Predictions, feature maps and gradients all take a forward pass; gradients a backward pass too.
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
        lines += [
            f"{name:{width}}{cost.forward:>14,.0f}{cost.backward:>14,.0f}"
            f"{_duration(cost.seconds):>10}"
            for name, cost in rows.items()
        ]
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


def estimated(classifier: Classifier, job: Job, sample: int) -> Estimate:
    """Put the first images that can be read through every attack and, once, every defence."""
    check_whole("sample", sample, 1)
    for defense in job.defenses.values():
        check_network(defense, classifier)
    spent = _Spent(classifier, job, sample)
    for attack in job.attacks.values():
        spent.add(attack)
    n, few = len(job.source.names), len(spent.clean.names)
    cases = n * len(job.attacks)
    per_case = [job.runs if defense.random else 1 for defense in job.defenses.values()]
    return Estimate(
        images=n,
        sample=few,
        reading=spent.reading * (n / few),
        attacks={text: cost * (n / few) for text, cost in spent.attacks.items()},
        defenses={text: cost * (n / few) for text, cost in spent.defenses.items()},
        records=cases * sum(per_case),
        bytes=cases * sum(times * _bytes(times) for times in per_case),
    )


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


class _Spent:
    """Adds up what attacks and defences cost on a few images."""

    def __init__(self, classifier: Classifier, job: Job, sample: int) -> None:
        self._network = _CountedNetwork(classifier.network)
        counted = copy.copy(classifier)
        counted.network = self._network
        self._bench = Bench(counted, replace(job, runs=1))
        self._runs = job.runs
        places = self._readable(sample)
        self.clean, self.reading = self._measured(lambda: self._bench.read(places))
        # Now, not within the time measured: what attacks of another library load.
        if "pdutils.attacks.minimum_norm" in sys.modules:
            import pdutils.defenses.art  # noqa: F401
        self.attacks = {text: Cost() for text in job.attacks}
        self.defenses = {text: Cost() for text in job.defenses}

    def _readable(self, sample: int) -> list[int]:
        source, size = self._bench.job.source, self._bench.classifier.input_size
        found: list[int] = []
        for i in range(len(source.names)):
            if len(found) == sample:
                break
            found += read(source, [i], size).places
        if not found:
            raise ValueError("expected images that can be read, got none")
        return found

    def add(self, attack: Attack) -> None:
        """Make adversaries, and defend them once with every defence."""
        attacked = None
        for text, defense in self._bench.job.defenses.items():
            if attacked is None or attack.adaptive:
                attacked, cost = self._adversaries(attack, defense)
                self.attacks[attack.text] += cost
                maps: dict[Hashable, Any] = {}
            self.defenses[text] += self._defended(attack, attacked, defense, maps)

    def _adversaries(self, attack: Attack, defense: AnyDefense) -> tuple[Attacked, Cost]:
        return self._measured(lambda: self._bench.attacked(self.clean, attack, defense))

    def _defended(
        self,
        attack: Attack,
        attacked: Attacked,
        defense: AnyDefense,
        maps: dict[Hashable, Any],
    ) -> Cost:
        bench = self._bench
        made, cost = self._measured(lambda: bench.map_of(attacked, defense, maps))
        _, once = self._measured(lambda: bench.records(self.clean, attack, attacked, defense, made))
        return cost + once * (self._runs if defense.random else 1)

    def _measured(self, function: Callable[[], Result]) -> tuple[Result, Cost]:
        network = self._network
        before = network.forward, network.backward, network.warming, perf_counter()
        result = function()
        after = network.forward, network.backward, network.warming, perf_counter()
        forward, backward, warming, seconds = np.subtract(after, before).tolist()
        return result, Cost(forward, backward, seconds - warming)


def _bytes(runs: int) -> int:
    return BYTES_PER_SINGLE_RECORD if runs == 1 else BYTES_PER_RECORD


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
