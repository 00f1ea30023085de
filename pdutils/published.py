"""What the paper and the blog report, and what a run says to it, in words.

The figures stand in `published.toml`, with their sources. All are against attackers who do not know
of the defence. Neither states how many images or which; no interval can be given.

The functions choose their words from a run's numbers and intervals, in Markdown: a title says what
is asked ("PD + WD against WD"), and a claim what was claimed of it.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pdutils._utils import check_one_of, extra
from pdutils.stats import Mean, PairedDifference, Rate

with extra("evaluation"):
    import pandas as pd

#: What a run says of a claim.
STANCES = ("agrees", "disagrees", "not told apart")

#: Probabilities whose difference lies within this, interval and all, are equal: two decimals
#: hardly show it.
_NEAR = 0.005


class Claim(NamedTuple):
    """What the blog or the paper claims of a comparison, and by whom, in words.

    The direction says what the first of the two would be: "more", "fewer", "as many" or "no more".
    """

    text: str
    direction: str


def blog_answer(step: str) -> Claim | None:
    """Say what the blog's network sees at one of the blog's steps, such as "PD 200".

    "more": the true class, "fewer": another one. None where the blog does not state it.
    """
    true, attacked = BLOG.get(step, (None, None))
    if true is None:
        return None
    if attacked is not None and attacked > true:
        text = f"The blog's network sees a skunk, {attacked:.2f}, and not the badger, {true:.2f}"
        return Claim(text, "fewer")
    return Claim(f"The blog's network sees its badger, {true:.2f}", "more")


def blog_move(before: str, after: str) -> Claim | None:
    """Say how the blog's badger fares from one of its steps to another; None without both."""
    first, second = BLOG.get(before, (None,))[0], BLOG.get(after, (None,))[0]
    if first is None or second is None:
        return None
    if first == second:
        return Claim(f"The blog's badger stays at {first:.2f}", "as many")
    verb, direction = ("rises", "more") if second > first else ("falls", "fewer")
    return Claim(f"The blog's badger {verb} from {first:.2f} to {second:.2f}", direction)


class Recovery(NamedTuple):
    """A row of the paper's table of one network: the relative L2 of an attack, and accuracies.

    They are top-1: of the undefended network under it, and with the defence, one run and the
    majority of ten.
    """

    l2: float
    attacked: float
    single: float
    majority: float


_Claim = Claim | None
_Numbers = NDArray[Any]

_TEXT = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
# What is not stated, nan there, is None here.
_TOLD = tomllib.loads(_TEXT, parse_float=lambda text: None if text == "nan" else float(text))

#: The blog's probabilities of badger (true) and skunk (attack) at its steps.
BLOG: dict[str, tuple[float | None, float | None]] = {
    step: (true, attacked) for step, (true, attacked) in _TOLD["blog"].items()
}
CLAIMS = {name: Claim(*claim) for name, claim in _TOLD["claims"].items()}

#: Accuracies by network and attack, and those for larger perturbations, ResNet-50.
ACCURACY: dict[str, dict[str, Recovery]] = {
    network: {attack: Recovery(*row) for attack, row in rows.items()}
    for network, rows in _TOLD["accuracy"].items()
}
LARGER = {attack: Recovery(*row) for attack, row in _TOLD["larger"].items()}

#: The share of adversaries that a defence turns back, by attack.
DESTRUCTION: dict[str, dict[str, float | None]] = {
    defense: dict(zip(("FGSM", "IGSM", "DeepFool", "C&W"), rates, strict=True))
    for defense, rates in _TOLD["destruction"].items()
}

#: What an attacker who knows of the defence leaves of it (Athalye and Carlini 2018).
BROKEN: dict[str, float] = _TOLD["broken"]

#: The authors' three published adversaries: the range of their relative L2, and of the greatest
#: change of a channel, in grey levels (but for two values of one of them, which wrapped round).
AUTHORS_L2, AUTHORS_LINF = (0.0045, 0.014), (2, 4)


def direction(
    found: Rate | Mean | PairedDifference, reference: float = 0.0, *, margin: float = 0.0
) -> str:
    """Say on which side of a value an interval lies: "more", "fewer", "as many", "not told apart".

    The reference is 0 for a difference, 1 for a ratio, a published figure for a rate. Within the
    margin from it counts as equal; without one no interval can show equality. The 95% interval lies
    beyond the margin, above or below, or inside it; anything else, and a mean of one value, is not
    told apart. Of a paired difference and 0 it is the difference's own verdict, which asks for
    McNemar's test too, as that of a rate and a figure asks for the exact binomial test: for few
    images only the tests are exact.
    """
    if isinstance(found, PairedDifference) and reference == margin == 0:
        return found.verdict
    test = binomtest(found.successes, found.n, reference) if isinstance(found, Rate) else None
    if test and margin == 0 and test.pvalue >= 0.05:
        return "not told apart"
    low, high = (end - reference for end in found.interval)
    # Bounds that differ by less are equal but for their rounding.
    beyond = margin + 1e-12
    if low > beyond:
        return "more"
    if high < -beyond:
        return "fewer"
    return "as many" if margin > 0 and -margin <= low and high <= margin else "not told apart"


def stance(found: str, claimed: str) -> str:
    """Say what a finding, as `direction` gives it, says of a claim, which may be "no more" too."""
    check_one_of("claimed", claimed, ("more", "fewer", "as many", "no more"))
    if found == "not told apart":
        return found
    fitting = ("fewer", "as many") if claimed == "no more" else (claimed,)
    return "agrees" if found in fitting else "disagrees"


def compared(
    title: str, difference: PairedDifference, claim: _Claim = None, *, what: str = "right"
) -> str:
    """Say which of two rates on the same images is greater, the first or the second.

    "**title**: more are right, 0.78 against 0.65 (difference ...)."
    """
    first, second = difference.first.value, difference.second.value
    seen = direction(difference)
    if difference.first_only == difference.second_only == 0:
        finding = f"the same on each of {difference.n} images, {first:.2f} {what}"
    else:
        opening = seen if seen == "not told apart" else f"{seen} are {what}"
        both = f"{first:.2f} against {second:.2f}"
        finding = f"{opening}, {both} (difference {difference}, n = {difference.n})"
    return _sentence(title, finding, seen, claim) + f" {difference.note}".rstrip()


def compared_means(
    title: str, first: _Numbers, second: _Numbers, claim: _Claim = None, *, what: str = "on average"
) -> str:
    """Say which of two numbers (n,) of the same images is greater on average.

    "**title**: more, on average 0.95 against 0.80 (difference ..., n = 50)."
    """
    difference = Mean.of(first.astype(np.float64) - second, least=-np.inf)
    seen, both = direction(difference), f"{first.mean():.2f} against {second.mean():.2f}"
    finding = f"{seen}, {what} {both} (difference {_signed(difference)}, n = {difference.n})"
    return _sentence(title, finding, seen, claim)


def moved(
    title: str, before: _Numbers | float, after: _Numbers | float, claim: _Claim = None
) -> str:
    """Say whether a number, such as the probability of one image's true class, rises or falls.

    There is one number, or one for each draw (draws,), the i-th of both of the same draw; a single
    one stands beside every draw. Numbers without draws have no interval: they rise or fall by what
    their two decimals show. With draws it is the 95% interval of the mean difference that says so;
    if all of it lies within half a hundredth, the number stays. "more" claims a rise.
    """
    first, second = np.atleast_1d(before), np.atleast_1d(after)
    gains = second.astype(np.float64) - first
    begin, end = f"{first.mean():.2f}", f"{second.mean():.2f}"
    stays, note = begin == end, ""
    if len(gains) > 1:
        mean = Mean.of(gains, least=-np.inf)
        stays = direction(mean, margin=_NEAR) == "as many"
        seen = "as many" if stays else direction(mean)
        by = f"to within {_NEAR}" if stays else f"by {_signed(mean)}"
        note = f" ({by}, {mean.n} draws)"
    elif stays:
        # Two decimals agree with a claim that nothing moves, and leave open which way it does.
        still = claim is not None and claim.direction == "as many"
        seen = "as many" if still else "not told apart"
    else:
        seen = "more" if gains[0] > 0 else "fewer"
    verbs = {"more": "rises", "fewer": "falls", "not told apart": "not told apart,"}
    finding = f"{'stays,' if stays else verbs[seen]} from {begin} to {end}"
    if stays and begin == end:
        finding = f"stays at {begin}"
    said = _sentence(title, finding + note, seen, claim)
    # A rise by a hundredth is no rise by a half, though both are rises.
    return said if seen == "as many" else re.sub(r": agrees\.$", ": agrees in direction.", said)


def _signed(mean: Mean) -> str:
    """Write a mean difference with its interval, a small one with three decimals."""
    digits = 2 if abs(mean.value) >= 0.03 else 3
    by, low, high = (f"{value:+.{digits}f}" for value in (mean.value, *mean.interval))
    return f"{by} [{low}, {high}]"


def seen_as(
    title: str, probabilities: _Numbers, label: int, names: Sequence[str], claim: _Claim = None
) -> str:
    """Say what a network sees in an image, in one draw or in several.

    It is the top answer of the probabilities (K,) or (draws, K), in how many of the draws, and the
    mean probability of it and of the true class. A claim, such as `blog_answer` gives ("more": the
    true class is seen), is held against the share of draws that see the true class, which must be
    told apart from one half.
    """
    draws = np.atleast_2d(probabilities)
    answers, mean = draws.argmax(axis=1), draws.mean(axis=0)
    top = int(np.bincount(answers).argmax())
    often = f" in {np.sum(answers == top)} of {len(draws)} draws" if len(draws) > 1 else ""
    true = "" if top == label else f"; {names[label]} has {mean[label]:.2f}"
    right = direction(Rate.of(answers == label), 0.5)
    if len(draws) == 1:
        right = "more" if top == label else "fewer"
    return _sentence(title, f"seen as {names[top]}{often}, {mean[top]:.2f}{true}", right, claim)


def changed(title: str, before: _Numbers, after: _Numbers) -> str:
    """Say how many pixels differ between two images, in how many channels, and by how much."""
    difference = np.abs(after - before)
    channels = np.count_nonzero(difference, axis=-1)
    pixels, n = np.count_nonzero(channels), channels.size
    if not pixels:
        return f"**{title}**: not one of {n} pixels changed."
    values = difference[difference > 0]
    return (
        f"**{title}**: {pixels} of {n} pixels changed ({pixels / n:.1%}), "
        f"{np.mean(channels[channels > 0] == 1):.0%} of them in one channel alone. Half of the "
        f"changed values moved by {np.median(values):.0f} grey levels or less, the greatest by "
        f"{values.max():.0f}."
    )


def sized(title: str, found: Mean, reference: Mean, *, what: str = "relative L2") -> str:
    """Say how many times as large one mean is as another, such as two perturbations."""
    ratio = f"{found.value / reference.value:.2g} times as large, " if reference.value else ""
    return f"**{title}**: {ratio}{what} {found.value:.3g} against {reference.value:.3g}."


def extremes(title: str, rates: Mapping[Any, Rate]) -> str:
    """Name the least and the greatest of some rates, each by its name or the value of a knob."""
    by_value: dict[float, list[Any]] = {}
    for name, rate in rates.items():
        by_value.setdefault(rate.value, []).append(name)
    if len(by_value) == 1:
        return f"**{title}**: the same for all, {next(iter(rates.values()))}."
    least, most = (
        f"{', '.join(map(str, names))} ({rates[names[0]]})"
        for names in (by_value[min(by_value)], by_value[max(by_value)])
    )
    return f"**{title}**: least for {least}, most for {most}."


def step_table(
    steps: Mapping[str, NDArray[Any]], *, label: int, attacked_label: int, names: tuple[str, ...]
) -> pd.DataFrame:
    """Set the class probabilities at each step, (K,) or (draws, K), beside the blog's.

    A row has the mean probability of the two classes, the class that is seen most, the range of the
    true class's probability if there are several draws, and the blog's numbers where it has that
    step.
    """
    several = any(np.ndim(found) == 2 and len(found) > 1 for found in steps.values())
    rows = []
    for step, found in steps.items():
        draws = np.atleast_2d(found)
        true, blog = draws[:, label], BLOG.get(step, (None, None))
        row: dict[str, Any] = {"step": step, names[label]: true.mean()}
        if attacked_label != label:
            row[names[attacked_label]] = draws[:, attacked_label].mean()
        row["seen as"] = names[np.bincount(draws.argmax(axis=1)).argmax()]
        if several:
            ends = f"{true.min():.2f} to {true.max():.2f}"
            row |= {"draws": len(draws), "range": ends if len(draws) > 1 else ""}
        stated = ", ".join(f"{number:.2f}" for number in blog if number is not None)
        rows.append(row | {"blog: badger, skunk": stated or None})
    table = pd.DataFrame(rows).set_index("step").dropna(axis="columns", how="all").fillna("")
    return table.map(lambda cell: f"{cell:.2f}" if isinstance(cell, float) else str(cell))


def beside(
    rates: Mapping[str, Rate], figures: Mapping[str, float | None], source: str
) -> pd.DataFrame:
    """Set measured rates beside published figures, and say where they differ.

    A row for each rate: it, the figure under the name of its source, and whether the two differ by
    the interval and by the exact test ("disagrees, more here") or not ("not told apart"); dashes
    where there is no figure.
    """
    rows = {}
    for name, rate in rates.items():
        shown = verdict = "-"
        figure = figures.get(name)
        if figure is not None:
            shown, verdict = f"{figure:.2f}", direction(rate, figure)
            if verdict != "not told apart":
                verdict = f"disagrees, {verdict} here"
        rows[name] = {"here": f"{rate}, n = {rate.n}", source: shown, "verdict": verdict}
    return pd.DataFrame.from_dict(rows, orient="index")


def listed(title: str, words: Mapping[str, str], order: Sequence[str] = ()) -> str:
    """Gather names by the word that was found for each.

    "**title**: *more*: a, b; *fewer*: none." The words of `order` are listed first, also where
    nothing has them; the others as they come.
    """
    groups: dict[str, list[str]] = {word: [] for word in order}
    for name, word in words.items():
        groups.setdefault(word, []).append(name)
    said = [f"*{word}*: {', '.join(names) or 'none'}" for word, names in groups.items()]
    return f"**{title}**: {'; '.join(said)}."


def unlike_the_blog(
    network: str, names: tuple[str, str], steps: Mapping[str, _Numbers], *, l2: float, linf: float
) -> Any:
    """Say where a run's numbers differ from the blog's, and what may make them differ.

    `names` are the true class and that of the attack, whose probabilities in each draw are the
    columns of each step (draws, 2); one step is "adversary", whose relative L2 and L-infinity are
    given too.
    """
    blog = {step: true for step, (true, _) in BLOG.items() if step in steps and true is not None}
    true = {step: steps[step][:, 0] for step in steps if step in blog}
    both = ", ".join(
        f"{blog[step]:.2f} and {found.mean():.2f} ({step})" for step, found in true.items()
    )
    start = steps["adversary"].mean(axis=0)
    there = "the same, ResNet-50" if network == "resnet50" else f"ResNet-50 there, {network} here"
    badger, skunk = BLOG["adversary"]
    # The blog's clean badger owes its 1.00 to no draw.
    drawn = {s: p for s, p in true.items() if len(p) > 1 and not s.startswith("clean")}
    luck = "and at the blog's steps no more than one here"
    if drawn:
        within = [s for s, p in drawn.items() if p.min() <= blog[s] <= p.max()]
        beyond = [s for s in drawn if s not in within]
        luck = (
            f"{len(next(iter(drawn.values())))} here; the blog's number lies within what they "
            f"reach at {' and '.join(within) or 'no step'}, and outside, where luck alone does "
            f"not explain it, at {' and '.join(beyond) or 'no step'}"
        )
    return _markdown(
        f"The blog's badger and {names[0]} here: {both}. Besides the image three "
        f"things may differ. *The network*: {there}. *The attack's strength*: the way back "
        f"begins at badger {badger:.2f} against skunk {skunk:.2f} there, at {names[0]} "
        f"{start[0]:.2f} against {names[1]} {start[1]:.2f} here; the authors' three published "
        f"adversaries have a relative L2 of {AUTHORS_L2[0]} to {AUTHORS_L2[1]} and an L-infinity "
        f"of {AUTHORS_LINF[0]} or {AUTHORS_LINF[1]}, ours {l2:.4f} and {linf:.0f}. "
        f"*Draws*: one there, {luck}."
    )


def bullets(*sentences: str) -> Any:
    """Show sentences in Markdown as a list, as the last value of a notebook's cell."""
    return _markdown("\n".join(f"- {sentence}" for sentence in sentences))


def _markdown(text: str) -> Any:
    with extra("notebooks"):
        from IPython.display import Markdown
    return Markdown(text)  # type: ignore[no-untyped-call]


def _sentence(title: str, finding: str, found: str, claim: _Claim) -> str:
    claimed = "" if claim is None else f" {claim.text}: {stance(found, claim.direction)}."
    return f"**{title}**: {finding}.{claimed}"
