"""What the network alone costs: the passes that some work makes are noted, and made again bare."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from pdutils._utils import load_tensorflow
from pdutils.classifiers import Classifier

load_tensorflow()

# The next two load TensorFlow too, with the chatter that was just kept away.
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

#: A pass: whether it goes backward too, and of how many images.
Passes = Counter[tuple[bool, int]]


def noting(classifier: Classifier) -> tuple[Classifier, Passes]:
    """Copy a classifier; what the copy passes through its network is noted.

    Parameters
    ----------
    classifier : Classifier
        It is not changed; the copy computes with the same weights and compiled steps.

    Returns
    -------
    (Classifier, Counter)
        The copy, and how often it made each pass until now.
    """
    noted, passes = copy.copy(classifier), Passes()
    noted.network = copy.copy(classifier.network)

    def step(name: str) -> Callable[..., Any]:
        run = classifier.network.step(name)

        def noting_run(images: Any, *labels: Any) -> Any:
            passes["gradient" in name, len(images)] += 1
            return run(images, *labels)

        return noting_run

    noted.network.step = step
    return noted, passes


def repeated(classifier: Classifier, passes: Passes) -> Callable[[], None]:
    """Make the run of noted passes, with nothing around them: tensors in, tensors out.

    Parameters
    ----------
    classifier : Classifier
        The network.
    passes : Counter
        As `noting` has noted them.

    Returns
    -------
    callable
    """
    forward, gradient = bare_forward(classifier), bare_gradient(classifier)
    rng, size = np.random.default_rng(0), (*classifier.input_size, 3)
    most = max(n for _, n in passes)
    images = tf.constant(rng.uniform(0, 255, (most, *size)).astype(np.float32))
    labels = tf.constant(np.zeros(most, dtype=np.int64))
    # A slice is a tensor of its own: taken now, it is not taken again and again.
    inputs = {n: (images[:n], labels[:n]) for _, n in passes}

    def run() -> None:
        for (backward, n), times in passes.items():
            for _ in range(times):
                batch, goals = inputs[n]
                wait(gradient(batch, goals) if backward else forward(batch))

    return run


def bare_forward(classifier: Classifier) -> Callable[[Any], Any]:
    """Make the least that a prediction can cost: a forward pass, compiled.

    Parameters
    ----------
    classifier : Classifier
        The network.

    Returns
    -------
    callable
        From a tensor of images (N, H, W, 3) to what the model gives.
    """

    def forward(images: Any) -> Any:
        return classifier.model(classifier.preprocess(images), training=False)

    return _compiled(classifier, forward)


def bare_gradient(classifier: Classifier) -> Callable[[Any, Any], Any]:
    """Make the least that a step of an attack can cost: a forward and a backward pass, compiled.

    Parameters
    ----------
    classifier : Classifier
        The network.

    Returns
    -------
    callable
        From tensors of images (N, H, W, 3) and of the classes whose cross-entropy is
        differentiated (N,) to the gradient.
    """

    def gradient(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            found = classifier.model(classifier.preprocess(images), training=False)
            loss = keras.losses.sparse_categorical_crossentropy(labels, found)
        return tape.gradient(loss, images)

    return _compiled(classifier, gradient, tf.TensorSpec([None], tf.int64))


def wait(tensor: Any) -> None:
    """Wait until a tensor is there, without copying all of it from a GPU."""
    tensor[(0,) * len(tensor.shape)].numpy()


def _compiled(classifier: Classifier, function: Callable[..., Any], *more: Any) -> Any:
    images = tf.TensorSpec([None, *classifier.input_size, 3], tf.float32)
    # Once for all numbers of images: compiling for each would take longer than the passes.
    return tf.function(function, input_signature=[images, *more], autograph=False)
