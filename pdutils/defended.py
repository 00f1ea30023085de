"""A defended model: the map, the deflection and the denoising inside one Keras model.

Importing this module loads TensorFlow.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from pdutils.classifiers import Classifier
from pdutils.defenses import Defense
from pdutils.layers import Logits, PixelDeflection, RobustCAM, RobustGradCAM, WaveletDenoising

Tensor = Any

#: From images (N, H, W, 3), RGB in [0, 255].
Step = Callable[[Tensor], Tensor]

_WAVELET_KNOBS = frozenset({"sigma", "mode", "sigma_scale"})


def defended_model(
    classifier: Classifier, defense: Defense, *, seed: int | None = None
) -> keras.Model:
    """Put a defence in front of a classifier, as one Keras model.

    Everything happens in the graph, batched: images that lie on a GPU stay there. The map is that
    of `Defense.activation_map`, and the forward pass that makes it is the only one besides those
    that classify. A head of average pooling and one dense layer has the weights of the map; any
    other head takes backward passes through itself, one for each class of the map. The model saves
    and loads like any other, once `pdutils.layers` is imported. How its deflection differs from the
    NumPy path stands at `pdutils.layers.PixelDeflection`; averaged over draws, the two agree. A
    prediction depends on the image's place in its batch and on the calls before, through what it
    draws, but not on the other images; a loaded model draws from its seed again.

    Parameters
    ----------
    classifier : Classifier
        One of the project's, or a Keras model of one's own in a `Classifier`.
    defense : Defense
        With the wavelet denoiser (db1, BayesShrink, YCbCr) or none.
    seed : int or None
        Of the deflection.

    Returns
    -------
    keras.Model
        From images (N, H, W, 3), RGB in [0, 255], to probabilities (N, K): with several runs their
        mean, or the shares of their votes.

    Raises
    ------
    ValueError
        If the defence has another denoiser or option: `Defense.predict` takes those. If it has a
        map and the network has no feature map to make it of. If the classifier's `preprocess` calls
        functions of TensorFlow rather than arithmetic and `keras.ops`.
    """
    images = keras.Input((*classifier.input_size, 3), name="images")
    classify, make_maps = _steps(classifier, defense)
    many = _repeated(images, defense.runs)
    inputs = many if make_maps is None else [many, _repeated(make_maps(images), defense.runs)]
    defended = _deflection(defense, seed)(inputs)
    for layer in _denoising(defense):
        defended = layer(defended)
    outputs = _aggregated(classify(defended), defense, len(classifier.class_ids))
    return keras.Model(images, outputs, name=f"defended_{classifier.model.name}")


def _makes_map(defense: Defense) -> bool:
    return defense.activation != "none" and defense.deflections > 0


def _steps(classifier: Classifier, defense: Defense) -> tuple[Step, Step | None]:
    """Give what classifies and, if the defence uses one, what makes the map."""
    if not _makes_map(defense):
        return _without_map(classifier), None
    if classifier.head_weights is None:
        return _by_gradients(classifier, defense)
    return _by_head_weights(classifier, defense)


def _without_map(classifier: Classifier) -> Step:
    network = keras.Model(classifier.model.inputs[0], _probabilities(classifier), name="network")
    return lambda images: network(classifier.preprocess(images))


def _by_head_weights(classifier: Classifier, defense: Defense) -> tuple[Step, Step]:
    outputs = {
        "probabilities": _probabilities(classifier),
        "features": classifier.network.feature_map(),
    }
    network = keras.Model(classifier.model.inputs[0], outputs, name="network")
    layer = RobustCAM(
        classifier.input_size, classifier.head_weights, _ranks(defense), defense.combine
    )

    def classify(images: Tensor) -> Tensor:
        return network(classifier.preprocess(images))["probabilities"]

    def make_maps(images: Tensor) -> Tensor:
        found = network(classifier.preprocess(images))
        return layer([found["features"], found["probabilities"]])

    return classify, make_maps


def _by_gradients(classifier: Classifier, defense: Defense) -> tuple[Step, Step]:
    outputs = {"logits": _logits(classifier), "features": classifier.network.feature_map()}
    network = keras.Model(classifier.model.inputs[0], outputs, name="network")
    layer = RobustGradCAM(network, classifier.input_size, _ranks(defense), defense.combine)
    return (
        lambda images: layer(classifier.preprocess(images)),
        lambda images: layer(classifier.preprocess(images), maps=True),
    )


def _probabilities(classifier: Classifier) -> Tensor:
    return classifier.network.probabilities(classifier.model.output)


def _logits(classifier: Classifier) -> Tensor:
    """Give the logits, or their nearest substitute in a model that never has them."""
    network = classifier.network
    if network.tail_kind == "logits":
        return network.last.input
    if network.tail_kind == "pooled":
        return Logits(network.last, name="logits")(network.last.input)
    return ops.log(ops.maximum(ops.cast(classifier.model.output, "float32"), 1e-12))


def _ranks(defense: Defense) -> int:
    return defense.k if defense.activation == "rcam" else 1


def _deflection(defense: Defense, seed: int | None) -> PixelDeflection:
    return PixelDeflection(defense.deflections, defense.window, defense.reading, seed)


def _denoising(defense: Defense) -> list[WaveletDenoising]:
    if defense.denoiser is None:
        return []
    others = set(defense.denoiser_options) - _WAVELET_KNOBS
    if defense.denoiser != "wavelet" or others:
        raise ValueError(
            "expected the denoiser 'wavelet' with no other options than "
            f"{', '.join(sorted(_WAVELET_KNOBS))}; got {defense.denoiser!r} with "
            f"{dict(defense.denoiser_options)}; Defense.predict takes the others"
        )
    return [WaveletDenoising(**defense.denoiser_options)]


def _repeated(batch: Tensor, runs: int) -> Tensor:
    return batch if runs == 1 else ops.repeat(batch, runs, axis=0)


def _aggregated(probabilities: Tensor, defense: Defense, classes: int) -> Tensor:
    if defense.aggregate == "vote":
        probabilities = ops.one_hot(ops.argmax(probabilities, axis=-1), classes)
    if defense.runs == 1:
        return probabilities
    return ops.mean(ops.reshape(probabilities, (-1, defense.runs, classes)), axis=1)
