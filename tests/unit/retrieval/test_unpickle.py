"""Pickles of arrays and plain values are read; whatever could call something is refused before it is called."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused

from retrieval.errors import UserError
from retrieval.unpickle import unpickle


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return all(map(same, one.tolist(), other.tolist())) if one.dtype.hasobject else bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


PLAIN = [
    {"imlist": ["a", "ü"], "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": np.array([1, 2]), "junk": np.array([], np.int64)}]},
    {"features": np.arange(12, dtype=np.float32).reshape(3, 4), "names": np.array(["x", "longer"])},
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    np.array(["text", [1, 2], {"a": np.ones(2)}], dtype=object),
    np.array(7),
    [
        np.float32(0.5),
        np.int64(3),
        np.str_("ab"),
        np.bool_(True),
        None,
        b"\x00\xff",
        2**80,
        1e-9,
        (1, {2}),
        frozenset("a"),
    ],
    OrderedDict(a=np.zeros((0, 3), np.float16)),
    np.array([1, 2], ">f4"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    before = np.dtype("float32").byteorder, np.dtype("int64").byteorder
    data = pickle.dumps(value, protocol)
    assert same(unpickle(data, "file"), pickle.loads(data))
    assert (np.dtype("float32").byteorder, np.dtype("int64").byteorder) == before


def test_strings_of_python_2_are_read() -> None:
    assert unpickle(b"(dp0\nS'imlist'\np1\n(lp2\nS'all_souls_000013'\np3\nas.", "file") == {
        "imlist": ["all_souls_000013"]
    }


class Calls:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(mark: Path) -> list[bytes]:
    mark_it = f"open({str(mark)!r}, 'w')"
    named = f"csubprocess\ncheck_output\n(S'touch {mark}'\ntR.".encode()
    return [
        pickle.dumps(Calls(os.system, f"touch {mark}")),
        pickle.dumps(Calls(eval, mark_it)),
        pickle.dumps(Calls(exec, mark_it)),
        pickle.dumps(Calls(getattr, [], "append")),
        pickle.dumps({"features": np.ones(2), "more": [Calls(os.mkdir, str(mark))]}),
        pickle.dumps(np.array([Calls(os.mkdir, str(mark))], dtype=object)),
        pickle.dumps(Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(mark))))),
        pickle.dumps(Calls(np.load, str(mark))),
        named,
        # Methods of allowed names by a dotted path, and calls of what stands for the class of arrays.
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x05\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x05\x85\x81.",
        b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93\x8c\x01x\x8c\x03rot\x86R.",
        b"cnumpy\ndtype\n(I5\ntR.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"",
        b"not a pickle",
        pickle.dumps([1, 2, 3])[:-4],
        b"P7\n.",  # a persistent id
        b"\x80\x04\x82\x01.",  # a registered extension
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a byte array of a terabyte
        # Raw bytes as pointers to objects, by a data type without the flag that says so.
        pickle.dumps(Calls(np.dtype, "O8", False, True), 2)[:-1]
        + b"(I3\nS'|'\nNNNI8\nI8\nI0\ntbp1\n0"
        + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntg1\nI00\nS'AAAAAAAA'\ntb.",
        # A data type of parts, one of which is an object.
        pickle.dumps(np.zeros(1, [("a", "O"), ("b", "f8")])),
        pickle.dumps(np.zeros(1, "V8")),
        # A state for a function, and for a dict.
        b"c_codecs\nencode\n(S'x'\nI1\ndb.",
        b"}(S'x'\nI1\ndb.",
    ]


@pytest.mark.parametrize("which", range(26))
def test_a_hostile_or_damaged_pickle_is_refused_and_runs_nothing(tmp_path: Path, which: int) -> None:
    mark = tmp_path / "mark"
    cases = hostile(mark)
    assert len(cases) == 26
    with refused("not-plain", "pickle") as error:
        unpickle(cases[which], "the/file.pkl")
    assert str(error.value).startswith("the/file.pkl is not read")
    assert not mark.exists()


def test_a_size_that_a_pickle_claims_is_not_believed() -> None:
    claims = pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", 1)
    with refused("not-plain", "pickle"):
        unpickle(claims, "file")


def test_a_place_in_the_memo_reserves_no_memory() -> None:
    """The reader that is written in C would take 64 GB for it."""
    assert unpickle(b"\x80\x02Nr\xff\xff\xff\xff.", "file") is None


def test_damage_at_any_byte_is_an_error_or_another_value(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for protocol in (2, 4, 5):
        sound = pickle.dumps(PLAIN[:5], protocol)
        for _ in range(300):
            data = bytearray(sound)
            for place in rng.integers(len(data), size=int(rng.integers(1, 4))):
                data[place] = rng.integers(256)
            try:
                unpickle(bytes(data), "file")
            except UserError as error:
                assert error.code == "not-plain"  # noqa: PT017
