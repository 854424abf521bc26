"""One folder on any filesystem of ``pyarrow.fs``: local disk, S3, GCS, …"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from pyarrow import fs
from pydantic import BaseModel, ValidationError

from retrieval.errors import DamagedError, UserError

R = TypeVar("R", bound=BaseModel)
_PIECE_BYTES = 8 * 2**20
_ROWS_PER_GROUP = 256
"""Of a table with vectors, so that some of its rows can be read without the others."""
_ROWS_AT_ONCE = 4096
_SECRET = re.compile(r"://[^/?]*:[^/?]*@|[?&](access_key|secret_key|session_token)=")


class Folder:
    """A folder, named by a local path or by a URI (``s3://bucket/…``, ``gs://…``, ``file:///…``). It need not exist
    yet. A URI may end in options of its filesystem, which children keep (``s3://…?endpoint_override=…&scheme=http``).

    Names of files are relative to it, with forward slashes. Writing creates the folders that are missing.

    Raises:
        UserError: the URI's scheme is unknown, its filesystem cannot be reached, it names no bucket, or it has a
            password in it.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        if "://" not in text:
            text = Path(text).expanduser().absolute().as_posix()
        elif _SECRET.search(text):
            raise UserError(
                f"{text.partition('://')[0]}://… has a key or password in it, which would end up in manifests and logs:"
                " give it through the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
                " GOOGLE_APPLICATION_CREDENTIALS) or the store's own configuration",
                code="secret-in-uri",
                field="uri",
            )
        try:
            self.filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{uri} is neither a local path nor a URI that can be reached: {error}", code="bad-uri", field="uri"
            ) from error
        self.path = path.rstrip("/")
        if not self.path and not isinstance(self.filesystem, fs.LocalFileSystem):
            raise UserError(f"{uri} names no bucket: give one, as in s3://bucket/folder", code="bad-uri", field="uri")
        place, mark, options = text.partition("?") if "://" in text else (text, "", "")
        self._place, self._options = place.rstrip("/"), mark + options

    def __truediv__(self, name: str) -> Self:
        child = object.__new__(type(self))
        child.filesystem, child.path = self.filesystem, f"{self.path}/{name}"
        child._place, child._options = f"{self._place}/{name}", self._options
        return child

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    @property
    def uri(self) -> str:
        """The absolute path or the URI, with which the folder can be opened again anywhere."""
        return self._place + self._options

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Self:
        """The folder that it lies in."""
        above = object.__new__(type(self))
        above.filesystem, above.path = self.filesystem, self.path.rsplit("/", 1)[0]
        above._place, above._options = self._place.rsplit("/", 1)[0], self._options
        return above

    @property
    def local_path(self) -> Path | None:
        """The folder as a path, if it lies on this machine."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def exists(self, name: str = "") -> bool:
        with advice(self):
            return self.filesystem.get_file_info(self._at(name)).type != fs.FileType.NotFound

    def modified(self, name: str) -> float:
        """Return when a file was last written, seconds since the epoch by the clock of its filesystem.

        Raises:
            FileNotFoundError: it is not there.
        """
        with advice(self):
            info = self.filesystem.get_file_info(self._at(name))
        if info.mtime_ns is None:
            raise FileNotFoundError(f"{self.uri}/{name} is not there")
        return info.mtime_ns / 1e9

    def files(self, name: str = "", suffix: str = "") -> list[str]:
        """Return the files in a sub-folder (not below it), sorted; none if it does not exist."""
        return self._entries(name, fs.FileType.File, suffix)

    def folders(self, name: str = "") -> list[str]:
        """Return the folders in a sub-folder, sorted; none if it does not exist."""
        return self._entries(name, fs.FileType.Directory, "")

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self._at(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; if that fails, what was there stays."""
        if self.local_path:
            with self.writing(name) as stream:
                stream.write(data)
            return
        target = self._at(name)
        with advice(self):
            self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """Write a file piece by piece: it is there when the block ends, and is not if an error ends it.

        On a disk it has a temporary name meanwhile. In an object store a move would be a copy, of at most 5 GB on S3,
        so it has its own name, and should be a new one: an error deletes what is there.
        """
        target = self._at(name)
        with advice(self):
            self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        partial = f"{target}.{uuid.uuid4().hex[:8]}.partial" if self.local_path else target
        try:
            with advice(self), self.filesystem.open_output_stream(partial) as stream:
                yield stream
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(partial)
            raise
        if partial != target:
            self.filesystem.move(partial, target)

    def upload(self, name: str, file: Path) -> None:
        """Copy a file of this machine here, in pieces."""
        with file.open("rb") as source, self.writing(name) as stream:
            shutil.copyfileobj(source, stream, _PIECE_BYTES)

    def download(self, name: str, file: Path) -> None:
        """Copy a file to this machine, in pieces."""
        with self.filesystem.open_input_stream(self._at(name)) as stream, file.open("wb") as target:
            shutil.copyfileobj(stream, target, _PIECE_BYTES)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_record(self, name: str, kind: type[R], remedy: str) -> R:
        """Return a JSON file as the model that was written there.

        Args:
            remedy: what to do about a damaged one, as a clause.

        Raises:
            DamagedError: it is not JSON, or not of this model; the field is the file.
        """
        try:
            return kind.model_validate_json(self.read_bytes(name))
        except ValidationError as error:
            file = (self / name).uri
            raise DamagedError(f"{file} is damaged ({error}); {remedy}", field=file) from error

    def write_json(self, name: str, content: Any) -> None:
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def open_input(self, name: str) -> pa.NativeFile:
        return self.filesystem.open_input_file(self._at(name))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a Parquet file as a table.

        Raises:
            DamagedError: it is not Parquet, or not whole.
        """
        with self._parquet(name) as file:
            return file.read(columns=list(columns) if columns else None)

    def tables(
        self, name: str, columns: Sequence[str] | None = None, *, without: Sequence[str] = (), rows: int = 65_536
    ) -> Iterator[pa.Table]:
        """Yield a Parquet file as tables of at most ``rows`` rows; all columns but those ``without``, if none are
        given.

        Raises:
            DamagedError: it is not Parquet, or not whole.
        """
        with self._parquet(name) as file:
            if columns is None:
                columns = [column for column in file.schema_arrow.names if column not in without]
            for batch in file.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])

    def count_rows(self, names: Sequence[str]) -> list[int]:
        """Return how many rows each of some Parquet files has, from their footers.

        Raises:
            DamagedError: one is not Parquet, or not whole.
        """

        def rows(name: str) -> int:
            with self._parquet(name) as file:
                return file.metadata.num_rows

        with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
            return list(pool.map(rows, names))

    def take(self, name: str, rows: ArrayLike, columns: Sequence[str]) -> pa.Table:
        """Return some rows of a Parquet file, reading the row groups that have them.

        Args:
            name: of the file.
            rows: their places, ascending; at least one.
            columns: that are returned.

        Raises:
            DamagedError: it is not Parquet, not whole, or has not so many rows.
        """
        with self._parquet(name) as file:
            sizes = np.array([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
            ends = np.cumsum(sizes)
            wanted = np.asarray(rows, dtype=np.int64)
            if wanted[-1] >= file.metadata.num_rows:
                raise DamagedError(
                    f"{(self / name).uri} is damaged: it has {file.metadata.num_rows:,} rows, and none at place"
                    f" {wanted[-1]:,}",
                    field=name,
                )
            groups = np.searchsorted(ends, wanted, side="right")
            held, of = np.unique(groups, return_inverse=True)
            # Where each row lies among those that are read: without the row groups before it that are not.
            left_out = (ends - np.cumsum(np.isin(np.arange(len(sizes)), held) * sizes))[held]
            places = wanted - left_out[of]
            taken, at = [], 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=held.tolist(), columns=list(columns)):
                inside = places[(places >= at) & (places < at + batch.num_rows)] - at
                taken.append(pa.Table.from_batches([batch]).take(pa.array(inside)))
                at += batch.num_rows
            return pa.concat_tables(taken)

    @contextmanager
    def _parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        try:
            with self.open_input(name) as file:
                # Row groups that lie together are one request to a store, and not each a request of its own.
                yield pq.ParquetFile(file, pre_buffer=self.local_path is None)
        except pa.ArrowInvalid as error:
            raise DamagedError(f"{(self / name).uri} is damaged: {error}", field=name) from error
        except OSError as error:
            # Arrow says so too of bytes that it cannot decode, and then names no file.
            if error.errno is None and not self._is_decodable(name):
                raise DamagedError(f"{(self / name).uri} is damaged: {error}", field=name) from error
            raise

    def _is_decodable(self, name: str) -> bool:
        data = pa.BufferReader(self.read_bytes(name))
        try:
            for _ in pq.ParquetFile(data).iter_batches():
                pass
        except (OSError, pa.ArrowInvalid):
            return False
        return True

    def read_schema(self, name: str) -> pa.Schema:
        with self.open_input(name) as file:
            return pq.read_schema(file)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write Parquet. Only text is given a dictionary: vectors would take six times as long to read for it."""
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        has_vectors = any(pa.types.is_fixed_size_list(field.type) for field in table.schema)
        with self.writing(name) as stream:
            group = _ROWS_PER_GROUP if has_vectors else None
            pq.write_table(table, stream, use_dictionary=texts, row_group_size=group)

    def create(self) -> None:
        with advice(self):
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self, name: str = "") -> None:
        """Delete a file, or a sub-folder with all that is in it, if it exists."""
        kind = self.filesystem.get_file_info(self._at(name)).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self._at(name))
        elif kind != fs.FileType.NotFound:
            self.filesystem.delete_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _entries(self, name: str, kind: fs.FileType, suffix: str) -> list[str]:
        selector = fs.FileSelector(self._at(name), allow_not_found=True)
        prefix = f"{name}/" if name else ""
        with advice(self):
            try:
                found = self.filesystem.get_file_info(selector)
            except FileNotFoundError:  # it was created after Arrow failed to list it, and before Arrow checked for it
                found = self.filesystem.get_file_info(selector)
        return sorted(
            prefix + info.base_name for info in found if info.type == kind and info.base_name.endswith(suffix)
        )


@contextmanager
def advice(folder: Folder) -> Iterator[None]:
    """Raise an object store's errors about keys and buckets as ones that say what to do.

    Raises:
        PermissionError: the credentials are refused.
        FileNotFoundError: there is no such bucket.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        said = str(error)
        refused = ("ACCESS_DENIED", "UNRECOGNIZED_CLIENT", "INVALID_CLIENT", "SIGNATURE")
        if any(word in said for word in refused) or re.search(r"HTTP\D{1,20}403", said):
            raise PermissionError(
                f"{folder.uri}: the object store refuses access. Check the credentials (AWS_ACCESS_KEY_ID,"
                " AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role) and that they may list, read and write"
                f" there. It said: {said}"
            ) from error
        # Google's client would create a bucket that is missing, and lacks a project to do so in.
        if any(word in said for word in ("NO_SUCH_BUCKET", "missing project id")) or (
            "Bucket" in said and "not found" in said
        ):
            raise FileNotFoundError(
                f"{folder.uri}: there is no such bucket, or not in this region; create it first, or correct the URI."
                f" It said: {said}"
            ) from error
        raise


def given_text(file: str | Path | Folder, what: str, *, field: str) -> str:
    """Return the text of a file that a user names, without a byte order mark.

    Args:
        file: path or URI, or the same opened.
        what: words for the message where it is missing, such as "are no templates".
        field: of the errors.

    Raises:
        UserError: the file is missing (code ``missing``) or not UTF-8 (``not-utf-8``).
    """
    place = file if isinstance(file, Folder) else Folder(file)
    shown = place.uri if isinstance(file, Folder) else file
    if not place.exists():
        raise UserError(f"there {what} at {shown}", code="missing", field=field)
    try:
        return place.parent.read_bytes(place.name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not UTF-8 text ({error})", code="not-utf-8", field=field) from error
