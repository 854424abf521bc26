"""The indexing job's first half: images to a Gallery, batch by batch.

A batch is one run of the job over one source: its list of inputs is frozen first (``pipelines.batches``), then they are
embedded (``pipelines.embedding``), then the gallery's manifest commits it. A batch that is not committed is resumed by
the same command. Committed batches never change.
"""

from __future__ import annotations

import time
import traceback

from cluster.hold import check_held
from cluster.profile import Profile
from cluster.progress import Log, progress, silent
from cluster.session import check_shared
from pipelines.batch_contents import SUMMARY, Contents, Summary, contents, duplicates_in, rejection_examples, unreadable
from pipelines.batches import JOB, OpenBatch, is_overwriting, open_batch, unfinished_batches
from pipelines.embedding import count_written, embed
from pipelines.encoders import Encoders, describe_encoders
from retrieval.artifacts import MANIFEST, Gallery
from retrieval.artifacts.compatibility import check_made_by, recorded
from retrieval.artifacts.gallery import gallery_schema
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, now
from retrieval.errors import UserError
from retrieval.folder import Folder


def gallery_of(source: str, target: str, profile: Profile, *, log: Log = silent) -> Gallery:
    """Open the gallery at ``target`` if it was made of this source by these models; build it if there is none.

    Raises:
        UserError: there is a gallery of another source or other models at ``target`` (``other-gallery``), or as
            ``build_gallery``.
    """
    folder = Folder(target)
    if not folder.exists(MANIFEST):
        return build_gallery(source, target, profile, log=log)
    for batch in unfinished_batches(folder):
        if is_overwriting(batch):
            log(f"batch {batch.name} was started with --overwrite and is unfinished: --overwrite resumes it")
    gallery = Gallery.open(target)
    made_of, asked = gallery.manifest.batches[0].source, Folder(source).uri
    if made_of != asked:
        raise _other(gallery, "source", f"{made_of}, now {asked}")
    vlm, vision = recorded(gallery, "vlm"), recorded(gallery, "vision")
    if (vlm.uri, vision.uri) != (profile.models.vlm, profile.models.vision):
        encoders = describe_encoders(profile)  # which loads them, as equal names need not: the same ones may have moved
        for what, made_by, given in (("vlm", vlm, encoders.vlm), ("vision", vision, encoders.vision)):
            if made_by.fingerprint != given.fingerprint:
                was, now_ = (f"{model.uri} ({model.fingerprint})" for model in (made_by, given))
                raise _other(gallery, what, f"{was}, now {now_}")
    return gallery


def build_gallery(source: str, target: str, profile: Profile, *, overwrite: bool = False, log: Log = silent) -> Gallery:
    """Embed every image of a source and publish the Gallery at ``target``; resume a job that was interrupted.

    Args:
        overwrite: start over, and replace a gallery that is there when the new one is complete; or resume a job that
            was started so.
        log: is told what is resumed.

    Raises:
        UserError: the source cannot be read as one, ``target`` already holds a gallery (``target-exists``) or an
            unfinished one of other inputs or models (``unfinished-batch``), or no image could be used
            (``no-usable-image``).
    """
    folder = Folder(target)
    if folder.exists(MANIFEST) and not overwrite:
        raise UserError(
            f"{folder.uri} already holds a gallery; give another target, or --overwrite it",
            code="target-exists",
            field="target",
        )
    encoders = describe_encoders(profile)
    batch = open_batch(folder, source, encoders, overwrite=overwrite)
    record, parts = _embedded(folder, batch, profile, encoders, log)
    manifest = GalleryManifest(
        rows=record.rows, batches=[record], parts=parts, models={"vlm": encoders.vlm, "vision": encoders.vision}
    )
    return commit_batch(folder, manifest)


def grown_gallery(
    gallery: Gallery, source: str, profile: Profile, *, overwrite: bool = False, log: Log = silent
) -> tuple[GalleryManifest, BatchRecord, list[str]]:
    """Embed what a source has and the gallery has not, as a new batch.

    Inputs of the same source whose path, size and time of change are known from an earlier batch are left out, but for
    those that could not be read then.

    Args:
        overwrite: start over, whatever an unfinished batch was started with.

    Returns:
        The manifest that the gallery would have with it (for ``commit_batch``), the new batch, and the paths of
        inputs that were embedded again since their files have changed.

    Raises:
        UserError: the profile has other models than the gallery was made with, or nothing is new (``nothing-new``).
    """
    encoders = describe_encoders(profile)
    check_made_by(gallery, "vlm", encoders.vlm.uri, encoders.vlm.fingerprint)
    check_made_by(gallery, "vision", encoders.vision.uri, encoders.vision.fingerprint)
    manifest, uri = gallery.manifest, Folder(source).uri
    known = [batch.name for batch in manifest.batches if batch.source == uri]
    batch = open_batch(gallery.folder, source, encoders, known, overwrite=overwrite)
    record, parts = _embedded(gallery.folder, batch, profile, encoders, log)
    grown = manifest.model_copy(
        update={
            "created": now(),
            "rows": manifest.rows + record.rows,
            "batches": [*manifest.batches, record],
            "parts": [*manifest.parts, *parts],
        }
    )
    # The old row of a file that cannot be read now stays: it may be as good as it was.
    lost = set(unreadable(batch.folder))
    return grown, record, [path for path in batch.job.changed if path not in lost]


def commit_batch(gallery: Folder, manifest: GalleryManifest) -> Gallery:
    """Publish a manifest with a new batch. From then on that batch is not resumed, and needs no checkpoint."""
    check_held(gallery)
    published = Gallery.publish(gallery, manifest)
    (gallery / Gallery.batch(manifest.batches[-1].name)).delete("checkpoint")
    return published


def _embedded(
    gallery: Folder, batch: OpenBatch, profile: Profile, encoders: Encoders, log: Log
) -> tuple[BatchRecord, list[PartRecord]]:
    started = time.monotonic()
    folder, job = batch.folder, batch.job
    for older in unfinished_batches(gallery):
        if older.name < folder.name:  # only now that the number of the new one is taken
            older.delete()
    check_shared(folder, JOB)
    done = count_written(folder)
    if done:
        log(f"resuming batch {folder.name}: {done:,} of {job.inputs:,} inputs are done")
    spent: dict[str, float] = {}
    if done < job.inputs:
        listed = folder.read_schema(folder.files("inputs", ".parquet")[0])
        metadata = [listed.field(name) for name in job.metadata]
        schema = gallery_schema(encoders.vlm.dim or 0, encoders.vision.dim or 0, metadata)
        with progress("embedding images", job.inputs - done) as counter:
            # Not the source as it was given: workers are in another folder, where a relative path leads elsewhere.
            embed(folder, job.inputs, job.source, profile, encoders, schema, counter)
            spent = counter.seconds()
    made = contents(folder)
    _check_complete(made, batch)
    seconds = time.monotonic() - started
    summary = Summary(
        read=job.inputs,
        embedded=made.rows,
        rejected=made.rejected,
        duplicates=_duplicates(gallery, made.parts, log),
        already_there=done,
        unchanged=batch.unchanged,
        seconds=round(seconds, 1),
        rows_per_s=round((job.inputs - done) / seconds, 1),
        spent={name: round(value, 1) for name, value in sorted(spent.items())},
    )
    folder.write_json(SUMMARY, summary.model_dump())
    record = BatchRecord(name=folder.name, source=job.source, inputs=job.inputs, rows=made.rows, rejected=made.rejected)
    return record, made.parts


def _duplicates(gallery: Folder, parts: list[PartRecord], log: Log) -> int | None:
    try:
        return duplicates_in(gallery, parts)
    except Exception as error:  # whatever it is, a figure does not cost what is embedded
        log(f"duplicates are not counted: {''.join(traceback.format_exception(error))}")
        return None


def _other(gallery: Gallery, what: str, difference: str) -> UserError:
    return UserError(
        f"{gallery.uri} already holds a gallery of another {what} ({difference}); give another target, --overwrite it,"
        " or add to it with mindseye index add",
        code="other-gallery",
        field=what,
    )


def _check_complete(made: Contents, batch: OpenBatch) -> None:
    source, inputs, rejected = batch.job.source, batch.job.inputs, sum(made.rejected.values())
    if not made.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in made.rejected.items())
        examples = "; ".join(rejection_examples(batch.folder, 3))
        batch.folder.delete()  # there is nothing to resume, and the next run may find other files
        raise UserError(
            f"none of the {inputs:,} new images of {source} could be used ({reasons}): {examples}",
            code="no-usable-image",
            field="source",
        )
    if made.rows + rejected != inputs:
        raise RuntimeError(
            f"{made.rows + rejected} inputs of {inputs} in {source} arrived in {batch.folder.uri};"
            " run the same command again, and report it if that does not help"
        )
