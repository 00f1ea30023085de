"""Reading tensors that PyTorch saved in its old format, without PyTorch and without trust.

Such a file is five pickles (a magic number, the format's version, facts about the machine, the
tensors as views of storages, the keys of the storages), then each storage: the number of its
elements and their bytes. A pickle may name any function and have it called; the reader below
admits the few names that a file of tensors needs, and nothing else.
"""

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

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
