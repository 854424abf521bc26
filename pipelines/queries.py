"""A vocabulary, imagined in batch: texts to a QuerySet.

The entries are listed and the list is frozen (``pipelines.unfinished_queries``); a checkpoint notes which are written,
so that an interrupted job is resumed. The models of a query sit together in each worker: generation takes nearly all of
the time, so a pool of its own for the encoders would move every generated image and save nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from cluster.hold import check_held, hold
from cluster.loading import prompt_templates
from cluster.profile import Profile, load_profile
from cluster.progress import Log, ProgressCounter, progress, silent
from cluster.room import Demand, check_room
from cluster.session import check_shared, session
from pipelines.executor import TableFiles, Workers
from pipelines.query_models import describe_query_models, query_models
from pipelines.running import current_executor
from pipelines.unfinished_queries import ENTRY, JOB, QUERIES, Job, OpenQueries, open_queries
from pipelines.vocabulary import VocabularyEntry, read_vocabulary
from retrieval.artifacts import QuerySet
from retrieval.artifacts.manifests import QuerySetManifest, SpentRecord
from retrieval.artifacts.queryset import queryset_schema
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.images import thumbnail
from retrieval.index.files import vector_text
from retrieval.prompts import fill, usable
from retrieval.query import EncodedQuery
from retrieval.words import mean_of_words


def imagine(
    vocabulary: str | Path | Sequence[VocabularyEntry],
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    images: int | None = None,
    seed: int | None = None,
    templates: Sequence[str] | None = None,
    take_over: bool = False,
    address: str | None = None,
    log: Log = silent,
) -> QuerySet:
    """Imagine and encode every entry of a vocabulary. The same call resumes where an interrupted one stopped.

    Args:
        vocabulary: a file (``read_vocabulary``) or the entries themselves.
        target: folder or URI of the query set.
        profile: name or file of a profile, or one that is loaded.
        images: K, images per query; by default the profile's.
        seed: seed of the images; by default the profile's.
        templates: of the text vectors, each with one ``{}``; by default the profile's.
        take_over: break the lock of another job. Be sure that it is dead.
        address: where it runs, as ``cluster.session.session`` takes it.
        log: is told what is resumed, line by line.

    Returns:
        The published query set.

    Raises:
        UserError: the vocabulary or the profile cannot be read, a template is wrong, or as ``build_queries``.
    """
    settings = load_profile(profile)
    if templates is not None:
        fill(templates, "")
        queries = settings.queries.model_copy(update={"templates": list(templates)})
        settings = settings.model_copy(update={"queries": queries})
    entries = read_vocabulary(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
    with session(address):
        return build_queries(entries, target, settings, images=images, seed=seed, take_over=take_over, log=log)


def build_queries(
    vocabulary: Sequence[VocabularyEntry],
    target: str | Path,
    profile: Profile,
    *,
    images: int | None = None,
    seed: int | None = None,
    take_over: bool = False,
    log: Log = silent,
) -> QuerySet:
    """Imagine and encode every entry of a vocabulary, within a session, and publish the QuerySet; resume a job that was
    interrupted.

    Args:
        vocabulary: the queries; equal entries are one.
        target: folder or URI of the query set.
        profile: models and resources.
        images: K, images per query; by default the profile's.
        seed: seed of the images; by default the profile's.
        take_over: break the lock of another job. Be sure that it is dead.
        log: is told what is resumed.

    Returns:
        The published query set.

    Raises:
        UserError: the vocabulary is empty (``empty``), a text is blank or too long, ``images`` is below 1
            (``out-of-range``), ``target`` already holds a query set (``target-exists``), an unfinished one of other
            entries, models or settings (``unfinished-queries``) or another job's lock (``locked``), this job has lost
            its own, and publishes nothing (``lock-lost``), a node does not see it (``not-shared``), or a model cannot
            be loaded.
    """
    images = profile.queries.images if images is None else images
    seed = profile.queries.seed if seed is None else seed
    _check(vocabulary, images)
    folder = Folder(target)
    QuerySet.check_new(folder)
    check_room(Demand("imagining", "imagine", profile.imagine))
    with hold(folder, f"mindseye queries to {folder.uri}", take_over=take_over):
        QuerySet.check_new(folder)  # another job may have published meanwhile
        models = describe_query_models(profile)
        job = Job(images=images, seed=seed, templates=prompt_templates(profile), models=models.records)
        unfinished = open_queries(folder, vocabulary, job)
        check_shared(unfinished.folder, JOB)
        if unfinished.done:
            log(f"resuming: {unfinished.done:,} of {unfinished.entries:,} queries are done")
        seconds = _imagine(folder, unfinished, job, profile)
        made = unfinished.entries - unfinished.done
        spent = SpentRecord(device=models.device, queries=made, seconds=seconds) if seconds else None
        aspects = dict.fromkeys(entry.aspect for entry in vocabulary if entry.aspect)
        return _published(folder, unfinished, job, list(aspects), spent)


def _imagine(target: Folder, unfinished: OpenQueries, job: Job, profile: Profile) -> dict[str, float]:
    """Imagine what is left; return the seconds of each step."""
    left, stage = unfinished.entries - unfinished.done, profile.imagine
    if not left:
        return {}
    with progress("imagining queries", left) as counter:
        current_executor().write(
            unfinished.source(stage.batch),
            Workers(Imaginer, (profile, job.images, job.seed, counter), stage),
            sink=QueriesSink(target / QUERIES),
            checkpoint=unfinished.checkpoint,
        )
        return {step: round(seconds, 3) for step, seconds in counter.seconds().items()}


def _published(
    target: Folder, unfinished: OpenQueries, job: Job, aspects: list[str], spent: SpentRecord | None
) -> QuerySet:
    manifest = QuerySetManifest(queries=unfinished.entries, aspects=aspects, spent=spent, **dict(job))
    arrived = sum(target.count_rows(target.files(QUERIES, ".parquet")))
    if arrived != unfinished.entries:
        raise RuntimeError(f"{arrived} queries of {unfinished.entries} arrived in {target.uri}")
    written = QuerySet(target, manifest)
    rejected = written.table(["id", "rejected"])["rejected"]
    manifest.rejected = dict(Counter(reason for row in rejected.to_pylist() for reason in row))
    manifest.mean = vector_text(mean_of_words(written))
    check_held(target)
    published = QuerySet.publish(target, manifest)
    unfinished.folder.delete()
    return published


def _check(vocabulary: Sequence[VocabularyEntry], images: int) -> None:
    if not vocabulary:
        raise UserError("the vocabulary is empty; give at least one text", code="empty", field="vocabulary")
    for entry in vocabulary:
        usable(entry.text)
    if images < 1:
        message = f"at least one image must be imagined for each query, not {images}"
        raise UserError(message, code="out-of-range", field="images")


class QueriesSink(TableFiles):
    """Writes rows of ``queryset_schema``, without their numbers in the frozen list."""

    def write(self, rows: pa.Table, name: str) -> None:
        super().write(rows.drop_columns([ENTRY]), name)


class Imaginer:
    """Imagines and encodes batches of vocabulary rows.

    Args:
        profile: models and resources.
        images: K, images per query.
        seed: seed of the images.
        counter: counts the queries that are done.
    """

    def __init__(self, profile: Profile, images: int, seed: int, counter: ProgressCounter) -> None:
        self.encoder = query_models(profile)
        self.images, self.seed, self.counter = images, seed, counter
        schema = queryset_schema(self.encoder.vlm.dim, self.encoder.vision.dim)
        self.schema = schema.insert(0, pa.field(ENTRY, pa.int64()))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows with their numbers and the columns of ``queryset_schema``."""
        seconds: dict[str, float] = {}
        encoded = self.encoder.encode(batch["text"].to_pylist(), self.images, seed=self.seed, seconds=seconds)
        rows = [row | _as_columns(query) for row, query in zip(batch.to_pylist(), encoded, strict=True)]
        self.counter.add(len(rows), **seconds)
        self.counter.flush()
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
