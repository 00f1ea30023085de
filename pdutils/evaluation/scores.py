"""From the records of an evaluation to outcomes, rates and differences.

Records have one row for each image, attack, defence and run. An aggregate turns the runs of one
image, attack and defence into one outcome.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import check_one_of, extra
from pdutils.stats import Mean, PairedDifference, Rate

with extra("evaluation"):
    import pandas as pd

#: What the runs of a defence on an image amount to. Of tied classes the majority takes that of the
#: mean probability if it is among them, else the one seen first. Where the worst run is wrong, the
#: class is that which the attack aims at if any run saw it, else the first wrong one.
AGGREGATES: Mapping[str, str] = {
    "one": "the first run alone",
    "majority": "the class that most runs see; a tie goes to the class of the mean probability",
    "mean": "the class of the mean probability over the runs",
    "worst": "right only if every run is right",
}

#: Which images count. The paper's own protocol is the first.
PROTOCOLS: Mapping[str, str] = {
    "paper": "only images that the undefended network gets right when clean",
    "plain": "all images",
}

#: By defence, then attack; None where nothing was evaluated or no image counts.
Rates = dict[Hashable, dict[Hashable, Rate | None]]

#: A defence and an attack.
Pair = tuple[Hashable, Hashable]

_OF_A_CASE = ("label", "target", "right_clean", "success", "l2", "linf")


class ComparisonError(ValueError):
    """Two cells that were not evaluated, not on the same images, or of which no image counts."""


@dataclass(frozen=True)
class Strength:
    """How strong an attack was on the undefended network.

    `success` is of the images right when clean; `l2` (||x - x'|| / ||x||) and `linf` (in grey
    levels of 255) are over all n images that count, or over the successes among those right when
    clean. None stands where there is no such image.
    """

    n: int
    success: Rate | None
    l2: Mean | None
    linf: Mean | None
    l2_of_successes: Mean | None
    linf_of_successes: Mean | None


#: By attack, and by defence where the attack made another adversary for each, else None.
Strengths = dict[tuple[Hashable, Hashable | None], Strength]


@dataclass(frozen=True)
class Cells:
    """The outcomes of an evaluation under one aggregate, by the names of defences and attacks.

    `attacks` and `defenses` are the texts of the records by name; `cells` has for each pair of
    texts, attack and defence, a row an image.
    """

    attacks: dict[Hashable, str]
    defenses: dict[Hashable, str]
    cells: dict[tuple[str, str], pd.DataFrame]
    images: int

    @classmethod
    def of(
        cls,
        blocks: Iterable[pd.DataFrame],
        aggregate: str,
        attacks: Mapping[Hashable, str] | None = None,
        defenses: Mapping[Hashable, str] | None = None,
    ) -> "Cells":
        """Aggregate records, sorted as a store gives them, in blocks of whole images.

        Without names the texts of the records are the names.
        """
        check_one_of("aggregate", aggregate, tuple(AGGREGATES))
        parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
        images = 0
        for block in blocks:
            numbers, names = pd.factorize(block["image"])
            numbered = block.assign(image=images + numbers)
            images += len(names)
            for key, rows in numbered.groupby(["attack", "defense"], sort=False):
                parts.setdefault((str(key[0]), str(key[1])), []).append(_outcomes(rows, aggregate))
        cells = {key: pd.concat(several) for key, several in parts.items()}
        seen_attacks: dict[Hashable, str] = {text: text for text, _ in cells}
        seen_defenses: dict[Hashable, str] = {text: text for _, text in cells}
        return cls(
            dict(attacks) if attacks is not None else seen_attacks,
            dict(defenses) if defenses is not None else seen_defenses,
            cells,
            images,
        )

    def cell(self, defense: Hashable, attack: Hashable) -> pd.DataFrame | None:
        """Give the outcomes of one pair, or None where nothing was evaluated."""
        return self.cells.get((self.attacks[attack], self.defenses[defense]))

    @property
    def made(self) -> list[Hashable]:
        """The attacks but for the clean images."""
        return [name for name, text in self.attacks.items() if text != "none"]

    def accuracy(self, protocol: str) -> Rates:
        """Give the share of images classified right."""
        return self._rates(
            self.attacks, lambda cell: cell["right"], lambda cell: _counted(cell, protocol)
        )

    def destruction(self) -> Rates:
        """Give the share of adversaries, successful on images right when clean, seen rightly."""
        return self._rates(
            self.made,
            lambda cell: cell["right"],
            lambda cell: cell["success"] & cell["right_clean"],
        )

    def targeted_success(self, protocol: str) -> Rates:
        """Give the share of adversaries that are seen as the class that the attack aims at."""
        check_one_of("protocol", protocol, tuple(PROTOCOLS))
        aimed = {text for (text, _), cell in self.cells.items() if (cell["target"] >= 0).any()}
        return self._rates(
            [name for name, text in self.attacks.items() if text in aimed],
            lambda cell: cell["predicted"] == cell["target"],
            lambda cell: (cell["target"] >= 0) & _counted(cell, protocol),
        )

    def strengths(self, protocol: str) -> Strengths:
        """Give the strength of each attack, without which no rate means anything."""
        measured: Strengths = {}
        for attack in self.made:
            found = {name: self.cell(name, attack) for name in self.defenses}
            cells = {name: cell for name, cell in found.items() if cell is not None}
            if not cells:
                continue
            if _adaptive(cells.values()):
                measured |= {(attack, d): _strength(cell, protocol) for d, cell in cells.items()}
            else:
                once = pd.concat(cells.values()).drop_duplicates("image")
                measured[attack, None] = _strength(once, protocol)
        return measured

    def check_successes(self) -> None:
        """Refuse to go on with an attack that leaves nothing to turn back."""
        turned = self.destruction().values()
        for attack in self.made:
            if all(rates[attack] is None for rates in turned):
                raise ValueError(
                    f"{attack} fooled the network on none of the images that are right when clean, "
                    "so there is nothing to turn back: take a stronger one"
                )

    def _rates(self, attacks: Iterable[Hashable], hits: Any, counted: Any) -> Rates:
        """Count the hits over the images that count; both are functions of a cell."""

        def rate(cell: pd.DataFrame | None) -> Rate | None:
            found = None if cell is None else hits(cell).to_numpy()[np.asarray(counted(cell))]
            return None if found is None or len(found) == 0 else Rate.of(found)

        chosen = list(attacks)
        return {
            defense: {attack: rate(self.cell(defense, attack)) for attack in chosen}
            for defense in self.defenses
        }


def compare(first: Cells, one: Pair, second: Cells, other: Pair, protocol: str) -> PairedDifference:
    """Compare the cell `one` of the first with the cell `other` of the second, image by image."""
    found = []
    for cells, (defense, attack) in ((first, one), (second, other)):
        known = attack in cells.attacks and defense in cells.defenses
        cell = cells.cell(defense, attack) if known else None
        if cell is None:
            raise ComparisonError(
                f"expected records of attack {attack!r} with defence {defense!r}, got the attacks "
                f"{_listed(cells.attacks)} and the defences {_listed(cells.defenses)}"
            )
        found.append(cell)
    left, right = found
    if list(left["image"]) != list(right["image"]):
        raise ComparisonError(
            f"expected {_listed(one, ' under ')} and {_listed(other, ' under ')} on the same "
            f"images, got {len(left)} and {len(right)} images"
        )
    counted = _counted(left, protocol)
    if not counted.any():
        raise ComparisonError("expected an image that is right when clean, got none")
    return PairedDifference.of(
        left["right"].to_numpy()[counted], right["right"].to_numpy()[counted]
    )


def _listed(names: Iterable[Hashable], between: str = ", ") -> str:
    return between.join(map(str, names))


def _outcomes(rows: pd.DataFrame, aggregate: str) -> pd.DataFrame:
    """Decide each image of one attack and defence; all images have as many runs."""
    runs = int(rows["run"].max()) + 1
    first = rows.iloc[::runs]
    seen = rows["predicted"].to_numpy().reshape(-1, runs)
    mean = rows["mean_predicted"].to_numpy()[runs - 1 :: runs]
    columns = {name: first[name].to_numpy() for name in ("image", *_OF_A_CASE)}
    predicted = mean if aggregate == "mean" else _picked(seen, mean, columns, aggregate)
    right = predicted == columns["label"]
    return pd.DataFrame(columns | {"runs": runs, "predicted": predicted, "right": right})


def _picked(
    seen: NDArray[Any], mean: NDArray[Any], columns: Mapping[str, NDArray[Any]], aggregate: str
) -> NDArray[Any]:
    """Give the class of the first run of the greatest worth."""
    if aggregate == "one":
        return seen[:, 0]
    if aggregate == "majority":
        votes = (seen[:, :, None] == seen[:, None, :]).sum(axis=2)
        worth = 2 * votes + (seen == mean[:, None])
    else:
        wrong = seen != columns["label"][:, None]
        worth = wrong.astype(int) + (wrong & (seen == columns["target"][:, None]))
    return np.take_along_axis(seen, worth.argmax(axis=1)[:, None], axis=1)[:, 0]


def _counted(cell: pd.DataFrame, protocol: str) -> NDArray[np.bool_]:
    check_one_of("protocol", protocol, tuple(PROTOCOLS))
    right_clean: NDArray[np.bool_] = cell["right_clean"].to_numpy()
    return right_clean if protocol == "paper" else np.ones_like(right_clean)


def _adaptive(cells: Iterable[pd.DataFrame]) -> bool:
    """Tell whether the adversaries of one attack differ between defences."""
    kinds = pd.concat([cell[["image", "l2", "linf", "success", "target"]] for cell in cells])
    return bool(kinds.drop_duplicates()["image"].duplicated().any())


def _strength(cell: pd.DataFrame, protocol: str) -> Strength:
    right, success = cell["right_clean"].to_numpy(), cell["success"].to_numpy()
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
