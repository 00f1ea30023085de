"""ART's attacks on a classifier of ours, and our defence for estimators of ART.

ART is the Adversarial Robustness Toolbox, Nicolae et al. 2018, arXiv 1807.01069. Importing this
module loads it, and TensorFlow.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import check_fork, check_one_of, generator, load_tensorflow
from pdutils.classifiers import Classifier, Labels
from pdutils.deflection import Reading, apply_writes, check_knobs, draw_writes
from pdutils.denoising import Mode, SigmaScale, check_wavelet_knobs
from pdutils.images import OVERSHOOT, Array, check_some

load_tensorflow()
# ART warns of each framework that is not installed, and sets up logging for the whole process,
# which closes the handlers of everybody else.
with warnings.catch_warnings(), mock.patch("logging.config.dictConfig"):
    warnings.simplefilter("ignore")
    import tensorflow as tf
    from art.attacks import evasion
    from art.defences.preprocessor.preprocessor import PreprocessorTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    from pdutils.defenses.layers import WaveletDenoising

Gradient = Literal["identity", "exact"]
MapMaker = Callable[[Array], Array]

#: The least and the greatest value, as ART takes them: numbers, or arrays for channels or values.
ClipValues = tuple[float | NDArray[Any], float | NDArray[Any]] | NDArray[Any]

#: The least probability whose logarithm is taken: float32 knows none below.
_LEAST = float(np.finfo(np.float32).tiny)


def log_probabilities(classifier: Classifier, images: Array, *, batch_size: int = 32) -> Array:
    """Give the logarithms of the probabilities, also of images that are not on the 8-bit grid.

    They are the logits but for one number an image, which no difference of logits sees.

    Parameters
    ----------
    classifier : Classifier
        The network.
    images : ndarray of float32, shape (N, H, W, 3)
        RGB in [0, 255].
    batch_size : int
        How many images the network sees at once.

    Returns
    -------
    ndarray of float32, shape (N, K)

    Raises
    ------
    ValueError
        As `Classifier.predict`.
    """
    shown = _shown(images)
    return _log(classifier.predict(shown, batch_size=batch_size)[: len(images)])


def loss_gradient(
    classifier: Classifier, images: Array, labels: Labels, *, batch_size: int = 32
) -> tuple[Array, Array]:
    """Give the gradient of the cross-entropy, also of images that are not on the 8-bit grid.

    Parameters
    ----------
    classifier : Classifier
        The network.
    images : ndarray of float32, shape (N, H, W, 3)
        RGB in [0, 255].
    labels : ndarray of int64, shape (N,)
        The classes whose cross-entropy is differentiated.
    batch_size : int
        How many images the network sees at once.

    Returns
    -------
    gradient : ndarray of float32, shape (N, H, W, 3)
        In units of the loss per grey level.
    log_probabilities : ndarray of float32, shape (N, K)

    Raises
    ------
    ValueError
        As `Classifier.loss_gradient`.
    """
    shown = _shown(images)
    padded = np.resize(labels, len(shown))
    gradient, probabilities = classifier.loss_gradient(shown, padded, batch_size=batch_size)
    return gradient[: len(images)], _log(probabilities[: len(images)])


def art_classifier(
    classifier: Classifier,
    *,
    clip_values: ClipValues = (0.0, 255.0),
    preprocessing_defences: Sequence[Any] = (),
    batch_size: int = 32,
) -> "BridgedClassifier":
    """Make an ART classifier of a classifier, for ART's attacks.

    Parameters
    ----------
    classifier : Classifier
        The network.
    clip_values : (0, 255) or (0, 1)
        The range of the images that ART sees, in numbers or in arrays as ART takes them. Those of
        ART's attacks whose steps are of a fixed size mean them on images in [0, 1], and its
        DeepFool multiplies its step by the range.
    preprocessing_defences : sequence of art.defences.preprocessor.Preprocessor
        ART's or those of this module, applied in this order before the network.
    batch_size : int
        How many images the network sees at once, whatever an attack asks for.

    Returns
    -------
    BridgedClassifier

    Raises
    ------
    ValueError
        If `clip_values` is another range, or `batch_size` is below 1.
    """
    return BridgedClassifier(
        classifier,
        clip_values=clip_values,
        preprocessing_defences=preprocessing_defences,
        batch_size=batch_size,
    )


def art_attack(name: str, bridge: "BridgedClassifier", **options: Any) -> Any:
    """Make one of ART's attacks, without its progress bars.

    Parameters
    ----------
    name : str
        A class of `art.attacks.evasion`, such as "DeepFool".
    bridge : BridgedClassifier
        The classifier to fool.
    **options
        For that class.

    Returns
    -------
    art.attacks.EvasionAttack
        Its method `generate` takes images in the range of the bridge.

    Raises
    ------
    ValueError
        If ART has no such attack.
    """
    kind = getattr(evasion, name, None)
    if kind is None:
        raise ValueError(f"name: expected a class of art.attacks.evasion, got {name!r}")
    return kind(bridge, verbose=False, **options)


class BridgedClassifier(TensorFlowV2Classifier):  # type: ignore[misc]
    """An ART classifier whose every pass is a compiled one of a `Classifier`.

    What `predict` gives are log-probabilities: logits up to one number an image, as the attacks on
    logits need them. ART's own passes are not compiled for gradients, take one for each class
    that occurs among the labels, and ignore the batch size.

    Parameters
    ----------
    classifier, clip_values, preprocessing_defences, batch_size
        As in `art_classifier`.

    Attributes
    ----------
    classifier : Classifier
        The network.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        clip_values: ClipValues = (0.0, 255.0),
        preprocessing_defences: Sequence[Any] = (),
        batch_size: int = 32,
    ) -> None:
        white = _checked_range(clip_values)
        self._scale = 255.0 / white
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.classifier = classifier
        self._batch_size = batch_size
        super().__init__(
            model=self._model_of_tensors,
            nb_classes=len(classifier.class_ids),
            input_shape=(*classifier.input_size, 3),
            loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
            clip_values=(0.0, white),
            preprocessing_defences=list(preprocessing_defences),
            preprocessing=None,
        )

    def predict(
        self, x: Array, batch_size: int | None = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the log-probabilities of images.

        Parameters
        ----------
        x : ndarray of float32, shape (N, H, W, 3)
            In the range of `clip_values`.
        batch_size : int, optional
            Ignored: the number given at the making holds.
        training_mode : bool
            Must be False.
        **_
            What else ART's attacks hand over.

        Returns
        -------
        ndarray of float32, shape (N, K)

        Raises
        ------
        ValueError
            As `Classifier.predict`, or if `training_mode` is True.
        """
        _refuse_training(training_mode)
        images = self._stages(x)[-1]
        return log_probabilities(self.classifier, self._grey(images), batch_size=self._batch_size)

    def class_gradient(
        self, x: Array, label: Any = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the gradient of the log-probabilities by the pixels.

        Parameters
        ----------
        x : ndarray of float32, shape (N, H, W, 3)
            In the range of `clip_values`.
        label : None, int or N of them
            All classes, one class, or one class an image.
        training_mode : bool
            Must be False.
        **_
            What else ART's attacks hand over.

        Returns
        -------
        ndarray of float32, shape (N, K, H, W, 3), or (N, 1, H, W, 3) with a label

        Raises
        ------
        ValueError
            As `Classifier.loss_gradient`, or if `training_mode` is True.
        """
        _refuse_training(training_mode)
        stages = self._stages(x)
        classes = range(self.nb_classes) if label is None else [label]
        gradients = [self._gradient(stages, np.asarray(one)) for one in classes]
        return -np.stack(gradients, axis=1)

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **_: Any) -> Any:
        """Give the gradient of the cross-entropy, summed over the images, by the pixels.

        Parameters
        ----------
        x : ndarray or tensor of float32, shape (N, H, W, 3)
            In the range of `clip_values`.
        y : ndarray or tensor, shape (N,) or (N, K)
            Class numbers, or rows with a single 1.
        training_mode : bool
            Must be False.
        **_
            What else ART's attacks hand over.

        Returns
        -------
        ndarray of float32, shape (N, H, W, 3), or a tensor if `x` is one

        Raises
        ------
        ValueError
            As `Classifier.loss_gradient`, if a row of `y` is no single class, or if
            `training_mode` is True.
        """
        _refuse_training(training_mode)
        gradient = self._gradient(self._stages(np.asarray(x)), _class_numbers(y))
        return gradient if isinstance(x, np.ndarray) else tf.convert_to_tensor(gradient)

    def compute_loss(
        self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False, **_: Any
    ) -> Any:
        """Give the cross-entropy.

        Parameters
        ----------
        x, y, training_mode, **_
            As in `loss_gradient`.
        reduction : {"none", "mean", "sum"}
            One number an image, or one for all.

        Returns
        -------
        ndarray of float32, shape (N,) or ()

        Raises
        ------
        ValueError
            As `loss_gradient`, or if `reduction` is unknown.
        """
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")
        logits = self.predict(np.asarray(x), training_mode=training_mode)
        losses = -logits[np.arange(len(logits)), _class_numbers(y)]
        return losses if reduction == "none" else getattr(losses, reduction)()

    def _gradient(self, stages: list[Array], labels: NDArray[Any]) -> Array:
        """Go back from the cross-entropy of the labels through all stages."""
        images = stages[-1]
        classes = self.classifier.check_labels(labels, len(images))
        gradient, _ = loss_gradient(
            self.classifier, self._grey(images), classes, batch_size=self._batch_size
        )
        gradient = gradient * np.float32(self._scale)
        for operation, at in zip(reversed(self._applied()), reversed(stages[:-1]), strict=True):
            gradient = operation.estimate_gradient(at, gradient)
        return np.asarray(gradient, dtype=np.float32)

    def _stages(self, x: Array) -> list[Array]:
        """Give the images as they come, and after each of the preprocessing defences."""
        check_some(x, "x")
        stages = [np.asarray(x, dtype=np.float32)]
        for operation in self._applied():
            stages.append(np.asarray(operation(stages[-1])[0], dtype=np.float32))
        return stages

    def _applied(self) -> list[Any]:
        return [operation for operation in self.preprocessing_operations if operation.apply_predict]

    def _grey(self, images: Array) -> Array:
        return images * np.float32(self._scale)

    def _model_of_tensors(self, images: Any, training: bool = False) -> Any:
        """Give log-probabilities as a tensor: for what in ART calls the model itself."""
        _refuse_training(training)
        check_fork()
        (probabilities,) = self.classifier.network.step("predict")(images * self._scale)
        return tf.math.log(tf.maximum(probabilities, _LEAST))


class CandidateClassifier(BridgedClassifier):
    """What ART's DeepFool is shown of a network: a few classes of each image, and what lies ahead.

    ART's DeepFool asks for the gradients of all classes that are among the most probable of any
    image, for every image; here it sees a few classes of each, and their gradients come from full
    batches. It overshoots when it is done, so that it creeps towards the border until its steps
    are used up; here it is shown the network as far ahead as it will overshoot, as the paper's
    authors do in theirs.

    Parameters
    ----------
    classifier : Classifier
        The network.
    images : ndarray of float32, shape (N, H, W, 3)
        The images that every call is about, in the range of `clip_values`.
    candidates : ndarray of int64, shape (N, k)
        The classes that are shown of each.
    overshoot : float
        By what share the way from `images` is longer than it seems, at least 0.
    clip_values, batch_size
        As in `art_classifier`.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Array,
        candidates: Labels,
        *,
        overshoot: float = 0.0,
        clip_values: ClipValues = (0.0, 255.0),
        batch_size: int = 32,
    ) -> None:
        super().__init__(classifier, clip_values=clip_values, batch_size=batch_size)
        self.images = images
        self.candidates = candidates
        self.overshoot = overshoot
        self.nb_classes = candidates.shape[1]

    def predict(
        self, x: Array, batch_size: int | None = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the log-probabilities of the candidates; the arguments are those of its parent.

        Returns
        -------
        ndarray of float32, shape (N, k)
        """
        logits = super().predict(self._ahead(x), training_mode=training_mode)
        return np.take_along_axis(logits, self.candidates, axis=1)

    def class_gradient(
        self, x: Array, label: Any = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the gradients of all candidates; the arguments are those of its parent.

        Returns
        -------
        ndarray of float32, shape (N, k, H, W, 3)

        Raises
        ------
        ValueError
            If a label is given.
        """
        if label is not None:
            raise ValueError(f"label: expected None, for all candidates, got {label!r}")
        repeated = np.repeat(self._ahead(x), self.nb_classes, axis=0)
        gradients = super().class_gradient(
            repeated, self.candidates.ravel(), training_mode=training_mode
        )
        return gradients.reshape(*self.candidates.shape, *x.shape[1:])

    def _ahead(self, x: Array) -> Array:
        ahead = x + np.float32(self.overshoot) * (x - self.images)
        return np.clip(ahead, *self.clip_values)


class _Defence(PreprocessorTensorFlowV2):  # type: ignore[misc]
    """What the two defences share: ART's many ways of calling one and the same thing.

    It is a defence of TensorFlow in ART's eyes, since ART chains only those; what is computed
    takes arrays, so that it serves any estimator.
    """

    def __init__(
        self,
        clip_values: ClipValues,
        channels_first: bool,
        apply_fit: bool,
        apply_predict: bool,
    ) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.clip_values = clip_values
        self.channels_first = channels_first

    def __call__(self, x: Array, y: Any = None) -> tuple[Array, Any]:
        """Defend images.

        Parameters
        ----------
        x : ndarray of float32, shape (N, H, W, 3), or (N, 3, H, W) if `channels_first`
            In the range of `clip_values`.
        y : any
            Given back as it is.

        Returns
        -------
        x : ndarray of float32, the same shape
        y : any

        Raises
        ------
        ValueError
            If the shape is another, there is no image, or the values are of another range.
        """
        return self._outward(self._defend(self._images(x))), y

    def estimate_gradient(self, x: Array, grad: Array) -> Array:
        """Carry a gradient by the defended images back to one by the images as they came.

        Parameters
        ----------
        x : ndarray of float32, shape (N, H, W, 3), or (N, 3, H, W) if `channels_first`
            The images as they came.
        grad : ndarray of float32, the shape of `x`, or with a K after the N
            The gradient, or those of K classes.

        Returns
        -------
        ndarray of float32, the shape of `grad`

        Raises
        ------
        ValueError
            If a shape is another, or as a call.
        """
        if grad.ndim == x.ndim + 1:
            by_class = [self.estimate_gradient(x, grad[:, k]) for k in range(grad.shape[1])]
            return np.stack(by_class, axis=1)
        if grad.shape != x.shape:
            raise ValueError(f"grad: expected the shape {x.shape}, got {grad.shape}")
        return self._outward(self._backward(self._images(x), self._inward(grad)))

    def forward(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        """Do as a call, on tensors; a tape finds what `estimate_gradient` gives.

        Parameters
        ----------
        x : tensor of float32
            As in a call.
        y : any
            Given back as it is.

        Returns
        -------
        x : tensor of float32
        y : any
        """

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def defended(images: Any) -> tuple[Any, Callable[[Any], Any]]:
            def backward(gradient: Any) -> Any:
                return tf.numpy_function(self.estimate_gradient, [images, gradient], tf.float32)

            return tf.numpy_function(lambda i: self(i)[0], [images], tf.float32), backward

        x = tf.cast(x, tf.float32)
        return tf.ensure_shape(defended(x), x.shape), y

    def _images(self, x: Array) -> Array:
        """Bring images to (N, H, W, 3), and see that they are in the range that they should be."""
        images = self._inward(x)
        if images.size == 0:
            raise ValueError(f"x: expected at least one image, got the shape {np.shape(x)}")
        white = _checked_range(self.clip_values)
        low, high = images.min(), images.max()
        slack = OVERSHOOT / 255 * white
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
        channel = 1 if self.channels_first else 3
        values = np.asarray(values)
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
        _checked_range(self.clip_values)

    def _scale(self) -> np.float32:
        return np.float32(255 / _checked_range(self.clip_values))

    def _defend(self, images: Array) -> Array:
        raise NotImplementedError

    def _backward(self, images: Array, gradient: Array) -> Array:
        raise NotImplementedError


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
        The range of the images, the estimator's own, in numbers or in arrays. Images of another
        range are refused.
    channels_first : bool
        Whether the images are (N, 3, H, W).
    apply_fit, apply_predict : bool
        Whether ART applies it when it fits and when it predicts.

    Raises
    ------
    ValueError
        If a knob is out of its range.
    """

    params = ("deflections", "window", "reading", "map_maker", "clip_values", "channels_first")

    def __init__(
        self,
        deflections: int = 200,
        window: int = 10,
        reading: Reading = "blog",
        *,
        map_maker: MapMaker | None = None,
        rng: int | np.random.Generator | None = None,
        clip_values: ClipValues = (0.0, 255.0),
        channels_first: bool = False,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        super().__init__(clip_values, channels_first, apply_fit, apply_predict)
        self.deflections = deflections
        self.window = window
        self.reading = reading
        self.map_maker = map_maker
        self._generator = generator(rng)
        self._check_params()

    def _defend(self, images: Array) -> Array:
        maps = None if self.map_maker is None else self.map_maker(images * self._scale())
        result = np.empty_like(images)
        for i, stream in enumerate(self._generator.spawn(len(images))):
            result[i] = apply_writes(images[i], self._writes(images, maps, i, stream))
        return result

    def _writes(
        self, images: Array, maps: Array | None, i: int, stream: np.random.Generator
    ) -> Any:
        return draw_writes(
            images.shape[1:3],
            self.deflections,
            self.window,
            None if maps is None else maps[i],
            self.reading,
            stream,
        )

    def _backward(self, images: Array, gradient: Array) -> Array:
        return gradient

    def _check_params(self) -> None:
        super()._check_params()
        check_knobs(self.deflections, self.window, self.reading)


class WaveletDenoisingPreprocessor(_Defence):
    """Wavelet denoising before any ART estimator: Haar, BayesShrink, in YCbCr.

    Parameters
    ----------
    sigma, mode, sigma_scale
        As in `pdutils.denoising.denoise_wavelet`.
    gradient : {"identity", "exact"}
        How a gradient comes back: as if nothing had been denoised, or exactly.
    clip_values : (0, 255) or (0, 1)
        The range of the images, the estimator's own, in numbers or in arrays. Images of another
        range are refused. What is denoised with `sigma_scale="rgb"` may leave it a little.
    channels_first : bool
        Whether the images are (N, 3, H, W).
    apply_fit, apply_predict : bool
        Whether ART applies it when it fits and when it predicts.

    Raises
    ------
    ValueError
        If a knob is out of its range.
    """

    params = ("sigma", "mode", "sigma_scale", "gradient", "clip_values", "channels_first")

    def __init__(
        self,
        sigma: float = 0.04,
        mode: Mode = "soft",
        sigma_scale: SigmaScale = "channel",
        *,
        gradient: Gradient = "identity",
        clip_values: ClipValues = (0.0, 255.0),
        channels_first: bool = False,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        super().__init__(clip_values, channels_first, apply_fit, apply_predict)
        self.sigma = sigma
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.gradient = gradient
        self._check_params()

    def _defend(self, images: Array) -> Array:
        # One at a time: the layer is compiled anew for each size of a batch, which takes seconds.
        layer = WaveletDenoising(self.sigma, self.mode, self.sigma_scale)
        scale = self._scale()
        denoised: Array = np.concatenate([layer(image[None] * scale) for image in images])
        return denoised / scale

    def _backward(self, images: Array, gradient: Array) -> Array:
        if self.gradient == "identity":
            return gradient
        layer = WaveletDenoising(self.sigma, self.mode, self.sigma_scale)
        # The scale and its inverse cancel: only the place of the derivative is in grey levels.
        pairs = zip(images * self._scale(), gradient, strict=True)
        return np.concatenate([_vector_jacobian(layer, *pair) for pair in pairs])

    def _check_params(self) -> None:
        super()._check_params()
        check_wavelet_knobs(self.sigma, self.mode, self.sigma_scale)
        check_one_of("gradient", self.gradient, get_args(Gradient))


def _vector_jacobian(layer: WaveletDenoising, image: Array, gradient: Array) -> Array:
    images = tf.constant(image[None])
    with tf.GradientTape() as tape:
        tape.watch(images)
        denoised = layer(images)
    back = tape.gradient(denoised, images, output_gradients=tf.constant(gradient[None]))
    return np.asarray(back, dtype=np.float32)


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, np.float32(_LEAST)))


def _shown(images: Array) -> Array:
    """Add a white image to a batch so dark that it would be taken for one in [0, 1]."""
    if images.size and images.max() <= 1:
        return np.concatenate([images, np.full_like(images[:1], 255)])
    return images


def _checked_range(clip_values: ClipValues) -> float:
    """Give the greatest value of a range; arrays may say it for each channel or value."""
    try:
        low, high = (np.unique(np.asarray(bound, dtype=np.float64)) for bound in clip_values)
    except (TypeError, ValueError):
        low = high = np.empty(0)
    if low.tolist() != [0] or high.tolist() not in ([1], [255]):
        raise ValueError(
            f"clip_values: expected (0, 255) or (0, 1), for all channels the same, "
            f"got {clip_values!r}"
        )
    return float(high[0])


def _class_numbers(y: Any) -> Labels:
    given: NDArray[Any] = np.asarray(y)
    if given.ndim == 1:
        return given.astype(np.int64)
    if given.ndim != 2 or not np.allclose(np.sort(given, axis=1)[:, -2:], [0, 1]):
        raise ValueError(
            f"y: expected class numbers (N,), or rows (N, K) with a single 1, got {given.shape}"
        )
    classes: Labels = given.argmax(axis=1)
    return classes


def _refuse_training(training_mode: bool) -> None:
    if training_mode:
        raise ValueError("training_mode: expected False, for the network is used as it is")
