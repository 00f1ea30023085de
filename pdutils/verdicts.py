"""Verdicts in words, chosen from the numbers of a run and their intervals.

The prose of a notebook says what is done and how to read a figure; what came out is said by these
functions, in Markdown, and what the blog or the paper claims stands beside it: a title says what is
asked ("PD + WD against WD"), and a claim what was claimed of it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pdutils._utils import check_one_of, extra
from pdutils.published import AUTHORS_L2, AUTHORS_LINF, BLOG, Claim
from pdutils.stats import Mean, PairedDifference, Rate

with extra("notebooks"):
    import pandas as pd
    from IPython.display import Markdown

#: What an interval says of a value: beside another, all of it lies above or below, or all of it so
#: near that the two count as equal, or none of these.
Direction = Literal["more", "fewer", "as many", "not told apart"]

#: What a run says of a claim.
Stance = Literal["agrees", "disagrees", "not told apart"]

STANCES: tuple[Stance, ...] = ("agrees", "disagrees", "not told apart")

#: Probabilities whose difference lies within this, interval and all, are equal: two decimals
#: hardly show it.
_NEAR = 0.005

#: Bounds that differ by less are equal but for their rounding.
_TINY = 1e-12


def direction(
    found: Rate | Mean | PairedDifference, reference: float = 0.0, *, margin: float = 0.0
) -> Direction:
    """Say on which side of a value an interval lies.

    The reference is 0 for a difference, 1 for a ratio, a published figure for a rate. Within the
    margin from it counts as equal; without one no interval can show equality. The 95% interval lies
    beyond the margin, above or below, or inside it; anything else, and a mean of one value, is not
    told apart. Of a paired difference and 0 it is the difference's own verdict, which asks for
    McNemar's test too, as that of a rate and a figure asks for the exact binomial test: for few
    images only the tests are exact.
    """
    if isinstance(found, PairedDifference) and reference == margin == 0:
        return cast(Direction, found.verdict)
    if isinstance(found, Rate) and margin == 0:
        test = stats.binomtest(found.successes, found.n, reference)
        if test.pvalue >= 0.05:
            return "not told apart"
    low, high = found.interval
    if low > reference + margin + _TINY:
        return "more"
    if high < reference - margin - _TINY:
        return "fewer"
    inside = low >= reference - margin and high <= reference + margin
    return "as many" if margin > 0 and inside else "not told apart"


def stance(found: Direction, claimed: str) -> Stance:
    """Say what a finding, as `direction` gives it, says of a claim, which may be "no more" too."""
    check_one_of("claimed", claimed, ("more", "fewer", "as many", "no more"))
    if found == "not told apart":
        return "not told apart"
    fitting = ("fewer", "as many") if claimed == "no more" else (claimed,)
    return "agrees" if found in fitting else "disagrees"


def compared(
    title: str, difference: PairedDifference, claim: Claim | None = None, *, what: str = "right"
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
        finding = (
            f"{opening}, {first:.2f} against {second:.2f} "
            f"(difference {difference}, n = {difference.n})"
        )
    note = f" {difference.note}" if difference.note else ""
    return _sentence(title, finding, seen, claim) + note


def moved(
    title: str,
    before: NDArray[Any] | float,
    after: NDArray[Any] | float,
    claim: Claim | None = None,
) -> str:
    """Say whether a number, such as the probability of one image's true class, rises or falls.

    There is one number, or one for each draw (draws,), the i-th of both of the same draw; a single
    one stands beside every draw. Numbers without draws have no interval: they rise or fall by what
    their two decimals show. With draws it is the 95% interval of the mean difference that says so;
    if all of it lies within half a hundredth, the number stays. "more" claims a rise.
    """
    first, second = np.atleast_1d(before), np.atleast_1d(after)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"expected as many draws of both, got {len(first)} and {len(second)}")
    gains = second.astype(np.float64) - first.astype(np.float64)
    seen, note = _move(gains)
    begin, end = f"{first.mean():.2f}", f"{second.mean():.2f}"
    if len(gains) == 1 and begin == end:
        # Two decimals agree with a claim that nothing moves, and leave open which way it does.
        still = claim is not None and claim.direction == "as many"
        return _sentence(
            title, f"stays at {begin}", "as many" if still else "not told apart", claim
        )
    stays = f"stays at {begin}" if begin == end else f"stays, from {begin} to {end}"
    verbs = {"more": "rises", "fewer": "falls", "not told apart": "not told apart,"}
    finding = stays if seen == "as many" else f"{verbs[seen]} from {begin} to {end}"
    said = _sentence(title, finding + note, seen, claim)
    # A rise by a hundredth is no rise by a half, though both are rises.
    return said if seen == "as many" else re.sub(r": agrees\.$", ": agrees in direction.", said)


def _move(gains: NDArray[np.float64]) -> tuple[Direction, str]:
    if len(gains) == 1:
        return ("more" if gains[0] > 0 else "fewer"), ""
    mean = Mean.of(gains, least=-np.inf)
    if direction(mean, margin=_NEAR) == "as many":
        return "as many", f" (to within {_NEAR}, {mean.n} draws)"
    return direction(mean), f" (by {_signed(mean)}, {mean.n} draws)"


def _signed(mean: Mean) -> str:
    """Write a mean difference with its interval, a small one with three decimals."""
    digits = 2 if abs(mean.value) >= 0.03 else 3
    by, low, high = (f"{value:+.{digits}f}" for value in (mean.value, *mean.interval))
    return f"{by} [{low}, {high}]"


def compared_means(
    title: str,
    first: NDArray[Any],
    second: NDArray[Any],
    claim: Claim | None = None,
    *,
    what: str = "on average",
) -> str:
    """Say which of two numbers (n,) of the same images is greater on average.

    "**title**: more, on average 0.95 against 0.80 (difference ..., n = 50)."
    """
    if first.shape != second.shape:
        raise ValueError(f"expected as many images of both, got {first.shape} and {second.shape}")
    difference = Mean.of(first.astype(np.float64) - second.astype(np.float64), least=-np.inf)
    seen = direction(difference)
    finding = (
        f"{seen}, {what} {first.mean():.2f} against {second.mean():.2f} "
        f"(difference {_signed(difference)}, n = {difference.n})"
    )
    return _sentence(title, finding, seen, claim)


def seen_as(
    title: str,
    probabilities: NDArray[Any],
    label: int,
    names: Sequence[str],
    claim: Claim | None = None,
) -> str:
    """Say what a network sees in an image, in one draw or in several.

    It is the top answer of the probabilities (K,) or (draws, K), in how many of the draws, and the
    mean probability of it and of the true class. A claim, such as `pdutils.published.blog_answer`
    gives ("more": the true class is seen), is held against the share of draws that see the true
    class, which must be told apart from one half.
    """
    draws = np.atleast_2d(probabilities)
    tops = np.bincount(draws.argmax(axis=1), minlength=draws.shape[1])
    top = int(tops.argmax())
    often = f" in {tops[top]} of {len(draws)} draws" if len(draws) > 1 else ""
    mean = draws.mean(axis=0)
    true = "" if top == label else f"; {names[label]} has {mean[label]:.2f}"
    finding = f"seen as {names[top]}{often}, {mean[top]:.2f}{true}"
    return _sentence(title, finding, _right(draws, label), claim)


def _right(draws: NDArray[Any], label: int) -> Direction:
    """Say whether more than half of the draws see the true class, or fewer."""
    hits = draws.argmax(axis=1) == label
    if len(draws) == 1:
        return "more" if hits[0] else "fewer"
    return direction(Rate.of(hits), 0.5)


def changed(title: str, before: NDArray[Any], after: NDArray[Any]) -> str:
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
    both = f"{what} {found.value:.3g} against {reference.value:.3g}"
    if reference.value == 0:
        return f"**{title}**: {both}."
    return f"**{title}**: {found.value / reference.value:.2g} times as large, {both}."


def extremes(title: str, rates: Mapping[Any, Rate]) -> str:
    """Name the least and the greatest of some rates.

    Each has a name, or the value of a knob; those that tie are named together.
    """
    bounds = [choose(rate.value for rate in rates.values()) for choose in (min, max)]
    ends = [_named(rates, bound) for bound in bounds]
    if bounds[0] == bounds[1]:
        return f"**{title}**: the same for all, {next(iter(rates.values()))}."
    return f"**{title}**: least for {ends[0]}, most for {ends[1]}."


def _named(rates: Mapping[Any, Rate], value: float) -> str:
    names = [name for name, rate in rates.items() if rate.value == value]
    return f"{', '.join(map(str, names))} ({rates[names[0]]})"


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
            shown, side = f"{figure:.2f}", direction(rate, figure)
            verdict = side if side == "not told apart" else f"disagrees, {side} here"
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
    network: str,
    names: tuple[str, str],
    steps: Mapping[str, NDArray[Any]],
    *,
    l2: float,
    linf: float,
) -> Markdown:
    """Say where a run's numbers differ from the blog's, and what may make them differ.

    `names` are the true class and that of the attack, whose probabilities in each draw are the
    columns of each step (draws, 2); one step is "adversary", whose relative L2 and L-infinity are
    given too.
    """
    true = {step: found[:, 0] for step, found in steps.items()}
    blog = {step: BLOG[step][0] for step in steps if BLOG.get(step, (None,))[0] is not None}
    both = ", ".join(f"{blog[step]:.2f} and {true[step].mean():.2f} ({step})" for step in blog)
    start = steps["adversary"].mean(axis=0)
    there = "the same, ResNet-50" if network == "resnet50" else f"ResNet-50 there, {network} here"
    badger, skunk = BLOG["adversary"]
    text = (
        f"The blog's badger and {names[0]} here: {both}. Besides the image three "
        f"things may differ. *The network*: {there}. *The attack's strength*: the way back "
        f"begins at badger {badger:.2f} against skunk {skunk:.2f} there, at {names[0]} "
        f"{start[0]:.2f} against {names[1]} {start[1]:.2f} here; the authors' three published "
        f"adversaries have a relative L2 of {AUTHORS_L2[0]} to {AUTHORS_L2[1]} and an L-infinity "
        f"of {AUTHORS_LINF[0]} or {AUTHORS_LINF[1]}, ours {l2:.4f} and {linf:.0f}. "
        f"*Draws*: {_luck(true, blog)}"
    )
    return Markdown(text)  # type: ignore[no-untyped-call]


def _luck(true: Mapping[str, NDArray[Any]], blog: Mapping[str, float | None]) -> str:
    """Say whether the blog's one draw could have been one of these."""
    drawn = {step: found for step, found in true.items() if step in blog and len(found) > 1}
    # The blog's clean badger owes its 1.00 to no draw.
    drawn = {step: found for step, found in drawn.items() if not step.startswith("clean")}
    if not drawn:
        return "one there, and at the blog's steps no more than one here."
    reached = [step for step, p in drawn.items() if p.min() <= (blog[step] or 0.0) <= p.max()]
    missed = [step for step in drawn if step not in reached]
    ends = {"within what they reach at": reached, "outside what they reach at": missed}
    lies = ", and ".join(f"{where} {' and '.join(at)}" for where, at in ends.items() if at)
    alone = ", where luck alone does not explain it" * bool(missed)
    n = len(next(iter(drawn.values())))
    return f"one there, {n} here; the blog's number lies {lies}{alone}."


def bullets(*sentences: str) -> Markdown:
    """Show sentences in Markdown as a list, as the last value of a notebook's cell."""
    listing = "\n".join(f"- {sentence}" for sentence in sentences)
    return Markdown(listing)  # type: ignore[no-untyped-call]


def _sentence(title: str, finding: str, found: Direction, claim: Claim | None) -> str:
    claimed = "" if claim is None else f" {claim.text}: {stance(found, claim.direction)}."
    return f"**{title}**: {finding}.{claimed}"
