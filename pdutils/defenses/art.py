"""The defence before estimators of the Adversarial Robustness Toolbox.

Importing this module loads ART and TensorFlow.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from pdutils._toolbox import ClipValues, checked_range, importing_art
from pdutils._utils import OVERSHOOT, Array, check_one_of, check_some, generator
from pdutils.defenses.layers import Mode, SigmaScale, WaveletDenoising
from pdutils.deflection import Reading, check_knobs, deflect

with importing_art():
    import tensorflow as tf
    from art.defences.preprocessor.preprocessor import PreprocessorTensorFlowV2

Gradient = Literal["identity", "exact"]


class _Defence(PreprocessorTensorFlowV2):
    """ART's many ways of calling one and the same thing.

    For ART, which chains only those, it is a defence of TensorFlow; it takes arrays of any.
    """

    def __init__(
        self,
        clip_values: ClipValues = (0.0, 255.0),
        channels_first: bool = False,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.clip_values = clip_values
        self.channels_first = channels_first

    def __call__(self, x: Array, y: Any = None) -> tuple[Array, Any]:
        """Defend images of float32 in the range of `clip_values`; `y` comes back as it is."""
        return self._outward(self._defend(self._images(x))), y

    def estimate_gradient(self, x: Array, grad: Array) -> Array:
        """Carry a gradient by defended images, perhaps (N, K, ...), back to one by the images."""
        if grad.ndim == x.ndim + 1:
            by_class = [self.estimate_gradient(x, grad[:, k]) for k in range(grad.shape[1])]
            return np.stack(by_class, axis=1)
        if grad.shape != x.shape:
            raise ValueError(f"grad: expected the shape {x.shape}, got {grad.shape}")
        return self._outward(self._backward(self._images(x), self._inward(grad)))

    def forward(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        """Do as a call, on tensors; a tape finds what `estimate_gradient` gives."""

        @tf.custom_gradient
        def defended(images: Any) -> tuple[Any, Callable[[Any], Any]]:
            def backward(gradient: Any) -> Any:
                return tf.numpy_function(self.estimate_gradient, [images, gradient], tf.float32)

            return tf.numpy_function(lambda i: self(i)[0], [images], tf.float32), backward

        x = tf.cast(x, tf.float32)
        return tf.ensure_shape(defended(x), x.shape), y

    def _images(self, x: Array) -> Array:
        """Bring images to (N, H, W, 3), and see that they are in the range that they should be."""
        images, white = self._inward(x), checked_range(self.clip_values)
        low, high, slack = images.min(), images.max(), OVERSHOOT / 255 * white
        # A batch in [0, 1] fits into [0, 255], but is no picture there.
        other = white == 255 and high <= 1 and np.mean(images != np.rint(images)) > 0.5
        if other or low < -slack or high > white + slack:
            raise ValueError(
                f"x: expected values in [0, {white:g}], which clip_values says, "
                f"got [{low:g}, {high:g}]"
            )
        return images

    def _inward(self, values: Array) -> Array:
        """Bring images, or their gradient, to (N, H, W, 3)."""
        channel, values = 1 if self.channels_first else 3, np.asarray(values)
        if values.ndim != 4 or values.shape[channel] != 3 or values.dtype.kind != "f":
            layout = "(N, 3, H, W)" if self.channels_first else "(N, H, W, 3)"
            raise ValueError(
                f"x: expected floats of shape {layout}, got {values.dtype} of {values.shape}"
            )
        check_some(values, "x")
        return np.moveaxis(values, channel, 3).astype(np.float32)

    def _outward(self, values: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(values, 3, 1)) if self.channels_first else values

    def _check_params(self) -> None:
        checked_range(self.clip_values)

    def _scale(self) -> np.float32:
        return np.float32(255 / checked_range(self.clip_values))

    def _backward(self, images: Array, gradient: Array) -> Array:
        return gradient


class PixelDeflectionPreprocessor(_Defence):
    """Pixel deflection before any ART estimator.

    Every call draws afresh, so an attack sees another draw at each step. The gradient is passed
    straight through (Athalye, Carlini, Wagner 2018, arXiv 1802.00420).

    Parameters
    ----------
    deflections, window, reading
        As in `pdutils.deflection.pixel_deflection`.
    map_maker : callable, optional
        From images (N, H, W, 3) in [0, 255] to maps (N, H, W) in [0, 1], made at each call, such as
        ``lambda images: robust_cam(network, images)``. By default no place is spared.
    rng : int, numpy.random.Generator or None
        Each image of each call draws from a stream of its own.
    clip_values : (0, 255) or (0, 1)
        The range of the images, the estimator's own, in numbers or in arrays; by default (0, 255).
    channels_first : bool
        Whether the images are (N, 3, H, W); by default they are (N, H, W, 3).
    apply_fit, apply_predict : bool
        Whether ART applies it when it fits, by default not, and when it predicts.
    """

    params = ("deflections", "window", "reading", "map_maker", "clip_values", "channels_first")

    def __init__(
        self,
        deflections: int = 200,
        window: int = 10,
        reading: Reading = "blog",
        *,
        map_maker: Callable[[Array], Array] | None = None,
        rng: int | np.random.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.deflections, self.window, self.reading = deflections, window, reading
        self.map_maker = map_maker
        self._generator = generator(rng)
        self._check_params()

    def _defend(self, images: Array) -> Array:
        maps = None if self.map_maker is None else self.map_maker(images * self._scale())
        generators = self._generator.spawn(len(images))
        return deflect(images, self.deflections, self.window, maps, self.reading, generators)

    def _check_params(self) -> None:
        super()._check_params()
        check_knobs(self.deflections, self.window, self.reading)


class WaveletDenoisingPreprocessor(_Defence):
    """Wavelet denoising before any ART estimator: Haar, BayesShrink, in YCbCr.

    Parameters
    ----------
    sigma, mode, sigma_scale
        As in `pdutils.denoising.denoise_wavelet`; "rgb" may leave the range a little.
    gradient : {"identity", "exact"}
        How a gradient comes back: as if nothing had been denoised, or exactly.
    **options
        As in `PixelDeflectionPreprocessor`.
    """

    params = ("sigma", "mode", "sigma_scale", "gradient", "clip_values", "channels_first")

    def __init__(
        self,
        sigma: float = 0.04,
        mode: Mode = "soft",
        sigma_scale: SigmaScale = "channel",
        *,
        gradient: Gradient = "identity",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sigma, self.mode, self.sigma_scale = sigma, mode, sigma_scale
        self.gradient = gradient
        self._check_params()

    def _defend(self, images: Array) -> Array:
        # One at a time: the layer is compiled anew for each size of a batch, which takes seconds.
        layer, scale = self._layer(), self._scale()
        denoised: Array = np.concatenate([layer(image[None] * scale) for image in images])
        return denoised / scale

    def _backward(self, images: Array, gradient: Array) -> Array:
        if self.gradient == "identity":
            return gradient
        # The scale and its inverse cancel: only the place of the derivative is in grey levels.
        layer, pairs = self._layer(), zip(images * self._scale(), gradient, strict=True)
        return np.concatenate([layer.with_derivative(i[None])[1](g[None]) for i, g in pairs])

    def _check_params(self) -> None:
        super()._check_params()
        self._layer()
        check_one_of("gradient", self.gradient, get_args(Gradient))

    def _layer(self) -> WaveletDenoising:
        return WaveletDenoising(self.sigma, self.mode, self.sigma_scale)


class ChainedPreprocessor(_Defence):
    """Several of these as one, for estimators that take one alone, as ART's PyTorchClassifier.

    Their `clip_values` and `channels_first` must be the same.
    """

    params = ("parts",)

    def __init__(self, *parts: _Defence) -> None:
        ways = {(checked_range(part.clip_values), part.channels_first) for part in parts}
        if len(ways) != 1:
            raise ValueError(
                f"parts: expected preprocessors of one range and layout, got {sorted(ways)}"
            )
        first = parts[0]
        super().__init__(
            first.clip_values, first.channels_first, first.apply_fit, first.apply_predict
        )
        self.parts = parts

    def _defend(self, images: Array) -> Array:
        for part in self.parts:
            images = part._defend(images)
        return images

    def _backward(self, images: Array, gradient: Array) -> Array:
        stages = [images]
        for part in self.parts[:-1]:
            stages.append(part._defend(stages[-1]))
        for part, at in zip(reversed(self.parts), reversed(stages), strict=True):
            gradient = part._backward(at, gradient)
        return gradient
