"""A Keras model taken apart: what feeds its logits, its last feature map, its gradients."""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._graph import Tail, does_as_its_graph, take_apart
from pdutils._utils import check_fork, check_keras_settings
from pdutils.images import Array

#: From raw images (and labels) to a tuple of tensors, compiled once.
Step = Callable[..., Any]

#: How far apart two probabilities may lie that should be the same: in full precision, and where
#: a network computes in 16 bits.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.05

#: How far from 1 the probabilities of an image may add up to.
_SUM_TOLERANCE, _HALF_SUM_TOLERANCE = 1e-3, 0.05

_HALF = ("float16", "bfloat16")

#: The least probability that has a logarithm, in a model that never shows its logits.
LEAST = 1e-12


class Network:
    """A Keras classifier taken apart, without a copy of its weights.

    What it predicts is the model's own output, its softmax where the model gives logits. Gradients
    need the logits, since that of a softmax dies where a probability rounds to 1, and maps need the
    last feature map: both are looked for in the model's graph, see `pdutils._graph`. On two images
    of noise it is then compared, to 1e-4 (0.05 in 16 bits), that the graph gives what the model
    gives when it is called, and that the softmax of the logits is the output. A model that fails,
    or whose call or end is not understood, is a black box: its probabilities are its output, its
    logits are their logarithms, cut off at 1e-12, and its feature map is out of reach if its call
    is not its graph's.

    Parameters
    ----------
    model : keras.Model
        From preprocessed images to probabilities (N, K) or logits.
    preprocess : callable
        From a tensor of images in [0, 255] to what the model takes.
    size : (int, int)
        Height and width of the images.
    logits : bool, optional
        Whether the model gives logits. By default it does if it ends in a dense layer without an
        activation and its outputs for the noise are no probabilities.

    Raises
    ------
    ValueError
        If the model gives neither probabilities nor what is known to be logits, or its `predict`
        gives something else than its call.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], Any],
        size: tuple[int, int],
        *,
        logits: bool | None = None,
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.size = size
        self.classes = int(model.output_shape[-1])
        self._compiled: dict[str, Step] = {}
        #: A `Graph`, or None for a model whose call is not its graph's.
        self.graph: Any = take_apart(model) if does_as_its_graph(model) else None
        given = self._given()
        self.gives_logits = self._decided(given, logits)
        self._compare(given)

    def step(self, name: str) -> Step:
        """Give a compiled function of raw images, made at its first use.

        Parameters
        ----------
        name : {"predict", "gradient", "features", "feature_gradient"}
            All but "predict" and "features" take labels too.

        Returns
        -------
        callable
        """
        if name not in self._compiled:
            self._compiled[name] = getattr(self, f"_{name}")()
        return self._compiled[name]

    @property
    def tail(self) -> Tail:
        """What the logits follow from in `graph`, which is to be had."""
        return Tail("logits", self.graph.output) if self.gives_logits else self.graph.tail

    def head_weights(self) -> Array | None:
        """Give the weights (C, K) if the head is average pooling, then one dense layer; else None.

        Returns
        -------
        ndarray of float32, shape (C, K), or None
        """
        layer = self._head
        if layer is None:
            return None
        kernel = np.asarray(layer.kernel, dtype=np.float32)
        return kernel.reshape(kernel.shape[-2:])

    def feature_map(self) -> Any:
        """Give the model's last feature map, a symbolic tensor (N, h, w, C) of `graph`.

        Returns
        -------
        keras.KerasTensor

        Raises
        ------
        ValueError
            If the model has none.
        """
        if self.graph is None or self.graph.features is None:
            raise ValueError(
                f"{self.model.name} has no feature map (N, h, w, C) in reach that its output "
                "follows from, so it has no activation map"
            )
        return self.graph.features

    def parts(self, **outputs: Any) -> Any:
        """Make a model from preprocessed images to some tensors of `graph`.

        Parameters
        ----------
        **outputs
            Symbolic tensors that follow from the graph's image, by whatever one calls them.

        Returns
        -------
        keras.Model
            It gives a dictionary.
        """
        import keras

        return keras.Model(self.graph.image, outputs, name="network")

    def probabilities(self, outputs: Any) -> Any:
        """Give the probabilities that outputs of the model stand for.

        Parameters
        ----------
        outputs : tensor, shape (N, K)
            What the model gives.

        Returns
        -------
        tensor of float32, shape (N, K)
        """
        from keras import ops

        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs) if self.gives_logits else outputs

    @cached_property
    def _noise(self) -> Any:
        """Two images of noise, a harsh one and a soft one, as the model takes them."""
        import tensorflow as tf

        rng = np.random.default_rng(0)
        harsh = rng.uniform(0, 255, (*self.size, 3))
        soft = np.clip(rng.normal(128, 20, (*self.size, 3)), 0, 255)
        return self.preprocess(tf.constant(np.stack([harsh, soft]), dtype=tf.float32))

    @cached_property
    def _half(self) -> bool:
        """Whether some of the network computes in 16 bits."""
        model = self.model
        dtypes = [variable.dtype for variable in model.variables]
        dtypes += [layer.compute_dtype for layer in (model, *model.layers)]
        return any(str(dtype) in _HALF for dtype in dtypes)

    def _given(self) -> NDArray[np.float64]:
        """Give what the model gives for the noise when it is called."""
        given = _array(only(self.model(self._noise, training=False)))
        if _predicts_otherwise(self.model):
            predicted = _array(only(self.model.predict(self._noise, verbose=0)))
            if not self._near(predicted, given):
                raise ValueError(
                    f"{self.model.name}: its predict gives something else than calling it, on two "
                    "images of noise; expected a model whose call is its prediction"
                )
        return given

    def _decided(self, given: NDArray[np.float64], logits: bool | None) -> bool:
        """Decide whether the model gives logits, and refuse it if it gives neither."""
        if self.graph is not None and self.graph.tail.kind != "output" and not logits:
            return False
        total = _HALF_SUM_TOLERANCE if self._half else _SUM_TOLERANCE
        class_by_class = self.graph is not None and self.graph.class_by_class
        # A sigmoid that is sure of one class adds up to 1 for the noise, and not for a picture.
        rows_are_probabilities = not class_by_class and are_probabilities(given, total)
        if rows_are_probabilities and logits:
            raise ValueError(
                f"{self.model.name}: logits=True, but its outputs for noise are probabilities"
            )
        if not rows_are_probabilities and logits is None:
            logits = self.graph is not None and self.graph.ends_in_dense
        if not rows_are_probabilities and not logits:
            ending = type(self.model).__name__ if self.graph is None else self.graph.ending
            sums = f"they add up to {given.sum(axis=1)[0]:.3g}, the least is {given.min():.3g}"
            reason = "each class has its own" if class_by_class else f"for noise {sums}"
            raise ValueError(
                "expected a model that ends in a softmax or in logits, got one that ends in "
                f"{ending} and whose outputs are no probabilities: {reason}; "
                "if they are logits, say Classifier(model, logits=True)"
            )
        return bool(logits)

    def _compare(self, given: NDArray[np.float64]) -> None:
        """Compare the parts with the model, and let go of those that do not agree with it."""
        if self.graph is None:
            return
        found = self.parts(output=self.graph.output, tail=self.tail.tensor)(
            self._noise, training=False
        )
        output = _array(found["output"])
        # A model that draws, such as a defended one, does not even agree with itself.
        if not self._near(output, given) and self._near(self._given(), given):
            self.graph = None
            return
        softmax = _array(_softmax(self._logits(found["tail"])))
        if not self._near(softmax, _array(self.probabilities(found["output"]))):
            self.graph = self.graph._replace(tail=Tail("output", self.graph.output), head=None)

    @cached_property
    def _head(self) -> Any | None:
        """The layer that makes logits of an average-pooled map, if that is seen to hold on noise.

        A quantised layer, say, does not multiply by the kernel that it shows.
        """
        graph = self.graph
        if graph is None or graph.head is None or graph.features is None:
            return None
        tail = self.tail
        found = self.parts(features=graph.features, tail=tail.tensor)(self._noise, training=False)
        logits = _array(self._logits(found["tail"]))
        kernel = np.asarray(graph.head.kernel, dtype=np.float64)
        bias = 0.0 if graph.head.bias is None else np.asarray(graph.head.bias, dtype=np.float64)
        pooled = _array(found["features"]).mean(axis=(1, 2))
        made = pooled @ kernel.reshape(kernel.shape[-2:]) + bias
        share = _HALF_TOLERANCE if self._half else 1e-3
        return graph.head if np.abs(made - logits).max() <= share * np.abs(made).max() else None

    def _near(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        tolerance = _HALF_TOLERANCE if self._half else _TOLERANCE
        return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

    def _run(self, *, with_features: bool) -> Callable[[Any], dict[str, Any]]:
        """Make the function from raw images to `logits`, `probabilities` and maybe `features`."""
        tensors = {"features": self.feature_map()} if with_features else {}
        if self.graph is None:
            return self._run_black_box
        inner = self.parts(output=self.graph.output, tail=self.tail.tensor, **tensors)

        def run(images: Any) -> dict[str, Any]:
            found = inner(self.preprocess(images), training=False)
            logits = self._logits(found.pop("tail"))
            return {
                "logits": logits,
                "probabilities": self.probabilities(found.pop("output")),
                **found,
            }

        return run

    def _run_black_box(self, images: Any) -> dict[str, Any]:
        output = only(self.model(self.preprocess(images), training=False))
        logits = output if self.gives_logits else _log(output)
        return {"logits": logits, "probabilities": self.probabilities(output)}

    def _logits(self, tail: Any) -> Any:
        # The gradient of log(softmax) dies where a probability rounds to 1; that of logits lives.
        import tensorflow as tf

        kind, dense = self.tail.kind, self.tail.dense
        if kind == "output":
            return _log(tail)
        tail = tf.cast(tail, tf.float32)
        if kind == "logits":
            return tf.reshape(tail, [-1, self.classes])
        product = tf.matmul(tail, tf.cast(dense.kernel, tf.float32))
        return product if dense.bias is None else product + tf.cast(dense.bias, tf.float32)

    def _predict(self) -> Step:
        run = self._run(with_features=False)
        return self._compile(lambda images: (run(images)["probabilities"],))

    def _gradient(self) -> Step:
        import tensorflow as tf

        run = self._run(with_features=False)

        def gradient(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(images)
                found = run(images)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, found["logits"])
            slope = self._defined(tape.gradient(loss, images), "its pixels")
            return slope, found["probabilities"]

        return self._compile(gradient, with_labels=True)

    def _features(self) -> Step:
        run = self._run(with_features=True)

        def features(images: Any) -> Any:
            found = run(images)
            return found["features"], found["probabilities"]

        return self._compile(features)

    def _feature_gradient(self) -> Step:
        import tensorflow as tf

        run = self._run(with_features=True)

        def feature_gradient(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                # Watching the pixels puts what follows from them, the feature map too, on the tape.
                tape.watch(images)
                found = run(images)
                chosen = tf.gather(found["logits"], labels, batch_dims=1)
            slope = self._defined(tape.gradient(chosen, found["features"]), "its feature map")
            return found["features"], slope

        return self._compile(feature_gradient, with_labels=True)

    def _defined(self, gradient: Any, by: str) -> Any:
        if gradient is None:
            raise ValueError(
                f"{self.model.name}: its output has no gradient by {by}: something between them, "
                "such as rounding to whole numbers, has none"
            )
        return gradient

    def _compile(self, function: Step, *, with_labels: bool = False) -> Step:
        import tensorflow as tf

        images = tf.TensorSpec([None, *self.size, 3], tf.float32)
        labels = [tf.TensorSpec([None], tf.int64)] if with_labels else []
        compiled: Step = tf.function(function, input_signature=[images, *labels], autograph=False)
        return compiled


def are_probabilities(rows: NDArray[Any], tolerance: float) -> bool:
    """Tell whether rows are probabilities.

    Parameters
    ----------
    rows : ndarray, shape (N, K)
        Any.
    tolerance : float
        How far from 1 a row may add up to.

    Returns
    -------
    bool
    """
    sums = np.asarray(rows, dtype=np.float64).sum(axis=1)
    return bool(np.min(rows) >= 0 and np.abs(sums - 1).max() <= tolerance)


def only(outputs: Any) -> Any:
    """Give what a model gives, taken out of a list or a dictionary of one.

    Parameters
    ----------
    outputs : tensor, or one in a list or a dictionary
        Of a model of one output.

    Returns
    -------
    tensor
    """
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _array(tensor: Any) -> NDArray[np.float64]:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float64)


def _softmax(logits: Any) -> Any:
    import tensorflow as tf

    return tf.nn.softmax(logits)


def _log(probabilities: Any) -> Any:
    """Give the nearest substitute for logits, where there are only probabilities."""
    import tensorflow as tf

    # Half precision would turn the floor into 0.
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), LEAST))


def _predicts_otherwise(model: Any) -> bool:
    """Tell whether a model predicts in a way of its own, besides its call."""
    import keras

    ways = ("predict", "predict_step", "make_predict_function", "predict_on_batch")
    return any(getattr(type(model), way) is not getattr(keras.Model, way) for way in ways)


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up chatter, which no log level silences.

    TensorFlow writes it to the process's standard error before it reads its log level. Should the
    import fail, all of it is shown.

    Raises
    ------
    ImportError
        If TensorFlow cannot be imported.
    ValueError
        If Keras is set to another backend, float type or order of axes, as `check_keras_settings`.
    RuntimeError
        If TensorFlow ran before this process was forked, as `check_fork`.
    """
    check_fork()
    check_keras_settings()
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as chatter:
        kept = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
