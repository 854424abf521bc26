"""Pickles of data alone: arrays, strings, numbers, lists, tuples, sets and dicts, and nothing that could be called.

A pickle is a program: what it names is imported and called. Here the only names are the few that NumPy writes for its
arrays, and each leads to a function of this file that makes an array and does nothing else; every other name is refused
before it is imported. Objects of arrays are read too, since the same rules hold for what lies in them.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

from retrieval.errors import UserError

_BUILTINS = ("builtins", "__builtin__")
_ARRAY = object()
"""Stands for the class of arrays, which a pickle names and must not be able to call."""


def _empty(kind: object, shape: object, code: object) -> np.ndarray:
    """Make the empty array that the pickle then fills; what it says of its size is not believed before it is there."""
    del shape, code
    if kind is not _ARRAY:
        raise pickle.UnpicklingError("a subclass of an array")
    return np.empty(0, np.uint8)


def _from_buffer(
    data: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or dtype.hasobject:
        raise pickle.UnpicklingError("a buffer of objects")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _scalar(dtype: np.dtype, data: bytes = b"") -> Any:
    if not isinstance(data, bytes) or dtype.hasobject or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("a scalar that is not a number or a string")
    return np.frombuffer(data, dtype)[0]


def _dtype(name: str, align: object = False, copy: object = False) -> np.dtype:
    del align, copy
    if not isinstance(name, str):
        raise pickle.UnpicklingError("a data type of parts")
    return np.dtype(name, copy=True)  # a copy, since the pickle sets the state of what it is given


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
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "bytes"): _no_bytes for module in _BUILTINS},
    **{(module, "set"): _set for module in _BUILTINS},
    **{(module, "frozenset"): _frozenset for module in _BUILTINS},
    **{(f"{package}.multiarray", "_reconstruct"): _empty for package in ("numpy.core", "numpy._core")},
    **{(f"{package}.multiarray", "scalar"): _scalar for package in ("numpy.core", "numpy._core")},
    **{(f"{package}.numeric", "_frombuffer"): _from_buffer for package in ("numpy.core", "numpy._core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data is read")
        return _ALLOWED[module, name]


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
        raise UserError(
            f"{where} is not read: {error or type(error).__name__}. A pickle may hold arrays, strings, numbers, lists"
            " and dicts alone; save it as .npy, or as such a dict",
            code="not-plain",
            field="pickle",
        ) from error
