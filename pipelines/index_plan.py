"""What a version of an index is built from, and which unfinished version to resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from retrieval.artifacts import Gallery
from retrieval.artifacts.index import PLAN, new_version, version_states
from retrieval.artifacts.manifests import PartRecord
from retrieval.errors import UserError
from retrieval.folder import Folder


class Plan(BaseModel):
    """What makes a version what it is; all of it must be the same for a run that resumes it."""

    model_config = ConfigDict(extra="forbid")
    gallery: str
    parts: str
    """A hash of their names and numbers of rows."""
    rows: int
    shards: int
    factory: str
    queries: str | None = None
    """The query set that it is tuned and measured with."""


def plan_of(
    gallery: Gallery, parts: Sequence[PartRecord], shards: int, factory: str, queries: str | None = None
) -> Plan:
    """Return what makes a version of shards that are built from these parts."""
    lines = sorted(f"{part.name} {part.rows}" for part in parts)
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
    rows = sum(part.rows for part in parts)
    return Plan(gallery=gallery.uri, parts=digest, rows=rows, shards=shards, factory=factory, queries=queries)


def read_plan(version: Folder) -> Plan:
    """Return what an unfinished version is built from.

    Raises:
        DamagedError: that cannot be read.
    """
    return version.read_record(PLAN, Plan, f"delete {version.uri} to build this version again from what is embedded")


def open_version(root: Folder, plan: Plan, overwrite: bool) -> Folder:
    """Return the version to resume, or a new one that has its plan.

    Raises:
        UserError: one was started with another plan (``unfinished-version``).
    """
    for name, state in version_states(root).items():
        version = root / name
        if state != "unfinished" or not version.exists(PLAN):
            continue
        started = read_plan(version)
        if started == plan:
            return version
        if overwrite:
            version.delete()
        else:
            differ = "; ".join(
                "it is of other parts of the gallery" if what == "parts" else f"{what} was {was}, is now {now}"
                for what, was in started
                if was != (now := getattr(plan, what))
            )
            raise UserError(
                f"{version.uri} is unfinished and cannot be resumed: {differ}. Run it with what it was started with,"
                f" or delete {version.uri} to build this version again from what is embedded; --overwrite starts the"
                " whole command over",
                code="unfinished-version",
                field="target",
            )
    version = new_version(root)
    version.write_json(PLAN, plan.model_dump())
    return version
