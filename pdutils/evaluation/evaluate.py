"""Images x attacks x defences, as records; and what that will cost, before it is begun.

A record is one run of one defence on one image under one attack. Its random stream is made from
what it is (`stream_seed`), so that it depends neither on the other records nor on the order of the
work, and an evaluation that was interrupted goes on as if it had not been.
"""

import copy
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import chain, groupby, islice
from operator import add
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, ahead, check_whole, extra, on_grid, progress_bar
from pdutils.classifiers import Classifier, ClassifierSource, Labels, deterministic, fingerprint
from pdutils.evaluation import executors
from pdutils.evaluation.datasets import Source, read
from pdutils.evaluation.registry import Adversaries, AnyDefense, Attack, check_network
from pdutils.evaluation.store import COLUMNS, Store, StoreError
from pdutils.metrics import SMALLEST_SIDE, linf, psnr, relative_l2, ssim

with extra("evaluation"):
    import pandas as pd

#: What a record takes in the file where a defence draws ten times, and where it is there once.
BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD = 85, 120


def stream_seed(*parts: str | int) -> int:
    """Make the seed of a random stream from what the stream is for, and from nothing else.

    For a run of a defence that is the seed of the evaluation, the image's name, the texts of the
    attack and the defence, and the number of the run; for an attack the first three, and for an
    adaptive attack the defence too. The seed is 63 bits of their SHA-256.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Job:
    """What all units of an evaluation have in common; attacks and defences by their texts."""

    source: Source
    attacks: dict[str, Attack]
    defenses: dict[str, AnyDefense]
    runs: int = 10
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("seed", 0), ("batch_size", 1)):
            check_whole(name, getattr(self, name), least)

    def check(self, classifier: Classifier) -> None:
        """Check before hours of work that images, labels and a network's maps are as needed."""
        names, classes = self.source.names, len(classifier.class_ids)
        if not names:
            raise ValueError("expected at least one image, got none")
        if min(classifier.input_size) < SMALLEST_SIDE:
            raise ValueError(
                f"expected images of at least {SMALLEST_SIDE} pixels a side, the window of SSIM; "
                f"{classifier.name} takes {classifier.input_size[0]} x {classifier.input_size[1]}"
            )
        seen: set[str] = set()
        for name, label in zip(names, self.source.labels, strict=True):
            if name in seen:
                raise ValueError(f"expected images of different names, got {name!r} twice")
            if not 0 <= label < classes:
                raise ValueError(f"{name}: expected a label from 0 to {classes - 1}, got {label}")
            seen.add(name)
        for defense in self.defenses.values():
            check_network(defense, classifier)

    def alike(self) -> list[list[str]]:
        """Group the attacks by what they find, before it is made longer or shorter."""
        groups = defaultdict(list)
        for text, attack in self.attacks.items():
            groups[attack.found.text].append(text)
        return list(groups.values())

    def places(self, chunk: int) -> range:
        """Give the places of a chunk's images in the source."""
        return range(len(self.source.names))[chunk * self.batch_size :][: self.batch_size]


@contextmanager
def evaluated(
    classifier: Classifier | ClassifierSource,
    job: Job,
    *,
    store: str | PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Iterator[Store]:
    """Do what is missing in a store, and give it while it is open."""
    network = classifier if isinstance(classifier, Classifier) else classifier.load()
    job.check(network)
    source, digest = job.source, fingerprint(network)
    settings: dict[str, str | int] = {
        "classifier": network.name,
        "weights": digest,
        "source": source.digest,
        "images": len(source.names),
        "runs": int(job.runs),
        "seed": int(job.seed),
        "batch_size": int(job.batch_size),
    }
    if scheduler is None:
        done = partial(_done, Bench(network, job))
    else:
        work = partial(_work, _for_workers(classifier, network), digest, job)
        done = partial(_done_by_workers, work, scheduler)
    with Store(store, names=source.names, labels=source.labels, settings=settings) as records:
        records.ask(job.attacks, job.defenses)
        _collect(done(_tasks(records, job)), records, job, progress)
        skipped = records.skipped()
        if len(skipped) == len(source.names):
            raise ValueError(
                "expected images that can be read, got none; the first: " + ": ".join(skipped[0])
            )
        yield records


class _Unit(NamedTuple):
    """A chunk, an attack and the defences that are missing; images known to be unreadable."""

    chunk: int
    attack: str
    defenses: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]


class _Task(tuple[_Unit, ...]):
    """Units of a chunk for which the images are attacked once, and that one worker does."""

    __slots__ = ()

    def __str__(self) -> str:
        texts = " and ".join(unit.attack for unit in self)
        return f"attack {texts} on chunk {self[0].chunk} of the images"


class _Part(NamedTuple):
    """The records of one defence of a unit, and what could not be read of its chunk."""

    unit: _Unit
    defense: str
    records: pd.DataFrame
    skipped: list[tuple[str, str]]


def _tasks(store: Store, job: Job) -> Iterator[_Task]:
    """List what is missing, one chunk after the other."""
    for chunk in range(math.ceil(len(job.source.names) / job.batch_size)):
        done, unreadable = store.done(chunk), tuple(store.skipped(job.places(chunk)))
        for alike in job.alike():
            missing = {a: tuple(d for d in job.defenses if (a, d) not in done) for a in alike}
            units = [_Unit(chunk, a, texts, unreadable) for a, texts in missing.items() if texts]
            if units:
                yield _Task(units)


def _collect(parts: Generator[_Part], store: Store, job: Job, progress: bool | None) -> None:
    """Write what is finished, as it comes."""
    units = chain.from_iterable(_tasks(store, job))
    left = sum(len(job.places(unit.chunk)) for unit in units)
    total = len(job.source.names) * len(job.attacks)
    right = seen = 0
    with (
        closing(parts),
        progress_bar(shown=progress, total=total, initial=total - left, unit="image") as bar,
    ):
        for unit, defense, records, skipped in parts:
            places = job.places(unit.chunk)
            if store.done(unit.chunk):
                _check_same(store.path, dict(store.skipped(places)), dict(skipped))
            store.add(unit.chunk, unit.attack, defense, records, skipped)
            if unit.attack == defense == "none":
                right, seen = right + int(records["right_clean"].sum()), seen + len(records)
                bar.set_postfix_str(f"{right} of {seen} right when clean", refresh=False)
            bar.update(len(places) * (defense == unit.defenses[-1]))


def _check_same(path: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Refuse to add to a chunk of which other images could be read before."""
    for name in before.keys() ^ now.keys():
        then, again = ("could", "cannot") if name in now else ("could not", "can")
        raise StoreError(
            f"{path}: {name} {then} be read when its chunk was begun and {again} be read now: "
            f"{before.get(name) or now.get(name)}"
        )


def _done(bench: "Bench", tasks: Iterable[_Task]) -> Generator[_Part]:
    units = chain.from_iterable(tasks)
    for chunk, of_a_chunk in groupby(units, key=lambda unit: unit.chunk):
        clean = None
        for unit in of_a_chunk:
            clean = clean or bench.read(bench.job.places(chunk), unit.unreadable)
            for text, records in bench.judged(clean, unit.attack, unit.defenses):
                yield _Part(unit, text, records, clean.skipped)


def _done_by_workers(work: Any, scheduler: str, tasks: Iterable[_Task]) -> Generator[_Part]:
    with closing(executors.finished(work, tasks, scheduler=scheduler)) as answers:
        for parts in answers:
            yield from parts


def _for_workers(classifier: Classifier | ClassifierSource, loaded: Classifier) -> ClassifierSource:
    """Describe a classifier so that a process with another folder and cache finds the same."""
    if isinstance(classifier, Classifier):
        raise ValueError(
            "a cluster cannot be sent a loaded classifier; pass a ClassifierSource, such as "
            f"ClassifierSource({classifier.name!r}), which each worker loads"
        )
    if classifier.name.endswith(".keras"):
        return replace(classifier, name=str(Path(classifier.name).absolute()))
    weights = classifier.weights
    if weights not in (None, "random"):
        weights = str(Path(weights).absolute())
    # "auto" might be another network there.
    return replace(classifier, name=loaded.name, weights=weights)


def _work(classifier: ClassifierSource, digest: str, job: Job, task: _Task) -> list[_Part]:
    """Do a task on a worker."""
    return list(_done(Bench(_same_network(classifier, digest), job), [task]))


@lru_cache(maxsize=1)
def _same_network(classifier: ClassifierSource, digest: str) -> Classifier:
    deterministic()
    network = classifier.load()
    if fingerprint(network) != digest:
        raise ValueError(f"{classifier.name}: a worker finds other weights than this process")
    return network


@dataclass(frozen=True)
class Clean:
    """The images of a chunk that can be read, and what the network makes of them."""

    names: list[str]
    labels: Labels
    images: Array
    probabilities: Array
    seconds: float
    skipped: list[tuple[str, str]]
    made: dict[tuple[str, ...], Adversaries] = field(default_factory=dict)


@dataclass(frozen=True)
class Attacked:
    """The adversaries of a chunk, what the undefended network makes of them, and their maps."""

    images: Array
    targets: Labels
    classes: Labels
    success: NDArray[np.bool_]
    probabilities: Array
    seconds: float
    maps: dict[Hashable, tuple[Array | None, float]] = field(default_factory=dict)


class Bench:
    """Reads the images of a job, attacks, defends and classifies them, a chunk at a time."""

    def __init__(self, classifier: Classifier, job: Job) -> None:
        self.classifier, self.job = classifier, job

    def read(self, places: Sequence[int], unreadable: Sequence[tuple[str, str]] = ()) -> Clean:
        """Read and classify images, but for those that are known to be unreadable."""
        source = self.job.source
        chunk = read(source, places, self.classifier.input_size, dict(unreadable))
        # Attacks start from whole values, and so does what is compared with their results.
        images = on_grid(chunk.images)
        probabilities, seconds = self._predicted(images)
        names = [source.names[i] for i in chunk.places]
        labels = np.array([source.labels[i] for i in chunk.places], dtype=np.int64)
        return Clean(names, labels, images, probabilities, seconds, chunk.skipped)

    def judged(
        self, clean: Clean, attack_text: str, defenses: Iterable[str]
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        """Give the records under one attack, one defence after the other."""
        attack, attacked = self.job.attacks[attack_text], None
        for text in defenses:
            if not clean.names:
                yield text, pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
                continue
            defense = self.job.defenses[text]
            if attacked is None or attack.adaptive:
                attacked = self.attacked(clean, attack, defense)
            yield text, self.records(clean, attack, attacked, defense)

    def attacked(self, clean: Clean, attack: Attack, defense: AnyDefense) -> Attacked:
        """Make the adversaries; only those of an adaptive attack look at the defence."""
        images, targets = clean.images, None
        probabilities, seconds = clean.probabilities, clean.seconds
        if attack.text != "none":
            images, targets = self._made(clean, attack.found, defense)
            images = attack.at_its_length(clean.images, images)
            probabilities, seconds = self._predicted(images)
        seen = probabilities.argmax(axis=1)
        if targets is not None:
            return Attacked(images, targets, targets, seen == targets, probabilities, seconds)
        nothing, success = np.full_like(seen, -1), (seen != clean.labels) & (attack.text != "none")
        return Attacked(images, nothing, seen, success, probabilities, seconds)

    def _made(self, clean: Clean, attack: Attack, defense: AnyDefense) -> Adversaries:
        """Attack images, or take what the last attack made if this is the same."""
        made_for = (attack.text, defense.text) if attack.adaptive else (attack.text,)
        if made_for not in clean.made:
            seeds = [stream_seed(self.job.seed, name, *made_for) for name in clean.names]
            clean.made.clear()
            clean.made[made_for] = attack.make(
                self.classifier,
                clean.images,
                clean.labels,
                [np.random.default_rng(seed) for seed in seeds],
                defense=defense if attack.adaptive and defense.text != "none" else None,
                batch_size=len(seeds),
            )
        return clean.made[made_for]

    def map_of(self, attacked: Attacked, defense: AnyDefense) -> tuple[Array | None, float]:
        """Make the map of a defence, or take that of another; tell the seconds that it took."""
        key, start = defense.map_key, perf_counter()
        if key is not None and key not in attacked.maps:
            made = defense.activation_map(self.classifier, attacked.images)
            attacked.maps[key] = made, perf_counter() - start
        return attacked.maps.get(key, (None, 0.0))

    def records(
        self, clean: Clean, attack: Attack, attacked: Attacked, defense: AnyDefense
    ) -> pd.DataFrame:
        """Run a defence on the adversaries."""
        n, total = len(clean.names), np.zeros(clean.probabilities.shape)
        activation_map, made_in = self.map_of(attacked, defense)
        same = {
            "image": clean.names,
            "label": clean.labels,
            "attack": attack.text,
            "defense": defense.text,
            "attack_class": attacked.classes,
            "target": attacked.targets,
            "right_clean": clean.probabilities.argmax(axis=1) == clean.labels,
            "success": attacked.success,
            "l2": relative_l2(clean.images, attacked.images),
            "linf": linf(clean.images, attacked.images),
        }
        tables, made_of = [], (attack.text, defense.text)
        runs = [
            [stream_seed(self.job.seed, name, *made_of, run) for name in clean.names]
            for run in range(self.job.runs if defense.random else 1)
        ]
        made = partial(self._defended, clean, attacked, defense, activation_map)
        # What others wrote may take long, and is to be interrupted at once.
        each = ahead if getattr(defense, "defense", None) else map
        for run, (defended, seconds, likeness) in enumerate(each(made, runs)):
            probabilities, more = attacked.probabilities, attacked.seconds
            if defense.text != "none":
                probabilities, more = self._predicted(defended)
            total += probabilities
            # Of equals, the class of the lower number is before the others.
            order = np.argsort(-probabilities, axis=1, kind="stable")
            own = {
                "run": run,
                "predicted": probabilities.argmax(axis=1),
                "mean_predicted": total.argmax(axis=1),
                "p_label": probabilities[np.arange(n), clean.labels],
                "p_attack": probabilities[np.arange(n), attacked.classes],
                "rank": 1 + (order == clean.labels[:, np.newaxis]).argmax(axis=1),
                "seconds": (made_in + seconds + more) / n,
                "seed": runs[run],
            }
            whole = same | likeness | own
            tables.append({name: np.broadcast_to(x, n) for name, x in whole.items()})
        columns = {name: np.concatenate([table[name] for table in tables]) for name in COLUMNS}
        return pd.DataFrame(columns).astype(COLUMNS)

    def _defended(
        self,
        clean: Clean,
        attacked: Attacked,
        defense: AnyDefense,
        activation_map: Array | None,
        seeds: list[int],
    ) -> tuple[Array, float, dict[str, NDArray[np.float64]]]:
        """Defend the adversaries once; tell the seconds, and how like the clean images they are."""
        start, defended = perf_counter(), attacked.images
        if defense.text != "none":
            defended = defense.transform(
                self.classifier,
                attacked.images,
                rng=[np.random.default_rng(seed) for seed in seeds],
                activation_map=activation_map,
            )
        seconds = perf_counter() - start
        likeness = {"psnr": psnr(clean.images, defended), "ssim": ssim(clean.images, defended)}
        return defended, seconds, likeness

    def _predicted(self, images: Array) -> tuple[Array, float]:
        start = perf_counter()
        # Of none there is nothing to predict.
        found = self.classifier.predict(images, batch_size=len(images)) if len(images) else images
        return found, perf_counter() - start


@dataclass(frozen=True)
class Cost:
    """Passes of single images through the network, and time in this process, at work alone.

    Predictions, feature maps and gradients all take a forward pass; gradients a backward pass too.
    """

    forward: float = 0.0
    backward: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(add, astuple(self), astuple(other)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(times * spent for spent in astuple(self)))


@dataclass(frozen=True)
class Estimate:
    """What an evaluation will cost from its beginning, by what it is spent on; printed, a table.

    In `costs`, "reading" is to read the images and classify them; "attack ...", with its text, to
    make the adversaries (those of an adaptive attack for each defence) and classify them; "defense
    ..." are maps, runs and predictions under all attacks, and the comparison with the clean images.
    """

    images: int
    sample: int
    costs: dict[str, Cost]
    records: int
    bytes: int

    @property
    def total(self) -> Cost:
        """The cost of everything."""
        return sum(self.costs.values(), start=Cost())

    def __str__(self) -> str:
        table = pd.DataFrame(
            [
                (f"{cost.forward:,.0f}", f"{cost.backward:,.0f}", _duration(cost.seconds))
                for cost in (*self.costs.values(), self.total)
            ],
            index=[*self.costs, "total"],
            columns=["forward", "backward", "time"],
        )
        return (
            f"{table.to_string()}\n\n{self.images:,} images, {self.records:,} records, a file of "
            f"about {_size(self.bytes)}.\nPasses are counted and times taken on the first "
            f"{self.sample} images and scaled up: attacks that stop early take more on some images "
            "and less on others. The time is that of this process alone; workers share it."
        )


def estimated(classifier: Classifier, job: Job, sample: int) -> Estimate:
    """Put the first images that can be read through every attack and, once, every defence."""
    check_whole("sample", sample, 1)
    job.check(classifier)
    # Now, not within the time measured: what attacks of another library load.
    if "pdutils.attacks.minimum_norm" in sys.modules:
        import pdutils.attacks._art  # noqa: F401
    n, shape = len(job.source.names), classifier.input_size
    places = list(islice((i for i in range(n) if read(job.source, [i], shape).places), sample))
    if not places:
        raise ValueError("expected images that can be read, got none")
    bench = _Meter(classifier, job)
    with bench.noted("reading"):
        clean = bench.read(places)
    for attack in chain(*job.alike()):
        for _ in bench.judged(clean, attack, job.defenses):
            pass
    spent_on = ["reading", *(f"attack {text}" for text in job.attacks)]
    spent_on += [f"defense {text}" for text in job.defenses]
    cases = n * len(job.attacks)
    per_case = [job.runs if defense.random else 1 for defense in job.defenses.values()]
    each = {1: BYTES_PER_SINGLE_RECORD}
    size = cases * sum(times * each.get(times, BYTES_PER_RECORD) for times in per_case)
    costs = {name: bench.costs[name] * (n / len(places)) for name in spent_on}
    return Estimate(n, len(places), costs, cases * sum(per_case), size)


class _Meter(Bench):
    """A bench that notes what its steps cost, each run of a defence counted as one."""

    def __init__(self, classifier: Classifier, job: Job) -> None:
        counted = copy.copy(classifier)
        counted.network, self._passes = _counted(classifier.network)
        super().__init__(counted, replace(job, runs=1))
        self._runs = job.runs
        self.costs: dict[str, Cost] = defaultdict(Cost)

    @contextmanager
    def noted(self, spent_on: str, times: int = 1) -> Iterator[None]:
        before, start = self._passes.copy(), perf_counter()
        yield
        forward, backward, warming = (self._passes - before).tolist()
        cost = Cost(forward, backward, perf_counter() - start - warming)
        self.costs[spent_on] += cost * times

    def attacked(self, clean: Clean, attack: Attack, defense: AnyDefense) -> Attacked:
        with self.noted(f"attack {attack.text}"):
            return super().attacked(clean, attack, defense)

    def records(
        self, clean: Clean, attack: Attack, attacked: Attacked, defense: AnyDefense
    ) -> pd.DataFrame:
        with self.noted(f"defense {defense.text}"):
            self.map_of(attacked, defense)
        with self.noted(f"defense {defense.text}", self._runs if defense.random else 1):
            return super().records(clean, attack, attacked, defense)


def _counted(network: Any) -> tuple[Any, NDArray[np.float64]]:
    """Copy a network; count the images that pass forward and backward, and the warming up."""
    passes, counting = np.zeros(3), copy.copy(network)

    @cache
    def step(name: str) -> Any:
        run, backward = network.step(name), "gradient" in name
        # It is compiled at the first use: that happens once.
        start, labels = perf_counter(), [np.zeros(1, dtype=np.int64)] * backward
        run(np.zeros((1, *network.size, 3), dtype=np.float32), *labels)
        passes[2] += perf_counter() - start

        def counted(images: Any, *labels: Any) -> Any:
            # What another library traces has no number of images yet.
            passes[:2] += np.array([1, backward]) * (images.shape[0] or 0)
            return run(images, *labels)

        return counted

    counting.step = step
    return counting, passes


def _duration(seconds: float) -> str:
    for name, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} s"


def _size(count: int) -> str:
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {name}"
    return f"{count:.0f} bytes"
