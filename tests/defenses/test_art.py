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


def shades(images):
    return images.mean(axis=3) / np.float32(256)


@pytest.mark.parametrize("clip_values", RANGES)
@pytest.mark.parametrize("map_maker", [None, shades])
@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
def test_the_preprocessor_deflects_as_pixel_deflection_does(reading, map_maker, clip_values):
    options = {"map_maker": map_maker, "rng": 7, "clip_values": clip_values}
    defence, rng = PixelDeflectionPreprocessor(300, 6, reading, **options), np.random.default_rng(7)
    unit, seen = np.float32(clip_values[1] / 255), []
    # Each call draws afresh from the seed, with maps of grey levels of its own.
    for images in (photos(2), photos(2), 255 - photos(2)):
        maps = None if map_maker is None else shades(images)
        expected = pixel_deflection(images, 300, 6, activation_map=maps, reading=reading, rng=rng)
        given, y = defence(images * unit, "y")
        # A map that differs in its last bit may change a draw.
        assert np.mean(np.abs(given / unit - expected) > 1e-3) <= (0.005 if map_maker else 0)
        assert y == "y"
        seen.append((given != images * unit)[0])
    assert not np.array_equal(*seen[:2])
    # A gradient comes straight through.
    np.testing.assert_array_equal(defence.estimate_gradient(images * unit, images), images)


# --- wavelet denoising ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": 0.3, "mode": "soft", "sigma_scale": "channel"},
        {"sigma": 0.0, "mode": "soft", "sigma_scale": "channel"},
        {"sigma": 0.1, "mode": "soft", "sigma_scale": "rgb"},
        {"sigma": 0.3, "mode": "hard", "sigma_scale": "rgb"},
    ],
)
def test_the_preprocessor_denoises_as_denoise_wavelet_does_in_either_range(options):
    images, expected = photos(2, 16, 16), denoise_wavelet(photos(2, 16, 16), **options)
    weights = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    gradients = []
    for clip_values in RANGES:
        unit = np.float32(clip_values[1] / 255)
        scaled = images * unit
        defence = WaveletDenoisingPreprocessor(**options, clip_values=clip_values)
        given, y = defence(scaled)
        # A coefficient within rounding of its threshold may go either way.
        share = 0.005 if "hard" in options.values() else 0
        assert np.mean(np.abs(given / unit - expected) > 0.01) <= share
        assert y is None
        np.testing.assert_array_equal(defence.estimate_gradient(scaled, weights), weights)
        exact = WaveletDenoisingPreprocessor(**options, gradient="exact", clip_values=clip_values)
        gradients.append(exact.estimate_gradient(scaled, weights))
    if options.get("sigma") in (0.0, 0.3):
        # Of the others too many coefficients of these small pictures lie at the threshold.
        assert np.mean(np.abs(np.subtract(*gradients)) > 0.01) < 0.005


@pytest.mark.parametrize("clip_values", RANGES)
def test_the_exact_gradient_is_that_of_finite_differences(clip_values):
    unit = clip_values[1] / 255
    image = (photos(2, 16, 16) * unit).astype(np.float32)
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
    images = photos(2, 16, 16)
    turned = np.ascontiguousarray(np.moveaxis(images, 3, 1))
    np.testing.assert_array_equal(first(turned)[0], np.moveaxis(last(images)[0], 3, 1))
    assert first.estimate_gradient(turned, turned).shape == turned.shape


# --- ranges ---


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize(
    "ends",
    [
        lambda high: (np.float32(0), np.float32(high)),
        lambda high: np.array([0, high]),
        lambda high: (np.zeros(3), np.full(3, high)),
        lambda high: (np.zeros((1, 1, 3)), np.full((1, 1, 3), high)),
        lambda high: (np.zeros((16, 16, 3)), np.full((16, 16, 3), high, np.float32)),
        lambda high: (0, np.full(3, high)),
    ],
    ids=["scalars", "a pair", "channels", "to broadcast", "values", "a number and channels"],
)
def test_arrays_say_what_numbers_say(ends, high):
    images, ends = photos(2, 16, 16) * np.float32(high / 255), (ends(high), (0, high))
    for make, options in zip(BOTH, ({"rng": 1}, {}), strict=True):
        told = [make(**options, clip_values=values)(images)[0] for values in ends]
        np.testing.assert_array_equal(*told)


@pytest.mark.parametrize("make", BOTH)
def test_images_of_another_range_are_refused(make):
    images = photos(2, 16, 16)
    unit, grey, ones = images / np.float32(255), make(), make(clip_values=(0, 1))
    seen = r"x: expected values in \[0, 255\], which clip_values says, got \[0\.\d+, 0\.\d+\]"
    for match, call in (
        (r"x: expected values in \[0, 1\], which clip_values says", lambda: ones(images)),
        (seen, lambda: grey(unit)),
        (seen, lambda: grey.estimate_gradient(unit, images)),
        (r"x: expected values in \[0, 255\]", lambda: grey(images - 200)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    # A black picture is one in either range, and a wavelet may ring a little.
    assert grey(np.zeros_like(images))[0].max() == 0
    ones(unit * 1.2 - 0.1)


# --- wrong input ---


@pytest.mark.parametrize("make", BOTH)
def test_wrong_ranges_images_and_gradients(make):
    mixed = (np.zeros(3), np.array([1, 1, 255]))
    for wrong in ((0, 2), (-1, 1), (0.1, 1), (0, np.nan), mixed, (0,), (0, 1, 255), None, 255):
        with pytest.raises(ValueError, match=r"clip_values: expected \(0, 255\) or \(0, 1\), for"):
            make(clip_values=wrong)
    for wrong in (photo(), photos(2)[..., :2], photos(2).astype(np.uint8)):
        with pytest.raises(ValueError, match=r"x: expected floats of shape \(N, H, W, 3\)"):
            make()(wrong)
    with pytest.raises(ValueError, match="grad: expected the shape"):
        make().estimate_gradient(photos(2), photos(3))
    none = photos(1)[:0]
    for call in (lambda: make()(none), lambda: make().estimate_gradient(none, none)):
        with pytest.raises(ValueError, match="x: expected at least one image, got none"):
            call()


@pytest.mark.parametrize(
    ("make", "knobs", "match"),
    [
        (PixelDeflectionPreprocessor, {"deflections": -1}, "deflections"),
        (PixelDeflectionPreprocessor, {"window": 0}, "window"),
        (PixelDeflectionPreprocessor, {"reading": "book"}, "reading"),
        (PixelDeflectionPreprocessor, {"rng": -1}, "rng"),
        (PixelDeflectionPreprocessor().set_params, {"window": 0}, "window"),
        (WaveletDenoisingPreprocessor, {"sigma": -0.1}, "sigma"),
        (WaveletDenoisingPreprocessor, {"mode": "softer"}, "mode"),
        (WaveletDenoisingPreprocessor, {"gradient": "none"}, "gradient: expected one of"),
    ],
)
def test_wrong_knobs(make, knobs, match):
    with pytest.raises(ValueError, match=match):
        make(**knobs)


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
