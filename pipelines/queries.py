"""A vocabulary, imagined in batch: texts to a QuerySet.

The models of a query sit together in each worker: generation takes nearly all of the time, so a pool of its own for the
encoders would move every generated image and save nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from cluster.loading import load_query_encoder, prompt_templates, record_of
from cluster.profile import Profile, load_profile
from cluster.progress import ProgressCounter, progress
from cluster.session import check_room, session
from pipelines.executor import TableFiles, Workers, current_executor
from pipelines.vocabulary import VocabularyEntry, read_vocabulary
from retrieval.artifacts import MANIFEST, ModelRecord, QuerySet, Role
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.images import thumbnail
from retrieval.prompts import usable
from retrieval.query import EncodedQuery

_ROLES: tuple[Role, ...] = ("vlm", "vision", "generator")


def imagine(
    vocabulary: str | Path | Sequence[VocabularyEntry],
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    images: int | None = None,
    seed: int | None = None,
    address: str | None = None,
) -> QuerySet:
    """Imagine and encode every entry of a vocabulary.

    Args:
        vocabulary: a file (``read_vocabulary``) or the entries themselves.
        target: folder or URI of the query set.
        profile: name or file of a profile, or one that is loaded.
        images: K, images per query; by default the profile's.
        seed: seed of the images; by default the profile's.
        address: where it runs, as ``cluster.session.session`` takes it.

    Returns:
        The published query set.

    Raises:
        UserError: the vocabulary or the profile cannot be read, or as ``build_queries``.
    """
    settings = load_profile(profile)
    entries = read_vocabulary(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
    with session(address):
        return build_queries(entries, target, settings, images=images, seed=seed)


def build_queries(
    vocabulary: Sequence[VocabularyEntry],
    target: str | Path,
    profile: Profile,
    *,
    images: int | None = None,
    seed: int | None = None,
) -> QuerySet:
    """Imagine and encode every entry of a vocabulary, within a session, and publish the QuerySet.

    Args:
        vocabulary: the queries; equal entries are one.
        target: folder or URI of the query set.
        profile: models and resources.
        images: K, images per query; by default the profile's.
        seed: seed of the images; by default the profile's.

    Returns:
        The published query set.

    Raises:
        UserError: the vocabulary is empty (``empty``), a text is blank or too long, ``images`` is below 1
            (``out-of-range``), ``target`` already holds a query set (``target-exists``), or a model cannot be loaded.
    """
    images = profile.queries.images if images is None else images
    seed = profile.queries.seed if seed is None else seed
    _check(vocabulary, images)
    folder = _emptied(target)
    stage = profile.imagine
    check_room("imagining", "imagine", stage.cpus, stage.gpus)
    executor = current_executor()
    models = executor.run(_describe_models, profile, cpus=stage.cpus, gpus=stage.gpus).get()

    rows = pa.Table.from_pylist([entry._asdict() | {"id": entry.id} for entry in dict.fromkeys(vocabulary)])
    # Several small blocks for each worker, so that all have work in time.
    blocks = [rows.slice(start, stage.batch) for start in range(0, rows.num_rows, stage.batch)]
    with progress("imagining queries", rows.num_rows) as counter:
        workers = Workers(Imaginer, (profile, images, seed, counter), stage)
        executor.write(blocks, workers, sink=TableFiles(folder / "queries"))
    manifest = QuerySetManifest(
        queries=rows.num_rows, images=images, seed=seed, templates=prompt_templates(profile), models=models
    )
    written = QuerySet(folder, manifest).table(["id", "rejected"])
    if written.num_rows != rows.num_rows:
        raise RuntimeError(f"{written.num_rows} queries of {rows.num_rows} arrived in {folder.uri}")
    manifest.rejected = dict(Counter(reason for row in written["rejected"].to_pylist() for reason in row))
    return QuerySet.publish(folder, manifest)


def _check(vocabulary: Sequence[VocabularyEntry], images: int) -> None:
    if not vocabulary:
        raise UserError("the vocabulary is empty; give at least one text", code="empty", field="vocabulary")
    for entry in vocabulary:
        usable(entry.text)
    if images < 1:
        message = f"at least one image must be imagined for each query, not {images}"
        raise UserError(message, code="out-of-range", field="images")


def _emptied(target: str | Path) -> Folder:
    """Return the folder of a new query set, without what an interrupted run left there."""
    folder = Folder(target)
    if folder.exists(MANIFEST):
        message = f"{folder.uri} already holds a query set; give another target, or delete it first"
        raise UserError(message, code="target-exists", field="target")
    folder.delete("queries")
    folder.create()
    return folder


def _describe_models(profile: Profile) -> dict[Role, ModelRecord]:
    encoder = load_query_encoder(profile)
    return {role: record_of(getattr(encoder, role)) for role in _ROLES}


class Imaginer:
    """Imagines and encodes batches of vocabulary rows.

    Args:
        profile: models and resources.
        images: K, images per query.
        seed: seed of the images.
        counter: counts the queries that are done.
    """

    def __init__(self, profile: Profile, images: int, seed: int, counter: ProgressCounter) -> None:
        self.encoder = load_query_encoder(profile)
        self.images, self.seed, self.counter = images, seed, counter
        self.schema = queryset_schema(self.encoder.vlm.dim, self.encoder.vision.dim)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows with the columns of ``queryset_schema``."""
        encoded = self.encoder.encode(batch["text"].to_pylist(), self.images, seed=self.seed)
        rows = [row | _as_columns(query) for row, query in zip(batch.to_pylist(), encoded, strict=True)]
        self.counter.add(len(rows))
        return pa.Table.from_pylist(rows, schema=self.schema)


def _as_columns(query: EncodedQuery) -> dict[str, Any]:
    imagined = query.imagined
    return {
        "vlm": query.vlm_D1,
        "vision": list(query.vision_KD2),
        "seeds": imagined.seeds,
        "thumbnails": [thumbnail(Image.fromarray(pixels)) for pixels in imagined.pixels_KHWC],
        "rejected": imagined.rejected,
    }
