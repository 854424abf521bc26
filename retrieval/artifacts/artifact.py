"""What all artifacts share: a folder with a manifest, opened with checks and published by writing the manifest last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from retrieval.artifacts.manifests import MANIFEST, Manifest
from retrieval.errors import DamagedError, UserError
from retrieval.folder import Folder
from retrieval.index.files import text_vector

M = TypeVar("M", bound=Manifest)


class Artifact(Generic[M]):
    """A published artifact: its folder and its manifest."""

    kind: ClassVar[str]
    manifest_type: ClassVar[type[Manifest]]

    def __init__(self, folder: Folder, manifest: M) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def uri(self) -> str:
        return self.folder.uri

    @classmethod
    def open(cls, uri: str | Path | Folder) -> Self:
        """Open a published artifact.

        Raises:
            UserError: there is none at ``uri`` (code ``missing``), it is of another kind (``wrong-kind``) or of another
                format (``wrong-format``); the field is the kind of artifact.
            DamagedError: its manifest cannot be read; the field is the file.
        """
        folder = uri if isinstance(uri, Folder) else Folder(uri)
        file = (folder / MANIFEST).uri
        if not folder.exists(MANIFEST):
            unfinished = (
                " The folder exists: another one is meant, or the job that writes it has not finished."
                if folder.exists()
                else ""
            )
            raise UserError(
                f"there is no {cls.kind} at {folder.uri}: {MANIFEST} is missing.{unfinished}",
                code="missing",
                field=cls.kind,
            )
        try:
            content = folder.read_json(MANIFEST)
        except ValueError as error:
            raise DamagedError(f"{file} is damaged ({error}); make the {cls.kind} again", field=file) from error
        if not isinstance(content, dict) or content.get("artifact") != cls.kind:
            found = content.get("artifact") if isinstance(content, dict) else type(content).__name__
            raise UserError(
                f"{folder.uri} holds a {found}, where a {cls.kind} is expected", code="wrong-kind", field=cls.kind
            )
        readable = cls.manifest_type.model_fields["format"].default
        if content.get("format") != readable:
            raise UserError(
                f"{file} has format {content.get('format')}; this mindseye ({version('mindseye')}) reads"
                f" format {readable}. Use the version that wrote it ({content.get('mindseye')}),"
                f" or make the {cls.kind} again",
                code="wrong-format",
                field=cls.kind,
            )
        try:
            return cls(folder, cls.manifest_type.model_validate(content))  # type: ignore[arg-type]
        except ValidationError as error:
            raise DamagedError(f"{file} is damaged: {error}", field=file) from error

    @classmethod
    def check_new(cls, folder: Folder) -> None:
        """Refuse a folder that an artifact was published in.

        Raises:
            UserError: there is one (``target-exists``).
        """
        if folder.exists(MANIFEST):
            raise UserError(
                f"there is a published {cls.kind} at {folder.uri}; give another target, or delete it first",
                code="target-exists",
                field="target",
            )

    @classmethod
    def publish(cls, folder: Folder, manifest: M) -> Self:
        """Write the manifest, which makes the artifact exist. Everything else must have been written before."""
        folder.write_json(MANIFEST, manifest.model_dump(mode="json"))
        return cls(folder, manifest)

    def halves_of_mean(self, text: str | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a mean that the manifest has, of joint vectors, as its halves, float32 (D1,) and (D2,).

        Args:
            text: as the manifest has it; None in one of an earlier version, of which None is returned.

        Raises:
            DamagedError: it is not a vector of the dimensions of the artifact's models.
        """
        if text is None:
            return None
        dims = [self.manifest.models[role].dim for role in ("vlm", "vision")]
        try:
            mean_D = text_vector(text)
        except ValueError as error:
            raise DamagedError(f"the mean in {self.uri} is damaged: {error}", field=MANIFEST) from error
        if dims != [dims[0], len(mean_D) - (dims[0] or 0)] or not np.isfinite(mean_D).all():
            raise DamagedError(f"the mean in {self.uri} has {len(mean_D)} dimensions, not {dims}", field=MANIFEST)
        return mean_D[: dims[0]], mean_D[dims[0] :]

    @contextmanager
    def reading(self, name: str, folder: Folder | None = None) -> Iterator[None]:
        """Say of one of the artifact's files that it is missing or damaged.

        Args:
            name: of the file.
            folder: that it lies in; by default the artifact's.

        Raises:
            DamagedError: the field is the file.
        """
        try:
            yield
        except (FileNotFoundError, pa.ArrowInvalid, UserError) as error:
            file = ((folder or self.folder) / name).uri
            found = str(error) if str(error).startswith(file) else f"{file} cannot be used: {error}"
            raise DamagedError(f"{found}; make the {self.kind} again", field=file) from error
