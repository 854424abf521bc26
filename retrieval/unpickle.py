"""Pickles of data alone: arrays, strings, numbers, lists, tuples, sets and dicts, and nothing that could be called.

A pickle is a program: what it names is imported and called, and objects are filled with whatever state it gives. Here
the only names are the few that NumPy and old protocols write for plain values, and each leads to a function of this
file; every other name is refused before it is imported. The states of arrays and data types are checked before NumPy
sees them: it would take flags and pointers on trust. Sizes are those of the bytes that are there. Arrays of objects are
read as well, since the same rules hold for what lies in them.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np

from retrieval.errors import UserError

_BUILTINS = ("builtins", "__builtin__")
_ARRAY = object()
"""Stands for the class of arrays, which a pickle names and must not be able to call."""
_SIMPLE = re.compile(r"[biufcSUO][0-9]{1,9}")
_LONGEST = 200


class _Kind:
    """A data type of numbers, strings or objects, as a pickle describes it: a name, then a state."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, align: object = False, copy: object = False) -> None:
        del align, copy
        if not isinstance(name, str) or not _SIMPLE.fullmatch(name):
            raise pickle.UnpicklingError(f"the data type {name!r:.40}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        order, parts = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts):
            raise pickle.UnpicklingError("a data type of parts")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that a pickle fills."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        checked: Any = (1, *_checked(kind, shape, data), bool(fortran), _bytes(data))
        super().__setstate__(checked)


def _checked(kind: object, shape: object, data: object) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and data type of an array for which there are just so many bytes or objects."""
    if not isinstance(kind, _Kind) or not isinstance(shape, tuple) or any(type(side) is not int for side in shape):
        raise pickle.UnpicklingError("an array without a data type or a shape")
    if any(side < 0 for side in shape):
        raise pickle.UnpicklingError("an array of a negative size")
    given, size = _bytes(data), 1 if kind.dtype.hasobject else kind.dtype.itemsize
    if isinstance(given, list) != kind.dtype.hasobject or len(given) != math.prod(shape) * size:
        raise pickle.UnpicklingError(f"an array of the shape {shape} whose values are not there")
    return shape, kind.dtype


def _bytes(data: Any) -> bytes | list:
    if isinstance(data, str):  # of Python 2
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray | list):
        raise pickle.UnpicklingError(f"an array of {type(data).__name__}")
    return bytes(data) if isinstance(data, bytearray) else data


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray:
    del shape, code
    if kind is not _ARRAY:
        raise pickle.UnpicklingError("a subclass of an array")
    return np.empty(0, np.uint8).view(_Array)


def _from_buffer(
    data: bytes | bytearray, kind: _Kind, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    shape, dtype = _checked(kind, shape, data)
    if dtype.hasobject:
        raise pickle.UnpicklingError("a buffer of objects")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _scalar(kind: _Kind, data: bytes | str = b"") -> Any:
    return _from_buffer(_bytes(data), kind, (1,), "C")[0]  # type: ignore[arg-type]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes, which old protocols write as text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Return what old protocols write for empty bytes."""
    return b""


def _set(items: list | tuple = ()) -> set:
    return set(items)


def _frozenset(items: list | tuple = ()) -> frozenset:
    return frozenset(items)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "bytes"): _no_bytes for module in _BUILTINS},
    **{(module, "set"): _set for module in _BUILTINS},
    **{(module, "frozenset"): _frozenset for module in _BUILTINS},
    **{(f"{package}.multiarray", "_reconstruct"): _reconstruct for package in ("numpy.core", "numpy._core")},
    **{(f"{package}.multiarray", "scalar"): _scalar for package in ("numpy.core", "numpy._core")},
    **{(f"{package}.numeric", "_frombuffer"): _from_buffer for package in ("numpy.core", "numpy._core")},
}
_NOT_FOR_DATA = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


_IN_PYTHON: Any = pickle._Unpickler


class _Unpickler(_IN_PYTHON):
    """The reader that is written in Python: the other one reserves memory for whatever number a pickle gives."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in _IN_PYTHON.dispatch.items() if code not in b"".join(_NOT_FOR_DATA)
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data is read")
        return _ALLOWED[module, name]

    def _build(self) -> None:
        state, filled = self.stack.pop(), self.stack[-1]
        if type(filled) not in (_Kind, _Array):
            raise pickle.UnpicklingError(f"a state of {type(filled).__name__}")
        filled.__setstate__(state)

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def unpickle(data: bytes, where: str) -> Any:
    """Read a pickle of arrays, strings, numbers, lists, tuples, sets and dicts.

    Args:
        data: the file. Strings of Python 2 are read as latin-1.
        where: its location, for messages.

    Raises:
        UserError: it is damaged, or holds anything else (code ``not-plain``, field ``pickle``).
    """
    # Whatever the reader raises, it is the file's fault: its opcodes may fail in any way that Python has.
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:_LONGEST]
        if isinstance(error, KeyError):
            why = "it has an instruction that plain data does not need"
        raise UserError(
            f"{where} is not read ({why}). A pickle may hold arrays, strings, numbers, lists and dicts alone; save it"
            " as .npy, or as such a dict",
            code="not-plain",
            field="pickle",
        ) from error
