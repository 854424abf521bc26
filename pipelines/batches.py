"""Batches of a gallery on disk: which are unfinished, which one to resume, and what must be the same to resume it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pipelines.batch_contents import unreadable
from pipelines.encoders import Encoders
from pipelines.sources import list_inputs
from retrieval.artifacts import MANIFEST, Gallery
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.sources.frozen_list import Listing
from retrieval.sources.known import Known, difference

JOB = "job.json"


class Job(BaseModel):
    """What makes a batch what it is; all of it must be the same for a run that resumes it."""

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
    """Whether it was started over, whatever there was."""


def read_job(batch: Folder) -> Job:
    """Return what an unfinished batch is.

    Raises:
        DamagedError: that cannot be read.
    """
    return batch.read_record(JOB, Job, f"delete {batch.uri}, and its inputs are embedded again")


class OpenBatch(NamedTuple):
    """A batch whose list of inputs is frozen, and that is to be embedded, or resumed."""

    folder: Folder
    job: Job
    unchanged: int
    """Inputs that were left out, since the gallery has them."""


def unfinished_batches(gallery: Folder) -> list[Folder]:
    """Return the batches at a gallery that it has not committed yet, oldest first."""
    newest = max(_committed(gallery), default="")
    return [gallery / Gallery.batch(name) for name in _batch_names(gallery) if name > newest]


def overwritten_batches(gallery: Folder) -> list[Folder]:
    """Return the batches at a gallery that are none of it, and never will be, oldest first."""
    committed = _committed(gallery)
    newest = max(committed, default="")
    return [gallery / Gallery.batch(name) for name in _batch_names(gallery) if name < newest and name not in committed]


def is_overwriting(batch: Folder) -> bool:
    """Return whether an unfinished batch was started with ``overwrite``."""
    return batch.exists(JOB) and read_job(batch).overwrite


def open_batch(
    gallery: Folder, source: str, encoders: Encoders, known: Sequence[str] = (), *, overwrite: bool = False
) -> OpenBatch:
    """Return the batch to resume, or a new one.

    Args:
        known: names of batches of the same source; their inputs that have not changed are left out.
        overwrite: resume only what was started to overwrite as well, and that only if nothing differs.

    Raises:
        UserError: the source is none (``pipelines.sources``), nothing of it is new (``nothing-new``), or the unfinished
            batch has other inputs or models (``unfinished-batch``; the message says what differs).
    """
    unfinished = unfinished_batches(gallery)
    resumed = unfinished[-1] if unfinished and (not overwrite or is_overwriting(unfinished[-1])) else None
    if resumed is None or not resumed.exists(JOB):
        return _started(gallery, resumed or _new_batch(gallery), source, encoders, known, overwrite)
    again = resumed / "inputs.again"
    listing = _listed(gallery, source, again, known, leftover=again)
    before, job = read_job(resumed), _job(source, encoders, listing, overwrite)
    change = _change(before, job, resumed / "inputs", again)
    if change is None:
        again.delete()
        return OpenBatch(resumed, before, listing.skipped)
    if overwrite:
        return _started(gallery, _new_batch(gallery), source, encoders, known, overwrite)
    raise UserError(
        f"{resumed.uri} is unfinished and cannot be resumed, since {change}."
        " Run it with what it was started with, or with --overwrite to start over",
        code="unfinished-batch",
        field="target",
    )


def _started(
    gallery: Folder, batch: Folder, source: str, encoders: Encoders, known: Sequence[str], overwrite: bool
) -> OpenBatch:
    listing = _listed(gallery, source, batch / "inputs", known, leftover=batch)
    job = _job(source, encoders, listing, overwrite)
    batch.write_json(JOB, job.model_dump())
    return OpenBatch(batch, job, listing.skipped)


def _listed(gallery: Folder, source: str, into: Folder, known: Sequence[str], *, leftover: Folder) -> Listing:
    """Freeze the list of inputs; where there are none, ``leftover`` is of no use."""
    earlier = [gallery / Gallery.batch(name) for name in known]
    listing = list_inputs(source, into, known=[Known(batch / "inputs", unreadable(batch)) for batch in earlier])
    if not listing.count:
        leftover.delete()
        raise UserError(
            f"there is nothing new in {source}: all of its {listing.skipped:,} inputs are known",
            code="nothing-new",
            field="source",
        )
    return listing


def _job(source: str, encoders: Encoders, listing: Listing, overwrite: bool) -> Job:
    return Job(
        source=Folder(source).uri,
        vlm=f"{encoders.vlm.uri} ({encoders.vlm.fingerprint})",
        vision=f"{encoders.vision.uri} ({encoders.vision.fingerprint})",
        inputs=listing.count,
        digest=listing.digest,
        metadata=list(listing.metadata),
        changed=list(listing.changed),
        overwrite=overwrite,
    )


def _change(before: Job, now: Job, old_list: Folder, new_list: Folder) -> str | None:
    """What is not as it was, as a clause."""
    for what in ("source", "vlm", "vision", "overwrite"):
        was, is_now = getattr(before, what), getattr(now, what)
        same = _fingerprint(was) == _fingerprint(is_now) if what in ("vlm", "vision") else was == is_now
        if not same:
            return f"{what} was {was}, is now {is_now}"
    if before.digest != now.digest:
        return difference(old_list, new_list) or "the list of inputs is in another order"
    return None


def _fingerprint(model: str) -> str:
    """The fingerprint that ``_job`` has put behind the URI, which changes where the same files are moved."""
    return model.rpartition("(")[2]


def _committed(gallery: Folder) -> set[str]:
    return set(Gallery.open(gallery).manifest.sources) if gallery.exists(MANIFEST) else set()


def _batch_names(gallery: Folder) -> list[str]:
    return [name for name in (gallery / "batches").folders() if name.isdigit()]


def _new_batch(gallery: Folder) -> Folder:
    """A new batch. No number is given out twice: an index may have what is overwritten."""
    names = _batch_names(gallery)
    return gallery / Gallery.batch(f"{(int(names[-1]) if names else 0) + 1:06d}")
