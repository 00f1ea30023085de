"""What an evaluation will cost, measured on its first few images before it is begun."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from pdutils._network import Network, Step
from pdutils.evaluation.evaluate import Bench

Result = TypeVar("Result")

#: What a record takes in the file where a defence draws ten times, and where it is there once.
BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD = 85, 120

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
    """What an evaluation will cost from its beginning, by what it is spent on; printed, a table.

    `reading` is to read the images and classify them; `attacks`, by their texts, to make the
    adversaries (those of an adaptive attack for each defence) and classify them; `defenses` are
    maps, runs and predictions under all attacks, and the comparison with the clean images.
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


def estimated(bench: Bench, sample: int) -> Estimate:
    """Put the first images that can be read through every attack and, once, every defence."""
    job = bench.job
    job.check_network(bench.classifier)
    # Now, not within the time measured: what attacks of another library load.
    if "pdutils.attacks.minimum_norm" in sys.modules:
        import pdutils.attacks._art  # noqa: F401
    meter = _Meter(bench)
    places = bench.readable(sample)
    clean, reading = meter.measured(lambda: meter.bench.read(places))
    attacks = {text: Cost() for text in job.attacks}
    defenses = {text: Cost() for text in job.defenses}
    for attack in job.attacks.values():
        attacked, maps = None, dict[Any, Any]()
        for text, defense in job.defenses.items():
            if attacked is None or attack.adaptive:
                attacked, cost = meter.attacked(clean, attack, defense)
                attacks[attack.text] += cost
                maps = {}
            defenses[text] += meter.defended(clean, attack, attacked, defense, maps)
    n, scale = len(job.source.names), len(job.source.names) / len(places)
    cases = n * len(job.attacks)
    per_case = [job.runs if defense.random else 1 for defense in job.defenses.values()]
    return Estimate(
        images=n,
        sample=len(places),
        reading=reading * scale,
        attacks={text: cost * scale for text, cost in attacks.items()},
        defenses={text: cost * scale for text, cost in defenses.items()},
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


class _Meter:
    """Measures what the steps of an evaluation cost, each run of a defence counted as one."""

    def __init__(self, bench: Bench) -> None:
        self._network = _CountedNetwork(bench.classifier.network)
        counted = copy.copy(bench.classifier)
        counted.network = self._network
        self._runs = bench.job.runs
        self.bench = Bench(counted, replace(bench.job, runs=1))

    def measured(self, function: Callable[[], Result]) -> tuple[Result, Cost]:
        network = self._network
        before = network.forward, network.backward, network.warming, perf_counter()
        result = function()
        after = network.forward, network.backward, network.warming, perf_counter()
        forward, backward, warming, seconds = np.subtract(after, before).tolist()
        return result, Cost(forward, backward, seconds - warming)

    def attacked(self, clean: Any, attack: Any, defense: Any) -> tuple[Any, Cost]:
        return self.measured(lambda: self.bench.attacked(clean, attack, defense))

    def defended(self, clean: Any, attack: Any, attacked: Any, defense: Any, maps: Any) -> Cost:
        bench = self.bench
        made, cost = self.measured(lambda: bench.map_of(attacked, defense, maps))
        _, once = self.measured(lambda: bench.records(clean, attack, attacked, defense, made))
        return cost + once * (self._runs if defense.random else 1)


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
