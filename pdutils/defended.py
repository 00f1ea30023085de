"""A defended model: the map, the deflection and the denoising inside one Keras model.

Importing this module loads TensorFlow.
"""

from typing import Any

import keras
from keras import ops

from pdutils.classifiers import Classifier
from pdutils.defenses import Defense
from pdutils.layers import PixelDeflection, RobustCAM, WaveletDenoising

Tensor = Any

_WAVELET_KNOBS = frozenset({"sigma", "mode", "sigma_scale"})


def defended_model(
    classifier: Classifier, defense: Defense, *, seed: int | None = None
) -> keras.Model:
    """Put a defence in front of a classifier, as one Keras model.

    Everything happens in the graph, batched: images that lie on a GPU stay there. The forward pass
    that makes the map is the only one besides those that classify. The model saves and loads like
    any other, once `pdutils.layers` is imported. How its deflection differs from the NumPy path
    stands at `pdutils.layers.PixelDeflection`; averaged over draws, the two agree. A prediction
    depends on the image's place in its batch and on the calls before, through what it draws, but
    not on the other images; a loaded model draws from its seed again.

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
        If the defence has another denoiser or option, or a map for a network whose head is not
        average pooling and one dense layer: `Defense.predict` takes those. If the classifier's
        `preprocess` calls functions of TensorFlow rather than arithmetic and `keras.ops`.
    """
    images = keras.Input((*classifier.input_size, 3), name="images")
    network = _network(classifier, with_features=_makes_map(defense))
    maps = _maps(classifier, defense, network, images)
    many = _repeated(images, defense.runs)
    inputs = many if maps is None else [many, _repeated(maps, defense.runs)]
    defended = _deflection(defense, seed)(inputs)
    for layer in _denoising(defense):
        defended = layer(defended)
    probabilities = network(classifier.preprocess(defended))["probabilities"]
    outputs = _aggregated(probabilities, defense, len(classifier.class_ids))
    return keras.Model(images, outputs, name=f"defended_{classifier.model.name}")


def _network(classifier: Classifier, *, with_features: bool) -> keras.Model:
    """Make the model from preprocessed images to probabilities and, if asked, feature maps."""
    model = classifier.model
    outputs = {"probabilities": classifier.network.probabilities(model.output)}
    if with_features:
        outputs["features"] = classifier.network.feature_map()
    return keras.Model(model.inputs[0], outputs, name="network")


def _makes_map(defense: Defense) -> bool:
    return defense.activation != "none" and defense.deflections > 0


def _maps(
    classifier: Classifier, defense: Defense, network: keras.Model, images: Tensor
) -> Tensor | None:
    if not _makes_map(defense):
        return None
    weights = classifier.head_weights
    if weights is None:
        raise ValueError(
            f"{classifier.name}: a map in the graph needs a head of global average pooling and one "
            "dense layer; Defense.predict makes it by Grad-CAM instead"
        )
    k = defense.k if defense.activation == "rcam" else 1
    found = network(classifier.preprocess(images))
    layer = RobustCAM(classifier.input_size, weights, k, defense.combine)
    return layer([found["features"], found["probabilities"]])


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
