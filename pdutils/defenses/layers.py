"""The defence as Keras layers: batched, in the graph, saved and loaded with a model.

Importing this module loads TensorFlow. The NumPy functions `pdutils.deflection.pixel_deflection`
and `pdutils.denoising.denoise_wavelet` say what each knob means.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from pdutils._utils import ROUNDING, Array, load_tensorflow

# Before Keras is: it says what is amiss with Keras's settings.
load_tensorflow()

import keras
import tensorflow as tf
from keras import ops

from pdutils.activation import (
    Combine,
    Upscale,
    check_combine,
    check_upscale,
    combine_weights,
    number_of_ranks,
)
from pdutils.deflection import Reading, check_knobs
from pdutils.denoising import BOUNDLESS, FROM_YCBCR, TO_YCBCR, Mode, SigmaScale, check_wavelet_knobs

Tensor = Any

_EPS = float(np.finfo(np.float32).eps)

#: What rounding may add to a grey level.
_LEVEL_ROUNDING = 255 * ROUNDING


class _Layer(keras.layers.Layer):
    """A layer in float32, whatever Keras is set to, saved with its arguments.

    In half precision grey levels are rounded, maps move, and the gradients of a saturated network
    are 0.
    """

    _ARGUMENTS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {name: getattr(self, name) for name in self._ARGUMENTS}


@keras.saving.register_keras_serializable("pdutils")
class PixelDeflection(_Layer):
    """Deflect the pixels of a batch of images, all writes at once.

    Call it with images (N, H, W, 3) or with `[images, maps]`, maps (N, H, W) in [0, 1]; H and W
    must be known. Two things differ from the NumPy path. Every write reads from the image as it
    came: a draw does not see earlier writes. Where two writes meet at one place, either may win, on
    a GPU another from run to run. Both concern few places: with 600 writes of a 224 x 224 image
    about two. And an image whose map is 1 everywhere stays as it is, in every reading: the NumPy
    path raises an error for it in ``repo`` and ``paper``, which a graph cannot.

    What an image draws depends on the seed, on the calls before and on its place in the batch, not
    on the other images.

    Parameters
    ----------
    deflections, window, reading
        As in `pdutils.deflection.pixel_deflection`.
    seed : int or None
        Of the layer's own generator; each call draws afresh.
    **kwargs
        For `keras.layers.Layer`.
    """

    _ARGUMENTS = ("deflections", "window", "reading", "seed")

    def __init__(
        self,
        deflections: int = 200,
        window: int = 10,
        reading: Reading = "blog",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_knobs(deflections, window, reading)
        # NumPy's integers would neither seed Keras nor be saved.
        self.deflections = int(deflections)
        self.window = int(window)
        self.reading = reading
        self.seed = int(seed) if isinstance(seed, np.integer) else seed
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def call(self, inputs: Tensor) -> Tensor:
        images, maps = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        _check_shapes(images, maps)
        if self.deflections == 0:
            return images
        places, channel, kept = self._draw(images, maps)
        neighbours = self._neighbours(places, images)
        shape: tuple[int, ...] = (-1, _pixels(images), 3)
        if self.reading != "paper":
            places, neighbours = places * 3 + channel, neighbours * 3 + channel
            shape = (-1, 3 * _pixels(images))
        target, source = _without_rejected(places, neighbours, kept)
        written = _fused_copy(ops.reshape(images, shape), target, source)
        return ops.reshape(written, ops.shape(images))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape

    def _draw(self, images: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw places (N, n), their channels, and which of the draws count (None: all)."""
        batch = ops.shape(images)[0]
        maps = None if maps is None else ops.cast(maps, "float32")
        if self.reading == "blog":
            places = self._integers((batch, 3 * self.deflections), _pixels(images))
            channel = ops.tile(ops.arange(3), (self.deflections,))[None]
            return places, channel, None if maps is None else self._kept(places, maps)
        n = self.deflections + (2 if self.reading == "repo" else 0)
        places = self._places(batch, n, images, maps)
        # A map of ones leaves no place to draw, and no draw counts.
        kept = None if maps is None else _fused_chances(places, maps) < 1
        if self.reading == "paper":
            return places, ops.zeros((1, n), "int32"), kept
        channel, counted = self._rounds(batch, maps)
        return places, channel, counted if kept is None else ops.logical_and(counted, kept)

    def _kept(self, places: Tensor, maps: Tensor) -> Tensor:
        return self._uniform(ops.shape(places)) >= _fused_chances(places, maps)

    def _places(self, batch: Tensor, n: int, images: Tensor, maps: Tensor | None) -> Tensor:
        """Draw places in proportion to 1 - map: first the row, then the column in it."""
        if maps is None:
            return self._integers((batch, n), _pixels(images))
        heights = ops.cumsum(1.0 - maps, axis=2)
        rows = _inverse(ops.cumsum(heights[:, :, -1], axis=1)[:, None], self._uniform((batch, n)))
        within = ops.take_along_axis(heights, rows[:, :, None], axis=1)
        return rows * images.shape[2] + _inverse(within, self._uniform((batch, n)))

    def _rounds(self, batch: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw the channel of each accepted write, and end with a whole round of three draws."""
        n = self.deflections + 2
        gaps = ops.ones((batch, n), "int32")
        if maps is not None:
            rejected = ops.log(ops.clip(ops.mean(maps, axis=(1, 2)), 1e-7, 1 - 1e-7))[:, None]
            trials = ops.floor(ops.log(self._uniform((batch, n)) + 1e-20) / rejected)
            gaps = 1 + ops.cast(ops.minimum(trials, 2.0**24), "int32")
        channel = (ops.cumsum(gaps % 3, axis=1) + 2) % 3
        # The last two belong to the round of the one before them, or not to the result at all.
        reach = channel[:, n - 3 : n - 2] + ops.cumsum(ops.minimum(gaps[:, n - 2 :], 3), axis=1)
        first = ops.ones((batch, n - 2), "bool")
        return channel, ops.concatenate([first, reach <= 2], axis=1)

    def _neighbours(self, places: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        # A window beyond the image adds nothing, and a huge one is no int32.
        window = min(self.window, max(height, width))
        # Only the paper's reading copies from row and column 0.
        first = 0 if self.reading == "paper" else 1
        shape = ops.shape(places)
        draws = self._uniform(shape), self._uniform(shape)
        return _fused_neighbours(places, *draws, height, width, window, first)

    def _uniform(self, shape: Any) -> Tensor:
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)

    def _integers(self, shape: Any, limit: int) -> Tensor:
        return keras.random.randint(shape, 0, limit, seed=self.seed_generator)


@keras.saving.register_keras_serializable("pdutils")
class WaveletDenoising(_Layer):
    """Denoise a batch of images with Haar wavelets and BayesShrink, in YCbCr.

    Call it with images (N, H, W, 3), H and W known. It agrees with
    `pdutils.denoising.denoise_wavelet` at its default wavelet, shrinkage and colour space. With
    `mode="hard"` a coefficient that is within rounding of its threshold may go either way. With
    ``channel`` a white or black pixel that is not clipped by more than rounding keeps its gradient.
    It works in float32, or in float64 with `dtype="float64"`.

    Parameters
    ----------
    sigma, mode, sigma_scale
        As in `pdutils.denoising.denoise_wavelet`.
    **kwargs
        For `keras.layers.Layer`.
    """

    _ARGUMENTS = ("sigma", "mode", "sigma_scale")

    def __init__(
        self,
        sigma: float = 0.04,
        mode: Mode = "soft",
        sigma_scale: SigmaScale = "channel",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_wavelet_knobs(sigma, mode, sigma_scale)
        self.sigma = float(sigma)
        self.mode = mode
        self.sigma_scale = sigma_scale

    def call(self, images: Tensor) -> Tensor:
        _check_shapes(images)
        # The squares of coefficients overflow half precision.
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        # As a tensor: another sigma is not compiled anew.
        sigma = ops.convert_to_tensor(min(self.sigma, BOUNDLESS), dtype)
        return _fused_denoise(ops.cast(images, dtype), sigma, self.mode, self.sigma_scale)

    def with_derivative(self, images: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Denoise images; give what takes a gradient by the result back to one by them, too."""
        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = self(inputs)

        def pull_back(gradient: Array) -> Array:
            given = tf.constant(gradient)
            return np.asarray(tape.gradient(outputs, inputs, output_gradients=given))

        return np.asarray(outputs), pull_back


def wavelet_layer(denoiser: str | None, options: Mapping[str, Any]) -> WaveletDenoising | None:
    """Give the layer of a defence's denoiser, or None if it has none."""
    if denoiser is None:
        return None
    known = WaveletDenoising._ARGUMENTS
    if denoiser != "wavelet" or set(options) - set(known):
        raise ValueError(
            "denoiser: expected 'wavelet' with no other options than "
            f"{', '.join(known)}, got {denoiser!r} with {dict(options)}; Defense.predict and, of "
            "bpda, gradient='identity' take any"
        )
    return WaveletDenoising(**options)


class _MapLayer(_Layer):
    """What makes robust maps of `size`; the other knobs are those of `activation.robust_cam`."""

    _ARGUMENTS = ("size", "k", "combine", "upscale")

    def __init__(
        self,
        size: tuple[int, int],
        classes: int,
        k: int | None,
        combine: Combine,
        upscale: Upscale,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_combine(combine)
        check_upscale(upscale)
        self.size = (int(size[0]), int(size[1]))
        self.k = number_of_ranks(k, classes)
        self.combine = combine
        self.upscale = upscale

    def _combined(self, small: Tensor, sizes: Tensor) -> Tensor:
        """Combine the maps (N, h, w, k) of the k most probable classes into maps (N, *size)."""
        maps = _min_max(_scaled_up(small, self.size, self.upscale), sizes)
        if self.combine == "geometric":
            # The root would make much of a 0 that rounding has lifted.
            sure = ops.where(maps > ROUNDING, maps, 0.0)
            # The product of many maps would underflow before its root is taken.
            return _min_max(ops.prod(sure ** (1 / self.k), axis=-1, keepdims=True))[..., 0]
        share = ops.cast(combine_weights(self.k, self.combine), "float32")
        return _min_max(ops.sum(maps * share, axis=-1, keepdims=True))[..., 0]


@keras.saving.register_keras_serializable("pdutils")
class RobustCAM(_MapLayer):
    """Make the robust class activation map of a batch, from what the forward pass gives anyway.

    Call it with `[features, logits]`: feature maps (N, h, w, C) and logits or probabilities (N, K).
    The head weights are (C, K), from the pooled feature maps to the logits.
    """

    def __init__(
        self,
        size: tuple[int, int],
        head_weights: Any,
        k: int | None = None,
        combine: Combine = "paper",
        upscale: Upscale = "half_pixel",
        **kwargs: Any,
    ) -> None:
        shape = tuple(np.shape(head_weights))
        super().__init__(size, shape[1], k, combine, upscale, **kwargs)
        self.head_weights = self.add_weight(
            shape=shape, trainable=False, initializer="zeros", name="head_weights"
        )
        self.head_weights.assign(head_weights)

    def call(self, inputs: Tensor) -> Tensor:
        features, logits = inputs
        _, ranks = ops.top_k(logits, self.k)
        # One product for all classes would cost K / k times as much.
        weights = ops.take(ops.transpose(self.head_weights), ranks, axis=0)
        return self._combined(*_weighted(features, weights))

    def get_config(self) -> dict[str, Any]:
        # The values come with the weights; the shape is enough to make the layer again.
        return super().get_config() | {"head_weights": {"shape": tuple(self.head_weights.shape)}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RobustCAM":
        head_weights = np.zeros(config["head_weights"]["shape"], dtype=np.float32)
        return cls(**config | {"head_weights": head_weights})


@keras.saving.register_keras_serializable("pdutils")
class Logits(_Layer):
    """Apply a dense layer, such as a network's last, without its activation."""

    def __init__(self, dense: keras.layers.Dense, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = dense

    def build(self, input_shape: Any) -> None:
        if not self.dense.built:
            self.dense.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        product = ops.matmul(inputs, _full_precision(self.dense.kernel))
        return product if self.dense.bias is None else product + _full_precision(self.dense.bias)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"dense": keras.saving.serialize_keras_object(self.dense)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Logits":
        return cls(**config | {"dense": keras.saving.deserialize_keras_object(config["dense"])})


@keras.saving.register_keras_serializable("pdutils")
class RobustGradCAM(_MapLayer):
    """A network that classifies and, when asked, makes its robust class activation map by Grad-CAM.

    For any head (Selvaraju et al. 2017, DOI 10.1109/ICCV.2017.74), as `pdutils.activation` does
    for a network without head weights. A map takes one forward pass, and k backward passes from the
    logits to the feature map, no further. The network goes from images to a dictionary of
    `features` (N, h, w, C), its last feature map, and `logits` (N, K), which follow from it.

    Call it with the batch that the network takes: it gives probabilities (N, K), with `logits=True`
    the logits, with `maps=True` maps (N, height, width) in [0, 1]. One layer does all of it because
    Keras restores a network that is held by two of them only once.
    """

    def __init__(
        self,
        network: keras.Model,
        size: tuple[int, int],
        k: int | None = None,
        combine: Combine = "paper",
        upscale: Upscale = "half_pixel",
        **kwargs: Any,
    ) -> None:
        classes = _check_outputs(network)
        super().__init__(size, classes, k, combine, upscale, **kwargs)
        self.network = network
        self.classes = classes
        # `tf.gradients` needs a graph, in eager calls too.
        self._maps_in_graph = tf.function(self._maps, reduce_retracing=True, autograph=False)

    def call(
        self, images: Tensor, maps: bool = False, logits: bool = False, training: Any = None
    ) -> Tensor:
        if maps:
            return self._maps_in_graph(images, training)
        found = _full_precision(self.network(images, training=training)["logits"])
        return found if logits else ops.softmax(found)

    def compute_output_spec(self, images: Tensor, maps: bool = False, **_: Any) -> Any:
        shape = self.size if maps else (self.classes,)
        return keras.KerasTensor((images.shape[0], *shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"network": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RobustGradCAM":
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**config | {"network": network})

    def _maps(self, images: Tensor, training: Any) -> Tensor:
        features, gradients = self._gradients(images, training)
        weights, reach = (
            ops.stack([ops.mean(gradient, axis=(1, 2)) for gradient in part], axis=1)
            for part in (gradients, [ops.abs(gradient) for gradient in gradients])
        )
        sums, sizes = _weighted(features, weights, reach)
        return self._combined(ops.relu(sums), sizes)

    def _gradients(self, images: Tensor, training: Any) -> tuple[Tensor, list[Tensor]]:
        """Give the feature map, and the gradients of the k largest logits by it."""
        found = self.network(images, training=training)
        features, logits = found["features"], _full_precision(found["logits"])
        # Probabilities tie where logits do not, and the NumPy path ranks probabilities.
        _, ranks = ops.top_k(ops.softmax(logits), self.k)
        chosen = tf.unstack(tf.gather(logits, ranks, batch_dims=1), self.k, axis=1)
        # A tape would go on to the images; these go no further than the features.
        gradients = [tf.gradients(logit, features)[0] for logit in chosen]
        if gradients[0] is None:
            raise ValueError(
                f"{self.network.name}: expected logits that follow from the features by operations "
                "with a gradient, got some without"
            )
        return _full_precision(features), [_full_precision(g) for g in gradients]


def _full_precision(values: Tensor) -> Tensor:
    return ops.cast(values, "float32")


def _check_outputs(network: keras.Model) -> int:
    """Check what `RobustGradCAM` needs of a network, and give its number of classes."""
    found = network.output if isinstance(network.output, dict) else {"output": network.output}
    shapes = {name: tuple(output.shape) for name, output in found.items()}
    if {name: len(shape) for name, shape in shapes.items()} != {"features": 4, "logits": 2}:
        raise ValueError(
            "network: expected outputs 'features' (N, h, w, C) and 'logits' (N, K), "
            f"got {shapes} from {network.name}"
        )
    return int(shapes["logits"][1])


def _weighted(features: Tensor, weights: Tensor, reach: Tensor | None = None) -> Any:
    """Sum feature maps (N, h, w, C) by k weights (N, k, C) each.

    Returns the sums (N, h, w, k) and the sizes (N, 1, 1, k) of their terms, as the NumPy path does.
    """
    reach = ops.abs(weights) if reach is None else reach
    sums = ops.einsum("nhwc,nkc->nhwk", features, weights)
    sizes = ops.einsum("nhwc,nkc->nhwk", ops.abs(features), reach)
    return sums, ops.max(sizes, axis=(1, 2), keepdims=True)


def _scaled_up(maps: Tensor, size: tuple[int, int], upscale: Upscale) -> Tensor:
    if upscale == "half_pixel":
        return ops.image.resize(maps, size, interpolation="bilinear")
    return tf.raw_ops.ResizeBilinear(images=maps, size=size)


def _check_shapes(images: Tensor, maps: Tensor | None = None) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] != 3 or None in shape[1:]:
        raise ValueError(f"images: expected shape (N, H, W, 3) with H and W known, got {shape}")
    if maps is None:
        return
    # The number of images may be known of one of the two only.
    same_number = len({maps.shape[0], shape[0], None}) < 3
    if tuple(maps.shape)[1:] != shape[1:3] or not same_number:
        raise ValueError(
            f"maps: expected shape {(shape[0], *shape[1:3])} as the images, got {tuple(maps.shape)}"
        )


def _chances(places: Tensor, maps: Tensor) -> Tensor:
    """Give the values of the maps (N, H, W) at places (N, n)."""
    return ops.take_along_axis(ops.reshape(maps, (ops.shape(maps)[0], -1)), places, axis=1)


def _pixels(images: Tensor) -> int:
    return int(images.shape[1] * images.shape[2])


def _neighbours(
    places: Tensor, down: Tensor, right: Tensor, height: int, width: int, window: int, first: int
) -> Tensor:
    """Turn uniform draws into places within the window of `places` and inside the image."""
    row = _near(places // width, down, height, window, min(first, height - 1))
    return row * width + _near(places % width, right, width, window, min(first, width - 1))


def _near(position: Tensor, uniform: Tensor, size: int, window: int, first: int) -> Tensor:
    low = ops.maximum(position - window, first)
    high = ops.minimum(position + window, size - 1)
    span = ops.cast(high - low + 1, "float32")
    steps = ops.cast(ops.floor(uniform * span), "int32")
    return ops.minimum(low + steps, high)


def _copy(flat: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Copy the places `source` (N, n) of each image over its places `target`, all at once."""
    first = ops.arange(ops.shape(flat)[0], dtype="int32")[:, None] * flat.shape[1]
    together = ops.reshape(flat, (-1, *flat.shape[2:]))
    to = ops.reshape(target + first, (-1,))
    values = ops.take(together, ops.reshape(source + first, (-1,)), axis=0)
    return ops.scatter_update(together, to[:, None], values)


def _without_rejected(target: Tensor, source: Tensor, kept: Tensor | None) -> Any:
    """Let each rejected write repeat the first accepted one, which changes nothing more."""
    if kept is None:
        return target, source
    first = ops.argmax(kept, axis=1, keepdims=True)
    to = ops.where(kept, target, ops.take_along_axis(target, first, axis=1))
    origin = ops.where(kept, source, ops.take_along_axis(source, first, axis=1))
    # Where none is accepted, a place is copied onto itself.
    return to, ops.where(ops.any(kept, axis=1, keepdims=True), origin, to)


def _inverse(heights: Tensor, uniform: Tensor) -> Tensor:
    """Find for each draw the first of the growing heights (..., m) that exceeds its share."""
    level = uniform[..., None] * heights[..., -1:]
    index = ops.sum(ops.cast(heights <= level, "int32"), axis=-1)
    # Heights that are 0 throughout have none that exceeds it.
    return ops.minimum(index, heights.shape[-1] - 1)


def _min_max(maps: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Stretch as `pdutils.images.min_max`, each (H, W) of (N, H, W, k)."""
    low = ops.min(maps, axis=(1, 2), keepdims=True)
    high = ops.max(maps, axis=(1, 2), keepdims=True)
    if sizes is None:
        sizes = ops.maximum(ops.abs(low), ops.abs(high))
    span = high - low
    varies = span > ROUNDING * sizes
    return ops.where(varies, (maps - low) / ops.where(varies, span, 1.0), 0.0)


def _denoise(images: Tensor, sigma: Tensor, mode: Mode, sigma_scale: SigmaScale) -> Tensor:
    # The offset of YCbCr only moves the mean, which denoising leaves alone.
    channels = _mixed(images, TO_YCBCR)
    levels = max(int(np.log2(min(images.shape[1:3]))) - 3, 1)
    if sigma_scale == "rgb":
        spread = 255 * np.sqrt(np.square(TO_YCBCR).sum(axis=0))
        scale = ops.cast(spread[None, None, None], channels.dtype)
        return _mixed(_shrink(channels, levels, sigma * scale, scale, mode), FROM_YCBCR)
    low = ops.min(channels, (1, 2), keepdims=True)
    high = ops.max(channels, (1, 2), keepdims=True)
    scale = _true_range(high - low, images)
    shrunk = _shrink(channels, levels, sigma * scale, scale, mode)
    inside = ops.minimum(ops.maximum(shrunk, low), high)
    return _clipped_to_8_bits(_mixed(inside, FROM_YCBCR))


def _true_range(spans: Tensor, images: Tensor) -> Tensor:
    """Take the span (N, 1, 1, 3) of a channel that is constant but for rounding for 0."""
    size = ops.max(ops.abs(images), (1, 2, 3), keepdims=True)
    return ops.where(spans > ROUNDING * size, spans, ops.zeros_like(spans))


def _clipped_to_8_bits(rgb: Tensor) -> Tensor:
    """Clip to [0, 255], and let the gradient through at the ends themselves."""
    inside = ops.clip(rgb, 0.0, 255.0)
    beyond = rgb - inside
    # Rounding puts a white or black pixel on either side of the end, on each processor another.
    at_the_end = ops.abs(beyond) < _LEVEL_ROUNDING
    return ops.where(at_the_end, rgb - ops.stop_gradient(beyond), inside)


def _mixed(channels: Tensor, matrix: Any) -> Tensor:
    """Multiply pixels by a 3 x 3 matrix, in full precision on a GPU too, unlike `matmul`."""
    columns = [sum(channels[..., i] * float(matrix[i, j]) for i in range(3)) for j in range(3)]
    return ops.stack(columns, axis=-1)


def _shrink(x: Tensor, levels: int, sigma: Tensor, scale: Tensor, mode: Mode) -> Tensor:
    """Denoise by one level of the Haar transform, and what it leaves by the next."""
    height, width = x.shape[1:3]
    x = _even(x)
    top, bottom = x[:, 0::2], x[:, 1::2]
    a, b, c, d = top[:, :, 0::2], top[:, :, 1::2], bottom[:, :, 0::2], bottom[:, :, 1::2]
    across, down, diagonal = (
        _threshold(band / 2, sigma, scale, mode)
        for band in (a - b + c - d, a + b - c - d, a - b - c + d)
    )
    coarse = (a + b + c + d) / 2
    if levels > 1:
        coarse = _shrink(coarse, levels - 1, sigma, scale, mode)
    left = coarse + across + down + diagonal, coarse + across - down - diagonal
    right = coarse - across + down - diagonal, coarse - across - down + diagonal
    joined = ops.stack([ops.stack(side, axis=2) / 2 for side in (left, right)], axis=4)
    full = ops.reshape(joined, (-1, x.shape[1], x.shape[2], 3))
    return full[:, :height, :width]


def _even(x: Tensor) -> Tensor:
    """Repeat the last row and column of odd sizes, as PyWavelets does."""
    if x.shape[1] % 2:
        x = ops.concatenate([x, x[:, -1:]], axis=1)
    if x.shape[2] % 2:
        x = ops.concatenate([x, x[:, :, -1:]], axis=2)
    return x


def _threshold(band: Tensor, sigma: Tensor, scale: Tensor, mode: Mode) -> Tensor:
    """Shrink one subband by its own BayesShrink threshold."""
    variance = ops.mean(band * band, axis=(1, 2), keepdims=True)
    signal = ops.sqrt(ops.maximum(variance - sigma**2, _EPS * ops.maximum(scale, _EPS) ** 2))
    threshold = sigma**2 / signal
    size = ops.abs(band)
    if mode == "hard":
        return ops.where(size < threshold, 0.0, band)
    return ops.sign(band) * ops.maximum(size - threshold, 0.0)


# Compiled by XLA, the many small steps become few passes over the memory. It compiles once for
# each shape of a batch, which takes seconds.
_fused_chances = tf.function(_chances, jit_compile=True)
_fused_neighbours = tf.function(_neighbours, jit_compile=True)
_fused_copy = tf.function(_copy, jit_compile=True)
_fused_denoise = tf.function(_denoise, jit_compile=True)
