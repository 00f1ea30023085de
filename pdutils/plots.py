"""Every figure of the notebooks. Each function returns its matplotlib figure.

The true class is green and the class of the attack is red-orange throughout (Okabe and Ito's
palette, which colour-blind readers can tell apart).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec

import numpy as np
import pywt
from numpy.typing import NDArray
from skimage.color import gray2rgb, rgb2ycbcr
from skimage.transform import resize_local_mean

from pdutils._utils import extra
from pdutils.metrics import correlation

with extra("notebooks"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize, TwoSlopeNorm
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
#: By series, and in each by value, the same in all.
_Curves = Mapping[str, Mapping[float, _Measured]]
_Images = Sequence[Array]
_Texts = Sequence[str]
_Notes = Mapping[str, str] | None


def _styled(kind: str) -> Callable[[Callable[_P, Figure]], Callable[_P, Figure]]:
    """Draw in the common style, and leave the figure, which says what it shows, to its caller."""

    def decorate(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
        @wraps(draw)
        def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
            with plt.rc_context(_STYLE):
                figure = draw(*args, **kwargs)
            # A notebook would show a figure that pyplot still holds a second time.
            plt.close(figure)
            words = f"{kind}: {'; '.join(filter(None, map(_words, figure.axes)))}."
            figure.set_label(words)
            # The alt text, where nbconvert looks for it; IPython adds the picture.
            alt: Any = {}, {"image/png": {"alt": words}}
            figure._repr_mimebundle_ = lambda **_: alt  # type: ignore[attr-defined]
            return figure

        return drawn

    return decorate


def _words(ax: Axes) -> str:
    """Say what stands written in a panel, values beside what they belong to."""
    names = [
        tick.get_text()
        for axis in (ax.yaxis, ax.xaxis)
        if not isinstance(axis.get_major_formatter(), ScalarFormatter)
        for tick in axis.get_ticklabels()
    ]
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

    The probabilities are of one draw (K,), or of several (draws, K), the picture's first: shown are
    their means and a line from the least to the greatest. The title gets the top answer, and the
    true class where that is another, as the classifier names them.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2), width_ratios=(1, 1.3))
    draws, roles = np.atleast_2d(probabilities), {label: TRUE_COLOR, attacked_label: ATTACK_COLOR}
    mean = draws.mean(axis=0)
    _show(left, f"{title}\n{answer(mean, label, classifier.class_names)}".strip(), image)
    top = np.argsort(-mean, kind="stable")[:5][::-1]
    colors = [roles.get(int(number), OTHER_COLOR) for number in top]
    low, high = draws.min(axis=0)[top], draws.max(axis=0)[top]
    names, several = [classifier.class_names[number] for number in top], ""
    right.barh(names, mean[top], color=colors)
    if len(draws) > 1:
        several = f", mean of {len(draws)} draws"
        right.hlines(names, low, high, color="black", linewidth=1.2)
    for row, (value, end) in enumerate(zip(mean[top], high, strict=True)):
        right.annotate(f"{value:.2f}", (max(end, value), row), (3, 0), textcoords="offset points",
                       va="center")  # fmt: skip
    right.set(xlim=(0, 1.12), xlabel="probability", title=f"the most probable{several}")
    return figure


def answer(probabilities: Array, label: int, names: Sequence[str]) -> str:
    """Name the top answer of probabilities (K,) or (draws, K), and the true class if another."""
    mean = np.atleast_2d(probabilities).mean(axis=0)
    shown = dict.fromkeys((int(mean.argmax()), label))
    return ", ".join(f"{names[number]} {mean[number]:.2f}" for number in shown)


@_styled("Pictures")
def pictures(images: _Images, titles: _Texts, *, columns: int = 4) -> Figure:
    """Show pictures side by side, so many in a row."""
    return _panels(titles, images, None, columns, 2.6)


@_styled("Pictures and two bars")
def outcome(
    images: _Images, titles: _Texts, *, names: _Texts, probabilities: Sequence[float]
) -> Figure:
    """Show pictures beside two bars: the true class and the class of the attack, in this order."""
    figure = _panels([*titles, "probability"], [*images, None], None, 9, 2.6)
    ax = figure.axes[-1]
    bars = ax.bar(range(2), probabilities, color=[TRUE_COLOR, ATTACK_COLOR])
    ax.bar_label(bars, fmt="%.2f", padding=2)
    ax.set_xticks(range(2), [name.replace("_", "\n") for name in names])
    ax.set_axis_on()
    ax.set_ylim(0, 1.1)
    return figure


@_styled("Pictures")
def perturbation(
    clean: Array, other: Array, *, magnify: float | None = None, title: str = "adversary"
) -> Figure:
    """Show a clean image, its changed version, and the difference magnified around mid-grey.

    By default the greatest difference fills the range. `title` says what the changed version is.
    """
    difference = other - clean
    greatest = float(np.abs(difference).max())
    # What may be rounding alone is not made a picture of.
    factor = magnify or (127 / greatest if greatest > 0.002 else 1.0)
    changed = float(np.mean(difference != 0))
    share = f"{changed:.0%}" if changed > 0.1 else f"{100 * changed:.2g}%"
    times = f"{factor:.2g}" if factor < 10 else f"{factor:.0f}"
    titles = ["clean", f"{title}, off by at most {greatest:.0f} of 255",
              f"difference x {times}, {share} of values"]  # fmt: skip
    return _panels(titles, [clean, other, 127.5 + factor * difference], None, 3, 3.0)


@_styled("Pixels that changed, as dots")
def changed_pixels(
    before: Array, afters: _Images, titles: _Texts, *, activation_map: Array | None = None
) -> Figure:
    """Show, over the image or a map, which pixels differ in versions of it, and how many."""
    changes = [np.nonzero((after != before).any(axis=-1)) for after in afters]
    counted = [f"{t}: {len(c[0])} pixels changed" for t, c in zip(titles, changes, strict=True)]
    # Pale, so that black dots show on the dark end of the scale of maps too.
    ground = 0.35 * before + 150 if activation_map is None else np.full_like(before, 255)
    figure = _panels(counted, [ground] * len(afters), [activation_map] * len(afters), 3, 3.2)
    for ax, (rows, columns) in zip(figure.axes, changes, strict=False):
        ax.plot(columns, rows, linestyle="", marker="s", markersize=1.6, color="black")
    return figure


@_styled("Points for each draw")
def probabilities_by_step(
    steps: Mapping[str, NDArray[Any]], *, names: Sequence[str], blog: Mapping[str, float] | None
) -> Figure:
    """Show how the true class and that of the attack, `names`, fare over the draws of each step.

    A step has their probabilities (draws, 2). `blog` gives the blog's probability of its true class
    at some of the steps, shown as a diamond.
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    draws, counts = np.concatenate(list(steps.values())), [len(found) for found in steps.values()]
    # A step's draws are spread a little, the only one of a step is not.
    spread = np.random.default_rng(0).uniform(-0.07, 0.07, len(draws))
    spread[np.repeat(counts, counts) == 1] = 0
    for which, (name, color) in enumerate(zip(names, (TRUE_COLOR, ATTACK_COLOR), strict=True)):
        places, mark = np.arange(len(steps)) - 0.15 + 0.3 * which, ".^"[which]
        means = [found[:, which].mean() for found in steps.values()]
        ax.plot(np.repeat(places, counts) + spread, draws[:, which], mark, color=color, alpha=0.45,
                markersize=(5, 3.5)[which])  # fmt: skip
        ax.plot(places, means, "_", color=color, markersize=18, markeredgewidth=2.5)
        # In the legend the line of the means with the mark of the draws on it.
        ax.plot([], [], "-", marker=mark, color=color, linewidth=2.5, label=f"{name}, mean")
    if blog:
        stated = {x: blog[step] for x, step in enumerate(steps) if step in blog}
        ax.plot(*zip(*stated.items(), strict=True), "D", color="black", markersize=5,
                label="blog: its badger")  # fmt: skip
    ax.set_xticks(range(len(steps)), [step.replace(" + ", "\n+ ") for step in steps])
    ax.set(ylim=(-0.03, 1.03), ylabel="probability")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False)
    return figure


@_styled("Lines")
def trajectory(
    series: Mapping[str, Sequence[float]], *, true: str, attacked: str, xlabel: str
) -> Figure:
    """Show how likely classes are, `true` and `attacked` among them, from step 0 of an attack."""
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
    figure, ax = _row_intervals(rows, xlabel)
    ax.set_xlim(-0.03, 1.03)
    return figure


@_styled("Points with intervals around no difference")
def differences(rows: _Rows, *, xlabel: str = "difference of the share classified right") -> Figure:
    """Show paired differences as `rates`, around the line of no difference."""
    figure, ax = _row_intervals(rows, xlabel)
    ax.axvline(0, color=OTHER_COLOR, linewidth=1, zorder=1)
    return figure


@_styled("Lines with intervals")
def rate_curves(series: _Curves, *, xlabel: str, ylabel: str = "share classified right") -> Figure:
    """Show how rates move with a knob, a line a series, each with its 95% interval.

    The values of the knob are the same for all lines and stand evenly spaced, in their order.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    # Lines that lie on each other are told apart by their places and marks.
    _intervals(ax, {name: list(line.values()) for name, line in series.items()}, 0.05)
    knob = next(iter(series.values()))
    ax.set_xticks(range(len(knob)), [f"{value:g}" for value in knob])
    ax.set(xlabel=xlabel, ylabel=f"{ylabel}, 95% interval", ylim=(-0.03, 1.03))
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
def maps(images: _Images, activation_maps: _Images, titles: _Texts, *, columns: int = 3) -> Figure:
    """Show activation maps, values in [0, 1], over their images, so many in a row."""
    return _with_scale(_panels(titles, images, activation_maps, columns, 8.7 / columns))


@_styled("Pictures, their maps, and both laid over each other")
def map_triples(
    images: _Images, activation_maps: _Images, titles: Sequence[tuple[str, str, str]]
) -> Figure:
    """Show a row for each image, with three titles: it, its map, and the map over the image."""
    shown = [panel for image in images for panel in (image, None, image)]
    laid = [panel for one in activation_maps for panel in (None, one, one)]
    figure = _panels([title for row in titles for title in row], shown, laid, 3, 2.6)
    return _with_scale(figure, 0.8 / len(images) ** 0.5)


@_styled("Histogram")
def map_histogram(activation_maps: Mapping[str, Array]) -> Figure:
    """Show how the values of maps in [0, 1], of any shape, are distributed."""
    figure, ax = plt.subplots(figsize=(7, 3))
    bins = np.linspace(0, 1, 21)
    for i, (name, values) in enumerate(activation_maps.items()):
        shares = np.histogram(values, bins)[0] / values.size
        label = f"{name}: mean {values.mean():.2f}, {np.mean(values < 0.5):.0%} below 0.5"
        ax.stairs(shares, bins, color=_nth(SERIES, i), linestyle=_nth(DASHES, i),
                  label=label, linewidth=2)  # fmt: skip
    ax.set(xlabel="map value: the chance that a pixel is spared", ylabel="share of pixels")
    ax.legend(frameon=False)
    return figure


@_styled("Maps")
def places(
    fields: Mapping[str, Array], *, reference: str, notes: _Notes = None, cells: int = 28
) -> Figure:
    """Show where things lie, side by side on one scale: how many times an even spread.

    A field (H, W) says how much lies where, at least 0. Shown is the mean of each cell, so many in
    a row and in a column, over the mean of all: single pixels could not be seen. The titles have
    the correlation with the reference, one of the fields (Pearson, over pixels), and the notes.
    """
    figure, axes = _grid(len(fields), 4, 2.6)
    scale = TwoSlopeNorm(1.0, vmin=0.0, vmax=4.0)
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        found = resize_local_mean(field.astype(np.float64), [min(cells, n) for n in field.shape])
        shown = ax.imshow(found / (found.mean() or 1.0), cmap=_EVEN, norm=scale)
        # A panel that is even is as white as the page.
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=OTHER_COLOR, linewidth=0.5)
        r = "" if name == reference else f"r = {correlation(field, fields[reference]):.2f}"
        ax.set_title(f"{name}\n{', '.join(filter(None, (r, (notes or {}).get(name))))}".strip())
    figure.colorbar(shown, ax=axes, label="times an even spread", extend="max", shrink=0.8,
                    ticks=[0, 0.5, 1, 2, 3, 4])  # fmt: skip
    return figure


@_styled("Bars")
def bars(
    groups: Mapping[str, Mapping[str, float]], *, ylabel: str = "probability of the true class"
) -> Figure:
    """Show numbers in [0, 1] as bars: for each group on the axis one of each series."""
    series = list(next(iter(groups.values())))
    figure, ax = plt.subplots(figsize=(max(5.0, 1.15 * len(groups) + 1), 3.2))
    width = 0.8 / len(series)
    for s, name in enumerate(series):
        values = [group[name] for group in groups.values()]
        style: Any = {"color": _nth(SERIES, s), "hatch": _nth(HATCHES, s), "edgecolor": "white"}
        drawn = ax.bar(_places(len(groups), width, s, series), values, width, label=name, **style)
        ax.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    ax.set_xticks(range(len(groups)), [name.replace(" ", "\n", 1) for name in groups])
    ax.set(ylim=(0, 1.1), ylabel=ylabel)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=len(series), frameon=False)
    return figure


@_styled("Close-ups of the same square")
def closeup(images: _Images, titles: _Texts, *, row: int, column: int, size: int = 40) -> Figure:
    """Show one small square of several pictures, as near around `row` and `column` as it can be."""
    squares = []
    for image in images:
        ends = zip((row, column), image.shape, strict=False)
        top, left = (int(np.clip(at - size // 2, 0, max(side - size, 0))) for at, side in ends)
        squares.append(image[top : top + size, left : left + size])
    return pictures(squares, titles)


@_styled("Wavelet subbands")
def subbands(images: _Images, titles: _Texts, *, levels: int = 2, magnify: float = 8.0) -> Figure:
    """Show the Haar transform of pictures' brightness: the coarse picture and its details.

    The coarse picture is taken apart `levels` times; the details are magnified around mid-grey. The
    titles get the share of details of less than half a grey level.
    """
    pictures, shares = [], []
    for image, title in zip(images, titles, strict=True):
        # Of YCbCr, whose black is 16.
        luma = rgb2ycbcr(image.astype(np.float64) / 255)[..., 0] - 16
        coarse, *details = pywt.wavedec2(luma, "haar", level=levels)
        # In grey levels: the means, and by how much a half of a square differs from its mean.
        scaled = [[b / 2 ** (levels - i) for b in bands] for i, bands in enumerate(details)]
        small = np.concatenate([np.abs(b).ravel() < 0.5 for bands in scaled for b in bands])
        shown = [tuple(127.5 + magnify * b for b in bands) for bands in scaled]
        laid, _ = pywt.coeffs_to_array([coarse / 2**levels, *shown], padding=127.5)
        pictures.append(gray2rgb(laid))
        shares.append(f"{title}: {small.mean():.0%} of the details below half a grey level")
    return _panels(shares, pictures, None, 2, 4.2)


def _row_intervals(rows: _Rows, xlabel: str) -> tuple[Figure, Axes]:
    """Draw a row a name, and in it each series as a point with its interval."""
    series = {name: [row[name] for row in rows.values()] for name in next(iter(rows.values()))}
    height = 0.85 + max(0.42, 0.16 * len(series)) * len(rows)
    figure, ax = plt.subplots(figsize=(7.5, height))
    named = {f"{name} (n = {found[0].n})": found for name, found in series.items()}
    _intervals(ax, named, min(0.28, 0.8 / len(series)), across=True)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel=f"{xlabel}, 95% interval", ylim=(len(rows) - 0.5, -0.5))
    return figure, ax


def _intervals(
    ax: Axes, series: Mapping[str, Sequence[_Measured]], step: float, *, across: bool = False
) -> None:
    """Draw the values of each series with their intervals, up or across, a step from the next."""
    for s, (name, found) in enumerate(series.items()):
        places, values = _places(len(found), step, s, series), np.array([r.value for r in found])
        ends = np.abs(np.array([one.interval for one in found]).T - values)
        style: Any = {"color": _nth(SERIES, s), "marker": _nth(MARKERS, s), "label": name}
        if across:
            ax.errorbar(values, places, xerr=ends, linestyle="", **style)
        else:
            ax.errorbar(places, values, yerr=ends, **style)
    ax.grid(axis="x" if across else "y", alpha=0.3)
    # Of about a hundred letters to a line, each entry of the legend takes its own and a mark.
    columns = max(1, min(4, 105 // (max(map(len, series)) + 8)))
    ax.figure.legend(loc="outside upper center", ncols=columns, frameon=False)


def _places(n: int, step: float, s: int, series: Collection[str]) -> NDArray[Any]:
    """Give the places of a series at n ticks, a step from those of the next series."""
    return np.arange(n) + step * (s - (len(series) - 1) / 2)


def _nth(values: Sequence[str], n: int) -> str:
    return values[n % len(values)]


def _grid(n: int, columns: int, side: float) -> tuple[Figure, list[Axes]]:
    if n == 0:
        raise ValueError("images: expected at least one image, got none")
    columns = min(columns, n)
    rows = -(-n // columns)
    size = max(side * columns, 4.2), (side + 0.35) * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:n])


def _panels(titles: _Texts, images: Any, maps: Any, columns: int, side: float) -> Figure:
    """Show a picture, a map, or a map over its picture in each panel, so many in a row."""
    figure, axes = _grid(len(images), columns, side)
    for panel in zip(axes, titles, images, maps or [None] * len(images), strict=True):
        _show(*panel)
    return figure


def _show(ax: Axes, title: str, image: Array | None, activation_map: Array | None = None) -> None:
    ax.set_title(title)
    ax.set_axis_off()
    if image is not None:
        ax.imshow(np.clip(np.rint(image), 0, 255).astype(np.uint8), interpolation="nearest")
    if activation_map is not None:
        alpha = 1.0 if image is None else 0.55
        ax.imshow(activation_map, cmap="viridis", vmin=0, vmax=1, alpha=alpha)


def _with_scale(figure: Figure, shrink: float = 0.8) -> Figure:
    """Add the scale of maps, in its own colours: those over a picture are paler."""
    scale = ScalarMappable(Normalize(0, 1), "viridis")
    figure.colorbar(scale, ax=figure.axes, label="map value", shrink=shrink)
    return figure
