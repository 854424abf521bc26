"""The four artifacts that flow between jobs: Gallery, QuerySet, Index, Aggregator (DESIGN: each a folder with one
manifest).

A folder may lie on any filesystem of ``pyarrow.fs``. Its ``manifest.json`` is written last, to a temporary name that
is then moved, so an artifact exists at once or not at all. The manifest names the models that made the artifact;
``check_same_models`` refuses to mix artifacts of different ones.

Shapes: N rows, Q queries, K images, D1 the VLM's dimension, D2 the vision encoder's.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.folder import Folder
from retrieval.index.shard import Shard

if TYPE_CHECKING:  # brings in torch, which takes seconds, and most processes open artifacts without networks
    from retrieval.aggregator import Aggregator

MANIFEST = "manifest.json"
Role = Literal["vlm", "vision", "generator"]


M = TypeVar("M", bound="Manifest")


def now() -> str:
    """Return the time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ModelRecord(BaseModel):
    """Which model made an artifact: its URI for people, its fingerprint for the check, its output dimension and
    preprocessing.
    """

    model_config = ConfigDict(extra="forbid")
    uri: str
    fingerprint: str
    dim: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Manifest(BaseModel):
    """What every manifest says."""

    model_config = ConfigDict(extra="forbid")
    artifact: str
    format: int = 1
    created: str = Field(default_factory=lambda: now())
    mindseye: str = Field(default_factory=lambda: version("mindseye"))
    models: dict[Role, ModelRecord] = Field(default_factory=dict)


class BatchRecord(BaseModel):
    """One run of the embedding job: the inputs of one source at one time."""

    model_config = ConfigDict(extra="forbid")
    name: str
    source: str
    """What the paths of its rows are relative to."""
    inputs: int
    rows: int
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected inputs by reason."""


class PartRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    """Relative to the gallery."""
    rows: int


class GalleryManifest(Manifest):
    artifact: Literal["gallery"] = "gallery"
    format: int = 2
    rows: int
    batches: list[BatchRecord]
    parts: list[PartRecord]
    """What the gallery consists of; other files in its folder are of jobs that have not finished, or no longer used."""

    @property
    def sources(self) -> dict[str, str]:
        """Source of each batch, by its name."""
        return {batch.name: batch.source for batch in self.batches}

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rejected inputs by reason."""
        return dict(sum((Counter(batch.rejected) for batch in self.batches), Counter()))


class QuerySetManifest(Manifest):
    artifact: Literal["queryset"] = "queryset"
    queries: int
    images: int
    """K, the images that were asked for per query."""
    seed: int
    templates: list[str]
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected generated images by reason."""


class ShardRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str
    """The version that it was built for, in whose folder its files lie: later versions share it."""
    name: str
    rows: int
    """Rows in its files, removed ones included."""
    factory: str
    files: dict[str, dict[str, Any]]
    """Bytes and sha256 of each file of the shard."""

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())


class IndexManifest(Manifest):
    artifact: Literal["index"] = "index"
    format: int = 2
    gallery: str
    sources: dict[str, str]
    """What the paths of rows are relative to, by their column ``batch``."""
    rows: int
    """Rows that can be found."""
    factory: str
    shards: list[ShardRecord]
    removed: int = 0
    """Rows that lie in shards and are never returned: ``Index.REMOVED`` has their ids."""
    recall: dict[str, dict[str, float]]
    """Recall of the default search against exact search, on a sample of queries, by depth (10, 100) and λ."""


class AggregatorManifest(Manifest):
    artifact: Literal["aggregator"] = "aggregator"
    dim: int
    heads: int
    layers: int
    dropout: float
    weight: float
    """λ, the fusion weight."""
    training: dict[str, Any] = Field(default_factory=dict)


class Artifact(Generic[M]):
    """A published artifact: its folder and its manifest."""

    kind: ClassVar[str]
    made_by: ClassVar[str]
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
            ValueError: there is none at ``uri``, it is of another kind or of a newer format, or its manifest is
                damaged.
        """
        folder = uri if isinstance(uri, Folder) else Folder(uri)
        file = (folder / MANIFEST).uri
        if not folder.exists(MANIFEST):
            unfinished = (
                " The folder exists: another one is meant, or the job that writes it has not finished."
                if folder.exists()
                else ""
            )
            raise ValueError(
                f"there is no {cls.kind} at {folder.uri}: {MANIFEST} is missing.{unfinished} {cls.made_by} makes one."
            )
        try:
            content = folder.read_json(MANIFEST)
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); {cls.made_by} makes a new one.") from error
        if not isinstance(content, dict) or content.get("artifact") != cls.kind:
            found = content.get("artifact") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{folder.uri} holds a {found}, where a {cls.kind} is expected.")
        readable = cls.manifest_type.model_fields["format"].default
        if content.get("format") != readable:
            raise ValueError(
                f"{file} has format {content.get('format')}; this mindseye ({version('mindseye')}) reads"
                f" format {readable}. Use the version that wrote it ({content.get('mindseye')}),"
                f" or make it again: {cls.made_by}."
            )
        try:
            return cls(folder, cls.manifest_type.model_validate(content))  # type: ignore[arg-type]
        except ValidationError as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    @classmethod
    def publish(cls, folder: Folder, manifest: M) -> Self:
        """Write the manifest, which makes the artifact exist. Everything else must have been written before."""
        folder.write_json(MANIFEST, manifest.model_dump(mode="json"))
        return cls(folder, manifest)


def check_same_models(a: Artifact[Any], b: Artifact[Any], roles: Sequence[Role]) -> None:
    """Refuse artifacts that were made by different models.

    Raises:
        ValueError: naming the role, both artifacts, both URIs and both fingerprints.
    """
    for role in roles:
        ours, theirs = a.manifest.models.get(role), b.manifest.models.get(role)
        if ours is None or theirs is None:
            missing = a if ours is None else b
            raise ValueError(f"the {missing.kind} at {missing.uri} does not say which {role} model made it")
        if ours.fingerprint != theirs.fingerprint:
            raise ValueError(
                f"the {role} models differ, so these two can not be used together:\n"
                f"  {a.kind} {a.uri}: {ours.uri} ({ours.fingerprint})\n"
                f"  {b.kind} {b.uri}: {theirs.uri} ({theirs.fingerprint})\n"
                f"Make one of them again with the other's model."
            )


def check_made_by(artifact: Artifact[Any], role: Role, uri: str, fingerprint: str) -> None:
    """Refuse an artifact that another model made than the one at hand.

    Args:
        uri: of the model at hand, for the message.
        fingerprint: of the model at hand.

    Raises:
        ValueError: naming both.
    """
    record = artifact.manifest.models.get(role)
    if record is None:
        raise ValueError(f"the {artifact.kind} {artifact.uri} does not say which {role} model made it")
    if record.fingerprint != fingerprint:
        raise ValueError(
            f"the {artifact.kind} {artifact.uri} was made by the {role} model {record.uri} ({record.fingerprint}),"
            f" the profile has {uri} ({fingerprint}): vectors of different models can not be compared."
            " Use the profile it was made with"
        )


def check_disjoint(learned: Sequence[str], evaluated: set[str], where: str) -> None:
    """Refuse labels that an aggregator learned from and is measured on.

    Raises:
        ValueError: naming them.
    """
    if both := sorted(set(learned) & evaluated):
        raise ValueError(
            f"{len(both)} labels of the training set are also in the evaluation set {where}: {', '.join(both[:10])}"
            f"{' …' if len(both) > 10 else ''}. Leave them out of one of the two: accuracy on labels that were"
            " learned from says nothing about others."
        )


def gallery_schema(vlm_dim: int, vision_dim: int, metadata: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a gallery's parts; ``metadata`` are the columns that its source has beside ours."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("batch", pa.string()),
            *metadata,
            ("vlm", pa.list_(pa.float16(), vlm_dim)),
            ("vision", pa.list_(pa.float16(), vision_dim)),
        ]
    )


def fixed_size_list(rows_ND: np.ndarray) -> pa.FixedSizeListArray:
    """Turn a matrix (N, D) into an Arrow column of N lists of D values, without a copy where NumPy allows it."""
    flat = pa.array(np.ascontiguousarray(rows_ND).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows_ND.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Turn an Arrow column of N fixed-size lists into a matrix (N, D)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


class Gallery(Artifact[GalleryManifest]):
    """Embedded images: Parquet parts (``gallery_schema``) and tables of rejected inputs, in a folder for each batch."""

    kind = "gallery"
    made_by = "mindseye index"
    manifest_type = GalleryManifest
    EMBEDDED, REJECTED = "-embedded.parquet", "-rejected.parquet"
    """How the names of the two tables end that one task writes."""

    @classmethod
    def of_tables(
        cls, uri: str | Path, tables: Iterable[pa.Table], *, source: str, models: dict[Role, ModelRecord]
    ) -> Self:
        """Publish a gallery of vectors that were made elsewhere, as one batch: a part for each table, whose columns are
        those of ``gallery_schema`` but ``batch``.
        """
        folder, name = Folder(uri), "000001"
        parts = []
        for number, table in enumerate(tables):
            of_batch = pa.array([name] * table.num_rows, pa.string())
            file = f"{cls.batch(name, 'parts')}/{number:06d}{cls.EMBEDDED}"
            folder.write_table(file, table.add_column(5, "batch", of_batch))
            parts.append(PartRecord(name=file, rows=table.num_rows))
        rows = sum(part.rows for part in parts)
        batch = BatchRecord(name=name, source=source, inputs=rows, rows=rows)
        return cls.publish(folder, GalleryManifest(rows=rows, batches=[batch], parts=parts, models=models))

    @staticmethod
    def batch(name: str, inside: str = "") -> str:
        """Return the folder of a batch, or a folder in it, relative to the gallery."""
        return f"batches/{name}/{inside}".rstrip("/")

    def parts(self) -> list[str]:
        """Return the names of the Parquet parts, relative to the folder."""
        return [part.name for part in self.manifest.parts]

    def tables(self, columns: Sequence[str] | None = None, *, rows: int = 65_536) -> Iterator[pa.Table]:
        """Yield the gallery as tables of at most ``rows`` rows, part by part, so that it is never whole in memory."""
        for part in self.parts():
            yield from self.folder.tables(part, columns, rows=rows)

    def rejected(self) -> pa.Table:
        """Return the rejected inputs: ``path``, ``reason`` (a short fixed word) and ``detail`` (a sentence). Of those
        that a later batch of the same source met again, what it made of them counts.
        """
        of_source: dict[str, pa.Table] = {}
        for batch in self.manifest.batches:
            found = of_source.get(batch.source, REJECTED_SCHEMA.empty_table())
            for name in self.folder.files(self.batch(batch.name, "inputs"), ".parquet") if found.num_rows else ():
                again = self.folder.read_table(name, ["path"])["path"]
                found = found.filter(pc.invert(pc.is_in(found["path"], again)))
            files = self.folder.files(self.batch(batch.name, "parts"), self.REJECTED)
            of_source[batch.source] = pa.concat_tables([found, *(self.folder.read_table(name) for name in files)])
        return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *of_source.values()])


REJECTED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def queryset_schema(vlm_dim: int, vision_dim: int) -> pa.Schema:
    """Return the schema of a query set. The lists of one row go together: seeds, vision vectors and thumbnails of its
    images.
    """
    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("kind", pa.string()),
            ("label", pa.string()),
            ("vlm", pa.list_(pa.float32(), vlm_dim)),
            ("vision", pa.list_(pa.list_(pa.float32(), vision_dim))),
            ("seeds", pa.list_(pa.int64())),
            ("thumbnails", pa.list_(pa.binary())),
            ("rejected", pa.list_(pa.string())),
        ]
    )


class QuerySet(Artifact[QuerySetManifest]):
    """Texts with their text vectors and imagined images: Parquet parts under ``queries/`` (``queryset_schema``)."""

    kind = "queryset"
    made_by = "mindseye queries"
    manifest_type = QuerySetManifest

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the queries, sorted by id."""
        names = self.folder.files("queries", ".parquet")
        return pa.concat_tables([self.folder.read_table(name, columns) for name in names]).sort_by("id")


def text_vectors(queries: pa.Table) -> np.ndarray:
    """Return the text vectors of a query table, float32 (Q, D1)."""
    return matrix(queries["vlm"])


def vision_vectors(queries: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the image vectors of a query table as float32 (Q, K, D2), zero where an image is missing, and the mask (Q,
    K) of present ones.
    """
    column = queries["vision"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    counts = np.diff(column.offsets.to_numpy())
    dim = column.type.value_type.list_size
    features = np.zeros((len(column), max(counts.max(initial=1), 1), dim), np.float32)
    mask = np.arange(features.shape[1]) < counts[:, None]
    features[mask] = matrix(column.flatten())
    return features, mask


class Index(Artifact[IndexManifest]):
    """One immutable version of a sharded FAISS index: ``shard-00000/`` … with the files of ``retrieval.index.shard``.

    A version that was made from another by adding or removing rows shares that one's shards.
    """

    kind = "index"
    made_by = "mindseye index"
    manifest_type = IndexManifest
    REMOVED = "removed.parquet"
    """The rows that shards have and that are never returned: ``shard`` (place in the manifest's list) and ``id``."""

    @classmethod
    def open(cls, uri: str | Path | Folder) -> Self:
        """Open the newest published version of the index at ``uri``, or the one version that ``uri`` names."""
        folder = uri if isinstance(uri, Folder) else Folder(uri)
        if folder.exists(MANIFEST):
            return super().open(folder)
        published = published_versions(folder)
        return super().open(folder / published[-1] if published else folder)

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def root(self) -> Folder:
        """The folder that holds all versions."""
        return self.folder.parent

    def shard_folder(self, number: int) -> Folder:
        record = self.manifest.shards[number]
        return self.root / record.version / record.name

    def removed(self) -> pa.Table:
        """Return the removed rows: ``shard`` int32 and ``id`` string."""
        return self.folder.read_table(self.REMOVED) if self.manifest.removed else REMOVED_SCHEMA.empty_table()

    def removed_ids(self, number: int) -> pa.ChunkedArray:
        """Return the ids of the removed rows of one shard."""
        table = self.removed()
        return table.filter(pa.compute.equal(table["shard"], number))["id"]

    def shard(self, number: int, *, mmap: bool = True) -> Shard:
        """Load one shard; from a remote filesystem its files are first copied to a temporary folder."""
        folder, removed = self.shard_folder(number), self.removed_ids(number)
        if folder.local_path is not None:
            return Shard.load(folder.local_path, mmap=mmap, removed=removed)
        with tempfile.TemporaryDirectory(prefix="mindseye-shard-") as copy:
            for name in self.manifest.shards[number].files:
                folder.download(name, Path(copy) / name)
            # What is mapped stays readable after its file is deleted, until it is unmapped.
            return Shard.load(Path(copy), mmap=mmap, removed=removed)

    def shards(self) -> list[Shard]:
        return [self.shard(i) for i in range(len(self.manifest.shards))]


REMOVED_SCHEMA = pa.schema([("shard", pa.int32()), ("id", pa.string())])


def version_names(root: Folder) -> list[str]:
    """Return the names of an index's version folders, published or not, oldest first."""
    return [name for name in root.folders() if name.isdigit()]


def published_versions(root: Folder) -> list[str]:
    """Return the names of an index's published versions, oldest first."""
    return [name for name in version_names(root) if root.exists(f"{name}/{MANIFEST}")]


def new_version(root: Folder) -> Folder:
    """Return the folder of the next version; numbers of unpublished leftovers are not used again."""
    names = version_names(root)
    return root / f"{(int(names[-1]) if names else 0) + 1:06d}"


class TrainedAggregator(Artifact[AggregatorManifest]):
    """An aggregator and its λ: ``weights.safetensors`` and the manifest."""

    kind = "aggregator"
    made_by = "mindseye train"
    manifest_type = AggregatorManifest
    WEIGHTS = "weights.safetensors"

    @classmethod
    def save(
        cls, uri: str | Path, network: Aggregator, models: dict[Role, ModelRecord], training: dict[str, Any]
    ) -> TrainedAggregator:
        folder = Folder(uri)
        folder.write_bytes(cls.WEIGHTS, network.to_bytes())
        manifest = AggregatorManifest(**network.config, weight=network.fusion_weight, models=models, training=training)
        return cls.publish(folder, manifest)

    def check_fits(self, other: Artifact[Any]) -> None:
        """Refuse an artifact of other models than those that this aggregator learned from.

        Raises:
            ValueError: as check_same_models, for each role that both name, and for the vision encoder always.
        """
        both = self.manifest.models.keys() & other.manifest.models.keys()
        check_same_models(other, self, [role for role in get_args(Role) if role in both | {"vision"}])

    def check_generator(self, uri: str, fingerprint: str) -> None:
        """Refuse a generator whose images this aggregator did not learn from, if it says whose they were.

        Args:
            uri: of the generator at hand, for the message.
            fingerprint: of the generator at hand.

        Raises:
            ValueError: naming both.
        """
        record = self.manifest.models.get("generator")
        if record and record.fingerprint != fingerprint:
            raise ValueError(
                f"the aggregator {self.uri} learned from images of {record.uri} ({record.fingerprint},"
                f" {record.settings}), the profile imagines with {uri} ({fingerprint}): other weights,"
                " steps, guidance or size. Use the profile it was trained with, or train one for this profile."
            )

    @property
    def learned_labels(self) -> list[str]:
        """The labels that it was trained or validated on; none if that is not known."""
        training = self.manifest.training
        return [*training.get("labels", []), *training.get("validation_labels", [])]

    def network(self) -> Aggregator:
        """Load the network, in evaluation mode."""
        from retrieval.aggregator import Aggregator

        config = self.manifest.model_dump(include={"dim", "heads", "layers", "dropout"})
        return Aggregator.from_bytes(self.folder.read_bytes(self.WEIGHTS), config).eval()
