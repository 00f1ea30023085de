"""A Keras model with its preprocessing, class names and input size."""

import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils import _efficientnet, downloads
from pdutils._utils import Array, as_batch, check_fork, check_one_of, load_backend, read_text

Labels = NDArray[np.int64]

Scaling = Literal["-1..1", "0..1", "0..255", "caffe", "torch", "tf"]

#: What stands on this module and is loaded when it is asked for: the shipped network, and the
#: layers of a defended model, which Keras must know before it can load one.
_DEMO, _LAYERS = "pdutils.demo.examples", "pdutils.defenses.layers"

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
    """The last feature map (N, h, w, C) of a network, and the (N, K) that it predicted from it."""

    maps: Array
    probabilities: Array


class Classifier:
    """A Keras model that takes images in [0, 255] and knows the names of its classes.

    It says what its model says: `predict` is `model.predict(preprocess(images))`, or the softmax
    of that where the model gives logits. Its logits and its last feature map are found in its graph
    and compared with the model on two images of noise, see `pdutils._network.Network`; a model
    whose end is not understood is taken as a black box that gives probabilities.

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
        load_backend()
        from pdutils._network import Network

        self.input_size = _input_size(model)
        self.model = model
        self.preprocess = preprocess or _unchanged
        self.name = name or str(model.name)
        self.published = published
        classes = _number_of_classes(model)
        names = class_names or [f"class {i}" for i in range(classes)]
        for given in (names, class_ids or names):
            if len(given) != classes:
                raise ValueError(
                    f"expected {classes} class names, as the model has, got {len(given)}"
                )
        self.class_names = tuple(map(str, names))
        self.class_ids = tuple(map(str, class_ids or names))
        self.network = Network(model, self.preprocess, self.input_size, logits=logits)

    def predict(self, images: Array, *, batch_size: int = 32) -> Array:
        """Give the probability of each class: (K,) of an image (H, W, 3), (N, K) of a batch.

        Images are RGB in [0, 255], of `input_size`; the model sees `batch_size` of them at once.
        """
        batch, single = self.as_batch(images)
        probabilities = self.predict_batch(batch, batch_size=batch_size)
        return probabilities[0] if single else probabilities

    def predict_batch(self, batch: Array, *, batch_size: int = 32) -> Array:
        """Do what `predict` does to images that have been checked, (N, H, W, 3) to (N, K)."""
        (probabilities,) = self.run("predict", batch, batch_size=batch_size)
        if not self.network.are_probabilities(probabilities, 0.05):
            raise ValueError(
                f"{self.name} was taken to give probabilities, and gave a row that adds up to "
                f"{probabilities.sum(axis=1).max():.3g}, its least {probabilities.min():.3g}"
            )
        return probabilities

    def loss_gradient(
        self, images: Array, labels: int | Sequence[int] | Labels, *, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Give the gradient of the cross-entropy by the pixels, and the prediction, in one pass.

        The labels are the classes whose cross-entropy is differentiated: one for all or one an
        image. The gradient has the shape of `images`, in units of the loss per grey level.
        """
        batch, single = self.as_batch(images)
        indices = self.check_labels(labels, len(batch))
        gradient, probabilities = self.run("gradient", batch, indices, batch_size=batch_size)
        return (gradient[0], probabilities[0]) if single else (gradient, probabilities)

    def features(self, images: Array, *, batch_size: int = 32) -> Features:
        """Give the last feature map and the probabilities, in one pass, as a batch always."""
        return Features(*self.run("features", self.as_batch(images)[0], batch_size=batch_size))

    def feature_gradient(
        self, images: Array, labels: int | Sequence[int] | Labels, *, batch_size: int = 32
    ) -> tuple[Array, Array]:
        """Give the last feature map and the gradient of a class's logit by it, (N, h, w, C)."""
        batch, _ = self.as_batch(images)
        indices = self.check_labels(labels, len(batch))
        maps, gradient = self.run("feature_gradient", batch, indices, batch_size=batch_size)
        return maps, gradient

    @property
    def head_weights(self) -> Array | None:
        """Weights (C, K) from the pooled feature map to the logits.

        None if the head is not average pooling and one dense layer, so that CAM is undefined.
        """
        return self.network.head_weights

    def top(self, probabilities: Array, k: int = 5) -> list[Prediction]:
        """Give the k most probable classes of a row (K,) of `predict`, the most probable first."""
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
        """Find the number of a class by its id, its name or its number.

        Such as `n02447366`, `badger` (case, blanks and underscores do not matter) or 362.
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
        """Check that there are n class numbers, one an image; one int stands for all of them."""
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

    def as_batch(self, images: Array) -> tuple[Array, bool]:
        """Check images and their size; give them as a batch, and whether there was one alone."""
        batch, single = as_batch(images)
        if batch.shape[1:3] != self.input_size:
            raise ValueError(
                f"images: {self.name} expects {self.input_size[0]} x {self.input_size[1]} pixels, "
                f"got {batch.shape[1]} x {batch.shape[2]}; load_image(path, size=...) fits them"
            )
        return batch, single

    def run(self, step: str, *arrays: NDArray[Any], batch_size: int = 32) -> list[Array]:
        """Run a step of the network on arrays that were checked, some images at a time."""
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        check_fork()
        compiled = self.network.step(step)
        starts = range(0, len(arrays[0]), batch_size)
        try:
            parts = [compiled(*(a[i : i + batch_size] for a in arrays)) for i in starts]
        except Exception as error:
            # TensorFlow and JAX each have an exception of their own, and these words.
            if not re.search("RESOURCE_EXHAUSTED|OOM when", str(error)):
                raise
            raise MemoryError(
                f"{self.name} has not the memory for a batch of {min(batch_size, len(arrays[0]))}; "
                "expected a smaller one, or fewer processes on the same machine or GPU"
            ) from error
        results = [
            np.concatenate([np.asarray(p, dtype=np.float32) for p in part])
            for part in zip(*parts, strict=True)
        ]
        if not all(np.isfinite(result).all() for result in results):
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

    Raises
    ------
    pdutils.downloads.DownloadError
        If the weights are neither cached nor to be had.
    """
    load_backend()
    plain, constructors, published = _plain(name), _constructors(), weights is None
    if plain == "auto":
        return _auto(weights, options)
    if plain in constructors:
        return _imagenet(constructors[plain], weights, options)
    if plain not in ("demo", "efficientnetlite0"):
        raise ValueError(f"no classifier {name!r}; known: auto, {', '.join(classifier_names())}")
    if options:
        raise ValueError(f"the classifier {name!r} takes no options, got {', '.join(options)}")
    if plain == "demo":
        demo = import_module(_DEMO)
        model, scale, known = demo.demo_network(), _to_unit_range, {"class_names": demo.CLASS_NAMES}
        weights = demo.demo_weights() if weights is None else weights
    else:
        model, scale = _efficientnet.efficientnet_lite0(), _efficientnet.preprocess_input
        known = _imagenet_classes()
        if published:
            _efficientnet.load_published_weights(model)
    if weights is not None:
        _load_weights(model, model.name, weights)
    return Classifier(model, preprocess=scale, published=published, **known)


def classifier_from_file(
    path: str | os.PathLike[str],
    *,
    preprocess: Scaling | Callable[[Any], Any] = "-1..1",
    class_names: Sequence[str] | Literal["imagenet"] | None = None,
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
        As in `Classifier`. The word "imagenet" gives the names and ids of ImageNet's 1000 classes,
        in the order of their ids.
    """
    if isinstance(preprocess, str):
        check_one_of("preprocess", preprocess, tuple(_SCALINGS))
        preprocess = _SCALINGS[preprocess]
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of a Keras model")
    backend = load_backend()
    import keras

    if backend == "tensorflow":
        import_module(_LAYERS)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(
            f"{path}: expected a model that Keras saved (.keras): {_first_line(error)}"
        ) from error
    known: Any = _imagenet_classes() if class_names == "imagenet" else {"class_names": class_names}
    return Classifier(model, preprocess=preprocess, logits=logits, **known)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes, in the order of their numbers, from a text (see `read_text`).

    It has one name a line, where empty lines do not count, or a list of names in JSON.
    """
    text = read_text(path).strip()
    names: Any = [line.strip() for line in text.split("\n") if line.strip()]
    if text.startswith(("[", "{")) or Path(path).suffix.lower() == ".json":
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}: expected a list of class names in JSON: {error}") from None
        if not isinstance(names, list):
            raise ValueError(f"{path}: expected a JSON list of class names, got {text[:40]!r}")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{path}: expected class names as JSON strings, got {name!r}")
    if not names:
        raise ValueError(f"{path}: expected the names of classes, found none")
    return tuple(names)


def classifier_names() -> list[str]:
    """List the names that `load_classifier` knows: first those that need no download."""
    return ["efficientnet_lite0", "demo", *(_snake(c.__name__) for c in _constructors().values())]


def is_at_hand(name: str) -> bool:
    """Tell whether the weights of one of `classifier_names` lie on this machine."""
    if name == "efficientnet_lite0":
        return _efficientnet.is_installed()
    files = (downloads.cache_dir() / "models").glob(f"{name}_weights*")
    return name == "demo" or any("notop" not in path.name for path in files)


def _auto(weights: Any, options: dict[str, Any]) -> Classifier:
    # Whoever names no network gets an answer at once: no download, and no wait for one.
    if weights is not None or downloads.find_cached(*_published_weights("resnet50")):
        name, why = "resnet50", "its weights are at hand"
    else:
        name = "efficientnet_lite0" if _efficientnet.is_installed() else "demo"
        why = "the weights of resnet50 are not cached"
    classifier = load_classifier(name, weights, **options)
    print(f"classifier: {classifier.name} ({why})", file=sys.stderr)
    return classifier


def _imagenet(constructor: Any, weights: Any, options: dict[str, Any]) -> Classifier:
    name = _snake(constructor.__name__)
    if name.startswith("mobilenet_v3"):
        # The only models that Keras makes without a fixed input size.
        options = {"input_shape": (224, 224, 3), **options}
    reserved = _RESERVED & set(options)
    if reserved:
        raise ValueError(f"{name}: the option {', '.join(sorted(reserved))} is not free here")
    try:
        model = constructor(weights=None, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be made with {options}: {error}") from error
    classes = _number_of_classes(model)
    published = weights is None and not options
    if weights is None and classes != 1000:
        raise ValueError(f"{name}: its ImageNet weights know 1000 classes, not {classes}")
    if weights is None:
        weights = downloads.download(*_published_weights(_variant(name, model, options)))
    _load_weights(model, name, weights)
    preprocess = sys.modules[constructor.__module__].preprocess_input
    known = _imagenet_classes() if classes == 1000 else {}
    return Classifier(model, preprocess=preprocess, name=name, published=published, **known)


def _variant(name: str, model: Any, options: dict[str, Any]) -> str:
    if not name.startswith("mobilenet"):
        return name
    name += f"_{options.get('alpha', 1.0):g}"
    if name.startswith("mobilenet_v3"):
        return name + ("_minimalistic" if options.get("minimalistic") else "")
    height, width = model.input_shape[1:3]
    return f"{name}_{height}" if height == width else f"{name}_{height}x{width}"


def _published_weights(variant: str) -> tuple[str, downloads.Download]:
    found = downloads.keras_weights().get(variant)
    if found is None:
        raise ValueError(
            f"no ImageNet weights are known for {variant}; expected a file, weights=FILE, or "
            "weights='random'"
        )
    return found


def _imagenet_classes() -> dict[str, Any]:
    ids, names = zip(*downloads.class_index(), strict=True)
    return {"class_ids": ids, "class_names": names}


def _load_weights(model: Any, name: str, weights: str | os.PathLike[str]) -> None:
    if weights == "random":
        return
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights for {name}")
    try:
        # Keras only warns when a file lacks some of the layers and leaves those at random.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.load_weights(path)
    except Exception as error:
        reason = f" (.weights.h5): {_first_line(error)}"
        if isinstance(error, UserWarning):
            reason = ": some of its layers are not in the file, or in another shape"
        raise ValueError(f"{path}: expected the weights of {name}{reason}") from error


def _first_line(error: Exception) -> str:
    # A damaged file makes Keras's readers raise anything.
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


@dataclass(frozen=True)
class ClassifierSource:
    """Where a classifier comes from: small enough to be sent to the workers of a cluster.

    Parameters
    ----------
    name : str
        As `load_classifier` takes it, or the path of a model that Keras saved (`.keras`).
    weights
        A file of weights; only with a name of `load_classifier`.
    preprocess, class_names
        As `classifier_from_file` takes them; only with a `.keras` file.
    """

    name: str
    weights: str | None = None
    preprocess: Scaling | None = None
    class_names: tuple[str, ...] | Literal["imagenet"] | None = None

    def __post_init__(self) -> None:
        own_file = self.name.endswith(".keras")
        if own_file and self.weights is not None:
            raise ValueError(f"{self.name} holds its weights; expected no file of weights besides")
        if not own_file and (self.preprocess is not None or self.class_names is not None):
            raise ValueError(
                f"preprocess and class_names go with a .keras file, not with {self.name!r}"
            )

    def load(self) -> Classifier:
        """Load the classifier; a process that asks again gets the same one."""
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(source: ClassifierSource) -> Classifier:
    if not source.name.endswith(".keras"):
        return load_classifier(source.name, source.weights)
    preprocess = source.preprocess or "-1..1"
    return classifier_from_file(source.name, preprocess=preprocess, class_names=source.class_names)


def deterministic() -> None:
    """Make a GPU, too, give the same bits each time; to be called before the first operation."""
    if load_backend() == "jax":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def fingerprint(classifier: Classifier) -> str:
    """Give the SHA-256, in hex, of a classifier's weights and of what it does before and after.

    Before: how it scales its images. After: the operations that are no layers between the last
    weights and the output, such as the division by a temperature. Its names do not matter.
    """
    import keras

    digest = hashlib.sha256()
    for weights in classifier.model.get_weights():
        digest.update(f"{weights.dtype} {weights.shape}".encode())
        digest.update(weights.tobytes())
    # Two models of the same weights may still answer differently.
    digest.update(classifier.network.ending().encode())
    ramp = np.linspace(0, 255, 3 * math.prod(classifier.input_size), dtype=np.float32)
    images: Any = ramp.reshape(1, *classifier.input_size, 3)
    # JAX divides by way of a product, which may round otherwise.
    if keras.config.backend() == "tensorflow":
        images = keras.ops.convert_to_tensor(images)
    scaled = classifier.preprocess(images)
    digest.update(np.round(np.asarray(scaled, dtype=np.float64), 3).tobytes())
    return digest.hexdigest()
