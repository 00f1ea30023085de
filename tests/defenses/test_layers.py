import itertools
from collections import Counter

import numpy as np
import pytest
from conftest import assert_maps_alike, photo, photos
from scipy.stats import chi2_contingency

from pdutils._utils import load_tensorflow
from pdutils.activation import cam, robust_cam
from pdutils.deflection import draw_writes, pixel_deflection
from pdutils.denoising import denoise_wavelet

load_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from pdutils.defenses import layers  # noqa: E402
from pdutils.defenses.layers import (  # noqa: E402
    Logits,
    PixelDeflection,
    RobustCAM,
    RobustGradCAM,
    WaveletDenoising,
)

by_reading = pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
by_combine = pytest.mark.parametrize("combine", ["paper", "geometric", "repo"])
#: Each mode and each meaning of sigma once; every pair compiles anew for every shape.
PAIRS = [("soft", "channel"), ("hard", "rgb")]


def uneven_maps(n, height, width):
    return np.random.default_rng(0).uniform(0, 1, (n, height, width)).astype(np.float32)


def as_array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def gradient_of(function, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = function(images)
    return tape.gradient(value, images).numpy()


# --- wavelet denoising: as the NumPy path (in few shapes, for each is compiled) ---


def denoised(images, **options):
    return as_array(WaveletDenoising(**options)(images))


def assert_as_numpy(batch, *, mode, sigma=0.04, **options):
    """Compare the layer with the NumPy path, whose result is given back."""
    result = denoised(batch, mode=mode, sigma=sigma, **options)
    expected = [denoise_wavelet(batch, mode=mode, sigma=sigma, **options)]
    if mode == "hard":
        # A coefficient that is within rounding of its threshold may stay or go.
        nudged = [sigma * by for by in (1 - 1e-5, 1 + 1e-5)]
        expected += [denoise_wavelet(batch, mode=mode, sigma=s, **options) for s in nudged]
    assert np.min([np.abs(result - e) for e in expected], axis=0).max() < 1e-3
    # As far as the coarsest coefficient of an image reaches.
    assert np.mean(np.abs(result - expected[0]) > 1e-3) < (0.02 if mode == "hard" else 1e-6)
    return expected[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 5)], ids=str)
@pytest.mark.parametrize(("mode", "sigma_scale"), PAIRS)
def test_denoising_agrees_with_numpy_at_any_size(mode, sigma_scale, size):
    batch = photos(2, *size)
    for sigma in (0.02, 0.1):
        expected = assert_as_numpy(batch, sigma=sigma, mode=mode, sigma_scale=sigma_scale)
        if min(size) > 1:
            assert np.abs(expected - batch).max() > 0.1


@pytest.mark.parametrize("sigma_scale", ["channel", "rgb"])
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_denoising_agrees_with_numpy_at_any_sigma_and_clips_where_it_does(mode, sigma_scale):
    options = {"mode": mode, "sigma_scale": sigma_scale}
    # Two levels of wavelets, and one more row than two levels take.
    batch = photos(2, 33, 46)
    for sigma in (1e-9, 0.004, 0.02, 0.1, 0.4, 10.0, 1e300):
        assert_as_numpy(batch, sigma=sigma, **options)
    np.testing.assert_allclose(denoised(batch, sigma=0, **options), batch, atol=1e-3)
    if options == {"mode": "soft", "sigma_scale": "channel"}:
        np.testing.assert_allclose(denoised(batch), denoise_wavelet(batch), atol=1e-3)
    strong = np.clip(128 + 3 * (batch - 128), 0, 255)
    strong[0, :8, :8] = -20, 290, 100
    result = denoised(strong, sigma=0.1, **options)
    np.testing.assert_allclose(result, denoise_wavelet(strong, sigma=0.1, **options), atol=1e-3)
    assert (result.min() >= 0 and result.max() <= 255) == (sigma_scale == "channel")
    constant = np.zeros_like(batch)
    constant[1] = 77, 255, 77
    np.testing.assert_allclose(denoised(constant, sigma=0.1, **options), constant, atol=1e-3)


def test_a_channel_that_is_constant_but_for_rounding_stays():
    grey = np.clip(photos(2, 33, 46)[..., :1], 1, 254) + np.float32(1 / 3)
    noisy = grey + np.random.default_rng(0).uniform(-1e-5, 1e-5, (2, 33, 46, 3)).astype(np.float32)
    for mode in ("soft", "hard"):
        expected = denoise_wavelet(noisy, mode=mode)
        np.testing.assert_allclose(denoised(noisy, mode=mode), expected, atol=1e-3)
    small = noisy[:1, :16, :16]
    _, pull_back = WaveletDenoising().with_derivative(small)
    # What only moves the colour, in a place that nothing else depends on, comes through whole.
    weights, colour = np.zeros(small.shape, np.float32), layers.FROM_YCBCR[1]
    weights[:, 9, 9] = colour
    np.testing.assert_allclose(pull_back(weights) @ colour, weights @ colour, atol=1e-3)


def test_what_is_denoised_does_not_depend_on_its_batch():
    batch = photos(2, 6, 5)
    # An image of another range beside it.
    batch[1] /= 10
    together = denoised(batch)
    for i in range(2):
        np.testing.assert_allclose(denoised(batch[i : i + 1])[0], together[i], atol=1e-4)


# --- wavelet denoising: its gradient, and double precision ---


@pytest.mark.parametrize(("mode", "sigma_scale"), PAIRS)
def test_double_precision_and_the_gradient_of_denoising_are_right(mode, sigma_scale):
    size = (1, 16, 16) if mode == "soft" else (2, 7, 5)
    rng = np.random.default_rng(1)
    options = {"sigma": 0.06, "mode": mode, "sigma_scale": sigma_scale}
    layer = WaveletDenoising(**options, dtype="float64")
    # So strong a contrast that what is clipped is clipped; off the 8-bit grid no extremes tie.
    strong = np.clip(128 + 2 * (photos(*size).astype(np.float64) - 128), 0, 255)
    images = tf.constant(strong + rng.uniform(-0.3, 0.3, (*size, 3)))
    precise = as_array(layer(strong))
    assert precise.dtype == np.float64
    expected = denoise_wavelet(strong.astype(np.float32), **options)
    np.testing.assert_allclose(precise, expected, atol=1e-3)
    # Without shrinking, what is left is rounding.
    plain = denoised(strong, **options | {"sigma": 0}, dtype="float64")
    np.testing.assert_allclose(plain, strong, atol=1e-9)

    weights = rng.normal(size=images.shape)

    def value(images):
        return tf.reduce_sum(tf.sin(layer(images) / 40) * weights)

    gradient = gradient_of(value, images)
    for _ in range(5):
        direction, step = rng.normal(size=images.shape), 1e-6
        slope = float(value(images + step * direction) - value(images - step * direction))
        expected = pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-5)
        assert (gradient * direction).sum() == expected
    if mode == "soft":
        layer, weights = WaveletDenoising(0.06), weights.astype(np.float32)
        single = gradient_of(value, tf.cast(images, tf.float32))
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(single, gradient, atol=1e-4)


@pytest.mark.parametrize(("mode", "sigma_scale"), PAIRS)
def test_the_gradient_at_constant_images_and_at_the_ends_of_the_range(mode, sigma_scale):
    layer = WaveletDenoising(mode=mode, sigma_scale=sigma_scale)
    for level in (0.0, 100.0, 255.0):
        gradient = gradient_of(lambda i: tf.reduce_sum(layer(i)), tf.fill([1, 16, 16, 3], level))
        assert np.isfinite(gradient).all()
        # The mean of the image goes through unshrunk.
        assert gradient.sum() == pytest.approx(gradient.size, rel=1e-3)
    # Rounding must not decide whether a white pixel has a gradient.
    images = np.full((1, 16, 16, 3), 255, np.float32)
    images[:, :8] = photo(16, 16)[:8]
    images[:, 14:] = 0
    gradient = gradient_of(lambda i: tf.reduce_sum(layer(i)[:, 9:]), tf.constant(images))
    assert gradient[:, 10:].min() > 0.1


# --- deflection: what is written ---


def numbered(height, width, n=1):
    """Images whose values tell where they come from: no two of an image are equal."""
    image = np.arange(height * width * 3, dtype=np.float32).reshape(height, width, 3)
    return np.repeat(image[None], n, axis=0)


def deflected(images, *args, maps=None, seed=0, **options):
    layer = PixelDeflection(*args, seed=seed, **options)
    return as_array(layer(images if maps is None else [images, maps]))


def loop_over(images, *args, **options):
    """Deflect numbered images by the loop, within the range that it takes."""
    return 64 * pixel_deflection(images / 64, *args, **options)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def changes(before, after, whole_pixels=False):
    """The changed places of each numbered image: (row, column, channel, from_row, from_column)."""
    width = before.shape[2]
    found = [[] for _ in before]
    for i, *place in np.argwhere(before != after).tolist():
        value = int(after[i, *place])
        assert value % 3 == place[2], "a value has changed its channel"
        origin = divmod(value // 3, width)
        if not (whole_pixels and place[2] > 0):
            found[i].append((*place, *origin))
    return found


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 5)], ids=str)
@by_reading
def test_values_come_from_the_window_and_only_in_the_paper_from_row_and_column_0(reading, size):
    images, least = numbered(*size, n=50), 0 if reading == "paper" else 1
    for maps, window in ((uneven_maps(50, *size), 3), (None, 2**40)):
        after = deflected(images, 20, window, reading, maps=maps)
        assert after.shape == images.shape
        assert after.dtype == np.float32
        found = np.array(flat(changes(images, after))).reshape(-1, 5)
        assert np.abs(found[:, 3:] - found[:, :2]).max(initial=0) <= window
        per_pixel = set((after != images).sum(axis=-1).flat)
        if size == (1, 1):
            assert per_pixel == {0}
            continue
        ends = [min(least, length - 1) for length in size]
        np.testing.assert_array_equal(found.min(axis=0), [0, 0, 0, *ends])
        # The paper replaces whole pixels.
        assert per_pixel == {0, 3} if reading == "paper" else 1 in per_pixel


# --- deflection: how many writes there are ---


def per_channel(before, after):
    """Count the changes in images so large that two writes meet hardly ever."""
    return [tuple(counts) for counts in (before != after).sum(axis=(1, 2)).tolist()]


@pytest.mark.parametrize(
    ("reading", "n", "expected"),
    [
        ("blog", 7, (7, 7, 7)),
        ("repo", 1, (1, 1, 1)),
        ("repo", 6, (2, 2, 2)),
        ("repo", 7, (3, 3, 3)),
        ("paper", 7, (7, 7, 7)),
    ],
)
@pytest.mark.parametrize("with_map", [False, True], ids=["no map", "zeros"])
def test_counts_without_a_map(reading, n, expected, with_map):
    images = numbered(40, 40, n=100)
    maps = np.zeros((100, 40, 40), np.float32) if with_map else None
    counts = per_channel(images, deflected(images, n, 40, reading, maps=maps))
    # Now and then a place is drawn twice, or drawn as its own neighbour.
    assert Counter(counts).most_common(1)[0][0] == expected
    assert counts.count(expected) >= 90
    assert (np.array(counts) <= expected).all()


@pytest.mark.parametrize(("n", "heat"), [(1, "uneven"), (1, "hot"), (3, "hot")])
@by_reading
def test_counts_with_a_map_are_distributed_as_in_the_loop(reading, heat, n):
    images, maps = numbered(40, 40, n=700), uneven_maps(700, 40, 40)
    maps = maps if heat == "uneven" else 0.9 + maps / 10
    ours = per_channel(images, deflected(images, n, 40, reading, maps=maps))
    loop = loop_over(images, n, 40, activation_map=maps, reading=reading, rng=0)
    theirs = per_channel(images, loop)
    assert likeness(ours, theirs) > 1e-3
    if reading == "repo":
        assert n <= max(map(sum, ours)) <= n + 2


# --- deflection: the distribution of the changed pixels is that of the loop ---


def likeness(ours, theirs):
    """The p-value of the two samples of things coming from one distribution."""
    ours, theirs = Counter(ours), Counter(theirs)
    # A chi-square needs a few of each kind: the rare ones count as one kind.
    frequent = [kind for kind in ours | theirs if ours[kind] + theirs[kind] >= 10]
    table = np.array([[sample[kind] for kind in frequent] for sample in (ours, theirs)])
    rest = np.array([ours.total(), theirs.total()]) - table.sum(axis=1)
    if rest.any():
        table = np.column_stack([table, rest])
    return 1.0 if table.shape[1] == 1 else chi2_contingency(table).pvalue


def check_likeness(ours, theirs):
    """Compare the changes of many draws: where, whence, how many, and of which channels."""
    aspects = (
        lambda found: [change[:3] for change in flat(found)],
        lambda found: [(change[3] - change[0], change[4] - change[1]) for change in flat(found)],
        # Where a neighbour can be depends on how near the border is.
        lambda found: [change[:2] + change[3:] for change in flat(found)],
        lambda found: [len(changes) for changes in found],
        lambda found: [tuple(sorted(change[2] for change in changes)) for changes in found],
    )
    for aspect in aspects:
        assert likeness(aspect(ours), aspect(theirs)) > 1e-3


def all_at_once(image, writes):
    """Carry out writes in their order, each reading from the image as it came."""
    result = image.copy()
    to, origin = (writes.to_row, writes.to_column), (writes.from_row, writes.from_column)
    if (writes.channel >= 0).any():
        to, origin = (*to, writes.channel), (*origin, writes.channel)
    # Of values assigned to one place NumPy keeps the last.
    result[to] = image[origin]
    return result


@pytest.mark.parametrize(
    ("n", "with_map", "compiled"),
    [(1, False, False), (1, True, False), (1, True, True), (8, False, False), (8, True, False)],
)
@by_reading
def test_deflections_change_the_pixels_that_the_loop_changes(reading, n, with_map, compiled):
    # With a single draw of each channel no draw could see an earlier write; with many each reads
    # from the image as it came.
    images, chances = numbered(6, 5, n=2000 if n == 1 else 1000), None
    if with_map:
        chances = uneven_maps(1, 6, 5)[0]
        # A row, a column and a corner that are wholly spared, and one that is wholly open.
        chances[2], chances[:, 3], chances[5, 4], chances[0, 0] = 1, 1, 1, 0
    maps = np.repeat(chances[None], len(images), axis=0) if with_map else None
    layer, rng = PixelDeflection(n, 2, reading, seed=2018), np.random.default_rng(2018)
    run = tf.function(layer, jit_compile=True) if compiled else layer
    after = as_array(run([images, maps] if with_map else images))
    if n == 1:
        expected = loop_over(images, 1, 2, activation_map=maps, reading=reading, rng=2018)
    else:
        drawn = [draw_writes((6, 5), n, 2, chances, reading, rng) for _ in images]
        expected = np.stack([all_at_once(images[0], writes) for writes in drawn])
    check_likeness(*(changes(images, made, reading == "paper") for made in (after, expected)))


# --- deflection: maps ---


@by_reading
def test_each_image_obeys_its_own_map_and_stays_if_that_is_1_everywhere(reading):
    images, maps = numbered(20, 20, n=5), np.zeros((5, 20, 20), np.float32)
    for i, part in enumerate((np.s_[:10], np.s_[10:], np.s_[:, :10], np.s_[:, 10:], np.s_[:])):
        maps[i][part] = 1
    changed = (deflected(images, 100, 2, reading, maps=maps) != images).any(axis=-1)
    assert (changed[:4].sum(axis=(1, 2)) > 40).all()
    assert not changed[maps == 1].any()


@pytest.mark.parametrize("reading", ["repo", "paper"])
def test_one_hardly_open_place_gets_all_the_writes(reading):
    places = [(0, 0), (100, 33), (223, 223)]
    images, maps = numbered(224, 224, n=3), np.ones((3, 224, 224), np.float32)
    for i, place in enumerate(places):
        maps[i][place] = np.nextafter(np.float32(1), np.float32(0))
    after = deflected(images, 50, 10, reading, maps=maps)
    assert [{change[:2] for change in found} for found in changes(images, after)] == [
        {place} for place in places
    ]
    # Every channel gets some of the 50 writes.
    assert (after != images).sum() == 3 * 3


# --- deflection: seeds and batches ---


@by_reading
def test_a_result_does_not_depend_on_the_other_images_of_the_batch(reading):
    images, others = photos(3, 12, 9), 255 - photos(3, 12, 9)
    heat, other_heat = uneven_maps(3, 12, 9), uneven_maps(4, 12, 9)[1:]
    others[1], other_heat[1] = images[1], heat[1]
    other_heat[2] = 1
    for maps, other_maps in ((None, None), (heat, other_heat)):
        first = deflected(images, 30, 3, reading, maps=maps)
        second = deflected(others, 30, 3, reading, maps=other_maps)
        np.testing.assert_array_equal(first[1], second[1])
        assert (first[1] != images[1]).any()


@by_reading
@pytest.mark.parametrize("with_map", [False, True], ids=["no map", "map"])
def test_a_seed_gives_the_same_first_call_and_the_next_call_draws_anew(reading, with_map):
    images = photos(2)
    inputs = [images, uneven_maps(2, 32, 32)] if with_map else images
    seeds = (3, 3, 4, None)
    one, same, other, unseeded = (PixelDeflection(20, reading=reading, seed=s) for s in seeds)
    calls = [as_array(one(inputs)) for _ in range(3)]
    for call in calls[:2]:
        np.testing.assert_array_equal(as_array(same(inputs)), call)
    for again in (*calls[1:], *(as_array(layer(inputs)) for layer in (other, unseeded, unseeded))):
        # Other neighbours alone would leave the places the same.
        changed, before = again != images, calls[0] != images
        assert (changed & before).sum() < before.sum() / 4
    assert not np.array_equal(calls[1], calls[2])
    nothing = PixelDeflection(0, reading=reading)(inputs)
    np.testing.assert_array_equal(nothing, images)


# --- where the layers run ---


@pytest.mark.parametrize("kind", ["deflection", "deflection with maps", "denoising"])
def test_in_a_graph_and_in_a_dataset_a_layer_does_the_same(kind):
    images = photos(2, 6, 5)
    inputs = [images, uneven_maps(2, 6, 5)] if kind == "deflection with maps" else images

    def make():
        if kind == "denoising":
            return WaveletDenoising(0.1, "hard", "rgb")
        return PixelDeflection(90, 3, "repo", seed=1)

    tensors, same = tf.nest.map_structure(tf.Variable, inputs), make()
    expected = [as_array(same(tensors)) for _ in range(2)]
    # Nothing is written in place.
    tf.nest.map_structure(np.testing.assert_array_equal, tensors, inputs)
    assert np.abs(expected[0] - images).max() > 1
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), inputs)
    run = tf.function(make(), input_signature=[spec])
    if kind == "denoising":
        # XLA rounds otherwise, so that a coefficient next to its threshold may stay or go. That
        # deflection draws the right numbers there is tested where many are drawn.
        under_xla = tf.function(make(), jit_compile=True)(images)
        assert np.mean(np.abs(under_xla - expected[0]) > 1e-3) < 0.02

    layer = make()
    source = tuple(inputs) if isinstance(inputs, list) else inputs
    dataset = tf.data.Dataset.from_tensor_slices(source).repeat(2).batch(2)
    mapped = dataset.map(lambda *parts: layer(list(parts) if len(parts) > 1 else parts[0]))
    for result, wanted in zip(mapped, expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-3)
        np.testing.assert_allclose(run(inputs), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "reading"), [("float64", "repo"), ("float64", "paper"), ("mixed_float16", "blog")]
)
def test_deflection_copies_values_of_another_dtype(reading, dtype):
    images = photos(2)
    for maps in (None, uneven_maps(2, 32, 32)):
        after = deflected(images, 20, maps=maps, reading=reading, dtype=dtype)
        expected = deflected(images, 20, maps=maps, reading=reading)
        if maps is None or dtype == "float64":
            np.testing.assert_array_equal(after, expected)
        assert set(after.ravel().tolist()) <= set(images.ravel().tolist())
        assert (after != images).any()


# --- configurations ---


def in_parts(model):
    """A network up to its feature map and its logits; the toys' take [-1, 1]."""
    last = model.layers[-1]
    outputs = {"features": model.layers[-2].input, "logits": Logits(last)(last.input)}
    return keras.Model(model.inputs[0], outputs, name="parts")


DEFAULTS = {"deflections": 200, "window": 10, "reading": "blog", "seed": None}
MAP_KNOBS = {"size": (20, 24), "k": 4, "combine": "repo", "upscale": "tf1"}


@pytest.mark.parametrize(
    ("kind", "first", "knobs"),
    [
        (PixelDeflection, None, DEFAULTS),
        (PixelDeflection, None, {"deflections": 7, "window": 3, "reading": "paper", "seed": 5}),
        (WaveletDenoising, None, {"sigma": 0.3, "mode": "hard", "sigma_scale": "rgb"}),
        (RobustCAM, "head_weights", MAP_KNOBS),
        (RobustGradCAM, "network", MAP_KNOBS),
        (Logits, "dense", {}),
    ],
)
def test_keras_finds_the_layers_which_keep_their_names_and_knobs(toy, kind, first, knobs):
    # The import of this module is all that a saved model needs.
    assert keras.saving.get_registered_object(f"pdutils>{kind.__name__}") is kind
    assert kind.__module__ == layers.__name__
    parts = {
        "head_weights": toy.head_weights,
        "network": in_parts(toy.model),
        "dense": toy.model.layers[-1],
    }
    given = {} if knobs is DEFAULTS else knobs
    # NumPy's integers are taken, too.
    given = {name: np.int64(v) if isinstance(v, int) else v for name, v in given.items()}
    layer = kind(**{first: parts[first]} if first else {}, **given, name="mine")
    again = kind.from_config(layer.get_config())
    for made in (layer, again):
        assert {name: getattr(made, name) for name in knobs} == knobs
        assert made.name == "mine"
        assert first or made.get_config() == layer.get_config()


# --- the robust map, by head weights and by gradients ---


def by_weights(toy, images, k, combine, shift=None):
    features = toy.features(images)
    rows = features.probabilities if shift is None else shift + np.log(features.probabilities)
    return as_array(RobustCAM((32, 32), toy.head_weights, k, combine)([features.maps, rows]))


def by_gradients(toy_flat, images, k, combine):
    layer = RobustGradCAM(in_parts(toy_flat.model), (32, 32), k, combine)
    return as_array(layer(images / 127.5 - 1, maps=True))


@pytest.mark.parametrize("way", [by_weights, by_gradients])
@pytest.mark.parametrize(
    ("k", "combine"), [(1, "paper"), (2, "paper"), (3, "geometric"), (2, "repo"), (6, "repo")]
)
def test_the_robust_map_agrees_with_numpy(request, way, combine, k):
    classifier = request.getfixturevalue("toy" if way is by_weights else "toy_flat")
    images = photos(3)
    maps = way(classifier, images, k, combine)
    expected = robust_cam(classifier, images, k=k, combine=combine)
    assert maps.shape == (3, 32, 32)
    assert_maps_alike(maps, expected, combine, atol=1e-3)
    assert expected.std() > 0.05
    if k == 1:
        best = classifier.predict(images).argmax(axis=1)
        np.testing.assert_allclose(maps, cam(classifier, images, best), atol=1e-3)
    if (k, combine) == (2, "paper"):
        alone = way(classifier, images[1:2], k, combine)
        assert_maps_alike(alone[0], maps[1], combine, atol=1e-3)
        if way is by_weights:
            # Logits rank as probabilities do.
            by_logits = by_weights(classifier, images, k, combine, shift=7)
            np.testing.assert_allclose(by_logits, maps, atol=1e-6)


@by_combine
def test_what_rounding_leaves_of_terms_that_cancel_gives_zeros(combine):
    low, high = np.float32(7.3), np.nextafter(np.float32(7.3), np.float32(8))
    features = np.full((3, 3, 3, 2), low)
    features[0, 1, 1, 0] = features[0, 2, 0, 1] = high
    # Of the second image the same is left, but it is all there is; the third is constant.
    features[1] = features[0] - low
    weights = np.array([[1, 1], [-1, 1]], np.float32)
    layer = RobustCAM((8, 8), weights, 2, combine)
    maps = as_array(layer([features, np.array([[0.6, 0.4]] * 3, np.float32)]))
    np.testing.assert_array_equal(maps[[0, 2]], np.zeros((2, 8, 8)))
    assert combine == "geometric" or maps[1].max() == 1


def by_its_own(size, features, head, *knobs):
    """The layer of a network that gives what a layer of its own gives as features."""
    inputs = keras.Input((size, size, 3))
    x = features(inputs)
    network = keras.Model(inputs, {"features": x, "logits": head(x)}, name="stepped")
    return RobustGradCAM(network, (8, 8), *knobs)


def dense_after(*layers_):
    start = keras.initializers.GlorotUniform(0)
    last = keras.layers.Dense(5, kernel_initializer=start)
    return keras.Sequential([*layers_, keras.layers.Flatten(), last])


@by_combine
def test_features_that_are_constant_but_for_rounding_have_no_map_by_gradients(combine):
    layer = by_its_own(4, keras.layers.Identity(), dense_after(), 3, combine)
    noise = np.random.default_rng(0).uniform(-1e-7, 1e-7, (3, 4, 4, 3))
    images = (np.array([1.0, 40, 3e-3]).reshape(3, 1, 1, 1) * (1 + noise)).astype(np.float32)
    np.testing.assert_array_equal(layer(images, maps=True), np.zeros((3, 8, 8)))


def test_a_map_by_gradients_in_training_drops_what_training_drops():
    head = dense_after(keras.layers.Dropout(0.5, seed=0))
    layer = by_its_own(8, keras.layers.Conv2D(4, 3), head, 2)
    images = photos(2, 8, 8) / 255
    for maps in (True, False):
        still = [as_array(layer(images, maps=maps)) for _ in range(2)]
        np.testing.assert_array_equal(*still)
        drawn = [as_array(layer(images, maps=maps, training=True)) for _ in range(2)]
        assert not np.array_equal(*drawn)


def test_logits_without_a_gradient_have_no_map():
    def classes(features):
        found = keras.ops.cast(keras.ops.argmax(features, axis=-1), "float32")
        return keras.layers.Reshape((36,))(found)

    layer = by_its_own(8, keras.layers.Conv2D(6, 3), classes)
    assert layer(photos(2, 8, 8)).shape == (2, 36)
    with pytest.raises(ValueError, match=r"stepped: expected logits .* with a gradient"):
        layer(photos(2, 8, 8), maps=True)


def test_the_geometric_mean_of_many_maps_does_not_die():
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(1, 4, 4, 5)).astype(np.float32)
    weights = rng.uniform(size=(5, 300)).astype(np.float32)
    layer = RobustCAM((4, 4), weights, 300, "geometric")
    maps = as_array(layer([features, rng.uniform(size=(1, 300)).astype(np.float32)]))[0]
    single = np.einsum("hwc,ck->khw", features[0].astype(np.float64), weights)
    low, high = single.min(axis=(1, 2), keepdims=True), single.max(axis=(1, 2), keepdims=True)
    stretched = (single - low) / (high - low)
    root = np.exp(np.log(np.maximum(stretched, 1e-300)).mean(axis=0)) * (stretched > 0).all(axis=0)
    np.testing.assert_allclose(maps, (root - root.min()) / np.ptp(root), atol=1e-3)
    # The product itself does in single precision.
    assert (stretched.astype(np.float32).prod(axis=0) == 0).mean() > 0.5


def test_a_layer_by_gradients_holds_its_network_once_and_classifies_as_it_does(toy_flat):
    network, inputs = toy_flat.model, keras.Input((32, 32, 3))
    layer = RobustGradCAM(in_parts(network), (20, 24))
    model = keras.Model(inputs, [layer(inputs, maps=True), layer(inputs)])
    assert [tuple(output.shape) for output in model.outputs] == [(None, 20, 24), (None, 6)]
    assert len(model.weights) == len(network.weights)
    images = photos(3) / 127.5 - 1
    np.testing.assert_allclose(layer(images), network(images), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_those_of_the_dense_layer_without_its_activation(bias):
    dense = keras.layers.Dense(5, activation="softmax", use_bias=bias, bias_initializer="normal")
    inputs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    rows, layer = as_array(dense(inputs)), Logits(dense)
    np.testing.assert_allclose(keras.ops.softmax(layer(inputs)), rows, atol=1e-6)
    written_out = inputs @ as_array(dense.kernel) + (as_array(dense.bias) if bias else 0)
    np.testing.assert_allclose(as_array(layer(inputs)), written_out, atol=1e-5)
    assert {id(w) for w in layer.weights} == {id(w) for w in dense.weights}
    again = Logits.from_config(layer.get_config())
    assert again(inputs).shape == (3, 5)
    assert len(again.weights) == len(layer.weights)


# --- wrong input ---


def robust(**knobs):
    return RobustCAM((8, 8), np.zeros((4, 6), np.float32), **knobs)


@pytest.mark.parametrize(
    ("make", "knobs", "message"),
    [
        (robust, {"k": 0}, r"k: expected 1 to 6 classes, got 0"),
        (robust, {"k": 7}, r"k: expected 1 to 6 classes, got 7"),
        (robust, {"combine": "sum"}, r"combine: expected one of .*got 'sum'"),
        (robust, {"upscale": "up"}, r"upscale: expected one of .*got 'up'"),
        (PixelDeflection, {"deflections": -1}, r"deflections: expected .* of at least 0, got -1"),
        (PixelDeflection, {"window": 0}, r"window: expected a whole .* of at least 1, got 0"),
        (PixelDeflection, {"reading": "book"}, r"reading: .*'blog', 'repo', 'paper'.*got 'book'"),
        (WaveletDenoising, {"sigma": -0.1}, r"sigma: expected a number of at least 0, got -0.1"),
        (WaveletDenoising, {"mode": "medium"}, r"mode: expected one of .*got 'medium'"),
        (WaveletDenoising, {"sigma_scale": "hsv"}, r"sigma_scale: expected one of .*got 'hsv'"),
    ],
)
def test_wrong_knobs(make, knobs, message):
    with pytest.raises(ValueError, match=message):
        make(**knobs)


def test_a_map_by_gradients_needs_features_and_logits_of_so_many_classes(toy_flat):
    flat_model = toy_flat.model
    with pytest.raises(ValueError, match=r"k: expected 1 to 6 classes, got 7"):
        RobustGradCAM(in_parts(flat_model), (32, 32), 7)
    with pytest.raises(ValueError, match=r"expected outputs 'features'.*'output': \(None, 6\)"):
        RobustGradCAM(flat_model, (32, 32))
    outputs = {"features": flat_model.output, "logits": flat_model.output}
    with pytest.raises(ValueError, match=r"expected outputs .*'features': \(None, 6\)"):
        RobustGradCAM(keras.Model(flat_model.inputs[0], outputs), (32, 32))


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 32, 32, 1), (2, 32, 32)])
@pytest.mark.parametrize("kind", [PixelDeflection, WaveletDenoising])
def test_wrong_images(kind, shape):
    with pytest.raises(ValueError, match=r"images: expected shape \(N, H, W, 3\) .*got \("):
        kind()(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(2, 32, 31), (2, 32, 32, 1), (32, 32), (1, 32, 32)])
def test_wrong_maps(shape):
    with pytest.raises(ValueError, match=r"maps: expected shape \(2, 32, 32\) .*got \("):
        PixelDeflection()([photos(2), np.zeros(shape, np.float32)])
