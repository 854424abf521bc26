"""The manifests: what ``manifest.json`` of each artifact says, as typed models. They are the file format."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST = "manifest.json"
Role = Literal["vlm", "vision", "generator"]


class Record(BaseModel):
    """Base of all that is written: an unknown field is of another version, or of somebody's editor."""

    model_config = ConfigDict(extra="forbid")


class ModelRecord(Record):
    """Which model made an artifact."""

    uri: str
    """For people."""
    fingerprint: str
    """Of its weights and preprocessing, for the check."""
    dim: int | None = None
    """Length of its vectors."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its preprocessing, or a generator's steps, guidance and size."""


class Manifest(Record):
    """What every manifest says."""

    artifact: str
    format: int = 1
    created: str = Field(default_factory=lambda: now())
    mindseye: str = Field(default_factory=lambda: version("mindseye"))
    models: dict[Role, ModelRecord] = Field(default_factory=dict)


class BatchRecord(Record):
    """One run of the embedding job: the inputs of one source at one time."""

    name: str
    source: str
    """What the paths of its rows are relative to."""
    inputs: int
    rows: int
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected inputs by reason."""


class PartRecord(Record):
    """One Parquet file of a gallery."""

    name: str
    """Relative to the gallery."""
    rows: int


class GalleryManifest(Manifest):
    """What a gallery consists of."""

    artifact: Literal["gallery"] = "gallery"
    format: int = 2
    rows: int
    batches: list[BatchRecord]
    parts: list[PartRecord]
    """Other files in its folder are of jobs that have not finished, or no longer used."""

    @property
    def sources(self) -> dict[str, str]:
        """Source of each batch, by its name."""
        return {batch.name: batch.source for batch in self.batches}

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rejected inputs by reason."""
        return dict(sum((Counter(batch.rejected) for batch in self.batches), Counter()))


class SpentRecord(Record):
    """What making queries took, on one worker after another."""

    device: str
    """The name of the hardware that the models ran on."""
    queries: int
    """Of how many queries: not of those that were there when an interrupted job was resumed."""
    seconds: dict[str, float]
    """Of all of them together, by step: ``text``, ``imagine``, ``embed``."""


class QuerySetManifest(Manifest):
    """How the queries of a set were made."""

    artifact: Literal["queryset"] = "queryset"
    queries: int
    images: int
    """K, the images that were asked for per query."""
    seed: int
    templates: list[str]
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected generated images by reason."""
    aspects: list[str] = Field(default_factory=list)
    """Of which the texts say values, in the order of the vocabulary: that in which a text names them."""
    spent: SpentRecord | None = None
    """None where it is not known, as in a manifest that is older than this field."""
    mean: str | None = None
    """Of [t ; v] over the values of a dictionary, or over all texts, with v the mean of the images: base64 of float32,
    little-endian (D,); None in a manifest that is older than this field."""


class ShardRecord(Record):
    """One shard of an index."""

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


Recall = dict[str, dict[str, float]]
"""By depth (10, 100) and λ."""


class RecallRecord(Record):
    """What was measured, once, of the shards that one version built: its search of them against an exact one."""

    version: str
    """That measured it."""
    shards: int
    """How many they are: those that follow the shards of the record before, in the manifest's order."""
    rows: int
    """Rows of theirs that could be found then."""
    recall: Recall
    text_recall: Recall | None = None
    evidence_recall: dict[str, Recall] | None = None


class IndexManifest(Manifest):
    """What one version of an index consists of."""

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
    """Tombstones: rows that lie in shards and are never returned. ``Index.REMOVED`` has their ids."""
    recall: Recall
    """Recall of the default search against exact search, on a sample of queries: of ``measured``, the least."""
    text_recall: Recall | None = None
    """The same of texts, by the λ that they were measured at; None where there were none, as for ``Flat``."""
    evidence_recall: dict[str, Recall] | None = None
    """The same of queries made of evidence, by kind (``retrieval.index.evidence_queries``); None for ``Flat``, and in a
    manifest that is older than this field.
    """
    measured: list[RecallRecord] = Field(default_factory=list)
    """What was measured of all shards, or of none in a manifest that is older than this field."""
    mean: str | None = None
    """Of the joint rows [c ; d] of all shards, removed ones included: base64 of float32, little-endian (D,); None in a
    manifest that is older than this field."""


class AggregatorManifest(Manifest):
    """The shape of an aggregator, and how it was trained."""

    artifact: Literal["aggregator"] = "aggregator"
    dim: int
    heads: int
    layers: int
    dropout: float
    weight: float
    """λ, the fusion weight."""
    training: dict[str, Any] = Field(default_factory=dict)


class ComposerManifest(Manifest):
    """The shape of a composer, and how it was trained."""

    artifact: Literal["composer"] = "composer"
    config: dict[str, Any]
    training: dict[str, Any] = Field(default_factory=dict)


def now() -> str:
    """Return the time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
