"""A Keras model taken apart: what feeds its logits, its last feature map, its gradients."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from pdutils.images import Array

#: From raw images (and labels) to a tuple of tensors, compiled once.
Step = Callable[..., Any]

#: What Keras and TensorFlow call the same function.
_SOFTMAX = ("softmax", "softmax_v2")

_NOT_IN_THE_WAY = frozenset(
    {"Dropout", "Flatten", "Reshape", "Identity", "Activation", "Softmax", "GlobalAveragePooling2D"}
)


class Network:
    """A Keras classifier taken apart, without a copy of its weights.

    Parameters
    ----------
    model : keras.Model
        From preprocessed images to probabilities (N, K), or to logits if it ends in a dense layer
        without an activation.
    preprocess : callable
        From a tensor of images in [0, 255] to what the model takes.
    size : (int, int)
        Height and width of the images.

    Raises
    ------
    ValueError
        If the last layer has another activation than softmax or none, or is of a kind that says
        nothing and does not give probabilities.
    """

    def __init__(self, model: Any, preprocess: Callable[[Any], Any], size: tuple[int, int]) -> None:
        self.model = model
        self.preprocess = preprocess
        self.size = size
        self.last = model.layers[-1]
        self.tail_kind = _tail_kind(self.last)
        self._compiled: dict[str, Step] = {}
        if self.tail_kind == "probabilities":
            self._check_probabilities()

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

    def head_weights(self) -> Array | None:
        """Give the weights (C, K) if the head is average pooling, then one dense layer; else None.

        Returns
        -------
        ndarray of float32, shape (C, K), or None
        """
        found = self._find_feature_map()
        if found is None or type(found[0]).__name__ != "GlobalAveragePooling2D":
            return None
        tail = self.model.layers[self.model.layers.index(found[0]) :]
        if not all(_activation(layer) in (None, "linear", *_SOFTMAX) for layer in tail):
            return None
        head = [layer for layer in tail if type(layer).__name__ not in _NOT_IN_THE_WAY]
        if len(head) != 1 or type(head[0]).__name__ not in ("Dense", "Conv2D"):
            return None
        kernel = np.asarray(head[0].kernel, dtype=np.float32)
        return (
            kernel.reshape(kernel.shape[-2:]) if kernel.size == np.prod(kernel.shape[-2:]) else None
        )

    def feature_map(self) -> Any:
        """Give the model's last feature map, a symbolic tensor (N, h, w, C).

        Returns
        -------
        keras.KerasTensor

        Raises
        ------
        ValueError
            If the model has none.
        """
        found = self._find_feature_map()
        if found is None:
            raise ValueError(
                f"{self.model.name} has no layer that is fed a feature map (N, h, w, C); "
                "those inside a nested model do not count"
            )
        return found[1]

    def probabilities(self, outputs: Any) -> Any:
        """Give the probabilities that outputs of the model stand for.

        Parameters
        ----------
        outputs : tensor, shape (N, K)
            What the model gives: probabilities, or logits if it ends without a softmax.

        Returns
        -------
        tensor, shape (N, K)
        """
        import keras

        return keras.ops.softmax(outputs) if _activation(self.last) == "linear" else outputs

    def _find_feature_map(self) -> tuple[Any, Any] | None:
        """Find the last layer that is fed a feature map, and that map."""
        for layer in reversed(self.model.layers):
            if hasattr(layer, "layers"):
                # What a model inside the model does is out of reach; before it there is no map.
                return None
            fed = getattr(layer, "input", None)
            shape: Any = getattr(fed, "shape", ())
            is_map = len(shape) == 4 and shape[1] != 1 and shape[2] != 1
            if is_map and fed is not self.model.inputs[0]:
                return layer, fed
        return None

    def _check_probabilities(self) -> None:
        import tensorflow as tf

        noise = np.random.default_rng(0).uniform(0, 255, (2, *self.size, 3)).astype(np.float32)
        given = self.model(self.preprocess(tf.constant(noise)), training=False)
        rows = np.asarray(given, dtype=np.float64)
        if rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 0.01:
            raise ValueError(
                f"expected a model that ends in a softmax or in a dense layer, got one that ends "
                f"in {type(self.last).__name__} and whose outputs are no probabilities"
            )

    def _cut(self, *, with_features: bool) -> Callable[[Any], dict[str, Any]]:
        """Make the function from raw images to `logits` and, if asked, `features`."""
        import keras

        whole = self.tail_kind == "probabilities"
        outputs = {"tail": self.model.outputs[0] if whole else self.last.input}
        if with_features:
            outputs["features"] = self.feature_map()
        inner = keras.Model(self.model.inputs[0], outputs)

        def run(images: Any) -> dict[str, Any]:
            found = inner(self.preprocess(images), training=False)
            return {"logits": self._logits(found.pop("tail")), **found}

        return run

    def _logits(self, tail: Any) -> Any:
        # The gradient of log(softmax) dies where a probability rounds to 1; that of logits lives.
        import tensorflow as tf

        # Half precision would turn the floor below into 0.
        tail = tf.cast(tail, tf.float32)
        if self.tail_kind == "logits":
            return tail
        if self.tail_kind == "pooled":
            product = tf.matmul(tail, self.last.kernel)
            return product if self.last.bias is None else product + self.last.bias
        return tf.math.log(tf.maximum(tail, 1e-12))

    def _predict(self) -> Step:
        import tensorflow as tf

        run = self._cut(with_features=False)

        def predict(images: Any) -> Any:
            return (tf.nn.softmax(run(images)["logits"]),)

        return self._compile(predict)

    def _gradient(self) -> Step:
        import tensorflow as tf

        run = self._cut(with_features=False)

        def gradient(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(images)
                logits = run(images)["logits"]
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            return tape.gradient(loss, images), tf.nn.softmax(logits)

        return self._compile(gradient, with_labels=True)

    def _features(self) -> Step:
        import tensorflow as tf

        run = self._cut(with_features=True)

        def features(images: Any) -> Any:
            found = run(images)
            return found["features"], tf.nn.softmax(found["logits"])

        return self._compile(features)

    def _feature_gradient(self) -> Step:
        import tensorflow as tf

        run = self._cut(with_features=True)

        def feature_gradient(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                # Watching the pixels puts what follows from them, the feature map too, on the tape.
                tape.watch(images)
                found = run(images)
                chosen = tf.gather(found["logits"], labels, batch_dims=1)
            return found["features"], tape.gradient(chosen, found["features"])

        return self._compile(feature_gradient, with_labels=True)

    def _compile(self, function: Step, *, with_labels: bool = False) -> Step:
        import tensorflow as tf

        images = tf.TensorSpec([None, *self.size, 3], tf.float32)
        labels = [tf.TensorSpec([None], tf.int64)] if with_labels else []
        compiled: Step = tf.function(function, input_signature=[images, *labels], autograph=False)
        return compiled


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up chatter, which no log level silences.

    TensorFlow writes it to the process's standard error before it reads its log level. Should the
    import fail, all of it is shown.

    Raises
    ------
    ImportError
        If TensorFlow cannot be imported.
    """
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


def _tail_kind(last: Any) -> str:
    """Tell what feeds the last layer: the logits, what a dense layer makes them of, or neither."""
    kind = type(last).__name__
    activation = _activation(last)
    if kind == "Softmax" or (kind == "Activation" and activation in ("linear", *_SOFTMAX)):
        return "logits"
    if kind == "Dense" and activation in ("linear", *_SOFTMAX):
        return "pooled"
    if activation not in (None, *_SOFTMAX):
        raise ValueError(f"expected a model that ends in a softmax or in logits, got {activation}")
    return "probabilities"


def _activation(layer: Any) -> str | None:
    name: str | None = getattr(getattr(layer, "activation", None), "__name__", None)
    return name
