"""The defence as Keras layers, and as one Keras model: batched, in the graph, saved and loaded.

Importing this module loads TensorFlow. The NumPy functions `pdutils.deflection.pixel_deflection`
and `pdutils.denoising.denoise_wavelet` say what each knob means.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_args

import numpy as np

from pdutils._utils import ROUNDING, Array, check_one_of, load_tensorflow
from pdutils.activation import Combine, Upscale, combine_weights, number_of_ranks
from pdutils.defenses.pipeline import Classifier, Defense, Reading, check_knobs
from pdutils.denoising import BOUNDLESS, FROM_YCBCR, TO_YCBCR, Mode, SigmaScale, check_wavelet_knobs

# Before Keras is: it says what is amiss with Keras's settings.
load_tensorflow()

import keras
import tensorflow as tf
from keras import ops

from pdutils._network import LEAST, only

Tensor = Any

#: From images (N, H, W, 3), RGB in [0, 255].
Step = Callable[[Tensor], Tensor]

_EPS = float(np.finfo(np.float32).eps)

#: Compiled by XLA, the many small steps become few passes over the memory. It compiles once for
#: each shape of a batch, which takes seconds.
_fused = tf.function(jit_compile=True, autograph=False)


class _Layer(keras.layers.Layer):
    """A layer in float32, whatever Keras is set to, saved with its arguments.

    In half precision grey levels are rounded, maps move, and the gradients of a saturated network
    are 0.
    """

    _ARGUMENTS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self._ARGUMENTS}
        config: dict[str, Any] = super().get_config() | keras.saving.serialize_keras_object(own)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Layer":
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable("pdutils")
class PixelDeflection(_Layer):
    """Deflect the pixels of a batch of images, all writes at once.

    Call it with images (N, H, W, 3) or with `[images, maps]`, maps (N, H, W) in [0, 1]; H and W
    must be known. Unlike in the NumPy path every write reads from the image as it came, not from
    earlier writes, and where two meet at one place either may win, on a GPU another from run to
    run: both concern about two of 600 writes of a 224 x 224 image. An image whose map is 1
    everywhere stays as it is in every reading, for a graph raises no errors.

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
        self.deflections, self.window, self.reading = int(deflections), int(window), reading
        self.seed = int(seed) if isinstance(seed, np.integer) else seed
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def call(self, inputs: Tensor) -> Tensor:
        images, maps = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        _check_shapes(images, maps)
        if self.deflections == 0:
            return images
        height, width = images.shape[1:3]
        maps = None if maps is None else ops.cast(maps, "float32")
        places, channel, kept = self._draw(ops.shape(images)[0], height, width, maps)
        draws = [self._uniform(ops.shape(places)) for _ in range(2)]
        # A window beyond the image adds nothing, and a huge one is no int32.
        window = min(self.window, max(height, width))
        # Only the paper's reading copies from row and column 0.
        least = 0 if self.reading == "paper" else 1
        neighbours = _neighbours(places, draws, (height, width), window, least)
        shape: tuple[int, ...] = (-1, height * width, 3)
        if self.reading != "paper":
            places, neighbours = places * 3 + channel, neighbours * 3 + channel
            shape = (-1, height * width * 3)
        if kept is not None:
            # A rejected write repeats the first accepted one, which changes nothing more; where
            # none is accepted, a place is copied onto itself.
            first = ops.argmax(kept, axis=1, keepdims=True)
            places, origin = (
                ops.where(kept, all_, ops.take_along_axis(all_, first, axis=1))
                for all_ in (places, neighbours)
            )
            neighbours = ops.where(ops.any(kept, axis=1, keepdims=True), origin, places)
        written = _copy(ops.reshape(images, shape), places, neighbours)
        return ops.reshape(written, ops.shape(images))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape

    def _draw(
        self, batch: Tensor, height: int, width: int, maps: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw places (N, n), their channels, and which of the draws count (None: all)."""
        blog, kept = self.reading == "blog", None
        n = self.deflections * (3 if blog else 1) + (2 if self.reading == "repo" else 0)
        if maps is None or blog:
            places = keras.random.randint((batch, n), 0, height * width, seed=self.seed_generator)
        else:
            # In proportion to 1 - map: first the row, then the column in it.
            heights = ops.cumsum(1.0 - maps, axis=2)
            totals = ops.cumsum(heights[:, :, -1], axis=1)
            rows = _inverse(totals[:, None], self._uniform((batch, n)))
            within = ops.take_along_axis(heights, rows[:, :, None], axis=1)
            places = rows * width + _inverse(within, self._uniform((batch, n)))
        if maps is not None:
            chances = _chances(places, maps)
            # In proportion to a map of ones there is no place to draw, and no draw counts.
            kept = self._uniform((batch, n)) >= chances if blog else chances < 1
        if self.reading != "repo":
            return places, ops.arange(n)[None] % 3, kept
        channel, counted = self._rounds(batch, n, maps)
        return places, channel, counted if kept is None else ops.logical_and(counted, kept)

    def _rounds(self, batch: Tensor, n: int, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw the channel of each accepted write, and end with a whole round of three draws."""
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

    def _uniform(self, shape: Any) -> Tensor:
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)


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
        self.sigma, self.mode, self.sigma_scale = float(sigma), mode, sigma_scale

    def call(self, images: Tensor) -> Tensor:
        _check_shapes(images)
        # The squares of coefficients overflow half precision.
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        # As a tensor: another sigma is not compiled anew.
        sigma = ops.convert_to_tensor(min(self.sigma, BOUNDLESS), dtype)
        return _denoise(ops.cast(images, dtype), sigma, self.mode, self.sigma_scale)

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

    _ARGUMENTS: ClassVar[tuple[str, ...]] = ("size", "k", "combine", "upscale")

    def __init__(
        self,
        classes: int,
        size: tuple[int, int],
        k: int | None = None,
        combine: Combine = "paper",
        upscale: Upscale = "half_pixel",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_one_of("combine", combine, get_args(Combine))
        check_one_of("upscale", upscale, get_args(Upscale))
        self.size, self.k = (int(size[0]), int(size[1])), number_of_ranks(k, classes)
        self.combine, self.upscale = combine, upscale

    def _combined(self, small: Tensor, sizes: Tensor) -> Tensor:
        """Combine the maps (N, h, w, k) of the k most probable classes into maps (N, *size)."""
        if self.upscale == "half_pixel":
            maps = ops.image.resize(small, self.size, interpolation="bilinear")
        else:
            maps = tf.raw_ops.ResizeBilinear(images=small, size=self.size)
        maps = _min_max(maps, sizes)
        if self.combine == "geometric":
            # The root would make much of a 0 that rounding has lifted.
            sure = ops.where(maps > ROUNDING, maps, 0.0)
            # The product of many maps would underflow before its root is taken.
            combined = ops.prod(sure ** (1 / self.k), axis=-1, keepdims=True)
        else:
            share = ops.cast(combine_weights(self.k, self.combine), "float32")
            combined = ops.sum(maps * share, axis=-1, keepdims=True)
        return _min_max(combined)[..., 0]


@keras.saving.register_keras_serializable("pdutils")
class RobustCAM(_MapLayer):
    """Make the robust class activation map of a batch, from what the forward pass gives anyway.

    Call it with `[features, logits]`: feature maps (N, h, w, C) and logits or probabilities (N, K).
    The head weights are (C, K), from the pooled feature maps to the logits; after them come `k`,
    `combine` and `upscale`, as in `pdutils.activation.robust_cam`.
    """

    def __init__(
        self, size: tuple[int, int], head_weights: Any, *knobs: Any, **options: Any
    ) -> None:
        # A file has the shape here; the values come with the weights.
        saved = isinstance(head_weights, dict)
        values = np.zeros(head_weights["shape"]) if saved else np.asarray(head_weights)
        super().__init__(values.shape[1], size, *knobs, **options)
        self.head_weights = self.add_weight(
            shape=values.shape, trainable=False, initializer="zeros", name="head_weights"
        )
        self.head_weights.assign(values)

    def call(self, inputs: Tensor) -> Tensor:
        features, logits = inputs
        _, ranks = ops.top_k(logits, self.k)
        # One product for all classes would cost K / k times as much.
        weights = ops.take(ops.transpose(self.head_weights), ranks, axis=0)
        return self._combined(*_weighted(features, weights, ops.abs(weights)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"head_weights": {"shape": tuple(self.head_weights.shape)}}


@keras.saving.register_keras_serializable("pdutils")
class Logits(_Layer):
    """Apply a dense layer, such as a network's last, without its activation."""

    _ARGUMENTS = ("dense",)

    def __init__(self, dense: keras.layers.Dense, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = dense

    def build(self, input_shape: Any) -> None:
        if not self.dense.built:
            self.dense.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        product = ops.matmul(inputs, ops.cast(self.dense.kernel, "float32"))
        bias = self.dense.bias
        return product if bias is None else product + ops.cast(bias, "float32")


@keras.saving.register_keras_serializable("pdutils")
class RobustGradCAM(_MapLayer):
    """A network that classifies and, when asked, makes its robust class activation map by Grad-CAM.

    For any head (Selvaraju et al. 2017, DOI 10.1109/ICCV.2017.74), as `pdutils.activation` does
    for a network without head weights. A map takes one forward pass, and k backward passes from the
    logits to the feature map, no further. The network goes from images to a dictionary of
    `features` (N, h, w, C), its last feature map, and `logits` (N, K), which follow from it.

    Call it with the batch that the network takes: it gives probabilities (N, K), with `logits=True`
    the logits, with `maps=True` maps `(N, *size)` in [0, 1]. One layer does all of it because Keras
    restores a network that is held by two of them only once. The knobs are those of `RobustCAM`.
    """

    _ARGUMENTS = ("network", *_MapLayer._ARGUMENTS)

    def __init__(
        self, network: keras.Model, size: tuple[int, int], *knobs: Any, **options: Any
    ) -> None:
        found = network.output if isinstance(network.output, dict) else {"output": network.output}
        shapes = {name: tuple(output.shape) for name, output in found.items()}
        if {name: len(shape) for name, shape in shapes.items()} != {"features": 4, "logits": 2}:
            raise ValueError(
                "network: expected outputs 'features' (N, h, w, C) and 'logits' (N, K), "
                f"got {shapes} from {network.name}"
            )
        self.classes = int(shapes["logits"][1])
        super().__init__(self.classes, size, *knobs, **options)
        self.network = network
        # `tf.gradients` needs a graph, in eager calls too.
        self._maps_in_graph = tf.function(self._maps, reduce_retracing=True, autograph=False)

    def call(
        self, images: Tensor, maps: bool = False, logits: bool = False, training: Any = None
    ) -> Tensor:
        if maps:
            return self._maps_in_graph(images, training)
        found = ops.cast(self.network(images, training=training)["logits"], "float32")
        return found if logits else ops.softmax(found)

    def compute_output_spec(self, images: Tensor, maps: bool = False, **_: Any) -> Any:
        shape = self.size if maps else (self.classes,)
        return keras.KerasTensor((images.shape[0], *shape), dtype="float32")

    def _maps(self, images: Tensor, training: Any) -> Tensor:
        found = self.network(images, training=training)
        features, logits = found["features"], ops.cast(found["logits"], "float32")
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
        slopes = ops.cast(ops.stack(gradients, axis=1), "float32")
        weights, reach = (ops.mean(part, axis=(2, 3)) for part in (slopes, ops.abs(slopes)))
        sums, sizes = _weighted(ops.cast(features, "float32"), weights, reach)
        return self._combined(ops.relu(sums), sizes)


def defended_model(
    classifier: Classifier, defense: Defense, *, seed: int | None = None, logits: bool = False
) -> keras.Model:
    """Put a defence in front of a classifier, as one Keras model.

    Everything happens in the graph, batched: images that lie on a GPU stay there. The map costs one
    forward pass, and where the head is not average pooling and one dense layer, a backward pass
    through it for each class of the map. The model saves and loads like any other, once
    `pdutils.defenses.layers` is imported. It deflects as `PixelDeflection` there does, and so it
    agrees with the NumPy path in the average over draws. A prediction depends on the image's place
    in its batch and on the calls before, through what it draws, but not on the other images; a
    loaded model draws from its seed again.

    Parameters
    ----------
    classifier : Classifier
        One of the project's, or a Keras model of one's own in a `Classifier`.
    defense : Defense
        With the wavelet denoiser (db1, BayesShrink, YCbCr) or none.
    seed : int or None
        Of the deflection.
    logits : bool
        Whether it gives logits, as attacks of other libraries take them, instead of probabilities:
        the network's, or with several runs the logarithms of their mean probabilities.

    Returns
    -------
    keras.Model
        From images (N, H, W, 3), RGB in [0, 255], to (N, K): with several runs the mean
        probabilities, or the shares of the runs that each class won.

    Raises
    ------
    ValueError
        Also if the classifier's `preprocess` calls functions of TensorFlow rather than arithmetic
        and `keras.ops`, and if logits are asked for and the runs are counted by majority: a share
        of runs has no gradient.
    """
    if logits and defense.aggregate == "majority":
        raise ValueError(
            "logits: expected a defence whose runs are averaged, got aggregate='majority'"
        )
    runs, images = defense.runs, keras.Input((*classifier.input_size, 3), name="images")
    classify, make_maps = _steps(classifier, defense, logits)
    inputs = [images]
    if make_maps is not None:
        inputs.append(ops.clip(make_maps(images) + float(defense.bias), 0.0, 1.0))
    if runs > 1:
        inputs = [ops.repeat(part, runs, axis=0) for part in inputs]
    deflect = PixelDeflection(defense.deflections, defense.window, defense.reading, seed)
    defended = deflect(inputs if make_maps else inputs[0])
    denoise = wavelet_layer(defense.denoiser, defense.denoiser_options)
    outputs = classify(defended if denoise is None else denoise(defended))
    if defense.aggregate == "majority":
        outputs = ops.one_hot(ops.argmax(outputs, axis=-1), outputs.shape[-1])
    if runs > 1:
        rows = ops.log_softmax(outputs) if logits else outputs
        by_run = ops.reshape(rows, (-1, runs, outputs.shape[-1]))
        total = ops.logsumexp(by_run, axis=1) - float(np.log(runs))
        outputs = total if logits else ops.mean(by_run, axis=1)
    return keras.Model(images, outputs, name=f"defended_{classifier.model.name}")


def _steps(classifier: Classifier, defense: Defense, logits: bool) -> tuple[Step, Step | None]:
    """Give what classifies and, if the defence uses one, what makes the map."""
    network, preprocess = classifier.network, classifier.preprocess
    with_map, size = defense.map_key is not None, classifier.input_size

    def of_black_box(images: Tensor) -> Tensor:
        output = only(classifier.model(preprocess(images)))
        if not logits:
            return network.probabilities(output)
        return output if network.gives_logits else _log(output)

    if not with_map and network.graph is None:
        return of_black_box, None
    found = {"features": network.feature_map()} if with_map else {}
    knobs = defense.k if defense.activation == "rcam" else 1, defense.combine, defense.upscale
    if with_map and classifier.head_weights is None:
        whole = RobustGradCAM(network.parts(logits=_logits(classifier), **found), size, *knobs)
        return (
            lambda images: whole(preprocess(images), logits=logits),
            lambda images: whole(preprocess(images), maps=True),
        )
    found["probabilities"] = network.probabilities(network.graph.output)
    found["answer"] = _logits(classifier) if logits else found["probabilities"]
    parts = network.parts(**found)

    def classify(images: Tensor) -> Tensor:
        return parts(preprocess(images))["answer"]

    if not with_map:
        return classify, None
    cam = RobustCAM(size, classifier.head_weights, *knobs)

    def make_maps(images: Tensor) -> Tensor:
        made = parts(preprocess(images))
        return cam([made["features"], made["probabilities"]])

    return classify, make_maps


def _logits(classifier: Classifier) -> Tensor:
    """Give the logits, or their nearest substitute in a model that never has them."""
    kind, tensor, dense = classifier.network.tail
    if kind == "output":
        return _log(tensor)
    if kind == "dense":
        return Logits(dense, name="logits")(tensor)
    return ops.reshape(ops.cast(tensor, "float32"), (-1, len(classifier.class_ids)))


def _log(probabilities: Tensor) -> Tensor:
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), LEAST))


def _weighted(features: Tensor, weights: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Sum feature maps (N, h, w, C) by k weights (N, k, C) each, whose sizes are `reach`.

    Returns the sums (N, h, w, k) and the sizes (N, 1, 1, k) of their terms, as the NumPy path does.
    """
    sums = ops.einsum("nhwc,nkc->nhwk", features, weights)
    sizes = ops.einsum("nhwc,nkc->nhwk", ops.abs(features), reach)
    return sums, ops.max(sizes, axis=(1, 2), keepdims=True)


def _min_max(maps: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Stretch as `pdutils.images.min_max`, each (H, W) of (N, H, W, k)."""
    low, high = (end(maps, axis=(1, 2), keepdims=True) for end in (ops.min, ops.max))
    if sizes is None:
        sizes = ops.maximum(ops.abs(low), ops.abs(high))
    span = high - low
    varies = span > ROUNDING * sizes
    return ops.where(varies, (maps - low) / ops.where(varies, span, 1.0), 0.0)


def _check_shapes(images: Tensor, maps: Tensor | None = None) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] != 3 or None in shape[1:]:
        raise ValueError(f"images: expected shape (N, H, W, 3) with H and W known, got {shape}")
    found = shape[:3] if maps is None else tuple(maps.shape)
    # The number of images may be known of one of the two only.
    if found[1:] != shape[1:3] or len({found[0], shape[0], None}) > 2:
        raise ValueError(f"maps: expected shape {shape[:3]} as the images, got {found}")


@_fused
def _chances(places: Tensor, maps: Tensor) -> Tensor:
    """Give the values of the maps (N, H, W) at places (N, n)."""
    return ops.take_along_axis(ops.reshape(maps, (ops.shape(maps)[0], -1)), places, axis=1)


@_fused
def _neighbours(
    places: Tensor, draws: list[Tensor], sizes: tuple[int, int], window: int, first: int
) -> Tensor:
    """Turn uniform draws into places within the window of `places` and inside the image."""
    found = []
    positions = places // sizes[1], places % sizes[1]
    for position, uniform, size in zip(positions, draws, sizes, strict=True):
        low = ops.maximum(position - window, min(first, size - 1))
        high = ops.minimum(position + window, size - 1)
        steps = ops.floor(uniform * ops.cast(high - low + 1, "float32"))
        found.append(ops.minimum(low + ops.cast(steps, "int32"), high))
    return found[0] * sizes[1] + found[1]


@_fused
def _copy(flat: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Copy the places `source` (N, n) of each image over its places `target`, all at once."""
    start = ops.arange(ops.shape(flat)[0], dtype="int32")[:, None] * flat.shape[1]
    together = ops.reshape(flat, (-1, *flat.shape[2:]))
    values = ops.take(together, ops.reshape(source + start, (-1,)), axis=0)
    return ops.scatter_update(together, ops.reshape(target + start, (-1, 1)), values)


def _inverse(heights: Tensor, uniform: Tensor) -> Tensor:
    """Find for each draw the first of the growing heights (..., m) that exceeds its share."""
    level = uniform[..., None] * heights[..., -1:]
    index = ops.sum(ops.cast(heights <= level, "int32"), axis=-1)
    # Heights that are 0 throughout have none that exceeds it.
    return ops.minimum(index, heights.shape[-1] - 1)


@_fused
def _denoise(images: Tensor, sigma: Tensor, mode: Mode, sigma_scale: SigmaScale) -> Tensor:
    # The offset of YCbCr only moves the mean, which denoising leaves alone.
    channels = _mixed(images, TO_YCBCR)
    levels = max(int(np.log2(min(images.shape[1:3]))) - 3, 1)
    if sigma_scale == "rgb":
        spread = 255 * np.sqrt(np.square(TO_YCBCR).sum(axis=0))
        scale = ops.cast(spread[None, None, None], channels.dtype)
        return _mixed(_shrink(channels, levels, sigma * scale, scale, mode), FROM_YCBCR)
    low, high = (end(channels, (1, 2), keepdims=True) for end in (ops.min, ops.max))
    size = ops.max(ops.abs(images), (1, 2, 3), keepdims=True)
    # The span of a channel that is constant but for rounding is 0.
    scale = ops.where(high - low > ROUNDING * size, high - low, 0.0)
    shrunk = _shrink(channels, levels, sigma * scale, scale, mode)
    rgb = _mixed(ops.minimum(ops.maximum(shrunk, low), high), FROM_YCBCR)
    inside = ops.clip(rgb, 0.0, 255.0)
    beyond = rgb - inside
    # Rounding puts a white or black pixel on either side of the end, on each processor another:
    # at the ends themselves the gradient is let through.
    at_the_end = ops.abs(beyond) < 255 * ROUNDING
    return ops.where(at_the_end, rgb - ops.stop_gradient(beyond), inside)


def _mixed(channels: Tensor, matrix: Any) -> Tensor:
    """Multiply pixels by a 3 x 3 matrix, in full precision on a GPU too, unlike `matmul`."""
    columns = [sum(channels[..., i] * float(matrix[i, j]) for i in range(3)) for j in range(3)]
    return ops.stack(columns, axis=-1)


def _shrink(x: Tensor, levels: int, sigma: Tensor, scale: Tensor, mode: Mode) -> Tensor:
    """Denoise by one level of the Haar transform, and what it leaves by the next."""
    height, width = x.shape[1:3]
    # The last row and column of odd sizes are repeated, as PyWavelets does.
    x = ops.concatenate([x, x[:, height - height % 2 :]], axis=1)
    x = ops.concatenate([x, x[:, :, width - width % 2 :]], axis=2)
    a, b, c, d = (x[:, i::2, j::2] for i in range(2) for j in range(2))
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


def _threshold(band: Tensor, sigma: Tensor, scale: Tensor, mode: Mode) -> Tensor:
    """Shrink one subband by its own BayesShrink threshold."""
    variance = ops.mean(band * band, axis=(1, 2), keepdims=True)
    signal = ops.sqrt(ops.maximum(variance - sigma**2, _EPS * ops.maximum(scale, _EPS) ** 2))
    threshold, size = sigma**2 / signal, ops.abs(band)
    if mode == "hard":
        return ops.where(size < threshold, 0.0, band)
    return ops.sign(band) * ops.maximum(size - threshold, 0.0)
