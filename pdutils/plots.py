"""Every figure of the notebooks. Each function returns its matplotlib figure.

The true class is green and the class of the attack is red-orange throughout (Okabe and Ito's
palette, which colour-blind readers can tell apart).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pywt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from pdutils.classifiers import Classifier
from pdutils.denoising import TO_YCBCR
from pdutils.images import ROUNDING, Array, check_some
from pdutils.metrics import correlation
from pdutils.stats import PairedDifference, Rate

TRUE_COLOR = "#009E73"
ATTACK_COLOR = "#D55E00"
OTHER_COLOR = "#8C8C8C"
#: Series differ in colour and in marker, hatching or dashes; none is green or orange.
SERIES = ("#0072B2", "#CC79A7", "#000000", "#56B4E9", "#5D3A9B", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "--")
DASHES = ("-", "--", "-.", ":")
#: Less than an even spread is blue, more is purple, and white is even.
_EVEN = LinearSegmentedColormap.from_list("even", ["#0072B2", "#FFFFFF", "#882255"])
#: Where the scale of places ends, in times an even spread.
_MOST = 4.0
_STYLE: Any = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}

_P = ParamSpec("_P")


def _styled(kind: str) -> Callable[[Callable[_P, Figure]], Callable[_P, Figure]]:
    """Draw in the common style, and leave the figure, which says what it shows, to its caller."""

    def decorate(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
        @wraps(draw)
        def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
            with plt.rc_context(_STYLE):
                figure = draw(*args, **kwargs)
            # A notebook would show a figure that pyplot still holds a second time.
            plt.close(figure)
            return _described(figure, kind)

        return drawn

    return decorate


def _described(figure: Figure, kind: str) -> Figure:
    """Give a figure its alt text, which travels with its picture into a notebook's output."""
    words = f"{kind}: {'; '.join(filter(None, map(_words, figure.axes)))}."

    def bundle(**_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # Where nbconvert looks for it. IPython adds the picture, since no data are given here.
        return {}, {"image/png": {"alt": words}}

    figure.set_label(words)
    figure._repr_mimebundle_ = bundle  # type: ignore[attr-defined]
    return figure


def _words(ax: Axes) -> str:
    """Say what stands written in a panel, values beside what they belong to."""
    names = [tick.get_text() for axis in (ax.yaxis, ax.xaxis) for tick in _named_ticks(axis)]
    series = ax.get_legend_handles_labels()[1]
    values = [text.get_text() for text in ax.texts]
    places = [f"{one} {name}" for one in series for name in names] if len(series) > 1 else names
    if len(values) == len(places or series):
        listed = [" ".join(pair) for pair in zip(places or series, values, strict=True)]
    else:
        # Such a name as `clean, PD 200` must not read as two.
        stop = " / " if any("," in name for name in names) else ", "
        listed = [" and ".join(series) + " for " * bool(names) + stop.join(names)]
    drawn = " against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
    parts = [ax.get_title(), drawn, ", ".join(listed)]
    return ": ".join(" ".join(part.split()) for part in parts if part)


def _named_ticks(axis: Any) -> list[Any]:
    named = not isinstance(axis.get_major_formatter(), ScalarFormatter)
    return list(axis.get_ticklabels()) if named else []


@_styled("Picture and bars")
def prediction(
    classifier: Classifier,
    image: Array,
    probabilities: Array,
    *,
    label: int,
    attacked_label: int | None = None,
    title: str = "",
) -> Figure:
    """Show a picture beside its five most probable classes.

    Several draws are shown by their means, and a line reaches from the least to the greatest.

    Parameters
    ----------
    classifier : Classifier
        It names the classes.
    image : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; clipped for showing.
    probabilities : ndarray, shape (K,) or (draws, K)
        What the classifier makes of it, in one draw or in several of which it is the first.
    label : int
        The true class: green.
    attacked_label : int, optional
        The class that the attack reached: red-orange.
    title : str
        What the picture is; the top answer is added, and the true class where it is another.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2), width_ratios=(1, 1.3))
    draws = np.atleast_2d(probabilities)
    mean = draws.mean(axis=0)
    _picture(left, image, f"{title}\n{answer(mean, label, classifier.class_names)}".strip())
    top = classifier.top(mean, 5)[::-1]
    colors = [_class_color(p.number, label, attacked_label) for p in top]
    ends = [end(draws, axis=0)[[p.number for p in top]] for end in (np.min, np.max)]
    names = [p.class_name for p in top]
    bars = right.barh(names, [p.probability for p in top], color=colors)
    if len(draws) > 1:
        right.hlines(names, *ends, color="black", linewidth=1.2)
    for bar, end in zip(bars, ends[1], strict=True):
        place = (max(end, bar.get_width()), bar.get_y() + bar.get_height() / 2)
        right.annotate(f"{bar.get_width():.2f}", place, (3, 0), textcoords="offset points",
                       va="center")  # fmt: skip
    several = f", mean of {len(draws)} draws" if len(draws) > 1 else ""
    right.set(xlim=(0, 1.12), xlabel="probability", title=f"the most probable{several}")
    return figure


def answer(probabilities: Array, label: int, names: Sequence[str]) -> str:
    """Say a network's top answer, and what it gives the true class where that is another.

    Parameters
    ----------
    probabilities : ndarray, shape (K,) or (draws, K)
        Of the classes; several draws are averaged.
    label : int
        The true class.
    names : sequence of str
        The K class names.

    Returns
    -------
    str
        Such as "skunk 0.51, badger 0.44", for a picture's title.
    """
    mean = np.atleast_2d(probabilities).mean(axis=0)
    shown = dict.fromkeys((int(mean.argmax()), label))
    return ", ".join(f"{names[number]} {mean[number]:.2f}" for number in shown)


@_styled("Pictures")
def pictures(images: Sequence[Array], titles: Sequence[str], *, columns: int = 4) -> Figure:
    """Show pictures side by side.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; clipped for showing.
    titles : sequence of str
        One a picture.
    columns : int
        How many stand in a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(images), columns, 2.6)
    for ax, image, title in zip(axes, images, titles, strict=True):
        _picture(ax, image, title)
    return figure


@_styled("Pictures and two bars")
def outcome(
    images: Sequence[Array],
    titles: Sequence[str],
    *,
    names: Sequence[str],
    probabilities: Sequence[float],
) -> Figure:
    """Show pictures beside two bars: the true class and the class of the attack.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; clipped for showing.
    titles : sequence of str
        One a picture.
    names : (str, str)
        The names of the two classes.
    probabilities : (float, float)
        What the network gives them.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = len(images) + 1
    figure, axes = plt.subplots(1, panels, figsize=(2.6 * panels, 2.9), squeeze=False)
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        _picture(ax, image, title)
    ax = axes.flat[-1]
    bars = ax.bar(range(2), probabilities, color=[TRUE_COLOR, ATTACK_COLOR])
    ax.bar_label(bars, fmt="%.2f", padding=2)
    ax.set_xticks(range(2), [name.replace("_", "\n") for name in names])
    ax.set(ylim=(0, 1.1), title="probability")
    return figure


@_styled("Pictures")
def perturbation(
    clean: Array, other: Array, *, magnify: float | None = None, title: str = "adversary"
) -> Figure:
    """Show a clean image, its changed version, and the difference magnified around mid-grey.

    Parameters
    ----------
    clean, other : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    magnify : float, optional
        By default such that the greatest difference fills the range; one that is rounding alone
        is not magnified.
    title : str
        What the changed version is.

    Returns
    -------
    matplotlib.figure.Figure
    """
    difference = other - clean
    greatest = float(np.abs(difference).max())
    # What is rounding alone is not made a picture of.
    factor = magnify or (127 / greatest if greatest > 255 * ROUNDING else 1.0)
    changed = float(np.mean(difference != 0))
    share = f"{changed:.0%}" if changed > 0.1 else f"{100 * changed:.2g}%"
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
    _picture(axes[0], clean, "clean")
    _picture(axes[1], other, f"{title}, off by at most {greatest:.0f} of 255")
    times = f" x {factor:.2g}" if factor < 10 else f" x {factor:.0f}"
    _picture(axes[2], 127.5 + factor * difference, f"difference{times}, {share} of values")
    return figure


@_styled("Pixels that changed, as dots")
def changed_pixels(
    before: Array,
    afters: Sequence[Array],
    titles: Sequence[str],
    *,
    activation_map: Array | None = None,
) -> Figure:
    """Show which pixels differ between an image and versions of it.

    Parameters
    ----------
    before : ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    afters : sequence of ndarray of float32, shape (H, W, 3)
        The versions.
    titles : sequence of str
        One a version; the number of changed pixels is added.
    activation_map : ndarray of float32, shape (H, W), optional
        Shown behind the dots instead of the image.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(afters), 3, 3.2)
    for ax, after, title in zip(axes, afters, titles, strict=True):
        rows, columns = np.nonzero((after != before).any(axis=-1))
        if activation_map is None:
            _picture(ax, 0.35 * before + 150, "")
        else:
            # Pale, so that black dots show on the dark end of the scale too.
            _map(ax, activation_map, alpha=0.55)
        ax.plot(columns, rows, linestyle="", marker="s", markersize=1.6, color="black")
        ax.set_title(f"{title}: {len(rows)} pixels changed")
    return figure


@_styled("Points for each draw")
def probabilities_by_step(
    steps: Mapping[str, NDArray[Any]], *, names: Sequence[str], blog: Mapping[str, float] | None
) -> Figure:
    """Show how the true class and the class of the attack fare, step by step, over the draws.

    Parameters
    ----------
    steps : mapping of str to ndarray, shape (draws, 2)
        For each step the probabilities of the true class and of the attack's class in each draw.
    names : (str, str)
        The names of the two classes.
    blog : mapping of str to float, optional
        The blog's probability of its true class at each of its steps, shown as a diamond.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    jitter = np.random.default_rng(0).uniform(-0.07, 0.07, 1000)
    for which, (name, color) in enumerate(zip(names, (TRUE_COLOR, ATTACK_COLOR), strict=True)):
        for x, values in enumerate(steps.values()):
            place = x - 0.15 + 0.3 * which
            drawn = values[:, which]
            spread = jitter[: len(drawn)] if len(drawn) > 1 else 0.0
            ax.plot(place + spread, drawn, ".^"[which], color=color, alpha=0.45,
                    markersize=(5, 3.5)[which])  # fmt: skip
            ax.plot(
                place, drawn.mean(), "_", color=color, markersize=18, markeredgewidth=2.5,
            )  # fmt: skip
        # In the legend the line of the means with the mark of the draws on it.
        ax.plot([], [], "-", marker=".^"[which], color=color, linewidth=2.5, label=f"{name}, mean")
    if blog:
        places = [x for x, step in enumerate(steps) if step in blog]
        marks = [blog[step] for step in steps if step in blog]
        ax.plot(places, marks, "D", color="black", markersize=5, label="blog: its badger")
    ax.set_xticks(range(len(steps)), [step.replace(" + ", "\n+ ") for step in steps])
    ax.set(ylim=(-0.03, 1.03), ylabel="probability")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False)
    return figure


@_styled("Lines")
def trajectory(
    series: Mapping[str, Sequence[float]], *, true: str, attacked: str, xlabel: str
) -> Figure:
    """Show how probabilities move over the steps of an attack, from step 0.

    Parameters
    ----------
    series : mapping of str to sequence of float
        The probability of each class after 0, 1, 2, ... steps.
    true, attacked : str
        Which of them is the true class, and which the class of the attack.
    xlabel : str
        What a step is.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(7, 3))
    colors = {attacked: ATTACK_COLOR, true: TRUE_COLOR}
    for (name, values), mark in zip(series.items(), cycle(MARKERS), strict=False):
        color = colors.get(name, OTHER_COLOR)
        ax.plot(values, marker=mark, color=color, label=name, markersize=4)
        ax.annotate(f"{values[-1]:.2f}", (len(values) - 1, values[-1]), (6, -3),
                    textcoords="offset points")  # fmt: skip
    ax.set(xlabel=xlabel, ylabel="probability", ylim=(-0.03, 1.03))
    ax.legend(frameon=False)
    return figure


@_styled("Points with intervals")
def rates(
    rows: Mapping[str, Mapping[str, Rate]], *, xlabel: str = "share classified right"
) -> Figure:
    """Show rates with their 95% intervals.

    Parameters
    ----------
    rows : mapping of str to mapping of str to Rate
        For each row (a defence) the rate in each series (clean, adversary).
    xlabel : str
        What the rate is.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(7.5, 0.8 + _row_height(rows) * len(rows)))
    _intervals(ax, rows)
    ax.set(xlim=(-0.03, 1.03), xlabel=f"{xlabel}, 95% interval", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)
    _legend_above(figure)
    return figure


@_styled("Points with intervals around no difference")
def differences(
    rows: Mapping[str, Mapping[str, PairedDifference]],
    *,
    xlabel: str = "difference of the share classified right",
) -> Figure:
    """Show paired differences with their 95% intervals around the line of no difference.

    Parameters
    ----------
    rows : mapping of str to mapping of str to PairedDifference
        For each row (what is compared) the difference in each series (clean, an attack).
    xlabel : str
        What the difference is of.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(7.5, 0.9 + _row_height(rows) * len(rows)))
    ax.axvline(0, color=OTHER_COLOR, linewidth=1)
    _intervals(ax, rows)
    ax.set(xlabel=f"{xlabel}, 95% interval", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)
    _legend_above(figure)
    return figure


@_styled("Lines with intervals")
def rate_curves(
    series: Mapping[str, Mapping[float, Rate]],
    *,
    xlabel: str,
    ylabel: str = "share classified right",
) -> Figure:
    """Show how rates move with a knob, each with its 95% interval.

    Parameters
    ----------
    series : mapping of str to mapping of float to Rate
        For each line the rate at each value of the knob, the same values for all. They stand
        evenly spaced, in their order.
    xlabel : str
        What the knob is, with its unit.
    ylabel : str
        What the rate is.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    knob = list(next(iter(series.values())))
    for s, (name, line) in enumerate(series.items()):
        # Lines that lie on each other are told apart by their places and marks.
        places = np.arange(len(knob)) + 0.05 * (s - (len(series) - 1) / 2)
        centres = np.array([line[value].value for value in knob])
        low, high = np.array([line[value].interval for value in knob]).T
        bounds = np.maximum([centres - low, high - centres], 0)
        color, mark = _series(s)
        ax.plot(places, centres, color=color, marker=mark, label=name)
        ax.errorbar(places, centres, yerr=bounds, color=color, linestyle="", alpha=0.5)
    ax.set_xticks(range(len(knob)), [f"{value:g}" for value in knob])
    ax.set(xlabel=xlabel, ylabel=f"{ylabel}, 95% interval", ylim=(-0.03, 1.03))
    ax.grid(axis="y", alpha=0.3)
    _legend_above(figure)
    return figure


@_styled("Lines")
def tradeoff(curves: Mapping[str, Mapping[str, tuple[Rate, Rate]]], *, ylabel: str) -> Figure:
    """Show what settings keep of clean images against what they win back of adversaries.

    Parameters
    ----------
    curves : mapping of str to mapping of str to (Rate, Rate)
        For each panel (a knob) the two rates at each of its values, in order, named by the value.
        The panels have the same scales.
    ylabel : str
        What the second rate is.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(curves), 2, 3.4)
    for ax, (knob, line) in zip(axes, curves.items(), strict=True):
        ax.sharex(axes[0])
        ax.sharey(axes[0])
        places = [(clean.value, won.value) for clean, won in line.values()]
        ax.plot(*zip(*places, strict=True), marker=MARKERS[0], color=SERIES[0])
        # Values that coincide share a label; neighbours have theirs on different sides.
        for i, place in enumerate(dict.fromkeys(places)):
            here = [value for value, found in zip(line, places, strict=True) if found == place]
            side, across = ((7, "left"), (-7, "right"))[i % 2]
            ax.annotate(", ".join(here), place, (side, 0), textcoords="offset points",
                        fontsize=9, ha=across, va="center")  # fmt: skip
        ax.margins(x=0.25, y=0.12)
        ax.set(title=knob, xlabel="share of clean images classified right", ylabel=ylabel)
        ax.grid(alpha=0.3)
    return figure


@_styled("Maps over their pictures")
def maps(
    images: Sequence[Array],
    activation_maps: Sequence[Array],
    titles: Sequence[str],
    *,
    columns: int = 3,
) -> Figure:
    """Show activation maps over their images.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    activation_maps : sequence of ndarray of float32, shape (H, W)
        Values in [0, 1].
    titles : sequence of str
        One a map.
    columns : int
        How many stand in a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(images), columns, 8.7 / columns)
    for ax, image, activation_map, title in zip(axes, images, activation_maps, titles, strict=True):
        _picture(ax, image, title)
        shown = _map(ax, activation_map, alpha=0.55)
    figure.colorbar(shown, ax=list(axes), label="map value", shrink=0.8)
    return figure


@_styled("Pictures, their maps, and both laid over each other")
def map_triples(
    images: Sequence[Array],
    activation_maps: Sequence[Array],
    titles: Sequence[tuple[str, str, str]],
) -> Figure:
    """Show a row for each image: it, its activation map, and the map over the image.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    activation_maps : sequence of ndarray of float32, shape (H, W)
        Values in [0, 1].
    titles : sequence of (str, str, str)
        Three a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(3 * len(images), 3, 2.6)
    rows = zip(images, activation_maps, titles, strict=True)
    for i, (image, activation_map, (first, second, third)) in enumerate(rows):
        _picture(axes[3 * i], image, first)
        _map(axes[3 * i + 1], activation_map)
        axes[3 * i + 1].set_title(second)
        _picture(axes[3 * i + 2], image, third)
        shown = _map(axes[3 * i + 2], activation_map, alpha=0.55)
    # The overlay's colours are paler; the scale is the map's own.
    scale = ScalarMappable(shown.norm, shown.cmap)
    figure.colorbar(scale, ax=axes, label="map value", shrink=0.8 / len(images) ** 0.5)
    return figure


@_styled("Histogram")
def map_histogram(activation_maps: Mapping[str, Array]) -> Figure:
    """Show how the values of maps are distributed.

    Parameters
    ----------
    activation_maps : mapping of str to ndarray of float32
        Values in [0, 1], any shape, by the name of the map.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ax = plt.subplots(figsize=(7, 3))
    bins = np.linspace(0, 1, 21)
    for i, (name, values) in enumerate(activation_maps.items()):
        shares = np.histogram(values, bins)[0] / values.size
        label = f"{name}: mean {values.mean():.2f}, {np.mean(values < 0.5):.0%} below 0.5"
        color, dashes = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
        ax.stairs(shares, bins, color=color, linestyle=dashes, label=label, linewidth=2)
    ax.set(xlabel="map value: the chance that a pixel is spared", ylabel="share of pixels")
    ax.legend(frameon=False)
    return figure


@_styled("Maps")
def places(
    fields: Mapping[str, Array],
    *,
    reference: str,
    notes: Mapping[str, str] | None = None,
    cells: int = 28,
) -> Figure:
    """Show where things lie, side by side on one scale: how many times an even spread.

    Parameters
    ----------
    fields : mapping of str to ndarray of float32, shape (H, W)
        How much lies where, at least 0. Shown is the mean of each cell over the mean of all.
    reference : str
        The field that the others are correlated with (Pearson, over pixels).
    notes : mapping of str to str, optional
        What else the titles say.
    cells : int
        How many stand in a row and in a column; single pixels could not be seen.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(fields), 4, 2.6)
    scale = TwoSlopeNorm(1.0, vmin=0.0, vmax=_MOST)
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        shown = ax.imshow(_times_even(field, cells), cmap=_EVEN, norm=scale)
        # A panel that is even is as white as the page.
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=OTHER_COLOR, linewidth=0.5)
        r = "" if name == reference else f"r = {correlation(field, fields[reference]):.2f}"
        ax.set_title(f"{name}\n{', '.join(filter(None, (r, (notes or {}).get(name))))}".strip())
    figure.colorbar(shown, ax=axes, label="times an even spread", extend="max", shrink=0.8,
                    ticks=[0, 0.5, 1, 2, 3, 4])  # fmt: skip
    return figure


def _times_even(field: Array, cells: int) -> NDArray[np.float64]:
    """Give the mean of each cell over the mean of the field; an empty field stays empty."""
    found = field.astype(np.float64)
    for axis in (0, 1):
        edges = np.linspace(0, field.shape[axis], min(cells, field.shape[axis]) + 1).astype(int)
        sizes = np.expand_dims(np.diff(edges), 1 - axis)
        found = np.add.reduceat(found, edges[:-1], axis=axis) / sizes
    return found / (np.mean(field, dtype=np.float64) or 1.0)


@_styled("Bars")
def bars(
    groups: Mapping[str, Mapping[str, float]], *, ylabel: str = "probability of the true class"
) -> Figure:
    """Show numbers in [0, 1] as bars, grouped.

    Parameters
    ----------
    groups : mapping of str to mapping of str to float
        For each group on the axis the value of each series.
    ylabel : str
        What is shown.

    Returns
    -------
    matplotlib.figure.Figure
    """
    series = list(next(iter(groups.values())))
    figure, ax = plt.subplots(figsize=(max(5.0, 1.15 * len(groups) + 1), 3.2))
    width = 0.8 / len(series)
    for s, name in enumerate(series):
        places = np.arange(len(groups)) + width * (s - (len(series) - 1) / 2)
        values = [group[name] for group in groups.values()]
        color, hatch = SERIES[s % len(SERIES)], HATCHES[s % len(HATCHES)]
        drawn = ax.bar(places, values, width, color=color, hatch=hatch, edgecolor="white",
                       label=name)  # fmt: skip
        ax.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    ax.set_xticks(range(len(groups)), [name.replace(" ", "\n", 1) for name in groups])
    ax.set(ylim=(0, 1.1), ylabel=ylabel)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=len(series), frameon=False)
    return figure


@_styled("Close-ups of the same square")
def closeup(images: Sequence[Array], titles: Sequence[str], *, row: int, column: int,
            size: int = 40) -> Figure:  # fmt: skip
    """Show the same small square of several pictures, so that single pixels can be seen.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255]; clipped for showing.
    titles : sequence of str
        One a picture.
    row, column : int
        The middle of the square; it is moved inside the image where it would stand over.
    size : int
        Its side in pixels.

    Returns
    -------
    matplotlib.figure.Figure
    """
    check_some(images)
    height, width = images[0].shape[:2]
    top = int(np.clip(row - size // 2, 0, max(height - size, 0)))
    left = int(np.clip(column - size // 2, 0, max(width - size, 0)))
    figure, axes = _grid(len(images), 4, 2.6)
    for ax, image, title in zip(axes, images, titles, strict=True):
        _picture(ax, image[top : top + size, left : left + size], title)
    return figure


@_styled("Wavelet subbands")
def subbands(
    images: Sequence[Array], titles: Sequence[str], *, levels: int = 2, magnify: float = 8.0
) -> Figure:
    """Show the Haar transform of pictures' brightness: the coarse picture and its details.

    Parameters
    ----------
    images : sequence of ndarray of float32, shape (H, W, 3)
        RGB in [0, 255].
    titles : sequence of str
        One a picture; the share of details of less than half a grey level is added.
    levels : int
        How often the coarse picture is taken apart again.
    magnify : float
        How many times the details are magnified, around mid-grey.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _grid(len(images), 2, 4.2)
    for ax, image, title in zip(axes, images, titles, strict=True):
        coarse, *details = pywt.wavedec2(image @ TO_YCBCR[:, 0], "haar", level=levels)
        # In grey levels: the means, and by how much a half of a square differs from its mean.
        scaled = [[b / 2 ** (levels - i) for b in bands] for i, bands in enumerate(details)]
        small = np.concatenate([np.abs(b).ravel() < 0.5 for bands in scaled for b in bands])
        shown = [tuple(127.5 + magnify * b for b in bands) for bands in scaled]
        laid, _ = pywt.coeffs_to_array([coarse / 2**levels, *shown], padding=127.5)
        _picture(ax, np.repeat(laid[..., np.newaxis], 3, axis=-1), "")
        ax.set_title(f"{title}: {small.mean():.0%} of the details below half a grey level")
    return figure


def _intervals(ax: Axes, rows: Mapping[str, Mapping[str, Rate | PairedDifference]]) -> None:
    """Draw a row a name, and in it each series as a point with its interval."""
    series = list(next(iter(rows.values())))
    for s, name in enumerate(series):
        found = [row[name] for row in rows.values()]
        places = np.arange(len(rows)) + min(0.28, 0.8 / len(series)) * (s - (len(series) - 1) / 2)
        centres = np.array([one.value for one in found])
        low, high = np.array([one.interval for one in found]).T
        bounds = np.maximum([centres - low, high - centres], 0)
        label = f"{name} (n = {found[0].n})"
        color, mark = _series(s)
        ax.errorbar(centres, places, xerr=bounds, fmt=mark, color=color, label=label)
    ax.set_yticks(range(len(rows)), list(rows))


def _row_height(rows: Mapping[str, Mapping[str, Any]]) -> float:
    return max(0.42, 0.16 * len(next(iter(rows.values()))))


def _legend_above(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Of about a hundred letters to a line, each entry takes its own and a mark.
    columns = max(1, min(4, 105 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _grid(n: int, columns: int, side: float) -> tuple[Figure, list[Axes]]:
    check_some(range(n))
    columns = min(columns, n)
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(side * columns, 4.2), (side + 0.35) * rows), squeeze=False
    )
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:n])


def _picture(ax: Axes, image: Array, title: str) -> None:
    ax.imshow(np.clip(np.rint(image), 0, 255).astype(np.uint8), interpolation="nearest")
    ax.set_title(title)
    ax.set_axis_off()


def _map(ax: Axes, activation_map: Array, alpha: float = 1.0) -> Any:
    ax.set_axis_off()
    return ax.imshow(activation_map, cmap="viridis", vmin=0, vmax=1, alpha=alpha)


def _class_color(number: int, label: int, attacked_label: int | None) -> str:
    return {label: TRUE_COLOR, attacked_label: ATTACK_COLOR}.get(number, OTHER_COLOR)


def _series(position: int) -> tuple[str, str]:
    """Give the colour and the marker of a series."""
    return SERIES[position % len(SERIES)], MARKERS[position % len(MARKERS)]
