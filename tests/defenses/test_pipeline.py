import hashlib
import inspect
from dataclasses import replace

import numpy as np
import pytest
from conftest import photo, photos

from pdutils._utils import streams
from pdutils.activation import cam, robust_cam
from pdutils.defenses.pipeline import NAMES, Defense, OwnDefense, knobs_of_name
from pdutils.deflection import pixel_deflection
from pdutils.denoising import denoise

NOTHING = Defense(deflections=0, denoiser=None)

#: Options of a denoiser away from their defaults, so that one that is not passed on shows.
OPTIONS = {"sigma": 0.1, "wavelet": "db2", "sigma_scale": "rgb"}
#: Knobs that are no defaults either.
UNUSUAL = {"deflections": 90, "window": 3, "k": 3, "combine": "geometric"}


def map_by_hand(classifier, images, activation, k=None, combine="paper", upscale="half_pixel"):
    if activation == "none":
        return None
    if activation == "rcam":
        return robust_cam(classifier, images, k=k, combine=combine, upscale=upscale)
    return cam(classifier, images, classifier.predict(images).argmax(axis=1), upscale=upscale)


# --- the pipeline is its parts, one after the other ---


@pytest.mark.parametrize("activation", ["none", "cam", "rcam"])
@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
def test_transform_is_map_then_deflection_then_denoising(request, kind, reading, activation):
    classifier, batch = request.getfixturevalue(kind), photos(3)
    defense = Defense(**UNUSUAL, denoiser_options=OPTIONS, reading=reading, activation=activation)
    chances = map_by_hand(classifier, batch, activation, k=3, combine="geometric")
    deflected = pixel_deflection(
        batch, 90, 3, activation_map=chances, reading=reading, rng=np.random.default_rng(5)
    )
    expected = denoise(deflected, "wavelet", **OPTIONS)
    np.testing.assert_array_equal(defense.transform(classifier, batch, rng=5), expected)
    assert not np.array_equal(expected, denoise(batch, "wavelet", **OPTIONS))


@pytest.mark.parametrize("upscale", ["half_pixel", "tf1"])
@pytest.mark.parametrize("activation", ["none", "cam", "rcam"])
def test_the_map_is_made_of_the_image_and_its_best_classes(toy, activation, upscale):
    batch, defense = photos(3), Defense(activation=activation, upscale=upscale)
    maps = defense.activation_map(toy, batch)
    np.testing.assert_array_equal(maps, map_by_hand(toy, batch, activation, upscale=upscale))
    if activation == "cam":
        np.testing.assert_allclose(defense.activation_map(toy, batch[1]), maps[1], atol=1e-4)


def test_no_map_is_made_that_nothing_would_use(toy, monkeypatch):
    monkeypatch.setattr(toy, "predict", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr(toy, "features", lambda *_, **__: pytest.fail("the network was asked"))
    image = photo()
    for activation in ("cam", "rcam"):
        defense = Defense(deflections=0, activation=activation)
        assert defense.activation_map(toy, image) is None
        np.testing.assert_array_equal(defense.transform(toy, image), denoise(image))
    Defense().transform(toy, image)
    Defense(activation="cam").transform(toy, image, activation_map=np.zeros((32, 32), np.float32))


def test_the_defaults_are_the_blogs():
    knobs = {"deflections": 200, "window": 10, "reading": "blog", "activation": "none", "k": None}
    knobs |= {"combine": "paper", "upscale": "half_pixel", "bias": 0.0, "denoiser": "wavelet"}
    assert Defense() == Defense(**knobs, denoiser_options={}, runs=1, aggregate="mean")


@pytest.mark.parametrize(
    ("method", "options"), [("median", {"size": 5}), ("jpeg", {"quality": 30}), (None, {})]
)
def test_any_denoiser_or_none_takes_its_place(toy, method, options):
    batch, defense = photos(2), Defense(denoiser=method, denoiser_options=options)
    for deflections, deflected in ((200, pixel_deflection(batch, rng=2)), (0, batch)):
        result = replace(defense, deflections=deflections).transform(toy, batch, rng=2)
        expected = denoise(deflected, method, **options) if method else deflected
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("activation", ["none", "cam"])
def test_a_given_map_takes_the_place_of_the_made_one_in_every_run(toy, activation):
    batch, defense = photos(3), Defense(activation=activation, denoiser=None, runs=3)
    given = np.random.default_rng(0).uniform(0, 1, (3, 32, 32)).astype(np.float32)
    result = defense.transform(toy, batch, rng=3, activation_map=given)
    np.testing.assert_array_equal(result, pixel_deflection(batch, activation_map=given, rng=3))
    assert not np.array_equal(result, defense.transform(toy, batch, rng=3))
    # A map of ones spares everything.
    ones, plain = np.ones((3, 32, 32), np.float32), toy.predict(batch)
    runs = defense.predict_runs(toy, batch, activation_map=ones)
    np.testing.assert_array_equal(runs, np.stack([plain] * 3))
    single = defense.predict(toy, batch[0], activation_map=ones[0])
    np.testing.assert_allclose(single, plain[0], atol=1e-5)


# --- runs ---


@pytest.mark.parametrize("activation", ["none", "rcam"])
def test_each_run_is_a_transform_the_first_with_the_same_seed_and_all_share_a_map(
    toy, monkeypatch, activation
):
    batch, calls, features = photos(3), [], toy.features
    monkeypatch.setattr(toy, "features", lambda *a, **o: calls.append(1) or features(*a, **o))
    defense = Defense(runs=4, activation=activation)
    runs = defense.predict_runs(toy, batch, rng=9)
    assert len(calls) == (activation == "rcam")
    assert runs.shape == (4, 3, 6)
    assert len({run.tobytes() for run in runs}) == 4
    fewer = replace(defense, runs=2).predict_runs(toy, batch, rng=9)
    np.testing.assert_array_equal(fewer, runs[:2])
    parts = [stream.spawn(3) for stream in streams(9, 3)]
    for run, rng in zip(runs, (9, *map(list, zip(*parts, strict=True))), strict=True):
        defended = defense.transform(toy, batch, rng=rng)
        np.testing.assert_allclose(run, toy.predict(defended), atol=1e-5)


class Oracle:
    """A network that gives the predictions it is told to, one batch after the other."""

    def __init__(self, predictions):
        self.predict = lambda images: np.array(predictions.pop(0), np.float32)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [[1 / 3, 0.6, 0.2 / 3], [1.1 / 3, 1.1 / 3, 0.8 / 3]]),
        ("majority", [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3]]),
    ],
)
def test_the_runs_become_one_answer_by_hand(aggregate, expected):
    # Three runs, two images, three classes. The first image gets two votes for class 0, but class 1
    # is more probable in the mean; the second is a vote each.
    runs = [
        [[0.5, 0.4, 0.1], [0.6, 0.2, 0.2]],
        [[0.5, 0.4, 0.1], [0.2, 0.6, 0.2]],
        [[0.0, 1.0, 0.0], [0.3, 0.3, 0.4]],
    ]
    defense, first = Defense(runs=3, aggregate=aggregate), [run[:1] for run in runs]
    result = defense.predict(Oracle(runs), photos(2))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)
    np.testing.assert_allclose(defense.predict(Oracle(first), photo()), expected[0], atol=1e-6)


# --- batches and seeds ---


@pytest.mark.parametrize("activation", ["none", "cam", "rcam"])
def test_each_image_of_a_batch_is_defended_as_alone(toy, activation):
    batch = photos(4)
    defense = Defense(activation=activation, runs=2, deflections=100)
    together = defense.transform(toy, batch, rng=6)
    predictions = defense.predict(toy, batch, rng=6)
    for i in range(4):
        alone = defense.transform(toy, batch[i], rng=[streams(6, 4)[i]])
        # The network may round a map otherwise in another batch; that moves next to no draw.
        assert np.mean(np.abs(alone - together[i]) > 1e-3) < 0.01
        prediction = defense.predict(toy, batch[i], rng=[streams(6, 4)[i]])
        assert prediction.shape == (6,)
        np.testing.assert_allclose(prediction, predictions[i], atol=1e-4)
    np.testing.assert_allclose(defense.predict(toy, batch[:2], rng=6), predictions[:2], atol=1e-4)


def test_a_seed_gives_the_same_defence_and_a_generator_goes_on_from_batch_to_batch(toy):
    batch, whole = photos(4), Defense().predict(toy, photos(4), rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    halves = [Defense().predict(toy, batch[i : i + 2], rng=rng) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    for function in (Defense().transform, Defense(runs=2).predict, Defense(runs=2).predict_runs):
        first, again, other = (function(toy, batch[0], rng=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_nothing_is_changed_in_place_and_the_rank_is_kept(toy):
    for defense in (Defense(activation="rcam"), NOTHING):
        for images in (photo(), photos(1), photos(2)):
            before = images.copy()
            images.flags.writeable = False
            result = defense.transform(toy, images)
            assert result.shape == images.shape
            assert result.dtype == np.float32
            assert not np.shares_memory(result, images)
            assert defense.predict(toy, images).shape == (*images.shape[:-3], 6)
            np.testing.assert_array_equal(images, before)


# --- wrong input ---


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"activation": "gradcam"}, r"activation: .*'none', 'cam', 'rcam'.* got 'gradcam'"),
        ({"aggregate": "median"}, r"aggregate: .*'mean', 'majority'.* got 'median'"),
        ({"runs": 0}, r"runs: expected a whole number of at least 1, got 0"),
        ({"deflections": -1}, r"deflections: expected"),
        ({"window": 0}, r"window: expected"),
        ({"reading": "book"}, r"reading: expected"),
        ({"combine": "sum"}, r"combine: expected"),
        ({"upscale": "nearest"}, r"upscale: expected one of .* got 'nearest'"),
        ({"bias": 2}, r"bias: expected a number from -1 to 1, got 2"),
        ({"bias": -1.1}, r"bias: expected a number from -1 to 1, got -1.1"),
        ({"bias": True}, r"bias: expected a number from -1 to 1, got True"),
        ({"bias": "much"}, r"bias: expected a number from -1 to 1, got 'much'"),
        ({"bias": float("nan")}, r"bias: expected a number from -1 to 1, got nan"),
    ],
)
def test_wrong_knobs_are_told_at_once(knobs, message):
    with pytest.raises(ValueError, match=message):
        Defense(**knobs)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"activation": "rcam", "k": 7}, r"k: expected 1 to 6 classes, got 7"),
        ({"denoiser": "blur"}, r"method: expected one of"),
        ({"denoiser": "median", "denoiser_options": {"sigma": 1}}, r"median: no option sigma"),
        ({"denoiser_options": {"sigma": -1}}, r"sigma: expected a number of at least 0, got -1"),
    ],
)
def test_wrong_knobs_of_the_parts_are_told_in_use(toy, knobs, message):
    for use in (Defense(**knobs).transform, Defense(**knobs).predict):
        with pytest.raises(ValueError, match=message):
            use(toy, photo())


def test_knobs_are_named_and_do_not_change():
    with pytest.raises(TypeError):
        Defense(200)
    with pytest.raises(AttributeError):
        Defense().window = 3


IMAGES = [photo() / 255, photo(32, 31), photo().astype(np.float64)]
MAPS = [np.zeros((32, 31), np.float32), np.zeros((32, 32)), np.full((32, 32), 2, np.float32), [[1]]]


def test_wrong_images_and_maps(toy):
    for use in (Defense().transform, Defense().predict, Defense().predict_runs):
        for wrong in MAPS:
            with pytest.raises(ValueError, match=r"activation_map: expected"):
                use(toy, photo(), activation_map=wrong)
    for defense in (Defense(), Defense(activation="cam"), NOTHING):
        for wrong in IMAGES:
            with pytest.raises(ValueError, match=r"images: "):
                defense.predict(toy, wrong)


# --- its text ---


def named(map_, denoiser, **knobs):
    return Defense(activation=map_, denoiser=denoiser, **knobs)


def options(**given):
    return Defense(denoiser_options=given)


RCAM = named("rcam", "wavelet", deflections=600, k=5, bias=-0.25, combine="repo")
BIOR = options(wavelet="bior2.2", mode="hard", sigma=1e-5)


@pytest.mark.parametrize(
    ("defense", "canonical", "other"),
    [
        (Defense(), "pd+wd", "pd+wd:deflections=200,sigma=4e-2"),
        (NOTHING, "none", "pd:deflections=0"),
        (Defense(deflections=0), "wd", "wd:mode=soft"),
        (named("none", None, window=3), "pd:window=3", "pd: window = 3.0"),
        (named("none", None, deflections=0, window=3), "pd:deflections=0,window=3", None),
        (named("none", "dct", deflections=0), "pd+dct:deflections=0", None),
        (named("rcam", None, deflections=0), "pd+rcam:deflections=0", None),
        (named("rcam", None, deflections=1500), "pd+rcam", "pd+rcam: k= none ,bias = -.0"),
        (named("cam", "dct", deflections=1500), "pd+cam+dct", "pd+cam+dct:upscale=half_pixel"),
        (named("rcam", "wavelet"), "pd+rcam+wd:deflections=200", None),
        (RCAM, "pd+rcam+wd:bias=-0.25,combine=repo,deflections=600,k=5", None),
        (RCAM, RCAM.text, "pd+rcam+wd:k=5,deflections=6e2,combine=repo,bias=-.25"),
        (BIOR, "pd+wd:mode=hard,sigma=1e-05,wavelet=bior2.2", None),
        (options(sigma=np.float64(4)), "pd+wd:sigma=4", "pd+wd:sigma=4.0"),
        # The default of an option says nothing.
        (options(sigma=0.04, mode="soft"), "pd+wd", None),
        (Defense(deflections=0, denoiser_options={"mode": "hard"}), "wd:mode=hard", None),
    ],
)
def test_a_defence_is_read_from_its_text(defense, canonical, other):
    assert defense.text == canonical
    assert Defense.parse(canonical) == defense
    assert Defense.parse(other or canonical).text == canonical


def test_a_text_tells_one_run_and_what_has_an_effect():
    assert Defense(runs=5, aggregate="majority").text == "pd+wd"
    assert Defense(k=3, combine="repo", upscale="tf1", bias=0.5).text == "pd+wd"
    assert Defense(activation="cam", k=3).text == "pd+cam+wd:deflections=200"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_a_text_with_each_of_its_knobs(name):
    assert NAMES[name].text == name
    words = {"reading": "repo", "combine": "geometric", "upscale": "tf1", "wavelet": "db2"}
    words |= {"mode": "hard", "shrinkage": "VisuShrink", "color": "rgb", "sigma_scale": "rgb"}
    for knob, default in knobs_of_name(name).items():
        value = words.get(knob, 0.5 if isinstance(default, float) else 1)
        text = f"{name}:{knob}={value}"
        assert Defense.parse(text).text == text


@pytest.mark.parametrize(
    "defense", [Defense(denoiser="median"), options(sigma=float("inf")), options(sigmas=3)]
)
def test_what_no_name_describes_has_no_text(defense):
    with pytest.raises(ValueError, match=r"like one of none, wd, .* got Defense"):
        _ = defense.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpeg", r"^defense: expected one of \('none', 'wd', 'pd', .*\+dct'\), got 'jpeg'$"),
        ("pd:runs=3", r"^pd: no knob runs; known: deflections, window, reading$"),
        ("pd+wd:bias=0.1", r"^pd\+wd: no knob bias; known: "),
        ("pd+cam:bias=2", r"^pd\+cam: bias: expected a number from -1 to 1, got 2$"),
        ("wd:sigma=-1", r"^wd: sigma: expected a number of at least 0, got -1$"),
        ("pd:window", r"^defense: expected NAME or NAME:KNOB=VALUE"),
    ],
)
def test_a_text_that_names_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        Defense.parse(text)


# --- a function of one's own ---


def noisy(images, rng):
    return images + rng.integers(-3, 4, images.shape)


def darker(images):
    images *= 0.5
    return images


def test_an_own_defence_draws_by_image_changes_nothing_in_place_and_makes_no_map(toy):
    batch = photos(3).clip(3, 252)
    before = batch.copy()
    for own, expected in (
        (OwnDefense("noise", noisy), list(map(noisy, batch, streams(7, 3)))),
        (OwnDefense("dark", darker), before / 2),
    ):
        result = own.transform(toy, batch, rng=7)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(own.transform(toy, batch[0], rng=7), result[0])
        np.testing.assert_array_equal(batch, before)
        assert own.activation_map(toy, batch) is own.map_key is None


def test_an_own_defences_text_is_its_name_and_a_digest_of_its_source():
    digest = hashlib.sha256(inspect.getsource(noisy).encode()).hexdigest()[:8]
    assert OwnDefense("my noise", noisy).text == f"own:my noise@{digest}"
    assert OwnDefense("my noise", darker).text != OwnDefense("my noise", noisy).text


@pytest.mark.parametrize("function", [abs, eval("lambda images, rng: images")])
def test_a_function_without_source_is_refused(function):
    with pytest.raises(ValueError, match=r"mine: expected a function whose source can be read, "):
        OwnDefense("mine", function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images[0], r"mine: expected numbers of shape \(1, 32, 32, 3\) .* \(32,"),
        (lambda images: None, r"mine: expected numbers .* got object of \(\)"),
        (lambda images: images * np.nan, r"what mine gave: .*NaN"),
        (lambda images: images / 255, r"what mine gave: .*looks scaled"),
    ],
)
def test_what_a_function_gives_back_is_checked(toy, function, message):
    with pytest.raises(ValueError, match=message):
        OwnDefense("mine", function).transform(toy, photo())


def test_a_function_with_other_values_around_it_is_kept_under_another_text():
    def made(strength, default=1, keyword=None):
        def own(images, rng=default, *, keyword=keyword):
            return images + strength

        return OwnDefense("own", own).text

    def one(images):
        return images

    def other(images):
        return images + 1

    ramp = np.arange(5000)
    bent = np.where(ramp == 2500, 0, ramp)
    values = [1, 2, "1", ramp, bent, (1, one), (1, other), {"a": ramp}, {"a": bent}]
    texts = [made(value) for value in values]
    texts += [made(1, default=2), made(1, keyword=2)]
    assert len(set(texts)) == len(texts)
    # Equal values are told alike, and an object by its kind: where it lies in memory changes.
    assert made(ramp.copy()) == made(ramp)
    assert made(object()) == made(object())


@pytest.mark.parametrize(
    ("function", "random"),
    [
        (lambda images: images, False),
        (lambda images, sigma=1: images, False),
        (lambda images, rng: images, True),
        (lambda images, generator: images, True),
        (lambda images, sigma=1, rng=None: images + sigma * rng.integers(2), True),
    ],
)
def test_a_default_is_a_setting_of_a_function_and_no_place_for_a_generator(function, random):
    defense = OwnDefense("own", function)
    assert defense.random is random
    defense.transform(None, photos(1), rng=0)
