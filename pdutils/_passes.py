"""Compiled passes through a network and their gradients, on what Keras works on: two libraries.

TensorFlow compiles a step once for batches of every length. JAX compiles it for each: there a batch
is filled up to a power of two with copies of its last image, which are cut off again.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pdutils._utils import load_backend

BACKEND = load_backend()

#: From raw images (and labels) to a tuple of tensors or arrays.
Step = Callable[..., Any]

#: The shortest batch that JAX compiles for.
_SHORTEST = 4


def nn() -> Any:
    """Give the module of the activations that a model can have been made with."""
    if BACKEND == "jax":
        import jax

        return jax.nn
    return sys.modules["tensorflow"].nn


def compiled(function: Step, size: tuple[int, int], *, labelled: bool) -> Step:
    """Compile a function of images (N, *size, 3), and of N labels if it is labelled."""
    if BACKEND == "jax":
        import jax

        return _filled_up(jax.jit(function))
    import tensorflow as tf

    signature = [tf.TensorSpec([None, *size, 3], tf.float32)]
    signature += [tf.TensorSpec([None], tf.int64)] if labelled else []
    step: Step = tf.function(function, input_signature=signature, autograph=False)
    return step


def once(model: Any, images: Any) -> Any:
    """Give what a model makes of images, on JAX compiled: there each step alone takes long."""

    def run(images: Any) -> Any:
        return model(images, training=False)

    if BACKEND == "jax":
        import jax

        return jax.jit(run)(images)
    return run(images)


def cross_entropy(labels: Any, logits: Any) -> Any:
    """Give the cross-entropy of each row of logits with its label."""
    if BACKEND == "jax":
        from keras import ops

        return -ops.take_along_axis(ops.log_softmax(logits), labels[:, None], axis=1)
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def gradient(function: Callable[[Any], tuple[Any, Any]], at: Any) -> tuple[Any, Any]:
    """Give the gradient of the sum of a function's first value, and its second value.

    The gradient is None where nothing connects the two; JAX gives zeros there.
    """
    if BACKEND == "jax":
        import jax

        value, pull_back, more = jax.vjp(function, at, has_aux=True)
        return pull_back(jax.numpy.ones_like(value))[0], more
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)
        value, more = function(at)
    return tape.gradient(value, at), more


def gradient_within(function: Callable[[Any], tuple[Any, Any]], at: Any) -> tuple[Any, Any]:
    """Give the gradient of the sum of a function's first value by its second, and the second.

    On TensorFlow alone, which can ask for it where both follow from `at`.
    """
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)
        value, by = function(at)
    return tape.gradient(value, by), by


def _filled_up(function: Step) -> Step:
    def step(images: Any, *labels: Any) -> Any:
        n = len(images)
        short = max(_SHORTEST, 1 << (n - 1).bit_length()) - n
        filled = (np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) for x in (images, *labels))
        return tuple(np.asarray(found)[:n] for found in function(*filled))

    return step
