import io
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from pdutils._efficientnet import read_tensors

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class Named:
    """Pickled as a name, whether or not there is such a thing."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a name."""

    def __init__(self, function: Named, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Storage:
    """Pickled as a reference to a storage."""

    def __init__(self, kind: str, key: str, size: int, view: object = None) -> None:
        self.pid = ("storage", Named("torch", kind), key, "cpu", size, view)


class Writer(pickle._Pickler):
    """PyTorch's way of pickling, by hand."""

    def save(self, item, save_persistent_id=True):
        if isinstance(item, Named):
            self.write(f"c{item.module}\n{item.name}\n".encode())
        elif isinstance(item, Call):
            self.save(item.function)
            self.save(item.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(item, save_persistent_id)

    def persistent_id(self, item):
        return item.pid if isinstance(item, Storage) else None


def pickled(item: object) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(item)
    return file.getvalue()


def tensor(storage: Storage, offset: object, shape: object, strides: object) -> Call:
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, OrderedDict())


def stored(values: np.ndarray) -> bytes:
    return struct.pack("<q", values.size) + values.tobytes()


def file_of(state: object, storages: dict[str, np.ndarray], *, machine=None) -> bytes:
    machine = machine or {"protocol_version": VERSION, "little_endian": True, "type_sizes": {}}
    head = [pickled(part) for part in (MAGIC, VERSION, machine, state, list(storages))]
    return b"".join(head) + b"".join(stored(values) for values in storages.values())


FLOATS = np.arange(12, dtype="<f4")
ONE = tensor(Storage("FloatStorage", "7", 12), 0, (3, 4), (4, 1))


def test_tensors_are_read_by_name_with_their_layout():
    floats, longs = Storage("FloatStorage", "7", 12), Storage("LongStorage", "2", 1)
    state = OrderedDict(
        rows=tensor(floats, 0, (3, 4), (4, 1)),
        columns=tensor(floats, 0, (4, 3), (1, 4)),
        part=tensor(floats, 5, (2,), (3,)),
        count=tensor(longs, 0, (), ()),
        doubles=tensor(Storage("DoubleStorage", "1", 2), 0, (2,), (1,)),
    )
    storages = {"1": np.array([1.5, -2]), "2": np.array([9]), "7": FLOATS}
    read = read_tensors(file_of(state, storages))
    assert list(read) == ["rows", "columns", "part", "count", "doubles"]
    np.testing.assert_array_equal(read["rows"], FLOATS.reshape(3, 4))
    np.testing.assert_array_equal(read["columns"], FLOATS.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [5, 8])
    assert (read["count"].shape, int(read["count"])) == ((), 9)
    np.testing.assert_array_equal(read["doubles"], [1.5, -2])
    assert [read[name].dtype for name in ("rows", "count", "doubles")] == ["f4", "i8", "f8"]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Call(Named("os", "system"), f"touch {mark}"),
        lambda mark: Call(Named("builtins", "eval"), f"open({mark!r}, 'w')"),
        lambda mark: Call(Named("posix", "mkdir"), mark),
        lambda mark: Call(Named("pdutils._efficientnet", "os.mkdir"), mark),
        lambda mark: Call(Named("numpy", "load"), mark),
        lambda mark: Call(Named("torch._utils", "_rebuild_tensor_v3"), mark),
    ],
)
def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_called(tmp_path, call, place):
    mark = str(tmp_path / "mark")
    machine = {"little_endian": True}
    parts = [MAGIC, VERSION, machine, OrderedDict(a=ONE), ["7"]]
    parts[place] = call(mark)
    content = b"".join(pickled(part) for part in parts) + stored(FLOATS)
    with pytest.raises(ValueError, match="has no place in a file of tensors"):
        read_tensors(content)
    assert not os.path.exists(mark)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (3, 5), (4, 1)),
        (12, (1,), (1,)),
        (-1, (2,), (1,)),
        (0, (3,), (-1,)),
        (0, (2**62, 2), (2**62, 1)),
        (0, (3, 4), (1,)),
        (0.0, (3,), (1,)),
        (0, [3], [1]),
        ("0", (3,), (1,)),
    ],
)
def test_a_view_of_foreign_memory_is_refused(offset, shape, strides):
    state = {"a": tensor(Storage("FloatStorage", "7", 12), offset, shape, strides)}
    with pytest.raises(ValueError, match="expected tensors in PyTorch's old format"):
        read_tensors(file_of(state, {"7": FLOATS}))


@pytest.mark.parametrize(
    ("state", "storages"),
    [
        ({"a": 5}, {}),
        ({5: ONE}, {"7": FLOATS}),
        ([ONE], {"7": FLOATS}),
        ({"a": ONE}, {}),
        ({"a": ONE}, {"8": FLOATS}),
        ({"a": ONE}, {"7": FLOATS[:5]}),
        (
            {"a": tensor(Storage("FloatStorage", "7", 12, ("8", 0, 3)), 0, (3,), (1,))},
            {"7": FLOATS},
        ),
        ({"a": tensor(Storage("ByteStorage", "7", 12), 0, (3,), (1,))}, {"7": FLOATS}),
        ({"a": tensor("7", 0, (3,), (1,))}, {"7": FLOATS}),
    ],
)
def test_what_is_no_state_of_tensors_is_refused(state, storages):
    with pytest.raises(ValueError, match="expected tensors in PyTorch's old format"):
        read_tensors(file_of(state, storages))


def test_another_magic_number_version_or_order_of_bytes_is_refused():
    whole = file_of({"a": ONE}, {"7": FLOATS})
    assert list(read_tensors(whole)) == ["a"]
    for changed in (
        whole.replace(pickled(MAGIC), pickled(MAGIC + 1)),
        whole.replace(pickled(VERSION), pickled(VERSION + 1)),
        file_of({"a": ONE}, {"7": FLOATS}, machine={"little_endian": False}),
    ):
        assert changed != whole
        with pytest.raises(ValueError, match="expected tensors in PyTorch's old format"):
            read_tensors(changed)


def test_a_file_that_was_cut_off_is_refused_wherever_it_ends():
    whole = file_of({"a": ONE}, {"7": FLOATS})
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="expected tensors in PyTorch's old format"):
            read_tensors(whole[:length])
