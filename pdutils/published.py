"""What the paper and the blog report, and what a run says to it, in words.

Sources: Prakash, Moran, Garber, DiLillo, Storer 2018, arXiv 1801.08926, and the authors' blog post,
https://iamaaditya.github.io/2018/02/demo-for-pixel-deflection/. All of it is against attackers who
do not know of the defence. Neither states how many images or which; no interval can be given.

The functions choose their words from a run's numbers and intervals, in Markdown: a title says what
is asked ("PD + WD against WD"), and a claim what was claimed of it.
"""

import re
from collections.abc import Mapping, Sequence
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

#: The blog's probabilities of badger (true) and skunk (attack), as its notebook states them:
#: ResNet-50, one image, one draw. Its final table gives 0.75 for PD, which is PD 600.
BLOG: dict[str, tuple[float | None, float | None]] = {
    "clean": (1.00, 0.00),
    "clean, PD 200": (1.00, None),
    "clean, PD 600": (1.00, None),
    "adversary": (0.15, 0.59),
    "PD 200": (0.52, 0.25),
    "PD 600": (0.75, 0.16),
    "PD 200 + WD": (0.92, 0.07),
    "PD 1500 + R-CAM": (0.82, 0.12),
    "PD 1500 + R-CAM + WD": (0.97, 0.02),
}


class Claim(NamedTuple):
    """What the blog or the paper claims of a comparison, and by whom, in words.

    The direction says what the first of the two would be: "more", "fewer", "as many" or "no more".
    """

    text: str
    direction: str


_Claim = Claim | None
_Numbers = NDArray[Any]

#: What the blog says of its one image, the paper's destruction rates of IGSM, and what others say.
CLAIMS: dict[str, Claim] = {
    "pd": Claim("The blog's badger gains by PD, 0.15 to 0.52", "more"),
    "wd": Claim("The blog's badger gains by WD, 0.52 to 0.92", "more"),
    "map": Claim("The paper has more with the map, 0.91 against 0.88", "more"),
    "place": Claim("The blog says that attacks are not localised", "as many"),
    "robust": Claim("The paper proposes R-CAM as the map that an attack moves less", "more"),
    "spared": Claim("The paper lets the map spare the object, so that it is hurt less", "more"),
    "window": Claim("The blog says that window 20 looks better", "more"),
    "soft": Claim("The blog says that soft does better", "more"),
    "ycbcr": Claim("The blog says that YCbCr does better, by 1.6 points", "more"),
    "aware": Claim("Athalye and Carlini have fewer right, with PD + WD", "fewer"),
    "bias": Claim("The blog says that a bias does not help", "no more"),
    # Many images, with the map; the paper's one comparison of denoisers.
    "dct": Claim("The paper turns more of IGSM back with wavelets, 0.93 against 0.91", "more"),
}


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


#: The authors' three published adversaries: the range of their relative L2, and of the greatest
#: change of a channel, in grey levels (but for two values of one of them, which wrapped round).
AUTHORS_L2, AUTHORS_LINF = (0.0045, 0.014), (2, 4)


class Recovery(NamedTuple):
    """A row of the paper's table of one network: the relative L2 of an attack, and accuracies.

    They are top-1: of the undefended network under it, and with the defence, one run and the
    majority of ten.
    """

    l2: float
    attacked: float
    single: float
    majority: float


#: Of each attack a network's row after the other's, as in the paper's tables.
_ROWS: dict[str, tuple[float, ...]] = {
    "clean": (0.00, 1.000, 0.983, 0.989, 0.00, 1.000, 0.998, 0.998, 0.00, 1.000, 0.981, 0.985),
    "FGSM": (0.05, 0.200, 0.799, 0.815, 0.05, 0.122, 0.793, 0.813, 0.05, 0.221, 0.858, 0.871),
    "IGSM": (0.03, 0.141, 0.837, 0.837, 0.04, 0.0979, 0.792, 0.816, 0.04, 0.155, 0.897, 0.891),
    "DeepFool": (0.02, 0.263, 0.863, 0.903, 0.01, 0.237, 0.839, 0.916, 0.02, 0.272, 0.826, 0.853),
    "JSMA": (0.02, 0.255, 0.915, 0.970, 0.01, 0.291, 0.958, 0.985, 0.02, 0.242, 0.937, 0.986),
    "L-BFGS": (0.02, 0.121, 0.880, 0.916, 0.03, 0.138, 0.830, 0.939, 0.02, 0.125, 0.871, 0.910),
    "C&W": (0.04, 0.048, 0.927, 0.980, 0.04, 0.000, 0.931, 0.976, 0.04, 0.071, 0.939, 0.985),
}

#: Top-1 accuracy on images that the network gets right when clean; window 10, sigma 0.04, 100
#: deflections.
ACCURACY: dict[str, dict[str, Recovery]] = {
    network: {attack: Recovery(*row[4 * i : 4 * i + 4]) for attack, row in _ROWS.items()}
    for i, network in enumerate(("resnet50", "vgg19", "inception_v3"))
}

#: The same for larger perturbations, ResNet-50.
LARGER: dict[str, Recovery] = {
    "FGSM": Recovery(0.12, 0.111, 0.615, 0.704),
    "IGSM": Recovery(0.09, 0.111, 0.625, 0.725),
    "DeepFool": Recovery(0.08, 0.080, 0.824, 0.889),
    "JSMA": Recovery(0.05, 0.221, 0.889, 0.921),
    "L-BFGS": Recovery(0.04, 0.121, 0.770, 0.890),
}

#: Destruction rates: the share of adversaries that a defence turns back, attacks of relative L2
#: 0.02 to 0.06. None where the paper has no figure.
DESTRUCTION: dict[str, dict[str, float | None]] = {
    name: dict(zip(("FGSM", "IGSM", "DeepFool", "C&W"), rates, strict=True))
    for name, rates in {
        "bit depth 2": (0.132, 0.511, 0.286, 0.170),
        "bit depth 5": (0.057, 0.022, 0.310, 0.957),
        "median 2 x 2": (0.358, 0.422, 0.714, 0.894),
        "median 3 x 3": (0.264, 0.444, 0.500, 0.723),
        "non-local means 11-3-2": (0.113, 0.156, 0.357, 0.936),
        "non-local means 13-3-4": (0.226, 0.444, 0.548, 0.936),
        "random padding": (0.050, None, 0.972, 0.698),
        "random resizing": (0.360, None, 0.974, 0.971),
        "random resizing and padding": (0.478, None, 0.983, 0.969),
        "PD": (0.735, 0.880, 0.914, 0.931),
        "PD + R-CAM": (0.746, 0.912, 0.911, 0.952),
        "PD + R-CAM + DCT": (0.737, 0.906, 0.874, 0.930),
        "PD + R-CAM + WD": (0.769, 0.927, 0.948, 0.981),
    }.items()
}

#: Athalye and Carlini 2018, arXiv 1804.03286: what deflection and wavelet denoising, without a map,
#: leave on ImageNet against an attacker who knows of them, at L-infinity 4 of 255.
BROKEN: dict[str, float] = {"accuracy": 0.00, "targeted success": 0.97}


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
