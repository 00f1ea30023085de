"""The same classifier in every process of an evaluation, down to the bits of its answers."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pdutils.classifiers import Classifier, Scaling, classifier_from_file, load_classifier
from pdutils.graph import ending
from pdutils.networks import load_tensorflow


@dataclass(frozen=True)
class ClassifierSource:
    """Where a classifier comes from: small enough to be sent to the workers of a cluster.

    Attributes
    ----------
    name : str
        As `load_classifier` takes it, or the path of a model that Keras saved (`.keras`).
    weights : str or None
        A file of weights; only with a name of `load_classifier`.
    preprocess : str or None
        As `classifier_from_file` takes it; only with a `.keras` file.
    class_names : tuple of str or None
        As `classifier_from_file` takes them; only with a `.keras` file.

    Raises
    ------
    ValueError
        If an option is given that does not go with the name.
    """

    name: str
    weights: str | None = None
    preprocess: Scaling | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        own_file = self.name.endswith(".keras")
        if own_file and self.weights is not None:
            raise ValueError(f"{self.name} holds its weights; expected no file of weights besides")
        if not own_file and (self.preprocess is not None or self.class_names is not None):
            raise ValueError(
                f"preprocess and class_names go with a .keras file, not with {self.name!r}"
            )

    def load(self) -> Classifier:
        """Load the classifier; a process that asks again gets the same one.

        Returns
        -------
        Classifier

        Raises
        ------
        ValueError, FileNotFoundError, pdutils.data.DownloadError
            As `load_classifier` and `classifier_from_file`.
        """
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(source: ClassifierSource) -> Classifier:
    if not source.name.endswith(".keras"):
        return load_classifier(source.name, source.weights)
    if source.preprocess is None:
        return classifier_from_file(source.name, class_names=source.class_names)
    return classifier_from_file(
        source.name, class_names=source.class_names, preprocess=source.preprocess
    )


def deterministic() -> None:
    """Make TensorFlow's operations give the same bits each time, in this whole process.

    To be called before the first of them.
    """
    load_tensorflow()
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def fingerprint(classifier: Classifier) -> str:
    """Give the SHA-256, in hex, of a classifier's weights and of what it does before and after.

    Before: how it scales its images. After: the operations that are no layers between the last
    weights and the output, such as the division by a temperature.

    Parameters
    ----------
    classifier : Classifier
        Its name and the names of its classes do not matter.

    Returns
    -------
    str
    """
    import tensorflow as tf

    digest = hashlib.sha256()
    for weights in classifier.model.get_weights():
        digest.update(f"{weights.dtype} {weights.shape}".encode())
        digest.update(weights.tobytes())
    # Two models of the same weights may still answer differently.
    digest.update(ending(classifier.model).encode())
    ramp = np.linspace(0, 255, 3 * math.prod(classifier.input_size), dtype=np.float32)
    scaled = classifier.preprocess(tf.constant(ramp.reshape(1, *classifier.input_size, 3)))
    digest.update(np.round(np.asarray(scaled, dtype=np.float64), 3).tobytes())
    return digest.hexdigest()
