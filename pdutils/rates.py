"""From outcomes to rates: accuracy, destruction, targeted success, strength, paired differences.

A protocol says which images count.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pdutils.outcomes import check_word, outcomes
from pdutils.statistics import Mean, PairedDifference, Rate

#: Which images count. The paper's own protocol is the first.
PROTOCOLS: Mapping[str, str] = {
    "paper": "only images that the undefended network gets right when clean",
    "plain": "all images",
}

Rates = dict[str, dict[str, Rate | None]]
Key = TypeVar("Key", bound=Hashable)


class ComparisonError(ValueError):
    """Two cells that were not evaluated, not on the same images, or of which no image counts."""


@dataclass(frozen=True)
class Strength:
    """How strong an attack was on the undefended network.

    Attributes
    ----------
    n : int
        The images that count.
    success : Rate or None
        Those whose adversary succeeded, of the images right when clean; None if there is none.
    l2, linf : Mean or None
        The size of the perturbation over all images that count: ||x - x'|| / ||x||, and the
        greatest difference in grey levels of 255. None if no image counts.
    l2_of_successes, linf_of_successes : Mean or None
        The same over the successful adversaries of images right when clean.
    """

    n: int
    success: Rate | None
    l2: Mean | None
    linf: Mean | None
    l2_of_successes: Mean | None
    linf_of_successes: Mean | None


Strengths = dict[tuple[str, str | None], Strength]


@dataclass(frozen=True)
class Cells:
    """The outcomes of an evaluation by attack and defence.

    Attributes
    ----------
    attacks, defenses : list of str
        In the order of the records.
    cells : dict of (str, str) to DataFrame
        By attack and defence, the rows of `pdutils.outcomes.outcomes`.
    images : int
        How many there are in all.
    """

    attacks: list[str]
    defenses: list[str]
    cells: dict[tuple[str, str], pd.DataFrame]
    images: int

    @classmethod
    def of(cls, records: pd.DataFrame, decision: str = "one") -> "Cells":
        """Decide the outcome of each image, attack and defence.

        Parameters
        ----------
        records : pandas.DataFrame
            The records of an evaluation.
        decision : {"one", "majority", "mean", "worst"}
            As in `pdutils.outcomes.outcomes`.

        Returns
        -------
        Cells

        Raises
        ------
        ValueError
            As `pdutils.outcomes.outcomes`.
        """
        return cls.of_blocks([records], decision)

    @classmethod
    def of_blocks(cls, blocks: Iterable[pd.DataFrame], decision: str = "one") -> "Cells":
        """Do as `of` for records that come in parts, each with all the records of its images.

        Of a part no more than its outcomes stays in memory.

        Parameters
        ----------
        blocks : iterable of pandas.DataFrame
            The records of some images each, such as `pdutils.store.StoredRecords.blocks` gives.
        decision : {"one", "majority", "mean", "worst"}
            As in `pdutils.outcomes.outcomes`.

        Returns
        -------
        Cells

        Raises
        ------
        ValueError
            As `pdutils.outcomes.outcomes`, or if there is no block.
        """
        found = [outcomes(block, decision) for block in blocks]
        if not found:
            raise ValueError("records: expected at least one row, got none")
        texts = {name: _categories(found, name) for name in ("attack", "defense", "image")}
        parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
        for block in found:
            recoded = block.assign(
                **{name: block[name].cat.set_categories(known) for name, known in texts.items()}
            )
            for key, cell in recoded.groupby(["attack", "defense"], observed=True, sort=False):
                parts.setdefault((str(key[0]), str(key[1])), []).append(cell)
        cells = {key: pd.concat(several) for key, several in parts.items()}
        return cls(texts["attack"], texts["defense"], cells, len(texts["image"]))

    @property
    def made(self) -> list[str]:
        """The attacks without "none"."""
        return [attack for attack in self.attacks if attack != "none"]

    def accuracy(self, protocol: str = "paper") -> Rates:
        """Give the share of images classified right, for each defence and attack.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then attack. None where nothing was evaluated or no image counts.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        marked = self._marked(counted=lambda cell: _counted(cell, protocol))
        return marked._rates(self.attacks, "right", "counted")

    def destruction(self) -> Rates:
        """Give the share of adversaries that are turned back.

        An adversary counts if it succeeded without a defence on an image right when clean; it is
        turned back if the defended network sees the true class (the destruction rate of Kurakin
        2017, arXiv 1607.02533, as in Table 4 of the paper).

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then attack, without "none". None where no adversary succeeded.
        """
        marked = self._marked(counted=lambda cell: cell["success"] & cell["right_clean"])
        return marked._rates(self.made, "right", "counted")

    def check_successes(self, attacks: Iterable[str]) -> None:
        """Refuse to go on with an attack that leaves nothing to turn back.

        Parameters
        ----------
        attacks : iterable of str
            Those whose destruction rate is wanted.

        Raises
        ------
        ValueError
            If one of them fooled the network on no image that is right when clean.
        """
        turned = self.destruction()
        for attack in attacks:
            if all(rates[attack] is None for rates in turned.values()):
                raise ValueError(
                    f"{attack} fooled the network on none of the images that are right when clean, "
                    "so there is nothing to turn back: take a stronger one"
                )

    def targeted_success(self, protocol: str = "plain") -> Rates:
        """Give the share of adversaries that are seen as the class that the attack aims at.

        With the decision "worst" an attack reaches its target if any run sees it.

        Parameters
        ----------
        protocol : {"plain", "paper"}
            All images, or only those right when clean.

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then targeted attack; other attacks are left out.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        aimed = {attack for (attack, _), cell in self.cells.items() if (cell["target"] >= 0).any()}
        marked = self._marked(
            counted=lambda cell: _counted(cell, protocol) & (cell["target"] >= 0),
            reached=lambda cell: cell["predicted"] == cell["target"],
        )
        return marked._rates([a for a in self.attacks if a in aimed], "reached", "counted")

    def strengths(self, protocol: str = "paper") -> Strengths:
        """Give the strength of each attack, without which no rate means anything.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of (str, str or None) to Strength
            By attack, without "none", and by defence where the attack made another adversary for
            each; else None stands for the defence.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        measured: Strengths = {}
        for attack in self.made:
            cells = {d: self.cells[attack, d] for d in self.defenses if (attack, d) in self.cells}
            if _adaptive(cells.values()):
                measured |= {(attack, d): _strength(cell, protocol) for d, cell in cells.items()}
            else:
                once = pd.concat(cells.values()).drop_duplicates("image")
                measured[attack, None] = _strength(once, protocol)
        return measured

    def strength(self, protocol: str = "paper") -> dict[str, Strength]:
        """Do as `strengths`, by name: "attack against defence" where it is another for each.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of str to Strength

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        return {
            attack if defense is None else f"{attack} against {defense}": measured
            for (attack, defense), measured in self.strengths(protocol).items()
        }

    def paired(
        self, attack: str, first: str, second: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two defences on the same images under one attack.

        Parameters
        ----------
        attack, first, second : str
            The attack ("none" for clean images) and the two defences.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right with the first minus the share that is right with the second.

        Raises
        ------
        ValueError
            If there is no such protocol, no such attack with such a defence, the two were
            evaluated on different images, or no image counts.
        """
        return _paired(self, self, (attack, first), (attack, second), protocol)

    def between_attacks(
        self, defense: str, first: str, second: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two attacks on the same images with one defence.

        Parameters
        ----------
        defense, first, second : str
            The defence and the two attacks.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right under the first minus the share that is right under the second.

        Raises
        ------
        ValueError
            If there is no such protocol, no such attack with such a defence, or no image counts.
        """
        return _paired(self, self, (first, defense), (second, defense), protocol)

    def against(
        self, other: "Cells", attack: str, defense: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two decisions on the same images.

        Parameters
        ----------
        other : Cells
            The same records under the other decision.
        attack, defense : str
            The attack and the defence.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right here minus the share that is right there.

        Raises
        ------
        ValueError
            As `between_attacks`.
        """
        return _paired(self, other, (attack, defense), (attack, defense), protocol)

    def difference(
        self, attack: str, first: str, second: str, protocol: str
    ) -> PairedDifference | None:
        """Do as `paired`, but give None for a comparison that cannot be made.

        Parameters
        ----------
        attack, first, second, protocol
            As in `paired`.

        Returns
        -------
        PairedDifference or None

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        try:
            return self.paired(attack, first, second, protocol)
        except ComparisonError:
            return None

    def _rates(self, attacks: Iterable[str], hits: str, of: str) -> Rates:
        """Count a column of hits over the images that another column marks."""

        def rate(cell: pd.DataFrame | None) -> Rate | None:
            counted = None if cell is None else cell[hits].to_numpy()[cell[of].to_numpy()]
            return None if counted is None or len(counted) == 0 else Rate.of(counted)

        return {
            defense: {attack: rate(self.cells.get((attack, defense))) for attack in attacks}
            for defense in self.defenses
        }

    def _marked(self, **columns: Any) -> "Cells":
        """Add columns, each made by a function of a cell."""
        cells = {key: cell.assign(**columns) for key, cell in self.cells.items()}
        return Cells(self.attacks, self.defenses, cells, self.images)


def _paired(
    first: Cells, second: Cells, one: tuple[str, str], other: tuple[str, str], protocol: str
) -> PairedDifference:
    """Compare the cell `one` of the first with the cell `other` of the second."""
    check_word("protocol", protocol, PROTOCOLS)
    for cells, (attack, defense) in ((first, one), (second, other)):
        if (attack, defense) not in cells.cells:
            raise ComparisonError(
                f"expected records of attack {attack!r} with defence {defense!r}, got the attacks "
                f"{', '.join(cells.attacks)} and the defences {', '.join(cells.defenses)}"
            )
    left, right = first.cells[one], second.cells[other]
    if list(left["image"]) != list(right["image"]):
        raise ComparisonError(
            f"expected {' with '.join(one)} and {' with '.join(other)} on the same images, got "
            f"{len(left)} and {len(right)} images"
        )
    counted = _counted(left, protocol)
    if not counted.any():
        raise ComparisonError("expected an image that is right when clean, got none")
    return PairedDifference.of(
        left["right"].to_numpy()[counted], right["right"].to_numpy()[counted]
    )


def named(
    rates: Rates, defenses: Mapping[str, str], attacks: Mapping[Key, str]
) -> dict[str, dict[Key, Rate | None]]:
    """Pick rates and call their defences and attacks by other names.

    Parameters
    ----------
    rates : dict of str to dict of str to (Rate or None)
        As `Cells` gives them, by the texts of defences and attacks.
    defenses : mapping of str to str
        The texts of the defences wanted, by name.
    attacks : mapping of key to str
        The texts of the attacks wanted, by name, or by the value of the knob that is moved.

    Returns
    -------
    dict of str to dict of key to (Rate or None)

    Raises
    ------
    KeyError
        If one of them was not evaluated.
    """
    return {
        name: {key: rates[text][attack] for key, attack in attacks.items()}
        for name, text in defenses.items()
    }


def _categories(found: Iterable[pd.DataFrame], name: str) -> list[str]:
    """List the texts of a column in the order in which they are first seen."""
    return list(dict.fromkeys(text for block in found for text in block[name].cat.categories))


def _counted(cell: pd.DataFrame, protocol: str) -> NDArray[np.bool_]:
    right_clean: NDArray[np.bool_] = cell["right_clean"].to_numpy()
    return right_clean if protocol == "paper" else np.ones_like(right_clean)


def _adaptive(cells: Iterable[pd.DataFrame]) -> bool:
    """Tell whether the adversaries of one attack differ between defences."""
    kinds = pd.concat([cell[["image", "l2", "linf", "success", "target"]] for cell in cells])
    kinds = kinds.drop_duplicates()
    return bool(kinds["image"].duplicated().any())


def _strength(cell: pd.DataFrame, protocol: str) -> Strength:
    right = cell["right_clean"].to_numpy()
    success = cell["success"].to_numpy()
    counted = _counted(cell, protocol)

    def mean(name: str, which: NDArray[np.bool_]) -> Mean | None:
        values = cell[name].to_numpy()[which]
        return Mean.of(values) if len(values) else None

    return Strength(
        n=int(counted.sum()),
        success=Rate.of(success[right]) if right.any() else None,
        l2=mean("l2", counted),
        linf=mean("linf", counted),
        l2_of_successes=mean("l2", success & right),
        linf_of_successes=mean("linf", success & right),
    )
