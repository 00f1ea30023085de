import subprocess
import sys

import numpy as np
import pytest
from conftest import photo, photos

from pdutils.defenses.art import (
    ChainedPreprocessor,
    PixelDeflectionPreprocessor,
    WaveletDenoisingPreprocessor,
)
from pdutils.deflection import pixel_deflection
from pdutils.denoising import denoise_wavelet

RANGES = [(0.0, 255.0), (0.0, 1.0)]
BOTH = [PixelDeflectionPreprocessor, WaveletDenoisingPreprocessor]
BLUR = {"sigma": 0.1}


@pytest.mark.slow
def test_importing_it_says_nothing_and_leaves_the_logging_of_others_alone():
    script = (
        "import io, logging; handler = logging.StreamHandler(io.StringIO()); "
        "logging.getLogger().addHandler(handler); import pdutils.attacks._art; "
        "import pdutils.defenses.art; assert handler in logging.getLogger().handlers; "
        "assert any(r() is handler for r in logging._handlerList)"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


# --- pixel deflection ---


@pytest.mark.parametrize(
    ("clip_values", "reading"), [(RANGES[0], "blog"), (RANGES[1], "repo"), (RANGES[0], "paper")]
)
def test_the_preprocessor_deflects_as_pixel_deflection_does(clip_values, reading):
    images = photos(3)
    unit = np.float32(clip_values[1] / 255)
    defence = PixelDeflectionPreprocessor(150, 5, reading, rng=7, clip_values=clip_values)
    given, y = defence(images * unit, "y")
    expected = pixel_deflection(images, 150, 5, reading=reading, rng=7)
    np.testing.assert_array_equal(given, expected * unit)
    assert y == "y"
    # A gradient comes straight through.
    np.testing.assert_array_equal(defence.estimate_gradient(images * unit, images), images)


def test_each_call_draws_afresh_from_the_seed():
    images = photos(2)
    one, other = (PixelDeflectionPreprocessor(50, rng=1) for _ in range(2))
    first, second = one(images)[0], one(images)[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(other(images)[0], first)
    np.testing.assert_array_equal(other(images)[0], second)
    # No image draws what another does.
    same = PixelDeflectionPreprocessor(50, rng=1)(np.stack([images[0]] * 2))[0]
    assert not np.array_equal(same[0], same[1])


@pytest.mark.parametrize("clip_values", RANGES)
def test_the_map_is_made_of_grey_levels_at_each_call(clip_values):
    images = photos(2)
    seen = []

    def map_maker(shown):
        seen.append(shown)
        maps = np.zeros((2, 32, 32), np.float32)
        maps[:, 8:24, 8:24] = 1
        return maps

    defence = PixelDeflectionPreprocessor(400, map_maker=map_maker, rng=0, clip_values=clip_values)
    scaled = images * np.float32(clip_values[1] / 255)
    changed = (defence(scaled)[0] != scaled).any(axis=3)
    np.testing.assert_allclose(seen[0], images, rtol=1e-6)
    assert not changed[:, 8:24, 8:24].any()
    assert changed.sum() > 200


# --- wavelet denoising ---


@pytest.mark.parametrize("clip_values", RANGES)
@pytest.mark.parametrize("options", [{}, {"sigma": 0.1, "mode": "soft", "sigma_scale": "rgb"}])
def test_the_preprocessor_denoises_as_denoise_wavelet_does(clip_values, options):
    images = photos(2, 16, 16)
    unit = np.float32(clip_values[1] / 255)
    given, y = WaveletDenoisingPreprocessor(**options, clip_values=clip_values)(images * unit)
    np.testing.assert_allclose(given / unit, denoise_wavelet(images, **options), atol=1e-2)
    assert y is None
    through = WaveletDenoisingPreprocessor(**options).estimate_gradient(images, images - 100)
    np.testing.assert_array_equal(through, images - 100)


@pytest.mark.parametrize("clip_values", RANGES)
def test_the_exact_gradient_is_that_of_finite_differences(clip_values):
    unit = clip_values[1] / 255
    image = (photos(1, 16, 16) * unit).astype(np.float32)
    defence = WaveletDenoisingPreprocessor(**BLUR, gradient="exact", clip_values=clip_values)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=image.shape).astype(np.float32)
    gradient = defence.estimate_gradient(image, weights)

    def weighed(moved):
        return np.sum(weights * denoise_wavelet(moved / np.float32(unit), **BLUR), None, float)

    for _ in range(3):
        way = (0.05 * unit * rng.normal(size=image.shape)).astype(np.float32)
        measured = (weighed(image + way) - weighed(image - way)) / 2 * unit
        np.testing.assert_allclose(np.sum(gradient * way, None, float), measured, rtol=0.02)
    # It is no identity: what is shrunk does not come through whole.
    assert np.abs(gradient - weights).max() > 0.1


def test_gradients_of_many_classes_come_back_class_by_class():
    images, defence = photos(2, 16, 16), WaveletDenoisingPreprocessor(gradient="exact")
    gradients = np.random.default_rng(0).normal(size=(2, 3, 16, 16, 3)).astype(np.float32)
    back = defence.estimate_gradient(images, gradients)
    expected = [defence.estimate_gradient(images, gradients[:, k]) for k in range(3)]
    np.testing.assert_allclose(back, np.stack(expected, axis=1), atol=1e-6)


# --- both ---


@pytest.mark.parametrize("make", BOTH)
def test_channels_may_come_first(make):
    options = {"rng": 3} if make is PixelDeflectionPreprocessor else {}
    last, first = make(**options), make(**options, channels_first=True)
    turned = np.ascontiguousarray(np.moveaxis(photos(2), 3, 1))
    np.testing.assert_array_equal(first(turned)[0], np.moveaxis(last(photos(2))[0], 3, 1))
    assert first.estimate_gradient(turned, turned).shape == turned.shape


# --- ranges ---

#: Every way in which ART takes the same range.
ARRAYS = {
    "scalars of NumPy": lambda high: (np.float32(0), np.float32(high)),
    "a pair": lambda high: np.array([0, high]),
    "channels": lambda high: (np.zeros(3), np.full(3, high)),
    "channels to broadcast": lambda high: (np.zeros((1, 1, 3)), np.full((1, 1, 3), high)),
    "values": lambda high: (np.zeros((32, 32, 3)), np.full((32, 32, 3), high, np.float32)),
    "one number and channels": lambda high: (0, np.full(3, high)),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("high", [1, 255])
def test_arrays_say_what_numbers_say(kind, high):
    images = photos(2) * np.float32(high / 255)
    plain, arrays = (0, high), ARRAYS[kind](high)
    for make, options in zip(BOTH, ({"rng": 1}, {}), strict=True):
        given, expected = (make(**options, clip_values=c)(images)[0] for c in (arrays, plain))
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
def test_what_is_deflected_by_a_map_does_not_depend_on_the_range(reading):
    images, options = photos(2), {"deflections": 300, "window": 6, "reading": reading, "rng": 5}
    options["map_maker"] = lambda shown: shown.mean(axis=3) / np.float32(256)
    unit = images / np.float32(255)
    given = PixelDeflectionPreprocessor(**options, clip_values=(0, 1))(unit)[0]
    expected = PixelDeflectionPreprocessor(**options)(images)[0]
    assert (expected != images).any()
    # A map that differs in its last bit may change a draw.
    assert np.mean(np.abs(given * 255 - expected) > 1e-3) < 0.005


@pytest.mark.parametrize(
    ("sigma", "mode", "sigma_scale"),
    [(0.3, "soft", "channel"), (0.0, "soft", "channel"), (0.3, "hard", "rgb")],
)
def test_what_is_denoised_does_not_depend_on_the_range(sigma_scale, mode, sigma):
    images = photos(2, 16, 16)
    unit = images / np.float32(255)
    weights = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    options = {"sigma": sigma, "mode": mode, "sigma_scale": sigma_scale, "gradient": "exact"}
    ones = WaveletDenoisingPreprocessor(**options, clip_values=(0, 1))
    grey = WaveletDenoisingPreprocessor(**options)
    away = [
        np.abs(ones(unit)[0] * 255 - grey(images)[0]),
        np.abs(ones.estimate_gradient(unit, weights) - grey.estimate_gradient(images, weights)),
    ]
    # A coefficient within rounding of its threshold may go either way.
    assert all(np.mean(one > 0.01) < 0.005 for one in away)


@pytest.mark.parametrize("make", BOTH)
def test_images_of_another_range_are_refused(make):
    images, unit = photos(2), photos(2) / np.float32(255)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\], which clip_values says"):
        make(clip_values=(0, 1))(images)
    message = r"x: expected values in \[0, 255\], which clip_values says, got \[0\.\d+, 0\.\d+\]"
    with pytest.raises(ValueError, match=message):
        make()(unit)
    with pytest.raises(ValueError, match=message):
        make().estimate_gradient(unit, images)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 255\]"):
        make()(images - 200)
    # A black picture is one in either range, and a wavelet may ring a little.
    assert make()(np.zeros_like(images))[0].max() == 0
    make(clip_values=(0, 1))(unit * 1.2 - 0.1)


# --- wrong input ---


@pytest.mark.parametrize("make", BOTH)
def test_wrong_ranges(make):
    mixed = (np.zeros(3), np.array([1, 1, 255]))
    for wrong in (
        *[(0, 2), (-1, 1), (0.1, 1), (0, np.nan), mixed],
        *[(0,), (0, 1, 255), None, 255],
    ):
        with pytest.raises(ValueError, match=r"clip_values: expected \(0, 255\) or \(0, 1\), for"):
            make(clip_values=wrong)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PixelDeflectionPreprocessor(-1), "deflections"),
        (lambda: PixelDeflectionPreprocessor(window=0), "window"),
        (lambda: PixelDeflectionPreprocessor(reading="book"), "reading"),
        (lambda: PixelDeflectionPreprocessor(rng=-1), "rng"),
        (lambda: WaveletDenoisingPreprocessor(-0.1), "sigma"),
        (lambda: WaveletDenoisingPreprocessor(mode="softer"), "mode"),
        (lambda: WaveletDenoisingPreprocessor(gradient="none"), "gradient: expected one of"),
        (lambda: PixelDeflectionPreprocessor().set_params(window=0), "window"),
    ],
)
def test_wrong_knobs(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("make", BOTH)
def test_wrong_images_and_gradients(make):
    for wrong in (photo(), photos(2)[..., :2], photos(2).astype(np.uint8)):
        with pytest.raises(ValueError, match=r"x: expected floats of shape \(N, H, W, 3\)"):
            make()(wrong)
    with pytest.raises(ValueError, match="grad: expected the shape"):
        make().estimate_gradient(photos(2), photos(3))
    none = photos(1)[:0]
    for call in (lambda: make()(none), lambda: make().estimate_gradient(none, none)):
        with pytest.raises(ValueError, match="x: expected at least one image, got none"):
            call()


# --- both as one ---


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_chain_is_its_parts_one_after_another_there_and_back(channels_first):
    def parts():
        seen = {"clip_values": (0, 1), "channels_first": channels_first}
        wavelet = WaveletDenoisingPreprocessor(**BLUR, gradient="exact", **seen)
        return PixelDeflectionPreprocessor(300, 5, rng=3, **seen), wavelet

    images = photos(2, 16, 16) / np.float32(255)
    images = np.ascontiguousarray(np.moveaxis(images, 3, 1)) if channels_first else images
    chain, (pixel, wavelet) = ChainedPreprocessor(*parts()), parts()
    np.testing.assert_allclose(chain(images)[0], wavelet(pixel(images)[0])[0], atol=1e-6)
    expected = wavelet.estimate_gradient(pixel(images)[0], images)
    np.testing.assert_allclose(chain.estimate_gradient(images, images), expected, atol=1e-5)


@pytest.mark.parametrize("parts", [[], [0, 1]])
def test_a_chain_refuses_parts_that_take_images_in_different_ways(parts):
    made = [WaveletDenoisingPreprocessor(), WaveletDenoisingPreprocessor(clip_values=(0, 1))]
    with pytest.raises(ValueError, match=r"^parts: expected preprocessors of one range"):
        ChainedPreprocessor(*(made[part] for part in parts))
