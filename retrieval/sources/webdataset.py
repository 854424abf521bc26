"""Samples by the conventions of WebDataset: images, and beside them label, caption and metadata.

Members of an archive that follow one another and whose names agree up to the first dot are a sample: images, and beside
them ``.cls`` (label), ``.txt`` (caption) and ``.json`` (metadata).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import pyarrow as pa

from retrieval.sources.files import File, suffix
from retrieval.sources.image_folder import IMAGE_SUFFIXES
from retrieval.sources.inputs import inputs_table, pieces
from retrieval.sources.metadata import MAX_METADATA, RESERVED
from retrieval.sources.text import clean

SIDECARS: Final = ("cls", "txt", "json")
"""Ends of the names of what lies beside an image."""
_COLUMNS = ("label", "offset", "length", "reason", "detail")


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: within the archive.
        offset, length: where its bytes lie.
        text: its content, of what lies beside an image.
        reason, detail: why it cannot be used, else None.
    """

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


def sample_inputs(file: File, members: Iterable[Member]) -> Iterator[pa.Table]:
    """Yield the inputs of an archive, by its members in order; the path of one is ``archive/member``."""
    samples = (list(sample) for _, sample in groupby(members, key=lambda member: member.key))
    for piece in pieces(row for sample in samples for row in _sample_rows(file, sample)):
        metadata: dict[str, list[Any]] = {}
        for i, row in enumerate(piece):
            for name, value in row["metadata"].items():
                metadata.setdefault(name, [None] * len(piece))[i] = value
        columns = {name: [row[name] for row in piece] for name in _COLUMNS}
        arrays = {name: _json_column(values) for name, values in metadata.items()}
        yield inputs_table(file, [row["path"] for row in piece], arrays | columns)


def _sample_rows(file: File, sample: Sequence[Member]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of a sample, or one that says what is wrong with it."""
    blank: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"metadata": {}}
    images = [member for member in sample if not member.reason and suffix(member.name) in IMAGE_SUFFIXES]
    for member in sample:
        if member.reason and not (images and suffix(member.name) in SIDECARS):
            yield blank | {"path": f"{file.name}/{member.name}", "reason": member.reason, "detail": member.detail}
    beside = {suffix(member.name): member for member in sample if suffix(member.name) in SIDECARS}
    label, metadata, problem = _described(beside)
    for member in images:
        row = blank | {"path": f"{file.name}/{member.name}", "label": label, "metadata": metadata}
        yield row | {"offset": member.offset, "length": member.length} | problem
    if not images and not any(member.reason for member in sample):
        has = ", ".join(member.name.rpartition("/")[2] for member in sample[:5])
        detail = f"the sample {sample[0].key} has no image, only {has}; members of one sample must follow one another"
        yield blank | {"path": f"{file.name}/{sample[0].key}", "reason": "no-image", "detail": detail}


def _described(beside: dict[str, Member]) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    """Return label, metadata, and what is wrong, of what lies beside an image: .cls, .txt and .json."""
    try:
        for member in beside.values():
            if member.reason:
                raise _BadSidecarError(member.detail)
        content = _json_object(beside["json"]) if "json" in beside else {}
    except _BadSidecarError as error:
        return None, {}, {"reason": "bad-metadata", "detail": str(error)}
    label = beside["cls"].text if "cls" in beside else content.get("label")
    metadata = {clean(name): value for name, value in content.items() if name and name not in RESERVED}
    if "txt" in beside:
        metadata.setdefault("caption", (beside["txt"].text or "").strip())
    return (None if label is None else clean(str(label)).strip() or None), metadata, {}


class _BadSidecarError(Exception):
    """What lies beside an image cannot be used."""


def _json_object(member: Member) -> dict[str, Any]:
    try:
        content = json.loads(member.text or "")
    except (ValueError, RecursionError) as error:
        raise _BadSidecarError(f"{member.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _BadSidecarError(f"{member.name} holds a {type(content).__name__}, where an object is expected")
    if len(content) > MAX_METADATA:
        raise _BadSidecarError(f"{member.name} has {len(content):,} names, the limit is {MAX_METADATA}")
    return content


def _json_column(values: list[Any]) -> pa.Array:
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
