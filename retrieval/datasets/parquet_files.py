"""A data set as Parquet: rows with an image's bytes and its label, as the Hugging Face hub has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import UserError
from retrieval.sources.text import is_bytes, text

_ROWS = 256


class ParquetFiles:
    """Some Parquet files with the same columns.

    Attributes:
        files: in order.
        image, label: the columns.
        names: what numbers in ``label`` stand for: as given, else as the files say it (``datasets`` writes it into
            their schema); empty where labels are text.
        has_paths: whether there is a column ``path``.

    Args:
        image, label: the columns; ``image`` and ``label`` where a file has not both.
        keys: what numbers stand for, in order, if that is known.

    Raises:
        UserError: a file is not Parquet (``damaged``), has not the columns (``wrong-columns``), or has labels that are
            numbers, and nothing says which class each is (``no-names``).
    """

    def __init__(self, files: Sequence[Path], image: str, label: str, keys: Sequence[str] | None = None) -> None:
        self.files, self.image, self.label = list(files), "image", "label"
        schemas = [_schema_of(file) for file in self.files]
        if all(column in schema.names for schema in schemas for column in (image, label)):
            self.image, self.label = image, label
        for file, schema in zip(self.files, schemas, strict=True):
            self._check(file, schema)
        kind = schemas[0].field(self.label).type
        self.has_paths = all("path" in schema.names for schema in schemas)
        self.names = [] if not pa.types.is_integer(kind) else list(keys or _names_of(schemas[0], self.label))
        if pa.types.is_integer(kind) and not self.names:
            message = (
                f"{self.label} in {self.files[0]} is a number, and nothing says which class each number is; expected"
                " text, or the features that `datasets` writes into its schema"
            )
            raise UserError(message, code="no-names", field="root")

    def _check(self, file: Path, schema: pa.Schema) -> None:
        missing = [column for column in (self.image, self.label) if column not in schema.names]
        if missing:
            message = f"{file} has no column {', '.join(missing)}; it has {', '.join(schema.names)}"
            raise UserError(message, code="wrong-columns", field="root")
        kind = schema.field(self.image).type
        in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (in_struct or is_bytes(kind)):
            message = f"{self.image} in {file} is {kind}; it must hold bytes, or a struct with a field bytes"
            raise UserError(message, code="wrong-columns", field="root")

    @property
    def source(self) -> str | None:
        """The file, if a gallery can be made of it as it is: one with ``image``, ``path`` and labels in ``label``."""
        columns = (self.image, self.label) == ("image", "label")
        usable = columns and len(self.files) == 1 and self.has_paths and not self.names
        return str(self.files[0]) if usable else None

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Yield path and label of each row, without its image; numbers by their names, if those are known."""
        columns = [self.label, "path"] if self.has_paths else [self.label]
        for file in self.files:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(65_536, columns=columns):
                labels = self._labels(batch)
                paths = text(batch["path"]).to_pylist() if self.has_paths else [None] * len(labels)
                for path, label in zip(paths, labels, strict=True):
                    yield path or f"{file.stem}-{number:06d}", label
                    number += 1

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows with their bytes, some at a time: ``image`` and ``label``, in the order of ``rows``."""
        for file in self.files:
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=[self.image, self.label]):
                image = batch[self.image]
                blobs = image.field("bytes") if pa.types.is_struct(image.type) else image
                yield pa.table({"image": blobs.cast(pa.binary()), "label": self._labels(batch)})

    def _labels(self, batch: pa.RecordBatch) -> list[str | None]:
        values = batch[self.label].to_pylist()
        if self.names:
            return [
                self.names[value] if value is not None and 0 <= value < len(self.names) else None for value in values
            ]
        return [None if value is None or value == "" else str(value) for value in values]


def _schema_of(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}", code="damaged", field="root") from error


def _names_of(schema: pa.Schema, label: str) -> list[str]:
    """Return the names of a column of class numbers (``datasets.ClassLabel``), none where the schema has no such."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):  # not written by `datasets`
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
