"""A classifier of ours as ART's attacks take it. Importing this module loads ART and Keras."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._passes import BACKEND
from pdutils._toolbox import ClipValues, checked_range, importing_art
from pdutils._utils import Array, check_fork, check_one_of, check_some
from pdutils.attacks.gradient import Classifier, Labels

with importing_art():
    from art.attacks import evasion
    from art.estimators.classification import TensorFlowV2Classifier
    from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin
    from art.estimators.estimator import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin

import keras
from keras import ops

#: The least probability whose logarithm is taken: float32 knows none below.
LEAST = np.finfo(np.float32).tiny


def by_art(
    name: str, bridge: "BridgedClassifier", clean: Array, goals: Labels | None, **options: Any
) -> Array:
    """Attack images in [0, 255] by a class of ART's, on a bridge that takes [0, 1]."""
    attack = getattr(evasion, name)(bridge, verbose=False, **options)
    return np.asarray(attack.generate(clean / np.float32(255), goals) * 255, dtype=np.float32)


class _PlainClassifier(
    ClassGradientsMixin, ClassifierMixin, NeuralNetworkMixin, LossGradientsMixin, BaseEstimator
):
    """What ART's attacks ask of a network of gradients, in no library of its list."""

    def __init__(self, *, nb_classes: int, input_shape: Any, loss_object: Any, **more: Any) -> None:
        super().__init__(channels_first=False, **more)
        self.nb_classes, self._input_shape = nb_classes, input_shape

    @property
    def input_shape(self) -> Any:
        """The shape of an image."""
        return self._input_shape

    def fit(self, *_: Any, **__: Any) -> None:
        """Refuse to train."""
        _refuse_training(True)

    def get_activations(self, *_: Any, **__: Any) -> Any:
        """Refuse to look inside."""
        raise NotImplementedError("activations of a layer are to be had on TensorFlow alone")


_Base: Any = TensorFlowV2Classifier if BACKEND == "tensorflow" else _PlainClassifier


class BridgedClassifier(_Base):
    """Make a `TensorFlowV2Classifier` of ART of a classifier, for ART's attacks.

    Every pass is a compiled one of the `Classifier`, and what `predict` gives are its
    log-probabilities: logits up to one number an image, as the attacks on logits need them. ART's
    own passes are not compiled for gradients, take one for each class that occurs among the labels,
    and ignore the batch size. So is the one that a method is given.

    Parameters
    ----------
    classifier : Classifier
        The network.
    clip_values : (0, 255) or (0, 1)
        The range of the images that ART sees, in numbers or in arrays as ART takes them. Those of
        ART's attacks whose steps are of a fixed size mean them on images in [0, 1], and its
        DeepFool multiplies its step by the range.
    preprocessing_defences : sequence of art.defences.preprocessor.Preprocessor
        ART's or those of `pdutils.defenses.art`, applied in this order before the network.
    batch_size : int
        How many images the network sees at once, whatever an attack asks for.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        clip_values: ClipValues = (0.0, 255.0),
        preprocessing_defences: Sequence[Any] = (),
        batch_size: int = 32,
    ) -> None:
        white = checked_range(clip_values)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self._scale = np.float32(255.0 / white)
        self.classifier, self._batch_size = classifier, batch_size
        super().__init__(
            model=self._model_of_tensors,
            nb_classes=len(classifier.class_ids),
            input_shape=(*classifier.input_size, 3),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
            clip_values=(0.0, white),
            preprocessing_defences=list(preprocessing_defences),
            preprocessing=None,
        )

    def predict(
        self, x: Array, batch_size: int | None = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the log-probabilities (N, K) of images (N, H, W, 3)."""
        grey = self._stages(x, training_mode)[1]
        probabilities = self.classifier.predict_batch(grey, batch_size=self._batch_size)
        return np.log(np.maximum(probabilities, LEAST))

    def class_gradient(
        self, x: Array, label: Any = None, training_mode: bool = False, **_: Any
    ) -> Array:
        """Give the gradients of all classes (N, K, H, W, 3), or of a label or one an image."""
        stages, grey = self._stages(x, training_mode)
        classes = range(self.nb_classes) if label is None else [label]
        return -np.stack([self._gradient(stages, grey, np.asarray(c)) for c in classes], axis=1)

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **_: Any) -> Any:
        """Give the gradient of the cross-entropy of `y` by the pixels; a tensor gets a tensor."""
        gradient = self._gradient(*self._stages(np.asarray(x), training_mode), _class_numbers(y))
        return gradient if isinstance(x, np.ndarray) else ops.convert_to_tensor(gradient)

    def compute_loss(
        self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False, **_: Any
    ) -> Any:
        """Give the cross-entropy: of each image, or with "mean" or "sum" of all."""
        check_one_of("reduction", reduction, ("none", "mean", "sum"))
        logits = self.predict(np.asarray(x), training_mode=training_mode)
        losses = -logits[np.arange(len(logits)), _class_numbers(y)]
        return losses if reduction == "none" else getattr(losses, reduction)()

    def _stages(self, x: Array, training: bool) -> tuple[list[Array], Array]:
        """Give the images as they come and after each preprocessing defence, and in [0, 255]."""
        _refuse_training(training)
        check_some(x, "x")
        stages = [np.asarray(x, dtype=np.float32)]
        for operation in self._applied():
            stages.append(np.asarray(operation(stages[-1])[0], dtype=np.float32))
        grey = stages[-1] * self._scale
        # Checked beside a white image: alone, what is all but black would look scaled for a model.
        self.classifier.as_batch(np.concatenate([grey, np.full_like(grey[:1], 255)]))
        return stages, grey

    def _gradient(self, stages: list[Array], grey: Array, labels: NDArray[Any]) -> Array:
        """Go back from the cross-entropy of the labels through all stages."""
        classes = self.classifier.check_labels(labels, len(grey))
        gradient, _ = self.classifier.run("gradient", grey, classes, batch_size=self._batch_size)
        gradient = gradient * self._scale
        for operation, at in zip(reversed(self._applied()), reversed(stages[:-1]), strict=True):
            gradient = operation.estimate_gradient(at, gradient)
        return np.asarray(gradient, dtype=np.float32)

    def _applied(self) -> list[Any]:
        return [operation for operation in self.preprocessing_operations if operation.apply_predict]

    def _model_of_tensors(self, images: Any, training: bool = False) -> Any:
        """Give log-probabilities as a tensor: for what in ART calls the model itself."""
        _refuse_training(training)
        check_fork()
        (probabilities,) = self.classifier.network.step("predict")(images * self._scale)
        return ops.log(ops.maximum(probabilities, LEAST))


art_classifier = BridgedClassifier


class CandidateClassifier(BridgedClassifier):
    """What ART's DeepFool is shown of a network: a few classes of each image, and what lies ahead.

    ART's DeepFool asks for the gradients of all classes that are among the most probable of any
    image, for every image; here it sees `candidates` (N, k) of each. It asks for those of images
    that are over the border, too, which it leaves as they are: here they are zeros. It overshoots
    when it is done, so that it creeps towards the border until its steps are used up; here it is
    shown the network as far ahead as it will overshoot, as the paper's authors do in theirs. Every
    call is about the images `clean` in [0, 255]; what ART sees is in [0, 1].
    """

    def __init__(
        self, classifier: Classifier, clean: Array, candidates: Labels, overshoot: float, size: int
    ) -> None:
        super().__init__(classifier, clip_values=(0.0, 1.0), batch_size=size)
        self._origin, self._candidates = clean / np.float32(255), candidates
        self._overshoot = np.float32(overshoot)
        self.nb_classes = candidates.shape[1]
        #: What was predicted first, and which images are seen as that still.
        self._first: Labels | None = None
        self._going = np.ones(len(candidates), dtype=np.bool_)

    def predict(self, x: Array, *_: Any, **__: Any) -> Array:
        """Give the log-probabilities (N, k) of the candidates."""
        shown = np.take_along_axis(super().predict(self._ahead(x)), self._candidates, axis=1)
        seen = shown.argmax(axis=1)
        self._first = seen if self._first is None else self._first
        self._going = seen == self._first
        return shown

    def class_gradient(self, x: Array, *_: Any, **__: Any) -> Array:
        """Give the gradients (N, k, H, W, 3) of all candidates, of images still to be moved."""
        gradients = np.zeros((*self._candidates.shape, *x.shape[1:]), dtype=np.float32)
        going = self._going
        if going.any():
            repeated = np.repeat(self._ahead(x)[going], self.nb_classes, axis=0)
            found = super().class_gradient(repeated, self._candidates[going].ravel())
            gradients[going] = found.reshape(-1, *gradients.shape[1:])
        return gradients

    def _ahead(self, x: Array) -> Array:
        return np.clip(x + self._overshoot * (x - self._origin), 0, 1)


def _class_numbers(y: Any) -> NDArray[np.int64]:
    given: NDArray[Any] = np.asarray(y)
    if given.ndim == 1:
        return given.astype(np.int64)
    if given.ndim != 2 or not np.allclose(np.sort(given, axis=1)[:, -2:], [0, 1]):
        raise ValueError(
            f"y: expected class numbers (N,), or rows (N, K) with a single 1, got {given.shape}"
        )
    return np.asarray(given.argmax(axis=1))


def _refuse_training(training: bool) -> None:
    if training:
        raise ValueError("training_mode: expected False, for the network is used as it is")
