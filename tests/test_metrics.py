import math

import numpy as np
import pytest
from conftest import photo, photos
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pdutils.metrics import correlation, linf, psnr, relative_l2, ssim


def test_relative_l2_by_hand():
    image = np.zeros((1, 2, 3), np.float32)
    image[0] = [[3, 0, 0], [0, 4, 0]]
    other = image.copy()
    other[0, 1, 2] = 2
    # A change of 2 to a norm of 5.
    assert relative_l2(image, other) == pytest.approx(0.4)
    pair = relative_l2(np.stack([image, image]), np.stack([image, other]))
    np.testing.assert_allclose(pair, [0, 0.4])
    assert pair.dtype == np.float32
    black = np.zeros((2, 4, 4, 3), np.float32)
    other = black + np.array([0, 200], np.float32)[:, None, None, None]
    np.testing.assert_array_equal(relative_l2(black, other), [0, np.inf])


def test_linf_by_hand():
    image = photo(4, 4)
    other = image.copy()
    other[1, 2, 0] -= 3
    other[3, 3, 2] += 2
    assert linf(image, other) == linf(other, image) == 3


def test_psnr_and_ssim_are_the_library_s():
    clean, other = photos(3), photos(3) + np.float32(1)
    other[1:] = clean[1:][::-1]
    for found, image, changed in zip(psnr(clean, other), clean, other, strict=True):
        expected = peak_signal_noise_ratio(image, changed, data_range=255)
        assert found == pytest.approx(expected, abs=1e-3)
    weights = np.array([0.299, 0.587, 0.114])
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for found, *pair in zip(ssim(clean, other), clean @ weights, other @ weights, strict=True):
        assert found == pytest.approx(
            structural_similarity(*pair, data_range=255, **options), rel=1e-6
        )
    assert (psnr(clean, clean) == np.inf).all()
    assert (ssim(clean, clean) == 1).all()


def test_ssim_is_as_exact_where_the_ground_is_white():
    image = np.full((64, 64, 3), 255, np.float32)
    image[:32] = photo(32, 64)
    other = np.clip(image - np.float32(0.3), 0, 255)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    pair = ((x @ weights).astype(np.float64) for x in (image, other))
    expected = structural_similarity(*pair, data_range=255, **options)
    assert ssim(image, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(11, 11), (12, 40), (26, 27), (59, 33)])
def test_ssim_reaches_every_row_and_column_of_an_image_of_any_size(shape):
    rng = np.random.default_rng(0)
    image, other = rng.uniform(0, 255, (2, *shape, 3)).astype(np.float32)
    other = (image + other / 8) * np.float32(0.8)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pair = (x.astype(np.float64) @ [0.299, 0.587, 0.114] for x in (image, other))
    expected = structural_similarity(*pair, data_range=255, **options)
    assert ssim(image, other) == pytest.approx(expected, rel=1e-6)
    assert ssim(image, other) == pytest.approx(ssim(other, image), rel=1e-6)


@pytest.mark.parametrize("measure", [relative_l2, linf, psnr, ssim])
def test_one_image_gives_what_it_gives_in_a_batch_and_pairs_go_together(measure):
    images, others = photos(3), photos(3)[::-1]
    together = measure(images, others)
    assert together.shape == (3,)
    assert [measure(*pair) for pair in zip(images, others, strict=True)] == together.tolist()
    assert isinstance(measure(photo(), others[0]), np.floating)
    for image, other in ((photos(2), photo()), (photos(2), photos(3)), (photo(8, 8), photo(8, 9))):
        with pytest.raises(ValueError, match=r"others: expected the shape \(.*\), got \(.*\)"):
            measure(image, other)
    with pytest.raises(ValueError, match=r"others: expected dtype float32"):
        measure(photo(), photo().astype(np.float64))
    with pytest.raises(ValueError, match=r"images: expected at least one image, got none"):
        measure(photos(1)[:0], photos(1)[:0])


def test_the_correlation_is_the_one_worked_by_hand():
    # Deviations (-1.5, -.5, .5, 1.5) and (-1, 1, -1, 1): 2 / sqrt(5 * 4).
    field = np.array([[1, 2], [3, 4]], np.float32)
    other = np.array([[0, 2], [0, 2]], np.uint8)
    assert math.isclose(correlation(field, other), 2 / math.sqrt(20))
    assert math.isclose(correlation(field, 5 - 3 * field), -1)


def test_a_constant_field_correlates_with_nothing():
    field = np.array([[1, 2], [3, 4]], np.float32)
    assert correlation(field, np.full((2, 2), 7.0)) == 0
    assert correlation(np.zeros((2, 2)), field) == 0
    # Rounding varies with nothing either.
    assert correlation(field, 0.3 + 1e-8 * field) == 0
    assert math.isclose(correlation(field, 0.3 + 1e-3 * field), 1)


def test_fields_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(4,\)"):
        correlation(np.zeros((2, 2)), np.zeros(4))
