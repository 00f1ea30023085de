import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import pywt
from conftest import photo, photos
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import fft
from skimage import restoration

from pdutils import denoising
from pdutils.denoising import DENOISERS, denoise, denoise_batch, denoise_wavelet
from pdutils.metrics import psnr

ODD_SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 5), (33, 31)]

#: RGB in [0, 1] to YCbCr in [16, 235] and [16, 240], ITU-R BT.601.
TO_YCBCR = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)

#: What scikit-image 0.14.2 gave, see the README beside it.
OF_2018 = np.load(Path(__file__).parent / "data" / "denoise_2018.npz")
CALLS_OF_2018 = [key for key in OF_2018.files if "|" in key]

each_method = pytest.mark.parametrize("method", DENOISERS)
each_mode = pytest.mark.parametrize("mode", ["soft", "hard"])


def noisy_photo(sigma=10.0, seed=0, height=64, width=48):
    noise = np.random.default_rng(seed).normal(0, sigma, (height, width, 3))
    return np.clip(photo(height, width, seed) + noise, 0, 255).astype(np.float32)


def denoised_in_every_way(image, **options):
    """The image denoised by wavelets of every mode, colour, scale and shrinkage."""
    words = (("soft", "hard"), ("ycbcr", "rgb"), ("channel", "rgb"), ("BayesShrink", "VisuShrink"))
    for mode, color, sigma_scale, shrinkage in itertools.product(*words):
        yield denoise_wavelet(image, mode=mode, color=color, sigma_scale=sigma_scale,
                              shrinkage=shrinkage, **options)  # fmt: skip


def assert_alike(ours, theirs, mode, atol=1e-3):
    # With hard shrinkage a coefficient within rounding of its threshold may stay or go.
    assert np.mean(np.abs(ours - theirs) > atol) <= (0.005 if mode == "hard" else 0)


@pytest.mark.filterwarnings("ignore:Wavelet thresholding was designed for:UserWarning")
@pytest.mark.parametrize("wavelet", ["db1", "haar", "db2", "coif1", "bior2.2", "rgb"])
@pytest.mark.parametrize("shrinkage", ["BayesShrink", "VisuShrink"])
@each_mode
def test_todays_meaning_is_scikit_images_and_in_rgb_both_are(mode, shrinkage, wavelet):
    color = "rgb" if wavelet == "rgb" else "ycbcr"
    # Of 224 pixels seven levels are possible by Haar's wavelet, and four are taken.
    height, width = (224, 224) if wavelet == "haar" else (64, 48)
    image = noisy_photo(60 if color == "rgb" else 10, height=height, width=width)
    same = {"sigma": 0.04, "mode": mode, "wavelet": wavelet.replace("rgb", "db1")}
    theirs = 255 * restoration.denoise_wavelet(
        image / 255, method=shrinkage, convert2ycbcr=color == "ycbcr", channel_axis=-1, **same
    )
    same |= {"shrinkage": shrinkage, "color": color}
    assert_alike(denoise_wavelet(image, sigma_scale="rgb", **same), theirs, mode)
    if color == "rgb":
        clipped = np.clip(theirs, 0, 255)
        # One threshold for all leaves too little to be clipped.
        assert shrinkage == "VisuShrink" or (clipped != theirs).any()
        assert_alike(denoise_wavelet(image, **same), clipped, mode)


@pytest.mark.parametrize("key", CALLS_OF_2018)
def test_the_meaning_of_2018_is_that_of_the_library_of_2018(key):
    name, mode, color, shrinkage, sigma = key.split("|")
    options = {"mode": mode, "color": color, "shrinkage": shrinkage, "sigma": float(sigma)}
    assert_alike(denoise_wavelet(OF_2018[name], **options), OF_2018[key], mode, atol=2e-3)


def test_the_defaults_are_the_blogs_and_every_discrete_wavelet_is_taken():
    image = noisy_photo(height=16, width=16)
    words = {"wavelet": "db1", "mode": "soft", "shrinkage": "BayesShrink", "color": "ycbcr"}
    blog = denoise(image, "wavelet", sigma=0.04, sigma_scale="channel", **words)
    for found in (denoise_wavelet(image), denoise(image)):
        assert_array_equal(found, blog)
    for wavelet in pywt.wavelist(kind="discrete"):
        assert np.isfinite(denoise_wavelet(image, wavelet=wavelet)).all(), wavelet


def test_sigma_0_gives_the_image_and_a_tiny_one_hardly_another():
    # Flat regions have coefficients of 0, which a threshold of 0 must not divide.
    image = np.repeat(np.repeat(photo(8, 8), 4, axis=0), 4, axis=1)
    for sigma in (0, 0.0, 1e-30, 1e-200):
        for result in denoised_in_every_way(image, sigma=sigma):
            assert_array_equal(result, image)
            assert result is not image
    assert_array_equal(denoise(image, "dct", sigma=0), image)
    for result in denoised_in_every_way(image, sigma=1e-6):
        assert_allclose(result, image, atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (24, 20)])
def test_only_2018s_meaning_clips_what_came_from_outside(size):
    image = photo(*size)
    image[:8, :8] = -20, 290, 100
    for color, sigma in itertools.product(("ycbcr", "rgb"), (0, 0.04)):
        ours = denoise_wavelet(image, color=color, sigma=sigma)
        assert (ours.min(), ours.max()) == (0, 255)
        todays = denoise_wavelet(image, color=color, sigma=sigma, sigma_scale="rgb")
        assert todays.min() < 0 < 255 < todays.max()


@each_mode
def test_a_channel_that_is_constant_but_for_rounding_stays(mode):
    # The three values of a pixel differ by rounding alone, and Cb and Cr by what comes of that.
    grey = np.repeat(noisy_photo()[..., :1].clip(1, 254) + np.float32(1 / 3), 3, axis=-1)
    rounding = np.random.default_rng(0).uniform(-1e-5, 1e-5, grey.shape).astype(np.float32)
    result = denoise_wavelet(grey, mode=mode)
    assert_allclose(denoise_wavelet(grey + rounding, mode=mode), result, atol=1e-3)
    assert_allclose(np.ptp(result, axis=-1), 0, atol=1e-3)
    assert psnr(grey, result) < 45


def windows(channels, down, across):
    """Each pixel's neighbourhood in an image that is mirrored at its border: (H, W, C, h, w)."""
    before = [(side // 2, side - 1 - side // 2) for side in (down, across)]
    mirrored = np.pad(channels, (*before, (0, 0)), mode="symmetric")
    return sliding_window_view(mirrored, (down, across), axis=(0, 1))


@pytest.mark.parametrize("size", [1, 3, 5, 8, 11])
def test_median_and_wiener_are_their_formulas(size):
    image = noisy_photo(height=6, width=9)
    scaled = image.astype(np.float64) / 255
    near = windows(scaled, size, size).reshape(6, 9, 3, -1)
    median = np.sort(near, axis=-1)[..., size * size // 2]
    assert_allclose(denoise(image, "median", size=size), 255 * median, atol=1e-3)
    if size % 2:
        mean, variance = near.mean(axis=-1), near.var(axis=-1)
        kept = np.maximum(variance - variance.mean(axis=(0, 1)), 0) / np.maximum(variance, 1e-300)
        expected = 255 * (mean + kept * (scaled - mean))
        assert_allclose(denoise(image, "wiener", size=size), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "options", "theirs"),
    [
        ("tv_chambolle", {"weight": 0.07}, {}),
        ("nl_means", {"sigma": 0.05, "patch_size": 3, "patch_distance": 4}, {"h": 0.8 * 0.05}),
        # As the authors set it.
        ("nl_means", {"sigma": 0, "patch_size": 7, "patch_distance": 11, "h": 0.1}, {}),
    ],
)
def test_tv_and_nl_means_are_the_librarys(method, options, theirs):
    image = noisy_photo(height=20, width=24)
    library = getattr(restoration, f"denoise_{method}")
    expected = 255 * library(image / np.float32(255), channel_axis=-1, **options, **theirs)
    found = denoise(image, method.removesuffix("_chambolle"), **options)
    assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "sigma", "down", "across"),
    # Three times 0.7 reaches three pixels; three times 5 as far as the image is long.
    [(9, 0.7, 3, 3), (4, 5, 3, 6)],
)
def test_bilateral_is_its_formula_over_the_mirrored_image(height, sigma, down, across):
    image = noisy_photo(height=height, width=7)
    scaled = image / 255.0
    near = windows(scaled, 2 * down + 1, 2 * across + 1)
    unlike = np.square(near - scaled[..., np.newaxis, np.newaxis]).sum(axis=2) / 0.1**2
    rows, columns = np.mgrid[-down : down + 1, -across : across + 1]
    weights = np.exp(-(rows**2 + columns**2) / (2 * sigma**2) - unlike / 2)
    expected = np.einsum("hwrc,hwkrc->hwk", weights, near) / weights.sum((2, 3))[..., np.newaxis]
    result = denoise(image, "bilateral", sigma_color=0.1, sigma_spatial=sigma)
    assert_allclose(result, 255 * expected, atol=1e-3)


def test_bilateral_takes_the_spread_of_each_image_for_its_own():
    # The standard deviation of all values in [0, 1], which scikit-image takes by default.
    flat = np.full((9, 7, 3), 90, np.float32)
    batch = np.stack([noisy_photo(height=9, width=7), noisy_photo(height=9, width=7) / 2, flat])
    spreads = (*np.std(batch[:2].astype(np.float64) / 255, axis=(1, 2, 3)), 1.0)
    result = denoise(batch, "bilateral", sigma_color="std")
    for image, found, spread in zip(batch, result, spreads, strict=True):
        assert_allclose(found, denoise(image, "bilateral", sigma_color=float(spread)), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "option", "reaches"),
    # The first reaches from end to end; of the weights of bilateral any nearer would be others.
    [
        ("bilateral", "sigma_spatial", (1e6, 1e9, 2**62)),
        ("nl_means", "patch_distance", (8, 999, 2**62 + 1)),
        ("nl_means", "patch_size", (17, 19, 2**62)),
        ("wiener", "size", (17, 999, 2**62 + 1)),
        ("median", "size", (17, 999, 2**62 + 1)),
    ],
)
def test_a_window_reaches_no_further_than_the_image_is_long(method, option, reaches):
    image = noisy_photo(height=9, width=6)
    whole, *larger = (denoise(image, method, **{option: reach}) for reach in reaches)
    assert np.isfinite(whole).all()
    for result in larger:
        assert_allclose(result, whole, atol=1e-3)


@pytest.mark.parametrize("quality", [1, 75, 95])
def test_jpeg_is_a_round_trip_through_the_format(quality):
    image = photo(24, 17)
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "jpeg", quality=quality)
    expected = np.asarray(Image.open(buffer), np.float32)
    assert_allclose(denoise(image, "jpeg", quality=quality), expected, atol=1e-4)
    # What a denoiser left outside the range is clipped.
    outside = np.where(image < 60, image - 80, image + 20)
    clipped = denoise(np.clip(outside, 0, 255), "jpeg", quality=quality)
    assert_array_equal(denoise(outside, "jpeg", quality=quality), clipped)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14), (1, 5), (7, 1)])
def test_haar_s_wavelet_is_the_library_s_but_for_signs(height, width):
    planes = np.moveaxis(photos(2, height, width), -1, 1)
    bands = denoising._haar_split(planes)
    expected = pywt.dwtn(planes.astype(np.float64), "db1", axes=(2, 3))
    assert bands.keys() == expected.keys()
    for key, band in bands.items():
        assert_allclose(np.abs(band), np.abs(expected[key]), atol=1e-3)
    joined = denoising._haar_joined(bands)
    assert joined.dtype == np.float32
    assert_allclose(joined[:, :, :height, :width], planes, atol=1e-3)
    rest = {**bands, "dd": 0 * bands["dd"], "aa": 2 * bands["aa"]}
    back = pywt.idwtn({**expected, "dd": 0 * expected["dd"], "aa": 2 * expected["aa"]}, "db1",
                      axes=(2, 3))  # fmt: skip
    assert_allclose(denoising._haar_joined(rest), back, atol=2e-3)


def dct_of_every_block(image, sigma, step):
    """Threshold the blocks one by one, add them up, and count how many hold each pixel."""
    channels = image.astype(np.float64) @ (TO_YCBCR.T / 255)
    mirrored = np.pad(channels, ((8, 8), (8, 8), (0, 0)), mode="symmetric")
    total, count = np.zeros_like(mirrored), np.zeros_like(mirrored)
    least = 3 * sigma * np.linalg.norm(TO_YCBCR, axis=1)
    for corner in itertools.product(*(range(step, side + 8, step) for side in image.shape[:2])):
        block = tuple(slice(start, start + 8) for start in corner)
        coefficients = fft.dctn(mirrored[block], axes=(0, 1), norm="ortho")
        small = np.abs(coefficients) < least
        small[0, 0] = False
        coefficients[small] = 0
        total[block] += fft.idctn(coefficients, axes=(0, 1), norm="ortho")
        count[block] += 1
    assert (count[8:-8, 8:-8] == (8 / step) ** 2).all()
    return (total / np.maximum(count, 1))[8:-8, 8:-8] @ np.linalg.inv(TO_YCBCR.T / 255)


@pytest.mark.parametrize("step", [1, 2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13)])
def test_dct_is_a_loop_over_the_blocks(height, width, step):
    image = noisy_photo(height=height, width=width)
    result = denoise(image, "dct", sigma=0.02, step=step)
    assert_allclose(result, dct_of_every_block(image, 0.02, step), atol=2e-3)
    assert np.abs(result - image).max() > 1


@each_method
def test_each_method_raises_psnr_and_denoises_each_image_of_a_batch_as_alone(method):
    # Flat fields with sharp edges: what a denoiser should clear, and what it should keep.
    clean = np.kron(photo(6, 5), np.ones((16, 16, 1), np.float32))
    noise = np.random.default_rng(0).normal(0, 10, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.float32)
    assert psnr(clean, denoise(noisy, method)) > psnr(clean, noisy) + 2
    # More than are denoised at once, and no multiple of that. None may be changed.
    batch = np.stack([noisy_photo(seed=s, height=10, width=9) for s in range(19)])
    batch.flags.writeable = False
    alone = np.stack([denoise(image, method) for image in batch])
    result = denoise(batch, method)
    assert_array_equal(result, alone)
    assert_array_equal(denoise_batch(batch, method), alone)
    assert result.dtype == np.float32
    assert not np.shares_memory(result, batch)


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_odd_sizes_and_windows_larger_than_the_image(size):
    image, others = photo(*size), [*DENOISERS][1:]
    wide = [("bilateral", "sigma_spatial"), ("median", "size"), ("wiener", "size")]
    if min(size) > 1:
        wide += [("nl_means", "patch_distance"), ("nl_means", "patch_size")]
    else:
        others.remove("nl_means")
        with pytest.raises(ValueError, match=r"nl_means: expected at least 2 x 2 pixels, got"):
            denoise(image, "nl_means")
    for result in (*denoised_in_every_way(image), *(denoise(image, each) for each in others)):
        assert result.shape == image.shape
        # What mixes neighbours, or shrinks differences, leaves the light as it is.
        assert abs(result.mean() - image.mean()) < 8
    for method, option in wide if max(size) < 10 else ():
        assert np.isfinite(denoise(image, method, **{option: 75})).all()


def test_constant_images_stay():
    for value in (0, 77, 255, (0, 90, 255)):
        image = np.empty((24, 16, 3), np.float32)
        image[:] = value
        found = [denoise(image, method) for method in DENOISERS] if np.isscalar(value) else []
        for result in (*found, *denoised_in_every_way(image)):
            assert_allclose(result, image, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"sigma_scale": "rgb"}, {"shrinkage": "VisuShrink"}])
def test_sigmas_of_any_size(options):
    image, flat = noisy_photo(height=8, width=8), np.full((8, 8, 3), 9, np.float32)
    # A huge one leaves no detail.
    plain = denoise(image, sigma=1e6, **options)
    for sigma in (1e30, 1e300, 2**62):
        assert_allclose(denoise(image, sigma=sigma, **options), plain, atol=1e-3)
        assert_allclose(denoise(flat, sigma=sigma, **options), flat, atol=1e-3)
        assert np.isfinite(denoise(image, "dct", sigma=sigma)).all()
    for sigma in (5e-324, 1e-300, 1e300):
        assert_allclose(denoise(image, "bilateral", sigma_color=min(sigma, 1e-9)), image, atol=1e-3)
        assert np.isfinite(denoise(image, "bilateral", sigma_spatial=sigma)).all()


#: Of each option what is out of its range, besides NaN, a word, None and more than 64 bits.
OUT_OF_RANGE = {
    ("wavelet", "sigma"): (-0.04, np.inf, [0.04]),
    ("dct", "sigma"): (-0.04, np.inf, [0.04]),
    ("nl_means", "sigma"): (0, -1, np.inf, [0.04]),
    ("nl_means", "patch_size"): (0, -1, 5.5),
    ("nl_means", "patch_distance"): (0, -1, 6.5),
    ("wiener", "size"): (0, -1, 4, 3.0),
    ("median", "size"): (0, -1, 2.5),
    ("jpeg", "quality"): (0, -1, 96, 75.5),
    ("dct", "step"): (0, -1, 3, 2.0),
} | dict.fromkeys(
    [("tv", "weight"), ("bilateral", "sigma_color"), ("bilateral", "sigma_spatial"),
     ("nl_means", "h")], (0, -1)
)  # fmt: skip


@pytest.mark.parametrize(("method", "option"), OUT_OF_RANGE)
def test_options_out_of_their_range(method, option):
    for value in (*OUT_OF_RANGE[method, option], np.nan, "much", 2**63, -(2**70), 10**400, None):
        if value is not None or option != "h":
            with pytest.raises(ValueError, match=rf"{option}: expected .* got"):
                denoise(photo(), method, **{option: value})


WORDS = ("wavelet", "mode", "shrinkage", "color", "sigma_scale")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("wavelets", {}, r"method: .*'wavelet', 'tv'.*'jpeg'.* got 'wavelets'"),
        ("median", {"weight": 1, "sigma": 0}, r"median: no option sigma, weight; known: size"),
        ("wavelet", {"size": 3}, r"wavelet: no option size; known: sigma, wavelet, mode"),
        ("nl_means", {"sigma": 0}, r"sigma: expected a number above 0, got 0"),
        ("nl_means", {"sigma": -1, "h": 0.1}, r"sigma: expected a number of at least 0, got -1"),
        *(("wavelet", {word: "no"}, rf"{word}: expected one of \(.*, got 'no'") for word in WORDS),
    ],
)
def test_unknown_words_and_options_list_the_known(method, options, message):
    with pytest.raises(ValueError, match=message):
        denoise(photo(), method, **options)


def test_wrong_images():
    for denoiser in (denoise, *DENOISERS.values()):
        for images in (photo() / 255, photo().astype(np.float64), photo()[0]):
            with pytest.raises(ValueError, match=r"images: expected"):
                denoiser(images)
