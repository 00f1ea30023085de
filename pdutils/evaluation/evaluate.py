"""Images x attacks x defences, as records.

A record is one run of one defence on one image under one attack. Its random stream is made from
what it is (`stream_seed`), so that it depends neither on the other records nor on the order of the
work, and an evaluation that was interrupted goes on as if it had not been.
"""

import hashlib
import json
import math
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, check_whole, extra, on_grid, progress_bar
from pdutils.classifiers import Classifier, ClassifierSource, Labels, deterministic, fingerprint
from pdutils.evaluation.datasets import Source, read
from pdutils.evaluation.registry import AnyDefense, Attack, check_network
from pdutils.evaluation.store import COLUMNS, Store, StoreError
from pdutils.metrics import SMALLEST_SIDE, linf, psnr, relative_l2, ssim

with extra("evaluation"):
    import pandas as pd


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

    def settings(self, name: str, digest: str) -> dict[str, str | int]:
        """Give what every run that adds to a file of records must have in common."""
        return {
            "classifier": name,
            "weights": digest,
            "source": self.source.digest,
            "images": len(self.source.names),
            "runs": int(self.runs),
            "seed": int(self.seed),
            "batch_size": int(self.batch_size),
        }

    def check_network(self, classifier: Classifier) -> None:
        """Check that a network has the maps which the defences use, before hours of work."""
        for defense in self.defenses.values():
            check_network(defense, classifier)

    @property
    def chunks(self) -> range:
        """The numbers of the chunks of consecutive images."""
        return range(math.ceil(len(self.source.names) / self.batch_size))

    def places(self, chunk: int) -> range:
        """Give the places of a chunk's images in the source."""
        start = chunk * self.batch_size
        return range(start, min(start + self.batch_size, len(self.source.names)))


@contextmanager
def evaluated(
    classifier: Classifier | ClassifierSource,
    job: Job,
    *,
    store: str | PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> Iterator[Store]:
    """Do what is missing in a store, and give it while it is open.

    A unit of work is one attack and one defence on a chunk of images. What was finished stays,
    whatever ends the run.
    """
    if scheduler is not None and isinstance(classifier, Classifier):
        raise ValueError(
            "a cluster cannot be sent a loaded classifier; pass a ClassifierSource, such as "
            f"ClassifierSource({classifier.name!r}), which each worker loads"
        )
    network = classifier if isinstance(classifier, Classifier) else classifier.load()
    _check_source(network, job.source)
    job.check_network(network)
    digest = fingerprint(network)
    with Store(
        store,
        names=job.source.names,
        labels=job.source.labels,
        settings=job.settings(network.name, digest),
    ) as records:
        records.ask(job.attacks, job.defenses)
        units = _units(records, job)
        if scheduler is None or isinstance(classifier, Classifier):
            parts = _locally(Bench(network, job), units)
        else:
            there = _for_workers(classifier, network)
            parts = _on_workers(there, digest, job, units, scheduler)
        _collect(parts, records, job, progress)
        skipped = records.skipped()
        if len(skipped) == len(job.source.names):
            name, reason = skipped[0]
            raise ValueError(
                f"expected images that can be read, got none; the first: {name}: {reason}"
            )
        yield records


class _Unit(NamedTuple):
    """A chunk, an attack and the defences that are missing; images known to be unreadable."""

    chunk: int
    attack: str
    defenses: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"attack {self.attack} on chunk {self.chunk} of the images"


class _Part(NamedTuple):
    """What is finished of a unit: records by defence. `last` if that was all of it."""

    unit: _Unit
    records: dict[str, pd.DataFrame]
    skipped: list[tuple[str, str]]
    last: bool


@dataclass(frozen=True)
class Clean:
    """The images of a chunk that can be read, and what the network makes of them."""

    names: list[str]
    labels: Labels
    images: Array
    probabilities: Array
    seconds: float
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Attacked:
    """The adversaries of a chunk, and what the undefended network makes of them."""

    images: Array
    targets: Labels
    classes: Labels
    success: NDArray[np.bool_]
    probabilities: Array
    seconds: float


def _check_source(classifier: Classifier, source: Source) -> None:
    if not source.names:
        raise ValueError("expected at least one image, got none")
    if min(classifier.input_size) < SMALLEST_SIDE:
        raise ValueError(
            f"expected images of at least {SMALLEST_SIDE} pixels a side, the window of SSIM; "
            f"{classifier.name} takes {classifier.input_size[0]} x {classifier.input_size[1]}"
        )
    seen: set[str] = set()
    classes = len(classifier.class_ids)
    for name, label in zip(source.names, source.labels, strict=True):
        if name in seen:
            raise ValueError(f"expected images of different names, got {name!r} twice")
        if not 0 <= label < classes:
            raise ValueError(f"{name}: expected a label from 0 to {classes - 1}, got {label}")
        seen.add(name)


def _units(store: Store, job: Job) -> Iterator[_Unit]:
    """List what is missing, one chunk after the other."""
    for chunk in job.chunks:
        done = store.done(chunk)
        unreadable = _unreadable(store, job, chunk)
        for attack in job.attacks:
            missing = tuple(text for text in job.defenses if (attack, text) not in done)
            if missing:
                yield _Unit(chunk, attack, missing, unreadable)


def _unreadable(store: Store, job: Job, chunk: int) -> tuple[tuple[str, str], ...]:
    names = {job.source.names[i] for i in job.places(chunk)}
    return tuple((name, reason) for name, reason in store.skipped() if name in names)


def _collect(parts: Generator[_Part], store: Store, job: Job, progress: bool | None) -> None:
    """Write what is finished, as it comes."""
    left = sum(len(job.places(unit.chunk)) for unit in _units(store, job))
    total = len(job.source.names) * len(job.attacks)
    right = seen = 0
    with (
        closing(parts),
        progress_bar(shown=progress, total=total, initial=total - left, unit="image") as bar,
    ):
        for part in parts:
            unit = part.unit
            _check_same_images(store, job, part)
            for text, records in part.records.items():
                store.add(unit.chunk, unit.attack, text, records, part.skipped)
                if unit.attack == text == "none":
                    right, seen = right + int(records["right_clean"].sum()), seen + len(records)
                    bar.set_postfix_str(f"{right} of {seen} right when clean", refresh=False)
            bar.update(len(job.places(unit.chunk)) * part.last)


def _check_same_images(store: Store, job: Job, part: _Part) -> None:
    """Refuse to add to a chunk of which other images could be read before."""
    if not store.done(part.unit.chunk):
        return
    before, now = dict(_unreadable(store, job, part.unit.chunk)), dict(part.skipped)
    for name in {**before, **now}:
        if (name in before) != (name in now):
            then, again = ("could", "cannot") if name in now else ("could not", "can")
            raise StoreError(
                f"{store.path}: {name} {then} be read when its chunk was begun and {again} be read "
                f"now: {before.get(name) or now.get(name)}"
            )


def _locally(bench: "Bench", units: Iterator[_Unit]) -> Generator[_Part]:
    for _, of_a_chunk in groupby(units, key=lambda unit: unit.chunk):
        clean = None
        for unit in of_a_chunk:
            clean = clean or bench.read(bench.job.places(unit.chunk), unit.unreadable)
            for text, records in bench.judged(clean, unit.attack, unit.defenses):
                yield _Part(unit, {text: records}, clean.skipped, text == unit.defenses[-1])


def _for_workers(classifier: ClassifierSource, loaded: Classifier) -> ClassifierSource:
    """Describe a classifier so that a process with another folder and cache finds the same."""
    if classifier.name.endswith(".keras"):
        return replace(classifier, name=str(Path(classifier.name).absolute()))
    weights = classifier.weights
    if weights not in (None, "random"):
        weights = str(Path(weights).absolute())
    # "auto" might be another network there.
    return replace(classifier, name=loaded.name, weights=weights)


def _on_workers(
    classifier: ClassifierSource, digest: str, job: Job, units: Iterator[_Unit], scheduler: str
) -> Generator[_Part]:
    # Not every evaluation needs it, and a cluster's framework takes a while to load.
    from pdutils.evaluation.executors import finished

    results: Any = finished(partial(_work, classifier, digest, job), units, scheduler=scheduler)
    with closing(results):
        yield from results


def _work(classifier: ClassifierSource, digest: str, job: Job, unit: _Unit) -> _Part:
    """Do a unit on a worker."""
    bench = Bench(_same_network(classifier, digest), job)
    clean = bench.read(job.places(unit.chunk), unit.unreadable)
    records = dict(bench.judged(clean, unit.attack, unit.defenses))
    return _Part(unit, records, clean.skipped, last=True)


@lru_cache(maxsize=1)
def _same_network(classifier: ClassifierSource, digest: str) -> Classifier:
    deterministic()
    network = classifier.load()
    if fingerprint(network) != digest:
        raise ValueError(f"{classifier.name}: a worker finds other weights than this process")
    return network


@dataclass(frozen=True)
class Bench:
    """Reads the images of a job, attacks, defends and classifies them, a chunk at a time."""

    classifier: Classifier
    job: Job

    def read(self, places: Sequence[int], unreadable: Sequence[tuple[str, str]] = ()) -> Clean:
        """Read and classify images, but for those that are known to be unreadable."""
        source = self.job.source
        chunk = read(source, places, self.classifier.input_size, dict(unreadable))
        # Attacks start from whole values, and so does what is compared with their results.
        images = on_grid(chunk.images)
        probabilities, seconds = self._predicted(images)
        return Clean(
            names=[source.names[i] for i in chunk.places],
            labels=np.array([source.labels[i] for i in chunk.places], dtype=np.int64),
            images=images,
            probabilities=probabilities,
            seconds=seconds,
            skipped=chunk.skipped,
        )

    def readable(self, n: int) -> list[int]:
        """Find the first n images that can be read, or fewer."""
        check_whole("sample", n, 1)
        found: list[int] = []
        for i in range(len(self.job.source.names)):
            if len(found) == n:
                break
            found += read(self.job.source, [i], self.classifier.input_size).places
        if not found:
            raise ValueError("expected images that can be read, got none")
        return found

    def judged(
        self, clean: Clean, attack_text: str, defenses: Sequence[str]
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        """Give the records under one attack, one defence after the other."""
        if not clean.names:
            yield from ((t, pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)) for t in defenses)
            return
        attack, attacked = self.job.attacks[attack_text], None
        for text in defenses:
            defense = self.job.defenses[text]
            if attacked is None or attack.adaptive:
                attacked = self.attacked(clean, attack, defense)
                maps: dict[Hashable, tuple[Array | None, float]] = {}
            activation_map = self.map_of(attacked, defense, maps)
            yield text, self.records(clean, attack, attacked, defense, activation_map)

    def attacked(self, clean: Clean, attack: Attack, defense: AnyDefense) -> Attacked:
        """Make the adversaries; only those of an adaptive attack look at the defence."""
        nothing = np.full(len(clean.names), -1, dtype=np.int64)
        if attack.text == "none":
            seen = clean.probabilities.argmax(axis=1)
            failure = np.zeros(len(clean.names), dtype=np.bool_)
            return Attacked(
                clean.images, nothing, seen, failure, clean.probabilities, clean.seconds
            )
        made_for = (attack.text, defense.text) if attack.adaptive else (attack.text,)
        images, targets = attack.make(
            self.classifier,
            clean.images,
            clean.labels,
            [np.random.default_rng(stream_seed(self.job.seed, n, *made_for)) for n in clean.names],
            defense=defense if attack.adaptive and defense.text != "none" else None,
            batch_size=len(clean.names),
        )
        probabilities, seconds = self._predicted(images)
        seen = probabilities.argmax(axis=1)
        if targets is None:
            return Attacked(images, nothing, seen, seen != clean.labels, probabilities, seconds)
        return Attacked(images, targets, targets, seen == targets, probabilities, seconds)

    def map_of(
        self,
        attacked: Attacked,
        defense: AnyDefense,
        maps: dict[Hashable, tuple[Array | None, float]],
    ) -> tuple[Array | None, float]:
        """Make the map of a defence, or take that of another; tell the seconds that it took."""
        key = defense.map_key
        if key not in maps:
            start = perf_counter()
            made = None
            if key is not None:
                made = defense.activation_map(self.classifier, attacked.images)
            maps[key] = made, perf_counter() - start
        return maps[key]

    def records(
        self,
        clean: Clean,
        attack: Attack,
        attacked: Attacked,
        defense: AnyDefense,
        activation_map: tuple[Array | None, float],
    ) -> pd.DataFrame:
        """Run a defence on the adversaries."""
        n, total = len(clean.names), np.zeros(clean.probabilities.shape)
        rows = np.arange(n)
        same = {
            "image": clean.names,
            "label": clean.labels,
            "attack": [attack.text] * n,
            "defense": [defense.text] * n,
            "attack_class": attacked.classes,
            "target": attacked.targets,
            "right_clean": clean.probabilities.argmax(axis=1) == clean.labels,
            "success": attacked.success,
            "l2": relative_l2(clean.images, attacked.images),
            "linf": linf(clean.images, attacked.images),
        }
        tables = []
        for run in range(self.job.runs if defense.random else 1):
            seeds = [
                stream_seed(self.job.seed, name, attack.text, defense.text, run)
                for name in clean.names
            ]
            defended, probabilities, seconds = self._run(
                attacked, defense, seeds, activation_map[0]
            )
            total += probabilities
            own = {
                "run": np.full(n, run),
                "predicted": probabilities.argmax(axis=1),
                "mean_predicted": total.argmax(axis=1),
                "p_label": probabilities[rows, clean.labels],
                "p_attack": probabilities[rows, attacked.classes],
                "rank": _ranks(probabilities, clean.labels),
                "psnr": psnr(clean.images, defended),
                "ssim": ssim(clean.images, defended),
                "seconds": np.full(n, (activation_map[1] + seconds) / n),
                "seed": seeds,
            }
            tables.append(same | own)
        columns = {name: np.concatenate([table[name] for table in tables]) for name in COLUMNS}
        return pd.DataFrame(columns).astype(COLUMNS)

    def _run(
        self,
        attacked: Attacked,
        defense: AnyDefense,
        seeds: Sequence[int],
        activation_map: Array | None,
    ) -> tuple[Array, Array, float]:
        """Defend and classify once; give the images, the probabilities and the seconds."""
        if defense.text == "none":
            return attacked.images, attacked.probabilities, attacked.seconds
        start = perf_counter()
        generators = [np.random.default_rng(seed) for seed in seeds]
        defended = defense.transform(
            self.classifier, attacked.images, rng=generators, activation_map=activation_map
        )
        seconds = perf_counter() - start
        probabilities, more = self._predicted(defended)
        return defended, probabilities, seconds + more

    def _predicted(self, images: Array) -> tuple[Array, float]:
        if len(images) == 0:
            return np.empty((0, len(self.classifier.class_ids)), dtype=np.float32), 0.0
        start = perf_counter()
        probabilities = self.classifier.predict(images, batch_size=len(images))
        return probabilities, perf_counter() - start


def _ranks(probabilities: Array, labels: Labels) -> Labels:
    """Give the place of the true class, 1 for the most probable; of equals, the lower number."""
    own = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)
    lower = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]
    before = (probabilities > own) | ((probabilities == own) & lower)
    ranks: Labels = 1 + before.sum(axis=1)
    return ranks
