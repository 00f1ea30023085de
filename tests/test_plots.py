from types import SimpleNamespace

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import photo
from IPython.core.formatters import DisplayFormatter
from scipy import stats

from pdutils import plots
from pdutils.stats import PairedDifference, Rate


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


def shown(ax):
    return ax.get_images()[-1].get_array()


def colors(bars):
    return [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in bars]


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def ticks(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


#: All that a figure asks of a classifier.
ZOO = SimpleNamespace(class_names=("ant", "bee", "cat", "dog", "eel", "fox"))


def test_prediction_shows_the_five_best_with_their_probabilities_in_the_colours_of_their_roles():
    probabilities = np.array([0.05, 0.4, 0.02, 0.3, 0.2, 0.03], dtype=np.float32)
    options = {"label": 3, "attacked_label": 1, "title": "adversary"}
    left, right = plots.prediction(ZOO, photo(), probabilities, **options).axes
    assert left.get_title() == "adversary\nbee 0.40, dog 0.30"
    assert ticks(right.yaxis) == ["fox", "ant", "eel", "dog", "bee"]
    np.testing.assert_allclose(widths(right), [0.03, 0.05, 0.2, 0.3, 0.4], rtol=1e-6)
    assert [text.get_text() for text in right.texts] == [f"{width:.2f}" for width in widths(right)]
    others = [plots.OTHER_COLOR] * 3
    assert colors(right.patches) == [*others, plots.TRUE_COLOR, plots.ATTACK_COLOR]
    # Several draws are shown by their means and how far they reach.
    draws = np.array([[0.1, 0.5, 0.0, 0.4, 0, 0], [0.1, 0.3, 0.0, 0.6, 0, 0]], dtype=np.float32)
    left, right = plots.prediction(ZOO, photo(), draws, label=3, title="PD").axes
    # The true class is not named twice.
    assert left.get_title() == "PD\ndog 0.50"
    assert right.get_title() == "the most probable, mean of 2 draws"
    np.testing.assert_allclose(widths(right)[-3:], [0.1, 0.4, 0.5])
    ends = [segment[:, 0] for segment in right.collections[0].get_segments()][-2:]
    np.testing.assert_allclose(ends, [[0.3, 0.5], [0.4, 0.6]], rtol=1e-6)


def test_pictures_are_clipped_and_rounded_for_showing_and_not_held_by_pyplot_if_there_are_any():
    image = np.full((4, 4, 3), 255.6, dtype=np.float32)
    image[0] = -3
    (ax,) = plots.pictures([image], ["x"]).axes
    assert shown(ax).dtype == np.uint8
    assert (shown(ax)[0].max(), shown(ax)[1:].min()) == (0, 255)
    # A notebook would show them twice.
    assert plt.get_fignums() == []
    # None at all is refused in a sentence.
    for show, options in (
        (plots.pictures, {}),
        (plots.maps, {"activation_maps": []}),
        (plots.closeup, {"row": 1, "column": 1}),
    ):
        with pytest.raises(ValueError, match="images: expected at least one image, got none"):
            show(images=[], titles=[], **options)


def test_outcome_draws_the_true_class_green_and_the_attacked_one_orange():
    options = {"names": ["badger", "black_bear"], "probabilities": [0.25, 0.5]}
    figure = plots.outcome([photo()] * 2, ["a", "b"], **options)
    right = figure.axes[-1]
    assert titles(figure) == ["a", "b", "probability"]
    assert right.axison
    assert colors(right.patches) == [plots.TRUE_COLOR, plots.ATTACK_COLOR]
    assert [bar.get_height() for bar in right.patches] == [0.25, 0.5]
    assert ticks(right.xaxis) == ["badger", "black\nbear"]
    assert "badger 0.25, black bear 0.50" in figure.get_label()


def test_perturbation_is_magnified_around_mid_grey_where_it_is_one_and_named():
    clean = np.full((32, 32, 3), 40, dtype=np.float32)
    other = clean.copy()
    other[0, 0] += 4
    figure = plots.perturbation(clean, other)
    assert "at most 4 of 255" in titles(figure)[1]
    assert "x 32" in titles(figure)[2]
    assert shown(figure.axes[2])[0, 0].min() >= 254
    assert set(np.unique(shown(figure.axes[2])[1:])) <= {127, 128}
    # A small share of changed values is not rounded to none.
    other = clean.copy()
    other[3, 4, 1] = 240
    assert titles(plots.perturbation(clean, other, title="clean, PD 1"))[1:] == [
        "clean, PD 1, off by at most 200 of 255",
        "difference x 0.64, 0.033% of values",
    ]
    # Nothing, and rounding alone, are not magnified.
    clean = photo()
    assert "at most 0 of 255" in titles(plots.perturbation(clean, clean))[1]
    figure = plots.perturbation(clean, np.nextafter(clean, np.float32(300)))
    assert set(np.unique(shown(figure.axes[2]))) <= {127, 128}


def test_changed_pixels_counts_pixels_not_channels_and_dots_them():
    before = photo()
    after = before.copy()
    after[2, 5] += 1
    after[7, 1, 2] -= 1
    for chances, shape in ((None, (32, 32, 3)), (np.zeros((32, 32), np.float32), (32, 32))):
        (ax,) = plots.changed_pixels(before, [after], ["PD 2"], activation_map=chances).axes
        assert ax.get_title() == "PD 2: 2 pixels changed"
        (dots,) = ax.get_lines()
        assert sorted(zip(dots.get_ydata(), dots.get_xdata(), strict=True)) == [(2, 5), (7, 1)]
        assert shown(ax).shape == shape


def test_probabilities_by_step_draws_each_draw_its_mean_and_the_blog():
    steps = {"clean": np.array([[0.9, 0.1]]), "PD": np.array([[0.2, 0.6], [0.4, 0.4]])}
    figure = plots.probabilities_by_step(steps, names=("badger", "skunk"), blog={"PD": 0.75})
    lines = {}
    for line in figure.axes[0].get_lines():
        if len(line.get_ydata()):
            lines.setdefault(line.get_marker(), []).append(line.get_xydata())
    np.testing.assert_allclose([line[:, 1] for line in lines["_"]], [[0.9, 0.3], [0.1, 0.5]])
    np.testing.assert_array_equal(lines["D"], [[[1, 0.75]]])
    for mark, expected, places in ((".", [0.9, 0.2, 0.4], -0.15), ("^", [0.1, 0.6, 0.4], 0.15)):
        ((x, y),) = (line.T for line in lines[mark])
        np.testing.assert_array_equal(y, expected)
        # The draws of a step lie beside each other, the only one of a step in its middle.
        assert x[0] == places
        np.testing.assert_allclose(x[1:], 1 + places, atol=0.07)
        assert x[1] != x[2]


def test_maps_show_image_map_and_both_with_the_scale_of_the_map_and_how_it_is_spread():
    maps = [np.full((48, 64), value, dtype=np.float32) for value in (0.2, 0.9)]
    rows = [("clean", "map", "both"), ("adversary", "its map", "r = 0.10")]
    (panel, _) = plots.maps([photo()], maps[:1], ["R-CAM"]).axes
    assert panel.get_images()[1].get_clim() == (0, 1)
    np.testing.assert_array_equal(shown(panel), maps[0])
    figure = plots.map_triples([photo(), photo()], maps, rows)
    *panels, scale = figure.axes
    assert titles(figure)[:-1] == [title for row in rows for title in row]
    assert [len(ax.get_images()) for ax in panels] == [1, 1, 2] * 2
    for ax, value in ((panels[1], 0.2), (panels[5], 0.9)):
        assert ax.get_images()[-1].get_clim() == (0, 1)
        np.testing.assert_allclose(shown(ax), value, rtol=1e-6)
    # The colours are the map's own, not the paler ones of the map laid over the image.
    assert scale.get_ylabel() == "map value"
    assert scale._colorbar.alpha is None
    values = np.array([[0.1, 0.2], [0.3, 1.0]], dtype=np.float32)
    (ax,) = plots.map_histogram({"paper": values}).axes
    (label,) = ax.get_legend().get_texts()
    assert label.get_text() == "paper: mean 0.40, 75% below 0.5"
    assert ax.patches[0].get_data().values.sum() == pytest.approx(1)


def test_places_are_shown_as_times_an_even_spread_on_one_scale():
    even = np.full((12, 8), 0.3, np.float32)
    corner = np.zeros((12, 8), np.float32)
    corner[:3, :2] = 7
    fields = {"object": corner, "FGSM": even, "nothing": np.zeros_like(even)}
    figure = plots.places(fields, reference="object", notes={"FGSM": "1.00"}, cells=4)
    panels = [ax.get_images()[0] for ax in figure.axes[:3]]
    expected = np.zeros((4, 4))
    expected[0, 0] = 16
    for panel, values in zip(panels, (expected, np.ones((4, 4)), np.zeros((4, 4))), strict=True):
        np.testing.assert_allclose(panel.get_array(), values)
        assert panel.get_clim() == (0, 4)
    # White is even, and only that.
    assert panels[1].to_rgba(np.array([[1.0]]))[0, 0].tolist() == pytest.approx([1] * 4, abs=0.01)
    assert titles(figure)[1] == "FGSM\nr = 0.00, 1.00"
    # The cells need not divide the places, and the correlation is of pixels.
    for shape in ((30, 30), (5, 3)):
        one, two = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
        figure = plots.places({"object": one, "FGSM": two}, reference="object")
        found = shown(figure.axes[0])
        assert found.shape == (min(28, shape[0]), min(28, shape[1]))
        assert found.mean() == pytest.approx(1)
        expected = stats.pearsonr(one.ravel(), two.ravel()).statistic
        assert titles(figure)[:2] == ["object", f"FGSM\nr = {expected:.2f}"]
    np.testing.assert_allclose(found, one / one.mean(), rtol=1e-6)


def test_no_series_has_the_colour_of_the_true_class_or_of_the_attack_s():
    names = ("clean", "adversary", "x", "y")
    found = PairedDifference(both=4, first_only=2, second_only=1, neither=2)
    figures = (
        plots.rates({"PD": {name: Rate(i, 10) for i, name in enumerate(names)}}),
        plots.differences({"PD": dict.fromkeys(names, found)}),
        plots.rate_curves({name: {2.0: Rate(3, 10)} for name in names}, xlabel="eps"),
    )
    for figure in figures:
        lines = figure.axes[0].get_lines()
        lines = [line for line in lines if line.get_marker() not in ("None", "|", "_")]
        assert len({line.get_marker() for line in lines}) == len(lines) == 4
        used = {matplotlib.colors.to_hex(line.get_color()).upper() for line in lines}
        assert len(used) == 4
        assert not used & {plots.TRUE_COLOR, plots.ATTACK_COLOR}
    bars = plots.bars({"PD": dict.fromkeys(names, 0.1)}).axes[0].patches
    assert len({bar.get_hatch() for bar in bars}) == 4
    for color in plots.SERIES:
        hue, saturation, _ = matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(color))
        assert saturation < 0.1 or 0.5 < hue < 0.95


def test_closeup_is_a_square_of_the_image_wherever_it_is_asked_for():
    image = photo()
    for row, column, top, left in ((0, 0, 0, 0), (31, 31, 22, 22), (16, 16, 11, 11)):
        (ax,) = plots.closeup([image], ["x"], row=row, column=column, size=10).axes
        np.testing.assert_array_equal(shown(ax), image[top : top + 10, left : left + 10])


def test_subbands_show_means_and_half_differences_where_they_belong():
    image = np.zeros((8, 8, 3), dtype=np.float32)
    image[:, ::2] = 40
    image[:4] += 100
    even = np.full((8, 8, 3), 90, dtype=np.float32)
    figure = plots.subbands([image, even], ["stripes", "even"], levels=1, magnify=2)
    stripes, flat = (shown(ax)[..., 0].astype(float) for ax in figure.axes)
    share = 219 / 255
    means = np.repeat([120, 20], 2)[:, np.newaxis] * np.ones(4)
    np.testing.assert_allclose(stripes[:4, :4], means * share, atol=0.6)
    # From left to right each mean of two differs by 20 from theirs, from top to bottom by nothing.
    np.testing.assert_allclose(stripes[:4, 4:], 127.5 + 2 * 20 * share, atol=0.6)
    np.testing.assert_allclose(stripes[4:], 127.5, atol=0.6)
    np.testing.assert_allclose(flat[:4, :4], 90 * share, atol=0.6)
    assert titles(figure) == [
        "stripes: 67% of the details below half a grey level",
        "even: 100% of the details below half a grey level",
    ]


def test_rates_and_differences_stand_with_their_intervals_and_n():
    for draw, found in (
        (plots.rates, Rate(8, 10)),
        (plots.differences, PairedDifference(40, 12, 2, 21)),
    ):
        figure = draw({"PD": {"clean": found}})
        (ax,) = figure.axes
        np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [found.value])
        (segment,) = ax.collections[0].get_segments()
        np.testing.assert_allclose(segment[:, 0], found.interval)
        assert legend(figure) == [f"clean (n = {found.n})"]
    assert list(ax.get_lines()[-1].get_xdata()) == [0, 0]


def test_rate_curves_pass_through_the_rates_with_their_intervals():
    line = {2.0: Rate(3, 10), 8.0: Rate(7, 10)}
    figure = plots.rate_curves({"PD": line, "WD": line}, xlabel="eps")
    (ax,) = figure.axes
    first, second = ax.get_lines()
    for curve in (first, second):
        np.testing.assert_allclose(curve.get_ydata(), [0.3, 0.7])
        assert curve.get_linestyle() == "-"
    # Equal curves do not hide each other.
    assert (second.get_xdata() > first.get_xdata()).all()
    assert first.get_marker() != second.get_marker()
    segments = [segment[:, 1] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(segments, [rate.interval for rate in line.values()])
    assert (ticks(ax.xaxis), legend(figure)) == (["2", "8"], ["PD", "WD"])


def test_the_tradeoff_has_a_panel_for_each_knob_all_on_one_scale_and_names_its_points():
    same = (Rate(8, 10), Rate(6, 10))
    curves = {
        "window": {"5": (Rate(9, 10), Rate(4, 10)), "20": same, "40": same},
        "sigma": {"0.01": (Rate(10, 10), Rate(0, 10)), "0.08": (Rate(2, 10), Rate(9, 10))},
    }
    left, right = plots.tradeoff(curves, ylabel="turned back").axes
    np.testing.assert_allclose(left.get_lines()[0].get_xydata(), [[0.9, 0.4], *[[0.8, 0.6]] * 2])
    found = {text.get_text(): text.xy for text in left.texts}
    assert found == {"5": (0.9, 0.4), "20, 40": (0.8, 0.6)}
    assert [left.get_title(), right.get_title()] == ["window", "sigma"]
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert left.get_xlim()[0] < 0.2
    # Points above each other keep their labels apart.
    assert {text.get_ha() for text in left.texts} == {"left", "right"}


def test_a_figure_says_in_words_what_it_shows():
    series = {"badger": [1, 0.5], "skunk": [0, 0.4]}
    groups = {"soft": {"clean": 0.1, "adversary": 0.2}, "hard": {"clean": 0.3, "adversary": 0.4}}
    rates = {"none": {"clean": Rate(6, 10)}, "clean, PD": {"clean": Rate(6, 10)}}
    bars = plots.bars(groups, ylabel="share")
    assert [bar.get_height() for bar in bars.axes[0].patches] == [0.1, 0.3, 0.2, 0.4]
    pictures = plots.pictures([photo()] * 2, ["clean:\nbadger 0.90", "adversary"])
    lines = plots.trajectory(series, true="badger", attacked="skunk", xlabel="step")
    badger, skunk = lines.axes[0].get_lines()
    np.testing.assert_array_equal(badger.get_xydata(), [(0, 1), (1, 0.5)])
    assert (badger.get_color(), skunk.get_color()) == (plots.TRUE_COLOR, plots.ATTACK_COLOR)
    assert badger.get_marker() != skunk.get_marker()
    for figure, words in (
        (pictures, "Pictures: clean: badger 0.90; adversary."),
        (lines, "Lines: probability against step: badger 0.50, skunk 0.40."),
        (bars, "Bars: share: clean soft 0.10, clean hard 0.30, adversary soft 0.20, adversary hard "
         "0.40."),
        (plots.rates(rates), "Points with intervals: share classified right, 95% interval: clean "
         "(n = 10) for none / clean, PD."),
        (plots.closeup([photo()], ["x"], row=3, column=3), "Close-ups of the same square: x."),
    ):  # fmt: skip
        assert figure.get_label() == words
    # The words travel with the picture into a notebook.
    formatter = DisplayFormatter()
    png = formatter.formatters["image/png"]
    png.for_type(type(pictures), lambda figure: b"a picture")
    data, metadata = formatter.format(pictures)
    assert data["image/png"] == b"a picture"
    assert metadata == {"image/png": {"alt": "Pictures: clean: badger 0.90; adversary."}}
