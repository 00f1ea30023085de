"""Every figure of the notebooks. Each function returns its matplotlib figure.

The true class is green and the class of the attack is red-orange throughout (Okabe and Ito's
palette, which colour-blind readers can tell apart).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec

import numpy as np
import pywt
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr

from pdutils._utils import extra
from pdutils.metrics import correlation

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

Array = NDArray[np.float32]

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
#: Of differences of up to so many grey levels, which may be rounding alone, no picture is made.
_ROUNDING = 0.002
_STYLE: Any = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}

_P = ParamSpec("_P")

#: A rate or a difference of rates, see `pdutils.stats`.
_Measured = Any
#: By row, and in each by series, the same in all.
_Rows = Mapping[str, Mapping[str, _Measured]]


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
    classifier: Any,
    image: Array,
    probabilities: Array,
    *,
    label: int,
    attacked_label: int | None = None,
    title: str = "",
) -> Figure:
    """Show a picture beside its five most probable classes.

    The probabilities are of one draw (K,), or of several (draws, K) of which the picture is the
    first: they are shown by their means, and a line reaches from the least to the greatest. To the
    title the top answer is added, and the true class where it is another. It is the classifier that
    names the classes.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2), width_ratios=(1, 1.3))
    draws, roles = np.atleast_2d(probabilities), {label: TRUE_COLOR, attacked_label: ATTACK_COLOR}
    mean = draws.mean(axis=0)
    _picture(left, image, f"{title}\n{answer(mean, label, classifier.class_names)}".strip())
    top = np.argsort(-mean, kind="stable")[:5][::-1]
    colors = [roles.get(int(number), OTHER_COLOR) for number in top]
    ends = [end(draws, axis=0)[top] for end in (np.min, np.max)]
    names = [classifier.class_names[number] for number in top]
    bars = right.barh(names, mean[top], color=colors)
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

    Of probabilities (K,) or (draws, K), averaged: "skunk 0.51, badger 0.44", for a picture's title.
    """
    mean = np.atleast_2d(probabilities).mean(axis=0)
    shown = dict.fromkeys((int(mean.argmax()), label))
    return ", ".join(f"{names[number]} {mean[number]:.2f}" for number in shown)


@_styled("Pictures")
def pictures(images: Sequence[Array], titles: Sequence[str], *, columns: int = 4) -> Figure:
    """Show pictures side by side, so many in a row."""
    return _pictures(images, titles, columns)


@_styled("Pictures and two bars")
def outcome(
    images: Sequence[Array],
    titles: Sequence[str],
    *,
    names: Sequence[str],
    probabilities: Sequence[float],
) -> Figure:
    """Show pictures beside two bars: the true class and the class of the attack.

    `names` and `probabilities` are those of the two.
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

    By default it is magnified such that the greatest difference fills the range. `title` says what
    the changed version is.
    """
    difference = other - clean
    greatest = float(np.abs(difference).max())
    # What is rounding alone is not made a picture of.
    factor = magnify or (127 / greatest if greatest > _ROUNDING else 1.0)
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

    Their number is added to the titles. A map is shown behind the dots instead of the image.
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

    `names` are those of the two, and each step has their probabilities (draws, 2). `blog` gives the
    blog's probability of its true class at some of the steps, shown as a diamond.
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
            ax.plot(place, drawn.mean(), "_", color=color, markersize=18, markeredgewidth=2.5)
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
    """Show how the probability of each class moves over the steps of an attack, from step 0.

    `true` and `attacked` say which of them are the true class and that of the attack.
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
def rates(rows: _Rows, *, xlabel: str = "share classified right") -> Figure:
    """Show rates, a row a defence, with their 95% intervals in each series (clean, adversary)."""
    figure = _intervals(rows, xlabel, 0.8)
    figure.axes[0].set_xlim(-0.03, 1.03)
    return figure


@_styled("Points with intervals around no difference")
def differences(rows: _Rows, *, xlabel: str = "difference of the share classified right") -> Figure:
    """Show paired differences with their 95% intervals around the line of no difference.

    A row says what is compared, and has a difference in each series (clean, an attack).
    """
    figure = _intervals(rows, xlabel, 0.9)
    figure.axes[0].axvline(0, color=OTHER_COLOR, linewidth=1, zorder=1)
    return figure


@_styled("Lines with intervals")
def rate_curves(
    series: Mapping[str, Mapping[float, _Measured]],
    *,
    xlabel: str,
    ylabel: str = "share classified right",
) -> Figure:
    """Show how rates move with a knob, a line a series, each with its 95% interval.

    The values of the knob are the same for all lines; they stand evenly spaced, in their order.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    knob = list(next(iter(series.values())))
    for s, (name, line) in enumerate(series.items()):
        # Lines that lie on each other are told apart by their places and marks.
        places = np.arange(len(knob)) + 0.05 * (s - (len(series) - 1) / 2)
        centres, bounds = _bounds([line[value] for value in knob])
        color, mark = _series(s)
        ax.plot(places, centres, color=color, marker=mark, label=name)
        ax.errorbar(places, centres, yerr=bounds, color=color, linestyle="", alpha=0.5)
    ax.set_xticks(range(len(knob)), [f"{value:g}" for value in knob])
    ax.set(xlabel=xlabel, ylabel=f"{ylabel}, 95% interval", ylim=(-0.03, 1.03))
    ax.grid(axis="y", alpha=0.3)
    _legend_above(figure)
    return figure


@_styled("Lines")
def tradeoff(
    curves: Mapping[str, Mapping[str, tuple[_Measured, _Measured]]], *, ylabel: str
) -> Figure:
    """Show what settings keep of clean images against what they win back of adversaries.

    A panel for each knob has these two rates at each of its values, in order, named by the value;
    `ylabel` says what the second is. The panels have the same scales.
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
    """Show activation maps, values in [0, 1], over their images, so many in a row."""
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

    A row has three titles.
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
    """Show how the values of maps in [0, 1], of any shape, are distributed."""
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

    A field (H, W) says how much lies where, at least 0. Shown is the mean of each cell over the
    mean of all, with so many cells in a row and in a column: single pixels could not be seen. The
    titles have the correlation with the reference, one of the fields (Pearson, over pixels), and
    the notes.
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
    """Show numbers in [0, 1] as bars: for each group on the axis one of each series."""
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

    Its middle is at `row` and `column`; it is moved inside the image where it would stand over.
    """
    squares = []
    for image in images:
        height, width = image.shape[:2]
        top = int(np.clip(row - size // 2, 0, max(height - size, 0)))
        left = int(np.clip(column - size // 2, 0, max(width - size, 0)))
        squares.append(image[top : top + size, left : left + size])
    return _pictures(squares, titles, 4)


@_styled("Wavelet subbands")
def subbands(
    images: Sequence[Array], titles: Sequence[str], *, levels: int = 2, magnify: float = 8.0
) -> Figure:
    """Show the Haar transform of pictures' brightness: the coarse picture and its details.

    The coarse picture is taken apart `levels` times; the details are magnified around mid-grey. The
    titles get the share of details of less than half a grey level.
    """
    figure, axes = _grid(len(images), 2, 4.2)
    for ax, image, title in zip(axes, images, titles, strict=True):
        # Of YCbCr, whose black is 16.
        luma = rgb2ycbcr(image.astype(np.float64) / 255)[..., 0] - 16
        coarse, *details = pywt.wavedec2(luma, "haar", level=levels)
        # In grey levels: the means, and by how much a half of a square differs from its mean.
        scaled = [[b / 2 ** (levels - i) for b in bands] for i, bands in enumerate(details)]
        small = np.concatenate([np.abs(b).ravel() < 0.5 for bands in scaled for b in bands])
        shown = [tuple(127.5 + magnify * b for b in bands) for bands in scaled]
        laid, _ = pywt.coeffs_to_array([coarse / 2**levels, *shown], padding=127.5)
        _picture(ax, np.repeat(laid[..., np.newaxis], 3, axis=-1), "")
        ax.set_title(f"{title}: {small.mean():.0%} of the details below half a grey level")
    return figure


def _intervals(rows: _Rows, xlabel: str, margin: float) -> Figure:
    """Draw a row a name, and in it each series as a point with its interval."""
    series = list(next(iter(rows.values())))
    height = margin + max(0.42, 0.16 * len(series)) * len(rows)
    figure, ax = plt.subplots(figsize=(7.5, height))
    for s, name in enumerate(series):
        found = [row[name] for row in rows.values()]
        places = np.arange(len(rows)) + min(0.28, 0.8 / len(series)) * (s - (len(series) - 1) / 2)
        centres, bounds = _bounds(found)
        label = f"{name} (n = {found[0].n})"
        color, mark = _series(s)
        ax.errorbar(centres, places, xerr=bounds, fmt=mark, color=color, label=label)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel=f"{xlabel}, 95% interval", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)
    _legend_above(figure)
    return figure


def _bounds(found: Sequence[_Measured]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give values, and how far their intervals reach down and up from them."""
    centres = np.array([one.value for one in found])
    low, high = np.array([one.interval for one in found]).T
    return centres, np.maximum([centres - low, high - centres], 0)


def _legend_above(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Of about a hundred letters to a line, each entry takes its own and a mark.
    columns = max(1, min(4, 105 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _grid(n: int, columns: int, side: float) -> tuple[Figure, list[Axes]]:
    if n == 0:
        raise ValueError("images: expected at least one image, got none")
    columns = min(columns, n)
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(side * columns, 4.2), (side + 0.35) * rows), squeeze=False
    )
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:n])


def _pictures(images: Sequence[Array], titles: Sequence[str], columns: int) -> Figure:
    figure, axes = _grid(len(images), columns, 2.6)
    for ax, image, title in zip(axes, images, titles, strict=True):
        _picture(ax, image, title)
    return figure


def _picture(ax: Axes, image: Array, title: str) -> None:
    ax.imshow(np.clip(np.rint(image), 0, 255).astype(np.uint8), interpolation="nearest")
    ax.set_title(title)
    ax.set_axis_off()


def _map(ax: Axes, activation_map: Array, alpha: float = 1.0) -> Any:
    ax.set_axis_off()
    return ax.imshow(activation_map, cmap="viridis", vmin=0, vmax=1, alpha=alpha)


def _series(position: int) -> tuple[str, str]:
    """Give the colour and the marker of a series."""
    return SERIES[position % len(SERIES)], MARKERS[position % len(MARKERS)]
