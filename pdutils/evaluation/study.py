"""One call evaluates many images; what it gives answers by the names that one chose.

`study = run(network, examples, attacks={"IGSM": "igsm:eps=4"}, defenses={"PD + WD": "pd+wd"})`,
then `study.accuracy()`, or `study.compare(("PD + WD", "IGSM"), ("no defence", "IGSM"))`.
"""

import pickle
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdutils.classifiers import Classifier, ClassifierSource, load_classifier
from pdutils.demo.examples import Collection, checkout, load_collection
from pdutils.evaluation import registry
from pdutils.evaluation.datasets import CollectionSource, Source, folder_source
from pdutils.evaluation.evaluate import Estimate, Job, estimated, evaluated
from pdutils.evaluation.report import Cells, PairedDifference, Rates, Report, Strength, compare
from pdutils.evaluation.store import StoredRecords

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Study", "load_classifier", "load_collection", "load_records", "run"]

_PACKED = ".sqlite.xz"

#: Attacks or defences by the names that one chooses, or by their texts alone.
Given = Mapping[Any, str | Callable[..., Any]] | Iterable[str | Callable[..., Any]]

#: Some of the names, or other names for some of them.
Chosen = Mapping[Any, Hashable] | Iterable[Hashable] | None


def run(
    network: Classifier | ClassifierSource,
    examples: "Collection | Source | str | PathLike[str]",
    attacks: Given = (),
    defenses: Given = (),
    *,
    runs: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    store: str | PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
) -> "Study":
    """Meet every image with every attack, and every defence with what comes out.

    The work goes on from what `store` holds: a unit of it is one attack and one defence on
    `batch_size` consecutive images, and a unit that was finished stays, whatever ends the run.
    Images that cannot be read are left out.

    Parameters
    ----------
    network : Classifier or ClassifierSource
        With a `scheduler` it must be a ClassifierSource, which each worker loads.
    examples : Collection, Source, str or path
        Labelled images: what `load_collection` gives, a source of `evaluation.datasets`, or a
        folder of labelled pictures.
    attacks, defenses : mapping of name to str or function
        Texts such as ``igsm:eps=4`` and ``pd+rcam+wd:deflections=600``, see
        `python -m pdutils evaluate --help`; "none" is always evaluated, as "clean" and "no defence"
        where it has no other name. Or a function of your own, ``images, rng -> images``; an attack
        may also be ``classifier, images, labels, rng -> images``. It gets one image at a time,
        shape (1, H, W, 3), RGB in [0, 255], and a `numpy.random.Generator`. An attack with a
        parameter ``defense`` is made against each defence anew, as ``bpda`` is, and gets it by that
        name: an object with `transform` and `activation_map`, as `pdutils.defenses.Defense` has
        them, or None where there is none. A store keeps a function by its name and a digest of its
        source. The attacker who knows, ``bpda``, takes the gradient straight through a defence of
        your own.
    runs : int
        How many times a defence that draws random numbers is run, at least 1; others once.
    seed : int
        Of all random streams, at least 0.
    batch_size : int
        How many images are in memory and go through the network at once, at least 1.
    store : str or path, optional
        The file of records. By default they are kept in memory.
    scheduler : str, optional
        ``local:N`` for N processes on this machine, or the address of a Dask scheduler such as
        ``tcp://host:8786``. By default this process works alone.
    progress : bool, optional
        Whether to show a bar over images x attacks. By default on a terminal and in a notebook.

    Raises
    ------
    StoreError
        If the store is another's, was made with other settings or versions, or another run writes
        to it; or if other images of a chunk can be read than when it was begun.
    """
    met, held = _named(attacks, defenses)
    if scheduler is not None and scheduler.startswith("local:"):
        for item in (*met.values(), *held.values()):
            _check_travels(item)
    job = Job(_source(network, examples), _by_text(met), _by_text(held), runs, seed, batch_size)
    with evaluated(network, job, store=store, scheduler=scheduler, progress=progress) as records:
        found = records.records(list(job.attacks), list(job.defenses)) if store is None else store
    attack_texts = {name: item.text for name, item in met.items()}
    return Study(attack_texts, {name: item.text for name, item in held.items()}, found)


def estimate(
    network: Classifier | ClassifierSource,
    examples: "Collection | Source | str | PathLike[str]",
    attacks: Given = (),
    defenses: Given = (),
    *,
    runs: int = 10,
    seed: int = 0,
    sample: int = 4,
) -> Estimate:
    """Estimate what `run` would cost, without carrying it out; printed, it is a table.

    The first `sample` images that can be read go through every attack and, once, through every
    defence; the rest is as in `run`.
    """
    met, held = _named(attacks, defenses)
    job = Job(_source(network, examples), _by_text(met), _by_text(held), runs, seed)
    loaded = network if isinstance(network, Classifier) else network.load()
    return estimated(loaded, job, sample)


class Study:
    """The records of an evaluation, and what they say.

    A cell of it is a defence and an attack, by name. Runs become one answer by an `aggregate`:
    "one", the first run alone; "majority", the class that most runs see; "mean", the class of the
    mean probability; "worst", right only if every run is. Images count by a `protocol`: "paper",
    those that the undefended network gets right when clean; "plain", all.

    `attacks` and `defenses` are the texts of what was evaluated, by name.
    """

    def __init__(
        self,
        attacks: Mapping[Any, str],
        defenses: Mapping[Any, str],
        records: "pd.DataFrame | str | PathLike[str]",
    ) -> None:
        self.attacks: dict[Hashable, str] = dict(attacks)
        self.defenses: dict[Hashable, str] = dict(defenses)
        self._records = records
        self._cells: dict[str, Cells] = {}

    @classmethod
    def open(cls, path: str | PathLike[str]) -> "Study":
        """Open a file of records, finished or not; the names are the texts."""
        with StoredRecords(path) as store:
            attacks, defenses = ({t: t for t in x} for x in (store.attacks(), store.defenses()))
        return cls(attacks, defenses, path)

    @property
    def records(self) -> "pd.DataFrame":
        """A row for each image, attack, defence and run, columns as `store.COLUMNS`.

        `l2` and `linf` measure the adversary, `psnr` and `ssim` the defended image, all against
        the clean one. `seconds` is the time of a map, a run and its prediction, divided by the
        images of its chunk; the next run is made while the network works on this one.
        """
        if not isinstance(self._records, (str, PathLike)):
            return self._records
        with StoredRecords(self._records) as store:
            return store.records(list(self.attacks.values()), list(self.defenses.values()))

    def progress(self) -> tuple[int, int]:
        """Count the images begun, those that cannot be read too, and all of them."""
        begun = self._outcomes("one").images + len(self.skipped)
        if not isinstance(self._records, (str, PathLike)):
            return begun, begun
        with StoredRecords(self._records) as store:
            return begun, store.images

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The images that could not be read, each with the reason."""
        if not isinstance(self._records, (str, PathLike)):
            return list(self._records.attrs["skipped"])
        with StoredRecords(self._records) as store:
            return store.skipped()

    @property
    def made(self) -> list[dict[str, Any]]:
        """Each run that added to the file: its date, command, processor, cores and Python."""
        if not isinstance(self._records, (str, PathLike)):
            return []
        with StoredRecords(self._records) as store:
            return store.made()

    def accuracy(self, aggregate: str = "one", protocol: str = "paper", **chosen: Chosen) -> Rates:
        """Give the share of images classified right, by defence, then attack.

        It is None where no image counts.

        Parameters
        ----------
        aggregate : {"one", "majority", "mean", "worst"}
            How runs become one answer.
        protocol : {"paper", "plain"}
            Which images count.
        attacks, defenses : list of names, or mapping of other names to them, optional
            By default all. A curve over eps has numbers for names: ``{4: "eps 4", 8: "eps 8"}``.
        """
        return _picked(self._outcomes(aggregate).rates("accuracy", protocol), **chosen)

    def destruction(self, aggregate: str = "one", **chosen: Chosen) -> Rates:
        """Give the share of adversaries that are turned back, as `accuracy` does.

        An adversary counts if it succeeded without a defence on an image right when clean; it is
        turned back if the defended network sees the true class (the destruction rate of Kurakin
        2017, arXiv 1607.02533, as in Table 4 of the paper).
        """
        return _picked(self._outcomes(aggregate).rates("destruction"), **chosen)

    def targeted_success(
        self, aggregate: str = "one", protocol: str = "plain", **chosen: Chosen
    ) -> Rates:
        """Give the share of adversaries seen as the class aimed at, as `accuracy` does.

        Attacks without an aim are left out. With "worst" any run that sees it counts.
        """
        return _picked(self._outcomes(aggregate).rates("targeted", protocol), **chosen)

    def strength(self, protocol: str = "paper") -> dict[Hashable, Strength]:
        """Give the strength of each attack, without which no rate means anything.

        By attack; by "attack against defence" where it made another adversary for each.
        """
        return {
            attack if defense is None else f"{attack} against {defense}": measured
            for (attack, defense), measured in self._outcomes("one").strengths(protocol).items()
        }

    def compare(
        self, first: tuple[Hashable, ...], second: tuple[Hashable, ...], protocol: str = "paper"
    ) -> PairedDifference:
        """Give the share right in one cell minus that in another, on the same images.

        Its `note` says so where the two differ in more than one knob.

        Parameters
        ----------
        first, second : (defence, attack) or (defence, attack, aggregate)
            By name: ``("PD + WD", "IGSM"), ("WD", "IGSM")`` compares two defences, ``("WD",
            "IGSM"), ("WD", "clean")`` two attacks, and ``("WD", "IGSM", "majority"), ("WD",
            "IGSM")`` two aggregates, of which "one" goes without saying.
        protocol : {"paper", "plain"}
            Which images count.
        """
        for cell in (first, second):
            if len(cell) not in (2, 3):
                raise ValueError(
                    f"expected (defence, attack) or (defence, attack, aggregate), got {cell!r}"
                )
        (*one, how), (*other, way) = ((*cell, "one")[:3] for cell in (first, second))
        found = compare(self._outcomes(how), one, self._outcomes(way), other, protocol)
        defenses, attacks = zip(one, other, strict=True)
        notes = [
            *registry.unlike_settings({name: self.attacks[name] for name in attacks}),
            *registry.unlike_settings({name: self.defenses[name] for name in defenses}),
        ]
        return replace(found, note=" ".join(notes))

    def check_successes(self) -> None:
        """Refuse to go on with an attack that leaves nothing to turn back."""
        rows = self.destruction().values()
        for attack in next(iter(rows)):
            if all(row[attack] is None for row in rows):
                raise ValueError(
                    f"{attack} fooled the network on none of the images that are right when clean, "
                    "so there is nothing to turn back: take a stronger one"
                )

    def report(
        self, aggregate: str = "one", protocol: str = "paper", baseline: Hashable | None = None
    ) -> Report:
        """Give all tables, and the sentences that must go with them; printed, a page.

        Defences are compared with the `baseline`, by default with none.
        """
        return Report.of(self._outcomes(aggregate), protocol, aggregate, baseline, self.skipped)

    def table(self, name: str = "accuracy", *asked: Any, **options: Any) -> "pd.DataFrame":
        """Give one table of the `report`, to which all but the name goes.

        Its name is "accuracy", "destruction", "targeted", "strength", "differences" or "names".
        """
        return self.report(*asked, **options).tables[name]

    def _outcomes(self, aggregate: Any) -> Cells:
        if aggregate not in self._cells:
            found = Cells.of(self._blocks(), aggregate, self.attacks, self.defenses)
            if not found.cells:
                raise ValueError(f"{self._records}: no record is finished yet")
            self._cells[aggregate] = found
        return self._cells[aggregate]

    def _blocks(self) -> "Iterator[pd.DataFrame]":
        """Give the records, of a file some images at a time."""
        if not isinstance(self._records, (str, PathLike)):
            yield self._records
            return
        with StoredRecords(self._records) as store:
            yield from store.blocks(list(self.attacks.values()), list(self.defenses.values()))


def load_records(name: str) -> Study:
    """Open records of real photos that the repository holds, see `records/` there.

    The name is that of a file without its endings, such as "parts_efficientnet_lite0"; attacks and
    defences go by their texts.
    """
    folder = (checkout() or Path()) / "records"
    known = sorted(path.name.removesuffix(_PACKED) for path in folder.glob(f"*{_PACKED}"))
    if name not in known:
        listed = ", ".join(known) or "none: a wheel holds none, a clone of the repository does"
        raise FileNotFoundError(f"no records {name!r}; expected one of {listed}")
    return Study.open(folder / f"{name}{_PACKED}")


def _source(network: Classifier | ClassifierSource, examples: Any) -> Source:
    if isinstance(examples, (str, PathLike)):
        loaded = network if isinstance(network, Classifier) else network.load()
        return folder_source(examples, loaded)
    return CollectionSource(examples) if isinstance(examples, Collection) else examples


def _named(attacks: Given, defenses: Given) -> tuple[dict[Hashable, Any], dict[Hashable, Any]]:
    """Read attacks and defences; "none" is among each, the first if it was not given."""

    def named(given: Given, parse: Any, own: Any, nothing: str) -> dict[Hashable, Any]:
        if isinstance(given, str):
            raise ValueError(f"expected a list of attacks and one of defences, got {given!r}")
        if not isinstance(given, Mapping):
            given = {getattr(item, "__name__", item): item for item in given}
        found = {n: own(str(n), x) if callable(x) else parse(x) for n, x in given.items()}
        listed = any(item.text == "none" for item in found.values())
        return found if listed else {nothing: parse("none"), **found}

    return (
        named(attacks, registry.parse_attack, registry.OwnAttack, "clean"),
        named(defenses, registry.parse_defense, registry.OwnDefense, "no defence"),
    )


def _by_text(named: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Give each text once, "none" first."""
    found = {item.text: item for item in named.values()}
    return {"none": found["none"], **found}


def _check_travels(item: Any) -> None:
    """Refuse a function that a worker, which is another process, could not find."""
    function = getattr(item, "function", None)
    # What a notebook defines can be pickled, but not found by whoever unpickles it.
    module = getattr(function, "__module__", "")
    typed = module == "__main__" and not hasattr(sys.modules[module], "__file__")
    with suppress(pickle.PicklingError, AttributeError, TypeError):
        pickle.dumps(function)
        if not typed:
            return
    raise ValueError(
        f"{item.name}: expected a function that workers can import, got one that only this "
        "process knows; put it into a file of its own and import it, or run without scheduler"
    )


def _picked(rates: Rates, attacks: Chosen = None, defenses: Chosen = None) -> Rates:
    """Pick rates, and call them by other names."""

    def chosen(names: Chosen, known: Mapping[Hashable, Any]) -> dict[Hashable, Hashable]:
        found = names if isinstance(names, Mapping) else {name: name for name in names or known}
        for name in found.values():
            if name not in known:
                raise ValueError(f"expected one of {', '.join(map(str, known))}, got {name!r}")
        return dict(found)

    columns = chosen(attacks, next(iter(rates.values())))
    return {
        row: {column: rates[defense][attack] for column, attack in columns.items()}
        for row, defense in chosen(defenses, rates).items()
    }
