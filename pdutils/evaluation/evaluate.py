"""Images x attacks x defences, as records.

A record is one run of one defence on one image under one attack. Its random stream is made from
what it is (`stream_seed`), so that it depends neither on the other records nor on the order of the
work, and an evaluation that was interrupted goes on as if it had not been.
"""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pdutils._utils import check_whole, progress_bar
from pdutils.classifiers import Classifier, ClassifierSource, Labels, deterministic, fingerprint
from pdutils.evaluation.datasets import Source
from pdutils.evaluation.registry import NamedAttack, NamedDefense, parse_attack, parse_defense
from pdutils.evaluation.store import COLUMNS, Store, StoreError
from pdutils.files import displayed
from pdutils.images import Array, on_grid
from pdutils.metrics import SMALLEST_SIDE, linf, psnr, relative_l2, ssim


def stream_seed(*parts: str | int) -> int:
    """Make the seed of a random stream from what the stream is for, and from nothing else.

    Parameters
    ----------
    *parts : str or int
        For a run of a defence: the seed of the evaluation, the image's name, the texts of the
        attack and the defence, and the number of the run. For an attack: the first three, and for
        an adaptive attack the defence too.

    Returns
    -------
    int
        63 bits of their SHA-256; `numpy.random.default_rng` makes the stream of them.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def evaluate(
    classifier: Classifier | ClassifierSource,
    source: Source,
    attacks: Iterable[str],
    defenses: Iterable[str],
    *,
    runs: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    store: str | PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Evaluate defences against attacks, image by image.

    Images that cannot be read are left out. The work goes on from what `store` holds; a unit of it
    is one attack and one defence on a chunk of `batch_size` consecutive images, and a unit that
    was finished stays, whatever ends the run.

    Parameters
    ----------
    classifier : Classifier or ClassifierSource
        The network. With a `scheduler` it must be a ClassifierSource, which each worker loads.
    source : Source
        The labelled images, see `pdutils.evaluation.datasets`.
    attacks, defenses : iterable of str
        By name and knobs, see `registry`. The attack "none", the clean image itself, and the
        defence "none" are always evaluated.
    runs : int
        How many times a defence that draws random numbers is run, at least 1; others once.
    seed : int
        Of all random streams, at least 0.
    batch_size : int
        How many images are in memory and go through the network at once, at least 1.
    store : str or path, optional
        The file of records. By default they are kept in memory.
    scheduler : str, optional
        The Dask cluster to work on, see `executors`. By default this process works alone.
    progress : bool, optional
        Whether to show a bar over images x attacks. By default on a terminal
        and in a notebook.

    Returns
    -------
    pandas.DataFrame
        The records, columns as `evaluation.store.COLUMNS`, in the order of the images and of the
        attacks and defences given, "none" first. `l2` and `linf` measure the adversary, `psnr` and
        `ssim` the defended image (see `pdutils.metrics`), all against the clean one. `seconds` is
        the time of a map, a run and its prediction by itself, divided by the images of its chunk.
        `attrs["skipped"]` lists the images that could not be read, with the reason.

    Raises
    ------
    ValueError
        If an attack, a defence, a label or a number is out of range, not one image can be read, or
        the network gives NaN.
    pdutils.evaluation.store.StoreError
        As `evaluation.store.Store`, or if an image of a chunk that was begun before can be read now
        and could not then, or the other way round.
    OSError
        As `pdutils.evaluation.store.Store` and `pdutils.evaluation.executors`.
    """
    attack_texts = _texts(parse_attack, attacks)
    defense_texts = _texts(parse_defense, defenses)
    with _evaluated(
        classifier,
        source,
        attack_texts,
        defense_texts,
        _Job(source, runs, seed, batch_size),
        store,
        scheduler,
        progress,
    ) as records:
        found = records.records(attack_texts, defense_texts)
    if found.empty:
        raise _nothing_read(found.attrs["skipped"])
    return found


def evaluate_into(
    store: str | PathLike[str],
    classifier: Classifier | ClassifierSource,
    source: Source,
    attacks: Iterable[str],
    defenses: Iterable[str],
    *,
    runs: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> None:
    """Do as `evaluate`, but leave the records in the file, however many they are.

    Parameters
    ----------
    store : str or path
        The file of records.
    classifier, source, attacks, defenses, runs, seed, batch_size, scheduler, progress
        As in `evaluate`.

    Raises
    ------
    ValueError, pdutils.evaluation.store.StoreError, OSError
        As `evaluate`.
    """
    attack_texts = _texts(parse_attack, attacks)
    defense_texts = _texts(parse_defense, defenses)
    job = _Job(source, runs, seed, batch_size)
    with _evaluated(
        classifier, source, attack_texts, defense_texts, job, store, scheduler, progress
    ) as records:
        skipped = records.skipped()
    if len(skipped) == len(source.names):
        raise _nothing_read(skipped)


def _nothing_read(skipped: Sequence[tuple[str, str]]) -> ValueError:
    name, reason = skipped[0]
    return ValueError(f"expected images that can be read, got none; the first: {name}: {reason}")


@contextmanager
def _evaluated(
    classifier: Classifier | ClassifierSource,
    source: Source,
    attack_texts: list[str],
    defense_texts: list[str],
    job: "_Job",
    store: str | PathLike[str] | None,
    scheduler: str | None,
    progress: bool | None,
) -> Iterator[Store]:
    """Do what is missing in a store, and give it while it is open."""
    if scheduler is not None and isinstance(classifier, Classifier):
        raise ValueError(
            "a cluster cannot be sent a loaded classifier; pass a ClassifierSource, such as "
            f"ClassifierSource({classifier.name!r}), which each worker loads"
        )
    network = classifier if isinstance(classifier, Classifier) else classifier.load()
    _check_source(network, source)
    for text in defense_texts:
        parse_defense(text).check_network(network)
    digest = fingerprint(network)
    with Store(
        store, names=source.names, labels=source.labels, settings=job.settings(network.name, digest)
    ) as records:
        records.ask(attack_texts, defense_texts)
        units = _units(records, job, attack_texts, defense_texts)
        if scheduler is None or isinstance(classifier, Classifier):
            parts = _locally(network, job, units)
        else:
            there = _for_workers(classifier, network)
            parts = _on_cluster(there, digest, job, units, scheduler)
        _collect(parts, records, job, attack_texts, defense_texts, progress)
        yield records


@dataclass(frozen=True)
class _Job:
    """What all units of an evaluation have in common."""

    source: Source
    runs: int
    seed: int
    batch_size: int

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

    @property
    def chunks(self) -> range:
        return range(math.ceil(len(self.source.names) / self.batch_size))

    def places(self, chunk: int) -> range:
        start = chunk * self.batch_size
        return range(start, min(start + self.batch_size, len(self.source.names)))


class _Unit(NamedTuple):
    """A chunk, an attack and the defences that are missing; images known to be unreadable."""

    chunk: int
    attack: str
    defenses: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]


class _Part(NamedTuple):
    """What is finished of a unit: records by defence. `last` if that was all of it."""

    unit: _Unit
    records: dict[str, pd.DataFrame]
    skipped: list[tuple[str, str]]
    last: bool


@dataclass(frozen=True)
class _Clean:
    """The images of a chunk that can be read, and what the network makes of them."""

    names: list[str]
    labels: Labels
    images: Array
    probabilities: Array
    seconds: float
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class _Attacked:
    """The adversaries of a chunk, and what the undefended network makes of them."""

    images: Array
    targets: Labels
    classes: Labels
    success: NDArray[np.bool_]
    probabilities: Array
    seconds: float


def _texts(parse: Callable[[str], NamedAttack | NamedDefense], given: Iterable[str]) -> list[str]:
    """Give the canonical texts, "none" first, each once."""
    if isinstance(given, str):
        raise ValueError(f"expected a list of attacks and one of defences, got {given!r}")
    return list(dict.fromkeys(["none", *(parse(text).text for text in given)]))


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


def _units(
    store: Store, job: _Job, attacks: Sequence[str], defenses: Sequence[str]
) -> Iterator[_Unit]:
    """List what is missing, one chunk after the other."""
    for chunk in job.chunks:
        done = store.done(chunk)
        unreadable = _unreadable(store, job, chunk)
        for attack in attacks:
            missing = tuple(text for text in defenses if (attack, text) not in done)
            if missing:
                yield _Unit(chunk, attack, missing, unreadable)


def _unreadable(store: Store, job: _Job, chunk: int) -> tuple[tuple[str, str], ...]:
    names = {job.source.names[i] for i in job.places(chunk)}
    return tuple((name, reason) for name, reason in store.skipped() if name in names)


def _collect(
    parts: Generator[_Part],
    store: Store,
    job: _Job,
    attacks: Sequence[str],
    defenses: Sequence[str],
    progress: bool | None,
) -> None:
    """Write what is finished, as it comes."""
    images = len(job.source.names)
    left = sum(len(job.places(unit.chunk)) for unit in _units(store, job, attacks, defenses))
    total = images * len(attacks)
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


def _check_same_images(store: Store, job: _Job, part: _Part) -> None:
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


def _locally(classifier: Classifier, job: _Job, units: Iterator[_Unit]) -> Generator[_Part]:
    for _, of_a_chunk in groupby(units, key=lambda unit: unit.chunk):
        clean = None
        for unit in of_a_chunk:
            clean = clean or _read_chunk(classifier, job, unit)
            for text, records in _judged(classifier, job, clean, unit):
                last = text == unit.defenses[-1]
                yield _Part(unit, {text: records}, clean.skipped, last)


def _for_workers(classifier: ClassifierSource, loaded: Classifier) -> ClassifierSource:
    """Describe a classifier so that a process with another folder and cache finds the same."""
    if classifier.name.endswith(".keras"):
        return replace(classifier, name=str(Path(classifier.name).absolute()))
    weights = classifier.weights
    if weights not in (None, "random"):
        weights = str(Path(weights).absolute())
    # "auto" might be another network there.
    return replace(classifier, name=loaded.name, weights=weights)


def _on_cluster(
    classifier: ClassifierSource, digest: str, job: _Job, units: Iterator[_Unit], scheduler: str
) -> Generator[_Part]:
    # Not every evaluation needs the framework of a cluster, which takes a while to load.
    from pdutils.evaluation.executors import scattered

    work = partial(_work, classifier, digest, job)
    results: Any = scattered(work, units, scheduler=scheduler)
    with closing(results):
        for _, part in results:
            yield part


def _work(classifier: ClassifierSource, digest: str, job: _Job, unit: _Unit) -> _Part:
    """Do a unit on a worker."""
    network = _same_network(classifier, digest)
    clean = _read_chunk(network, job, unit)
    return _Part(unit, dict(_judged(network, job, clean, unit)), clean.skipped, last=True)


@lru_cache(maxsize=1)
def _same_network(classifier: ClassifierSource, digest: str) -> Classifier:
    deterministic()
    network = classifier.load()
    if fingerprint(network) != digest:
        raise ValueError(f"{classifier.name}: a worker finds other weights than this process")
    return network


def _read_chunk(classifier: Classifier, job: _Job, unit: _Unit) -> _Clean:
    names, labels = job.source.names, job.source.labels
    skipped = dict(unit.unreadable)
    read: dict[int, Array] = {}
    for i in job.places(unit.chunk):
        if names[i] in skipped:
            continue
        try:
            image = job.source.load(i)
        except (ValueError, OSError) as error:
            skipped[names[i]] = displayed(str(error))
        else:
            read[i] = _checked_image(classifier, names[i], image)
    empty = np.empty((0, *classifier.input_size, 3), dtype=np.float32)
    images = np.stack(list(read.values())) if read else empty
    probabilities, seconds = _predicted(classifier, images)
    return _Clean(
        names=[names[i] for i in read],
        labels=np.array([labels[i] for i in read], dtype=np.int64),
        images=images,
        probabilities=probabilities,
        seconds=seconds,
        skipped=list(skipped.items()),
    )


def _checked_image(classifier: Classifier, name: str, image: Array) -> Array:
    if image.shape != (*classifier.input_size, 3):
        raise ValueError(
            f"{name}: expected an image of {classifier.input_size[0]} x "
            f"{classifier.input_size[1]} pixels, got shape {image.shape}"
        )
    # Attacks start from whole values, and so does what is compared with their results.
    return on_grid(image)


def _predicted(classifier: Classifier, images: Array) -> tuple[Array, float]:
    if len(images) == 0:
        return np.empty((0, len(classifier.class_ids)), dtype=np.float32), 0.0
    start = perf_counter()
    probabilities = classifier.predict(images, batch_size=len(images))
    return probabilities, perf_counter() - start


def _judged(
    classifier: Classifier, job: _Job, clean: _Clean, unit: _Unit
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Give the records of a unit, one defence after the other."""
    if not clean.names:
        yield from (
            (text, pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)) for text in unit.defenses
        )
        return
    attack = parse_attack(unit.attack)
    attacked = None
    for text in unit.defenses:
        defense = parse_defense(text)
        if attacked is None or attack.adaptive:
            attacked = _attacked(classifier, job, clean, attack, defense)
            maps: dict[Any, tuple[Array | None, float]] = {}
        yield text, _records(classifier, job, clean, attack, attacked, defense, maps)


def _attacked(
    classifier: Classifier, job: _Job, clean: _Clean, attack: NamedAttack, defense: NamedDefense
) -> _Attacked:
    """Make the adversaries of a chunk; only those of an adaptive attack look at the defence."""
    if attack.text == "none":
        nothing = np.full(len(clean.names), -1, dtype=np.int64)
        seen = clean.probabilities.argmax(axis=1)
        failure = np.zeros(len(clean.names), dtype=np.bool_)
        return _Attacked(clean.images, nothing, seen, failure, clean.probabilities, clean.seconds)
    made_for = (attack.text, defense.text) if attack.adaptive else (attack.text,)
    seeds = [stream_seed(job.seed, name, *made_for) for name in clean.names]
    images, targets = attack.make(
        classifier,
        clean.images,
        clean.labels,
        [np.random.default_rng(seed) for seed in seeds],
        defense=defense if attack.adaptive and defense.text != "none" else None,
        batch_size=len(clean.names),
    )
    probabilities, seconds = _predicted(classifier, images)
    seen = probabilities.argmax(axis=1)
    if targets is None:
        nothing = np.full(len(clean.names), -1, dtype=np.int64)
        return _Attacked(images, nothing, seen, seen != clean.labels, probabilities, seconds)
    return _Attacked(images, targets, targets, seen == targets, probabilities, seconds)


def _records(
    classifier: Classifier,
    job: _Job,
    clean: _Clean,
    attack: NamedAttack,
    attacked: _Attacked,
    defense: NamedDefense,
    maps: dict[Any, tuple[Array | None, float]],
) -> pd.DataFrame:
    """Run a defence on the adversaries of a chunk."""
    key = defense.map_key
    if key not in maps:
        start = perf_counter()
        made = None if key is None else defense.activation_map(classifier, attacked.images)
        maps[key] = made, perf_counter() - start
    activation_map, map_seconds = maps[key]
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
    for run in range(job.runs if defense.random else 1):
        seeds = [
            stream_seed(job.seed, name, attack.text, defense.text, run) for name in clean.names
        ]
        defended, probabilities, seconds = _run(
            classifier, attacked, defense, seeds, activation_map
        )
        total += probabilities
        tables.append(
            same
            | {
                "run": np.full(n, run),
                "predicted": probabilities.argmax(axis=1),
                "mean_predicted": total.argmax(axis=1),
                "p_label": probabilities[rows, clean.labels],
                "p_attack": probabilities[rows, attacked.classes],
                "rank": _ranks(probabilities, clean.labels),
                "psnr": psnr(clean.images, defended),
                "ssim": ssim(clean.images, defended),
                "seconds": np.full(n, (map_seconds + seconds) / n),
                "seed": seeds,
            }
        )
    columns = {name: np.concatenate([table[name] for table in tables]) for name in COLUMNS}
    return pd.DataFrame(columns).astype(COLUMNS)


def _run(
    classifier: Classifier,
    attacked: _Attacked,
    defense: NamedDefense,
    seeds: Sequence[int],
    activation_map: Array | None,
) -> tuple[Array, Array, float]:
    """Defend and classify once; give the defended images, the probabilities and the seconds."""
    if defense.text == "none":
        return attacked.images, attacked.probabilities, attacked.seconds
    start = perf_counter()
    generators = [np.random.default_rng(seed) for seed in seeds]
    defended = defense.transform(
        classifier, attacked.images, rng=generators, activation_map=activation_map
    )
    seconds = perf_counter() - start
    probabilities, more = _predicted(classifier, defended)
    return defended, probabilities, seconds + more


def _ranks(probabilities: Array, labels: Labels) -> Labels:
    """Give the place of the true class, 1 for the most probable; of equals, the lower number."""
    own = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)
    lower = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]
    before = (probabilities > own) | ((probabilities == own) & lower)
    ranks: Labels = 1 + before.sum(axis=1)
    return ranks
