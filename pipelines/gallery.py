"""The indexing job's first half: images to a Gallery, batch by batch.

A batch is one run of the job over one source: its list of inputs is frozen first, then they are embedded
(``pipelines.embedding``), then the gallery's manifest takes it in. A batch that was begun and not taken in is gone on
with by the same command. Batches that were taken in never change.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq
import ray
from pydantic import BaseModel, ConfigDict
from ray.exceptions import RayError

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile
from cluster.progress import progress
from cluster.session import check_room, check_shared
from pipelines.embedding import Encoders, embed, written
from pipelines.sources import list_inputs
from retrieval.artifacts import MANIFEST, Gallery, ModelRecord, Role
from retrieval.artifacts.compatibility import check_made_by
from retrieval.artifacts.gallery import gallery_schema
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, now
from retrieval.folder import Folder
from retrieval.sources.known import Known, difference

JOB, SUMMARY = "job.json", "summary.json"


class Job(BaseModel):
    """What makes a batch what it is; all of it must be the same for a run that goes on with it."""

    model_config = ConfigDict(extra="forbid")
    source: str
    vlm: str
    vision: str
    """Fingerprints of the models, behind their URIs."""
    inputs: int
    digest: str
    """Of the list of inputs."""
    metadata: list[str]
    """The columns that the source has beside ours."""
    changed: list[str]
    """Paths that are embedded again, since their files have changed."""
    overwrite: bool = False
    """Whether it was begun anew, whatever there was."""


class Summary(BaseModel):
    """What one run of the embedding job did. Seconds of its parts are summed over workers."""

    read: int
    embedded: int
    rejected: dict[str, int]
    duplicates: int
    """Rows whose bytes another row of the batch has as well."""
    already_there: int
    """Inputs that an earlier, killed run of the same job had dealt with."""
    unchanged: int
    """Inputs that were left out, since the gallery has them."""
    seconds: float
    rows_per_s: float
    spent: dict[str, float]


def gallery_of(
    source_uri: str, target: str, profile: Profile, *, say: Callable[[str], None] = lambda line: None
) -> Gallery:
    """Open the gallery at ``target`` if it was made of this source by these models; build it if there is none.

    Raises:
        ValueError: there is a gallery of something else at ``target``, or as ``build_gallery``.
    """
    folder = Folder(target)
    if not folder.exists(MANIFEST):
        return build_gallery(source_uri, target, profile, say=say)
    for batch in unfinished_batches(folder):
        if is_overwriting(batch):
            say(f"batch {batch.name} was begun with --overwrite and not finished: --overwrite goes on with it")
    gallery = Gallery.open(target)
    first = gallery.manifest.batches[0]
    made_of = {"source": first.source} | {role: model.uri for role, model in gallery.manifest.models.items()}
    asked = {"source": Folder(source_uri).uri, "vlm": profile.models.vlm, "vision": profile.models.vision}
    for what, value in asked.items():
        if made_of[what] != value:
            raise ValueError(
                f"{gallery.uri} already holds a gallery of another {what} ({made_of[what]}, now {value}); give another"
                " target, --overwrite it, or add to it with mindseye index add"
            )
    return gallery


def build_gallery(
    source_uri: str,
    target: str,
    profile: Profile,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Gallery:
    """Embed every image of a source and publish the Gallery at ``target``; go on with a job that was killed.

    Args:
        overwrite: begin anew, and replace a gallery that is there when the new one is complete; or go on with a job
            that was begun so.
        say: is told what is gone on with.

    Raises:
        ValueError: the source can not be read as one, ``target`` already holds a gallery or an unfinished one of other
            inputs or models, or no image could be used.
    """
    folder = Folder(target)
    if folder.exists(MANIFEST) and not overwrite:
        raise ValueError(f"{folder.uri} already holds a gallery; give another target, or --overwrite it")
    encoders = look_at_encoders(profile)
    record, parts, _ = _embedded_batch(folder, source_uri, profile, encoders, [], overwrite=overwrite, say=say)
    models: dict[Role, ModelRecord] = {"vlm": encoders.vlm, "vision": encoders.vision}
    return take_in(folder, GalleryManifest(rows=record.rows, batches=[record], parts=parts, models=models))


def take_in(folder: Folder, manifest: GalleryManifest) -> Gallery:
    """Publish a manifest with a new batch. From then on that batch is not gone on with, and needs no checkpoint."""
    gallery = Gallery.publish(folder, manifest)
    (folder / Gallery.batch(manifest.batches[-1].name)).delete("checkpoint")
    return gallery


def grown_gallery(
    gallery: Gallery,
    source_uri: str,
    profile: Profile,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[GalleryManifest, BatchRecord, list[str]]:
    """Embed what a source has and the gallery has not, as a new batch.

    Inputs of the same source whose path, size and time of change are known from an earlier batch are left out, but for
    those that could not be read then.

    Args:
        overwrite: begin anew, whatever an unfinished batch was begun with.

    Returns:
        The manifest that the gallery would have with it (for ``take_in``), the new batch, and the paths of
        inputs that were embedded again since their files have changed.

    Raises:
        ValueError: the profile has other models than the gallery was made with, or nothing is new.
    """
    encoders = look_at_encoders(profile)
    check_made_by(gallery, "vlm", encoders.vlm.uri, encoders.vlm.fingerprint)
    check_made_by(gallery, "vision", encoders.vision.uri, encoders.vision.fingerprint)
    manifest = gallery.manifest
    source = Folder(source_uri).uri
    known = [batch.name for batch in manifest.batches if batch.source == source]
    record, parts, changed = _embedded_batch(
        gallery.folder, source_uri, profile, encoders, known, overwrite=overwrite, say=say
    )
    grown = manifest.model_copy(
        update={
            "created": now(),
            "rows": manifest.rows + record.rows,
            "batches": [*manifest.batches, record],
            "parts": [*manifest.parts, *parts],
        }
    )
    # The old row of a file that can not be read now stays: it may be as good as it was.
    unreadable = set(_unreadable(gallery.folder / Gallery.batch(record.name)))
    return grown, record, [path for path in changed if path not in unreadable]


def _embedded_batch(
    folder: Folder,
    source_uri: str,
    profile: Profile,
    encoders: Encoders,
    known: Sequence[str],
    *,
    overwrite: bool,
    say: Callable[[str], None],
) -> tuple[BatchRecord, list[PartRecord], list[str]]:
    begun = time.monotonic()
    batch, job, unchanged = _begin(folder, _open_batch(folder, overwrite), source_uri, encoders, known, overwrite)
    for older in unfinished_batches(folder):
        if older.name < batch.name:  # only now that the number of the new one is taken
            older.delete()
    listed = batch.read_schema(batch.files("inputs", ".parquet")[0])
    metadata = [listed.field(name) for name in job.metadata]
    schema = gallery_schema(encoders.vlm.dim or 0, encoders.vision.dim or 0, metadata)
    check_shared(batch, JOB)
    done = len(written(batch))
    if done:
        say(f"going on with batch {batch.name}: {done:,} of {job.inputs:,} inputs are done")
    spent: dict[str, float] = {}
    if done < job.inputs:
        with progress("embedding images", job.inputs - done) as counter:
            embed(batch, job.inputs, source_uri, profile, encoders, schema, counter)
            with suppress(RayError):  # a summary is not worth a job
                spent = counter.seconds()
    parts, rejected = _contents(folder, batch)
    rows = sum(part.rows for part in parts)
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        examples = "; ".join(_details(batch, 3))
        batch.delete()  # there is nothing to go on with, and the next run may find other files
        raise ValueError(f"none of the {job.inputs:,} new images of {source_uri} could be used ({reasons}): {examples}")
    if rows + rejected.total() != job.inputs:
        raise RuntimeError(
            f"{rows + rejected.total()} inputs of {job.inputs} in {source_uri} arrived in {batch.uri};"
            " run the same command again, and report it if that does not help"
        )
    seconds = time.monotonic() - begun
    summary = Summary(
        read=job.inputs,
        embedded=rows,
        rejected=dict(rejected),
        duplicates=_duplicates(folder, parts),
        already_there=done,
        unchanged=unchanged,
        seconds=round(seconds, 1),
        rows_per_s=round((job.inputs - done) / seconds, 1),
        spent={name: round(value, 1) for name, value in sorted(spent.items())},
    )
    batch.write_json(SUMMARY, summary.model_dump())
    record = BatchRecord(name=batch.name, source=job.source, inputs=job.inputs, rows=rows, rejected=dict(rejected))
    return record, parts, job.changed


def summary_of(gallery: Gallery, batch: BatchRecord) -> Summary:
    """Return what the run did that made a batch."""
    return Summary.model_validate(gallery.folder.read_json(f"{Gallery.batch(batch.name)}/{SUMMARY}"))


def unfinished_batches(folder: Folder) -> list[Folder]:
    """Return the batches at a gallery that it has not taken in yet, oldest first."""
    newest = max(_taken_in(folder), default="")
    return [folder / Gallery.batch(name) for name in _batch_names(folder) if name > newest]


def overwritten_batches(folder: Folder) -> list[Folder]:
    """Return the batches at a gallery that are none of it, and never will be, oldest first."""
    taken_in = _taken_in(folder)
    newest = max(taken_in, default="")
    return [folder / Gallery.batch(name) for name in _batch_names(folder) if name < newest and name not in taken_in]


def _taken_in(folder: Folder) -> set[str]:
    return set(Gallery.open(folder).manifest.sources) if folder.exists(MANIFEST) else set()


def _batch_names(folder: Folder) -> list[str]:
    return [name for name in (folder / "batches").folders() if name.isdigit()]


def _open_batch(folder: Folder, overwrite: bool) -> Folder:
    """The batch to go on with, or a new one. What was not begun to overwrite is not gone on with to overwrite."""
    unfinished = unfinished_batches(folder)
    if unfinished and (not overwrite or is_overwriting(unfinished[-1])):
        return unfinished[-1]
    return _new_batch(folder)


def is_overwriting(batch: Folder) -> bool:
    """Return whether an unfinished batch was begun with ``overwrite``."""
    return batch.exists(JOB) and Job.model_validate(batch.read_json(JOB)).overwrite


def _new_batch(folder: Folder) -> Folder:
    """A new batch. No number is given out twice: an index may have what is overwritten."""
    names = _batch_names(folder)
    return folder / Gallery.batch(f"{(int(names[-1]) if names else 0) + 1:06d}")


def _begin(
    folder: Folder, batch: Folder, source_uri: str, encoders: Encoders, known: Sequence[str], overwrite: bool
) -> tuple[Folder, Job, int]:
    """Freeze the list of inputs; or compare with what was frozen. Returns the batch, which is a new one if that differs
    and ``overwrite`` is on, its job, and how many inputs were left out.

    Raises:
        ValueError: naming what is not as it was.
    """
    begun = batch.exists(JOB)
    place = batch / ("inputs.again" if begun else "inputs")
    for leftover in (place, batch / "inputs.again"):
        leftover.delete()
    earlier = [folder / Gallery.batch(name) for name in known]
    listing = list_inputs(source_uri, place, known=[Known(one / "inputs", _unreadable(one)) for one in earlier])
    if not listing.count:
        batch.delete("" if not begun else "inputs.again")
        raise ValueError(f"there is nothing new in {source_uri}: all of its {listing.skipped:,} inputs are known")
    job = Job(
        source=Folder(source_uri).uri,
        vlm=f"{encoders.vlm.uri} ({encoders.vlm.fingerprint})",
        vision=f"{encoders.vision.uri} ({encoders.vision.fingerprint})",
        inputs=listing.count,
        digest=listing.digest,
        metadata=list(listing.metadata),
        changed=list(listing.changed),
        overwrite=overwrite,
    )
    if not begun:
        batch.write_json(JOB, job.model_dump())
        return batch, job, listing.skipped
    before = Job.model_validate(batch.read_json(JOB))
    for what in ("source", "vlm", "vision", "overwrite", "digest"):
        was, now = getattr(before, what), getattr(job, what)
        if was == now:
            continue
        if overwrite:
            return _begin(folder, _new_batch(folder), source_uri, encoders, known, overwrite)
        if what == "digest":
            change = difference(batch / "inputs", place) or "the list of inputs is in another order"
        else:
            change = f"{what} was {was}, is now {now}"
        raise ValueError(
            f"{batch.uri} was begun and not finished, and can not be gone on with, since {change}."
            " Run it with what it was begun with, or with --overwrite to begin anew"
        )
    place.delete()
    return batch, before, listing.skipped


def _rows(folder: Folder, files: Sequence[str]) -> list[int]:
    def rows(name: str) -> int:
        with folder.open_input(name) as file:
            return pq.ParquetFile(file).metadata.num_rows

    with ThreadPoolExecutor(16) as pool:  # on an object store, what costs time is waiting
        return list(pool.map(rows, files))


def _contents(folder: Folder, batch: Folder) -> tuple[list[PartRecord], Counter[str]]:
    names = batch.files("parts", Gallery.EMBEDDED)
    parts = [
        PartRecord(name=f"{Gallery.batch(batch.name)}/{name}", rows=rows)
        for name, rows in zip(names, _rows(batch, names), strict=True)
    ]
    rejected: Counter[str] = Counter()
    for name in batch.files("parts", Gallery.REJECTED):
        rejected.update(batch.read_table(name, ["reason"])["reason"].to_pylist())
    return parts, rejected


def _unreadable(batch: Folder) -> list[str]:
    return [
        path
        for name in batch.files("parts", Gallery.REJECTED)
        for path, reason in zip(*batch.read_table(name, ["path", "reason"]).to_pydict().values(), strict=True)
        if reason == "unreadable"
    ]


def _details(batch: Folder, count: int) -> list[str]:
    """What is said of the first rejected inputs."""
    said: list[str] = []
    for name in batch.files("parts", Gallery.REJECTED):
        for row in batch.read_table(name).slice(0, count - len(said)).to_pylist():
            said.append(f"{row['path']}: {row['detail']}")
    return said


def _duplicates(folder: Folder, parts: Sequence[PartRecord]) -> int:
    """How many rows have bytes that a row before has: 16 bytes of memory a row."""
    contents = []
    for part in parts:
        ids = folder.read_table(part.name, ["id"])["id"].to_pylist()
        contents.append(np.fromiter((int(id.split("-")[0], 16) for id in ids), np.uint64, len(ids)))
    every = np.concatenate(contents)
    return len(every) - len(np.unique(every))


def look_at_encoders(profile: Profile) -> Encoders:
    """Load both encoders where the stage runs, and return what is to be known of them; once for each profile. Those who
    embed check that theirs are the same.
    """
    return _looked_at(profile.model_dump_json())


@lru_cache(maxsize=8)
def _looked_at(profile: str) -> Encoders:
    settings = Profile.model_validate_json(profile)
    stage = settings.embed
    check_room("an embedder", "embed", stage.cpus, stage.gpus)
    return ray.get(_look_at_encoders.options(num_cpus=stage.cpus, num_gpus=stage.gpus).remote(settings))


@ray.remote
def _look_at_encoders(profile: Profile) -> Encoders:
    vlm, vision = load_vlm(profile), load_vision(profile)
    return Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)
