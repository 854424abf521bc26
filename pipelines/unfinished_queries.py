"""An unfinished query set on disk: its frozen list of entries, what must be the same to resume it, and its checkpoint.

All of it lies in one folder of the target, ``job``, which is deleted when the query set is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipelines import checkpoint
from pipelines.executor import Checkpoint, Files
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import ModelRecord, Role
from retrieval.artifacts.queryset import OPTIONAL
from retrieval.errors import UserError
from retrieval.folder import Folder

JOB, ENTRIES = "job.json", "entries.parquet"
ENTRY = "entry"
"""The column that numbers the entries of the list, for the checkpoint."""
QUERIES = "queries"
"""Where the rows are written."""
_SCHEMA = pa.schema(
    [
        (ENTRY, pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("label", pa.string()),
        *OPTIONAL,
    ]
)
_NAMED = 3


class Job(BaseModel):
    """What makes a query set what it is, beside its entries; all of it must be the same for a run that resumes it."""

    model_config = ConfigDict(extra="forbid")
    images: int
    seed: int
    templates: list[str]
    models: dict[Role, ModelRecord]


class OpenQueries(NamedTuple):
    """A query set whose list of entries is frozen, and that is to be imagined, or resumed."""

    folder: Folder
    """Of the job."""
    entries: int
    done: int
    """Entries that are written for good."""

    @property
    def checkpoint(self) -> Checkpoint:
        return _checkpoint(self.folder)

    def source(self, block: int) -> Files:
        """Return the list, to be worked through, and written, in blocks of so many entries."""
        return Files(self.folder, [ENTRIES], block=block)


def open_queries(target: Folder, vocabulary: Sequence[VocabularyEntry], job: Job) -> OpenQueries:
    """Return the query set to resume, or a new one.

    Args:
        target: the folder of the query set; no other job writes there.
        vocabulary: the entries, in any order.

    Raises:
        UserError: the unfinished one at ``target`` has other entries, models or settings (``unfinished-queries``; the
            message says what differs).
    """
    folder, entries = target / "job", _listed(vocabulary)
    if not folder.exists(JOB):
        folder.delete()
        target.delete(QUERIES)
        folder.write_table(ENTRIES, entries)
        folder.write_json(JOB, job.model_dump(mode="json"))
        return OpenQueries(folder, entries.num_rows, 0)
    before = folder.read_record(JOB, Job, f"delete {target.uri} to start over")
    field, change = _change(before, job) or _difference(folder.read_table(ENTRIES), entries)
    if change:
        raise UserError(
            f"{target.uri} holds an unfinished query set that cannot be resumed, since {change}. Run it with what it"
            f" was started with, give another target, or delete {target.uri} to start over",
            code="unfinished-queries",
            field=field,
        )
    return OpenQueries(folder, entries.num_rows, checkpoint.count_written(_checkpoint(folder).folder))


def _checkpoint(folder: Folder) -> Checkpoint:
    return Checkpoint(folder / "checkpoint", ENTRY)


def _listed(vocabulary: Sequence[VocabularyEntry]) -> pa.Table:
    """Return the entries, each once, in an order that does not depend on the vocabulary's."""
    entries = sorted(dict.fromkeys(vocabulary), key=lambda entry: entry.id)
    rows = [{ENTRY: number, "id": entry.id} | entry._asdict() for number, entry in enumerate(entries)]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _change(before: Job, now: Job) -> tuple[str, str] | None:
    """Return which setting or model is not what it was, and a clause that says so."""
    for what in ("images", "seed", "templates"):
        old, new = getattr(before, what), getattr(now, what)
        if old != new:
            return what, f"{what} was {old}, is now {new}"
    for role, model in now.models.items():
        old = before.models[role]
        if old.fingerprint != model.fingerprint:
            return role, f"{role} was {old.uri} ({old.fingerprint}), is now {model.uri} ({model.fingerprint})"
    return None


def _difference(before: pa.Table, now: pa.Table) -> tuple[str, str]:
    """Return ``vocabulary`` and a clause that names entries that one list has and the other has not; empty if none."""
    (old, new), clauses = ({row["id"]: row["text"] for row in table.to_pylist()} for table in (before, now)), []
    for more, fewer, what in ((new, old, "is new"), (old, new, "is gone")):
        texts = [repr(text) for id, text in more.items() if id not in fewer]
        if texts:
            others = f" and {len(texts) - _NAMED:,} others" if len(texts) > _NAMED else ""
            clauses.append(f"{', '.join(texts[:_NAMED])}{others} {what}")
    return "vocabulary", " and ".join(clauses) and f"the vocabulary has changed: {'; '.join(clauses)}"
