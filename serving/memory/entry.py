"""An entry of the query memory: a query as it was encoded and imagined, the key that it has, its bytes in a store."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.prompts import usable


def normalised(text: str) -> str:
    """Return the text that a query is remembered by, and that it is encoded and imagined from.

    Unicode NFC; each run of white space (of any kind: Unicode's, line breaks) becomes one space, and none is left at
    the ends; half a surrogate pair becomes a question mark. So texts that look alike are one query.

    Case stays: some tokenizers fold it and others do not, and the seeds of the images depend on it. Compatibility
    forms stay as well (NFKC would turn x² into x2).

    Raises:
        UserError: the text is blank or longer than ``prompts.MAX_CHARACTERS``.
    """
    # NFC makes some characters into several.
    return usable(" ".join(unicodedata.normalize("NFC", usable(text)).split()))


def memory_key(
    text: str,
    images: int,
    seed: int,
    *,
    generator_fingerprint: str,
    vision_fingerprint: str,
    vlm_fingerprint: str,
    templates: Sequence[str],
) -> str:
    """Return the key of a query, 64 hex digits: SHA-256 of canonical JSON of everything its entry depends on.

    The kind of a text is none of that: it changes neither vectors nor images.

    Raises:
        UserError: as ``normalised``.
    """
    parts = {
        "format": FORMAT,
        "text": normalised(text),
        "kind": "name",  # once the kind was part of the key: so entries of names, which are the most, are found
        "images": images,
        "seed": seed,
        "generator": generator_fingerprint,
        "vision": vision_fingerprint,
        "vlm": vlm_fingerprint,
        "templates": list(templates),
    }
    return digest_of(parts)


TRANSIENT = frozenset({"nan"})
"""Reasons for which an image was not accepted that another attempt may not have."""


class DamagedEntry(Exception):
    """What a store returned is no entry; it is imagined again."""


FORMAT = 1
_MAGIC = b"mindseye query %d\n" % FORMAT
_DIGEST = 16


@dataclass(frozen=True, eq=False)
class Remembered:
    """A query, encoded and imagined: a row of a QuerySet. K counts the accepted images and may be 0.

    Attributes:
        text, kind: as they were asked, the text normalised.
        vlm_D1: t, float32.
        vision_KD2: g_1…g_K, float32.
        seeds: of the accepted images, (K,) int64.
        indices: by which an answer names them, (K,) int64.
        thumbnails: a JPEG of each.
        rejected: a reason for each image that was not accepted.
        vision_fingerprint: of the encoder that made ``vision_KD2``; empty where an earlier version wrote the entry.
    """

    text: str
    kind: str
    vlm_D1: np.ndarray
    vision_KD2: np.ndarray
    seeds: np.ndarray
    indices: np.ndarray
    thumbnails: list[bytes]
    rejected: list[str]
    vision_fingerprint: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether it lacks images that another attempt may bring."""
        return not TRANSIENT.isdisjoint(self.rejected)

    def to_bytes(self) -> bytes:
        """Return the entry as bytes: a line that says what it is, a checksum, and one row in Arrow's IPC format."""
        row = pa.record_batch(
            {
                "text": [self.text],
                "kind": [self.kind],
                "vlm": fixed_size_list(self.vlm_D1[None].astype(np.float32, copy=False)),
                "vision": _one_list(fixed_size_list(self.vision_KD2.astype(np.float32, copy=False))),
                "seeds": _one_list(pa.array(self.seeds, pa.int64())),
                "indices": _one_list(pa.array(self.indices, pa.int64())),
                "thumbnails": _one_list(pa.array(self.thumbnails, pa.binary())),
                "rejected": _one_list(pa.array(self.rejected, pa.string())),
                "vision_fingerprint": [self.vision_fingerprint],
            }
        )
        return sealed(_MAGIC, row)

    @classmethod
    def from_bytes(cls, data: bytes) -> Remembered:
        """Return the entry that ``to_bytes`` wrote.

        Raises:
            DamagedEntry: the bytes are damaged, or of another format.
        """
        row = unsealed(_MAGIC, data)
        return cls.of_row(row, row["indices"].flatten().to_numpy())

    @classmethod
    def of_row(cls, row: pa.RecordBatch, indices: np.ndarray) -> Remembered:
        """Return the entry of one row with the columns of a QuerySet; its text becomes ``normalised``."""
        return cls(
            text=normalised(row["text"][0].as_py()),
            kind=row["kind"][0].as_py(),
            vlm_D1=matrix(row["vlm"])[0],
            vision_KD2=matrix(row["vision"].flatten()),
            seeds=row["seeds"].flatten().to_numpy(),
            indices=indices,
            thumbnails=row["thumbnails"][0].as_py(),
            rejected=row["rejected"][0].as_py(),
            vision_fingerprint=row["vision_fingerprint"][0].as_py() if "vision_fingerprint" in row.schema.names else "",
        )

    def thumbnail(self, index: int) -> bytes | None:
        """Return the JPEG of the image that an answer names ``index``, None if there is none."""
        place = self.place(index)
        return None if place is None else self.thumbnails[place]

    def place(self, index: int) -> int | None:
        """Return the place of the image that an answer names ``index``, None if there is none."""
        places = np.flatnonzero(self.indices == index)
        return int(places[0]) if len(places) else None


def sealed(magic: bytes, row: pa.RecordBatch) -> bytes:
    """Return one row as bytes: what it is, a checksum, and the row in Arrow's IPC format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    body = sink.getvalue().to_pybytes()
    return magic + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def unsealed(magic: bytes, data: bytes) -> pa.RecordBatch:
    """Return the row that ``sealed`` wrote.

    Raises:
        DamagedEntry: the bytes are damaged, or begin with other magic.
    """
    head, digest, body = data[: len(magic)], data[len(magic) :][:_DIGEST], data[len(magic) + _DIGEST :]
    if head != magic:
        raise DamagedEntry(f"it begins with {head!r} where {magic!r} was expected")
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        raise DamagedEntry(f"the checksum of its {len(body):,} bytes is wrong")
    with pa.ipc.open_stream(body) as reader:
        return reader.read_next_batch()


def digest_of(parts: Mapping[str, Any]) -> str:
    """Return a key, 64 hex digits: SHA-256 of canonical JSON of everything that an entry depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
