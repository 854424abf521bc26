"""Members of a tar as inputs, by the conventions of WebDataset.

Members that follow one another and whose names agree up to the first dot are a sample: images, and beside them ``.cls``
(label), ``.txt`` (caption) and ``.json`` (metadata).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from retrieval.folder import Folder
from retrieval.sources.files import IMAGE_SUFFIXES, File, inputs_table, pieces, refused, suffix
from retrieval.sources.metadata import MAX_METADATA, RESERVED, clean

_SIDECAR, _HEADER = 2**20, 2**20
_BESIDE = ("cls", "txt", "json")
_COLUMNS = ("label", "offset", "length", "reason", "detail")


class _Member(NamedTuple):
    """A member of a tar: its name, where its bytes lie, and those of small text beside an image."""

    name: str
    offset: int
    length: int
    text: str | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def key(self) -> str:
        """What members of one sample share: the name up to the first dot after the last slash."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]


class _Bounded(io.BufferedReader):
    """Reads a tar's headers: a megabyte at a time from the store, and never a header of more than that."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header declares {size:,} bytes")
        return super().read(size)


def tar_inputs(root: Folder, file: File) -> Iterator[pa.Table]:
    """Yield the inputs of a tar; a member's path is ``tar/member``."""
    if suffix(file.name) != "tar":
        yield refused(
            file,
            "compressed",
            f"{file.name} is compressed, so its members can not be read one by one; unpack it to a plain .tar first",
        )
        return
    broken: list[pa.Table] = []
    samples = (list(members) for _, members in groupby(_members(root, file, broken), key=lambda member: member.key))
    for piece in pieces(row for sample in samples for row in _sample_rows(file, sample)):
        metadata: dict[str, list[Any]] = {}
        for i, row in enumerate(piece):
            for name, value in row["metadata"].items():
                metadata.setdefault(name, [None] * len(piece))[i] = value
        columns = {name: [row[name] for row in piece] for name in _COLUMNS}
        arrays = {name: _column(values) for name, values in metadata.items()}
        yield inputs_table(file, [row["path"] for row in piece], arrays | columns)
    # Not `yield from`: Ray sends values into a generator, which the iterator of a list does not take.
    for table in broken:  # noqa: UP028
        yield table


def _members(root: Folder, file: File, broken: list[pa.Table]) -> Iterator[_Member]:
    """Yield the members of a tar; what is wrong with the tar itself is added to ``broken``."""
    count = 0

    def note(what: str, reason: str = "broken-file") -> None:
        broken.append(refused(file, reason, f"{file.name} {what}, after {count:,} members; copy or make it again"))

    with root.open_input(file.name) as stream:
        size = stream.size()
        source = _Bounded(stream, _HEADER)
        if source.peek(2)[:2] == b"\x1f\x8b":
            note("is compressed with gzip, whatever its name says: unpack it first")
            return
        try:
            with tarfile.open(fileobj=source, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    count += 1
                    member = None if info.isdir() else _member(archive, info, size)
                    if member is not None:
                        yield member
                # An unreadable header ends a tar as the end does, but there zeros must follow.
                source.seek(archive.offset)
                if source.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    note(f"is cut or damaged at byte {archive.offset:,}")
        except OSError as error:
            note(f"can not be read on ({error})", "unreadable")
        except (tarfile.TarError, ValueError, RuntimeError) as error:  # the last: headers in headers in headers
            note(f"is cut or damaged ({error})")


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, size: int) -> _Member | None:
    parts = [part for part in info.name.split("/") if part != "."]
    name = "/".join(parts)
    member = _Member(name, info.offset_data, info.size)
    if not parts or "" in parts or ".." in parts or "\0" in name:
        return member._replace(reason="bad-name", detail=f"the member {info.name} would lie outside of the tar")
    if any(part.startswith(".") for part in parts):
        return None
    if not info.isreg() or info.issparse():
        what = "a link" if info.issym() or info.islnk() else "not a plain file"
        return member._replace(reason="no-image", detail=f"the member {name} is {what}")
    if info.offset_data + info.size > size:
        return member._replace(reason="truncated", detail=f"the tar ends before the member {name} does")
    if suffix(name) not in _BESIDE:
        return member
    if info.size > _SIDECAR:
        return member._replace(
            reason="bad-metadata", detail=f"{name} has {info.size:,} bytes, the limit is {_SIDECAR:,}"
        )
    content = archive.extractfile(info)
    return member._replace(text=(content.read() if content else b"").decode("utf-8-sig", errors="backslashreplace"))


def _sample_rows(file: File, sample: Sequence[_Member]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of a sample, or one that says what is wrong with it."""
    blank: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"metadata": {}}
    images = [member for member in sample if not member.reason and suffix(member.name) in IMAGE_SUFFIXES]
    for member in sample:
        if member.reason and not (images and suffix(member.name) in _BESIDE):
            yield blank | {"path": f"{file.name}/{member.name}", "reason": member.reason, "detail": member.detail}
    beside = {suffix(member.name): member for member in sample if suffix(member.name) in _BESIDE}
    label, metadata, problem = _described(beside)
    for member in images:
        row = blank | {"path": f"{file.name}/{member.name}", "label": label, "metadata": metadata}
        yield row | {"offset": member.offset, "length": member.length} | problem
    if not images and not any(member.reason for member in sample):
        has = ", ".join(member.name.rpartition("/")[2] for member in sample[:5])
        detail = f"the sample {sample[0].key} has no image, only {has}; members of one sample must follow one another"
        yield blank | {"path": f"{file.name}/{sample[0].key}", "reason": "no-image", "detail": detail}


def _described(beside: dict[str, _Member]) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    """Return label, metadata, and what is wrong, of what lies beside an image: .cls, .txt and .json."""
    try:
        for member in beside.values():
            if member.reason:
                raise ValueError(member.detail)
        content = _json_object(beside["json"]) if "json" in beside else {}
    except ValueError as error:
        return None, {}, {"reason": "bad-metadata", "detail": str(error)}
    label = beside["cls"].text if "cls" in beside else content.get("label")
    metadata = {clean(name): value for name, value in content.items() if name and name not in RESERVED}
    if "txt" in beside:
        metadata.setdefault("caption", (beside["txt"].text or "").strip())
    return (None if label is None else clean(str(label)).strip() or None), metadata, {}


def _json_object(member: _Member) -> dict[str, Any]:
    try:
        content = json.loads(member.text or "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{member.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{member.name} holds a {type(content).__name__}, where an object is expected")
    if len(content) > MAX_METADATA:
        raise ValueError(f"{member.name} has {len(content):,} names, the limit is {MAX_METADATA}")
    return content


def _column(values: list[Any]) -> pa.Array:
    """Return values of JSON as a column: numbers, booleans or text where all are, else text."""
    kinds = {type(value) for value in values if value is not None}
    for of_kind, type_ in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds <= of_kind:
            try:
                return pa.array(values, type_) if kinds else pa.nulls(len(values))
            except (OverflowError, pa.ArrowInvalid):  # whole numbers beyond 64 bits, or not exact as float
                break
    plain = [
        value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False) for value in values
    ]
    return pa.array([None if value is None else clean(value) for value in plain], pa.string())
