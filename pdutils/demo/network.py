"""The demo's classifier: a small convolutional network for the ten drawn animals."""

from typing import Any

from pdutils._network import load_tensorflow
from pdutils.demo.drawing import CLASS_NAMES
from pdutils.demo.shipped import demo_weights

__all__ = ["CLASS_NAMES", "demo_network", "demo_weights"]


def demo_network(seed: int | None = None) -> Any:
    """Build the network with random weights.

    Five convolutions end in a 14 x 14 feature map, fine enough for a class activation map to
    follow the animal; global average pooling and one dense layer make the map of a class a
    weighted sum of the feature maps.

    Parameters
    ----------
    seed : int, optional
        Of the initial weights. None takes Keras' own generator.

    Returns
    -------
    keras.Model
        From images (N, 224, 224, 3) in [-1, 1] to 10 probabilities.
    """
    # Keras takes seconds to load and only a user of the demo network needs it.
    load_tensorflow()
    import keras

    seeds = [None if seed is None else 100 * seed + i for i in range(6)]
    inputs = keras.Input((224, 224, 3))
    x = _convolution(inputs, 24, 5, 2, seeds[0])
    for channels, layer_seed in zip((48, 64, 96), seeds[1:4], strict=True):
        x = keras.layers.MaxPooling2D()(x)
        x = _convolution(x, channels, 3, 1, layer_seed)
    x = _convolution(x, 128, 3, 1, seeds[4])
    x = keras.layers.GlobalAveragePooling2D()(x)
    start = keras.initializers.GlorotUniform(seeds[5])
    outputs = keras.layers.Dense(len(CLASS_NAMES), "softmax", kernel_initializer=start)(x)
    return keras.Model(inputs, outputs, name="demo")


def _convolution(x: Any, channels: int, width: int, stride: int, seed: int | None) -> Any:
    from keras import initializers, layers

    start = initializers.GlorotUniform(seed)
    return layers.Conv2D(
        channels, width, stride, padding="same", activation="relu", kernel_initializer=start
    )(x)
