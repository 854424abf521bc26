"""The folder of a network to be: one job at a time, none where there is one already, and publishing into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from cluster.hold import check_held, hold
from retrieval.artifacts import Role, TrainedAggregator, TrainedComposer
from retrieval.artifacts.manifests import ModelRecord
from retrieval.folder import Folder

Made = TypeVar("Made", TrainedAggregator, TrainedComposer)


@contextmanager
def locked(target: Folder, job: str, *, take_over: bool) -> Iterator[None]:
    """Keep other jobs from writing to ``target`` until the block ends.

    Args:
        target: in which none was published yet.
        job, take_over: as ``cluster.hold.hold``.

    Raises:
        UserError: another job has locked it (``locked``), or has published there (``target-exists``).
    """
    with hold(target, job, take_over=take_over):
        TrainedAggregator.check_new(target)  # another job may have published meanwhile
        yield


def publish(
    target: Folder,
    kind: type[Made],
    network: Any,
    models: Mapping[Role, ModelRecord],
    training: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Made:
    """Publish a network in a folder that this job has ``locked``.

    Args:
        target: the folder.
        kind: of the artifact.
        network, models, training: as its ``save``.
        files: more that is to lie there, by name.

    Raises:
        UserError: this job has lost its lock, and writes nothing (``lock-lost``).
    """
    check_held(target)
    for name, content in (files or {}).items():
        target.write_bytes(name, content)
    return kind.save(target.uri, network, models, training)
