"""A defended model: the map, the deflection and the denoising inside one Keras model.

Importing this module loads TensorFlow.
"""

from collections.abc import Callable
from typing import Any

from pdutils._utils import load_tensorflow
from pdutils.defenses.pipeline import Classifier, Defense

# Before Keras is: it says what is amiss with Keras's settings.
load_tensorflow()

import keras
import numpy as np
from keras import ops

from pdutils._network import LEAST, only
from pdutils.defenses.layers import (
    Logits,
    PixelDeflection,
    RobustCAM,
    RobustGradCAM,
    wavelet_layer,
)

Tensor = Any

#: From images (N, H, W, 3), RGB in [0, 255].
Step = Callable[[Tensor], Tensor]


def defended_model(
    classifier: Classifier,
    defense: Defense,
    *,
    seed: int | None = None,
    logits: bool = False,
) -> keras.Model:
    """Put a defence in front of a classifier, as one Keras model.

    Everything happens in the graph, batched: images that lie on a GPU stay there. The map costs one
    forward pass, and where the head is not average pooling and one dense layer, a backward pass
    through it for each class of the map. The model saves and loads like any other, once
    `pdutils.defenses.layers` is imported. How its deflection differs from the NumPy path stands at
    `PixelDeflection` there; averaged over draws, the two agree. A prediction depends on the image's
    place in its batch and on the calls before, through what it draws, but not on the other images;
    a loaded model draws from its seed again.

    Parameters
    ----------
    classifier : Classifier
        One of the project's, or a Keras model of one's own in a `Classifier`.
    defense : Defense
        With the wavelet denoiser (db1, BayesShrink, YCbCr) or none.
    seed : int or None
        Of the deflection.
    logits : bool
        Whether the model gives logits instead of probabilities, as attacks of other libraries take
        them: those of the network, or with several runs the logarithms of their mean probabilities.

    Returns
    -------
    keras.Model
        From images (N, H, W, 3), RGB in [0, 255], to probabilities (N, K): with several runs their
        mean, or the shares of the runs that each class won. Or to logits.

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
    runs = defense.runs
    images = keras.Input((*classifier.input_size, 3), name="images")
    classify, make_maps = _steps(classifier, defense, logits)

    def repeated(batch: Tensor) -> Tensor:
        return batch if runs == 1 else ops.repeat(batch, runs, axis=0)

    def by_run(rows: Tensor) -> Tensor:
        """Part the rows (N x runs, K) of all runs by image, (N, runs, K)."""
        return ops.reshape(rows, (-1, runs, rows.shape[-1]))

    inputs = repeated(images)
    if make_maps is not None:
        maps = make_maps(images)
        if defense.bias:
            maps = ops.clip(maps + float(defense.bias), 0.0, 1.0)
        inputs = [inputs, repeated(maps)]
    defended = PixelDeflection(defense.deflections, defense.window, defense.reading, seed)(inputs)
    denoise = wavelet_layer(defense.denoiser, defense.denoiser_options)
    outputs = classify(defended if denoise is None else denoise(defended))
    if defense.aggregate == "majority":
        outputs = ops.one_hot(ops.argmax(outputs, axis=-1), outputs.shape[-1])
    if runs > 1 and logits:
        outputs = ops.logsumexp(by_run(ops.log_softmax(outputs)), axis=1) - float(np.log(runs))
    elif runs > 1:
        outputs = ops.mean(by_run(outputs), axis=1)
    return keras.Model(images, outputs, name=f"defended_{classifier.model.name}")


def _steps(classifier: Classifier, defense: Defense, logits: bool) -> tuple[Step, Step | None]:
    """Give what classifies and, if the defence uses one, what makes the map."""
    if defense.map_key is None:
        return _without_map(classifier, logits), None
    if classifier.head_weights is None:
        return _by_gradients(classifier, defense, logits)
    return _by_head_weights(classifier, defense, logits)


def _without_map(classifier: Classifier, logits: bool) -> Step:
    if classifier.network.graph is None:
        return lambda images: _of_black_box(classifier, images, logits)
    network = classifier.network.parts(answer=_answer(classifier, logits))
    return lambda images: network(classifier.preprocess(images))["answer"]


def _of_black_box(classifier: Classifier, images: Tensor, logits: bool) -> Tensor:
    output = only(classifier.model(classifier.preprocess(images)))
    if not logits:
        return classifier.network.probabilities(output)
    return output if classifier.network.gives_logits else _log(output)


def _by_head_weights(classifier: Classifier, defense: Defense, logits: bool) -> tuple[Step, Step]:
    network = classifier.network.parts(
        answer=_answer(classifier, logits),
        probabilities=_answer(classifier, logits=False),
        features=classifier.network.feature_map(),
    )
    knobs = _ranks(defense), defense.combine, defense.upscale
    layer = RobustCAM(classifier.input_size, classifier.head_weights, *knobs)

    def classify(images: Tensor) -> Tensor:
        return network(classifier.preprocess(images))["answer"]

    def make_maps(images: Tensor) -> Tensor:
        found = network(classifier.preprocess(images))
        return layer([found["features"], found["probabilities"]])

    return classify, make_maps


def _by_gradients(classifier: Classifier, defense: Defense, logits: bool) -> tuple[Step, Step]:
    network = classifier.network.parts(
        logits=_logits(classifier), features=classifier.network.feature_map()
    )
    layer = RobustGradCAM(
        network, classifier.input_size, _ranks(defense), defense.combine, defense.upscale
    )

    return (
        lambda images: layer(classifier.preprocess(images), logits=logits),
        lambda images: layer(classifier.preprocess(images), maps=True),
    )


def _answer(classifier: Classifier, logits: bool) -> Tensor:
    network = classifier.network
    return _logits(classifier) if logits else network.probabilities(network.graph.output)


def _logits(classifier: Classifier) -> Tensor:
    """Give the logits, or their nearest substitute in a model that never has them."""
    tail = classifier.network.tail
    if tail.kind == "output":
        return _log(tail.tensor)
    if tail.kind == "dense":
        return Logits(tail.dense, name="logits")(tail.tensor)
    return ops.reshape(ops.cast(tail.tensor, "float32"), (-1, len(classifier.class_ids)))


def _log(probabilities: Tensor) -> Tensor:
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), LEAST))


def _ranks(defense: Defense) -> int | None:
    return defense.k if defense.activation == "rcam" else 1
