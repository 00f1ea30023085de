"""Records of evaluations, written out or drawn, for the tests of what is made of them."""

from collections import Counter
from functools import cache

import numpy as np
import pandas as pd

from pdutils.evaluation.report import Cells
from pdutils.evaluation.store import COLUMNS


def cell(image, attack, defense, predicted, mean=None, *, label=0, target=-1, right_clean=True,
         success=False, l2=0.0, linf=0.0, psnr=40.0, ssim=1.0):  # fmt: skip
    """The rows of one image, attack and defence: one for each class of `predicted`."""
    same = {"image": image, "attack": attack, "defense": defense, "label": label, "target": target,
            "right_clean": right_clean, "success": success, "l2": l2, "linf": linf, "psnr": psnr,
            "ssim": ssim, "p_label": 0.5, "p_attack": 0.25, "attack_class": 1, "rank": 1,
            "seconds": 0.01, "seed": 7}  # fmt: skip
    return [
        same | {"run": run, "predicted": seen, "mean_predicted": of_mean}
        for run, (seen, of_mean) in enumerate(zip(predicted, mean or predicted, strict=True))
    ]


def records_of(*cells) -> pd.DataFrame:
    return pd.DataFrame([row for rows in cells for row in rows])[list(COLUMNS)].astype(COLUMNS)


def small() -> pd.DataFrame:
    """Four images, of which d is wrong when clean; fgsm fools the network on all but c."""
    cells = []
    for image, right, fooled in (("a", 1, 1), ("b", 1, 1), ("c", 1, 0), ("d", 0, 1)):
        same = {"right_clean": bool(right)}
        size = {"success": bool(fooled), "l2": {"c": 0.03, "d": 0.05}.get(image, 0.01), "linf": 2.0}
        cells += [
            cell(image, "none", "none", [0 if right else 5], **same),
            cell(image, "none", "pd:deflections=200", [0, 0, 5] if image != "c" else [5, 5, 5],
                 **same),
            cell(image, "fgsm:eps=2", "none", [1 if fooled or not right else 0], **same, **size),
            cell(image, "fgsm:eps=2", "pd:deflections=200",
                 {"a": [1, 0, 0], "b": [0, 1, 1], "c": [0, 0, 0], "d": [0, 1, 0]}[image],
                 [1, 0, 0], **same, **size),
        ]  # fmt: skip
    return records_of(*cells)


@cache
def random_records(seed: int) -> pd.DataFrame:
    """Records of 25 images, with ties, one targeted attack and one made for each defence."""
    rng = np.random.default_rng(seed)
    right, labels = rng.random(25) < 0.7, rng.integers(0, 3, 25)
    cells = []
    for i in range(25):
        for attack in ("none", "igsm:eps=4", "aimed", "bpda"):
            for defense, runs in (("none", 1), ("wd", 1), ("pd:deflections=5", 3),
                                  ("pd:deflections=9", 4)):  # fmt: skip
                own = rng if attack == "bpda" else np.random.default_rng([seed, i, len(attack)])
                made = attack != "none"
                cells.append(
                    cell(
                        f"{i}.png", attack, defense, [*rng.integers(0, 3, runs)],
                        [*rng.integers(0, 3, runs)], label=labels[i], right_clean=right[i],
                        target=(labels[i] + own.integers(1, 3)) % 3 if attack == "aimed" else -1,
                        success=bool(own.random() < 0.6) and made, l2=own.random() * made,
                        linf=float(own.integers(1, 9)) * made,
                    )
                )  # fmt: skip
    return records_of(*cells)


def cells_of(records: pd.DataFrame, aggregate: str = "one") -> Cells:
    """Cells with the texts of attacks and of defences as their own names."""
    names = ({text: text for text in records[kind].unique()} for kind in ("attack", "defense"))
    return Cells.of([records], aggregate, *names)


def by_cell(records: pd.DataFrame) -> dict:
    cells: dict = {}
    for row in records.sort_values("run").itertuples():
        cells.setdefault((row.attack, row.defense, row.image), []).append(row)
    return cells


def decided(rows, aggregate: str) -> int:
    """The aggregate as a loop over the runs."""
    seen, mean, label = [row.predicted for row in rows], rows[-1].mean_predicted, rows[0].label
    if aggregate == "one":
        return seen[0]
    if aggregate == "mean":
        return mean
    if aggregate == "worst":
        wrong = [kind for kind in seen if kind != label]
        return rows[0].target if rows[0].target in wrong else (wrong or [label])[0]
    votes = Counter(seen)
    tied = [kind for kind in seen if votes[kind] == max(votes.values())]
    return mean if mean in tied else tied[0]
