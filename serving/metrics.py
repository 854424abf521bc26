"""What the service measures, beside what Ray Serve does by itself. ``serving/grafana.json`` is a board of it.

The names here are those in the code; Prometheus sees ``ray_`` before each and ``_total`` after those of counters, and
Serve's labels ``application``, ``deployment`` and ``replica`` beside ours. Outside a replica nothing is measured.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import ray
from ray import serve
from ray.serve import metrics as serve_metrics
from ray.serve.exceptions import RayServeException

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


METRICS: list[Metric] = []
"""All there are."""


class Metric(ABC):
    """A metric that comes to life with its first value.

    Args:
        name: in the code; ``exported`` is what Prometheus sees.
        description: for people.
        labels: the values that each label takes, None for numbers below 1,000. Any other is counted as ``other``:
            each value costs a time series in every replica.
    """

    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, name: str, description: str, **labels: Sequence[str] | None) -> None:
        self.name = name
        self.description = description
        self.labels = labels
        METRICS.append(self)

    @property
    def exported(self) -> list[str]:
        """The names that Prometheus sees."""
        return [f"ray_{self.name}{suffix}" for suffix in self.suffixes]

    @abstractmethod
    def _create(self, *, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        """Return Ray's metric of this kind."""

    @cached_property
    def _real(self) -> Any:
        return self._create(name=self.name, description=self.description, tag_keys=tuple(self.labels))

    def _tags(self, given: dict[str, str]) -> dict[str, str]:
        assert given.keys() == self.labels.keys(), f"{self.name} has the labels {list(self.labels)}, not {list(given)}"
        return {label: value if _fits(value, self.labels[label]) else "other" for label, value in given.items()}


def _fits(value: str, values: Sequence[str] | None) -> bool:
    return value.isdecimal() and len(value) <= 3 if values is None else value in values


def _in_replica() -> bool:
    if not ray.is_initialized():
        return False
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


class Counter(Metric):
    """How often something happened."""

    suffixes = ("_total",)

    def _create(self, **options: Any) -> Any:
        return serve_metrics.Counter(**options)

    def count(self, by: int = 1, /, **labels: str) -> None:
        tags = self._tags(labels)
        if by and _in_replica():
            self._real.inc(by, tags)


class Histogram(Metric):
    """How values are spread, in buckets up to each of ``boundaries``.

    Ray sends on the buckets alone: its ``_sum`` adds up their middles, so averages are about right and no more.
    """

    suffixes = ("_bucket", "_sum", "_count")

    def __init__(
        self, name: str, description: str, boundaries: Sequence[float], **labels: Sequence[str] | None
    ) -> None:
        super().__init__(name, description, **labels)
        self.boundaries = boundaries

    def _create(self, **options: Any) -> Any:
        return serve_metrics.Histogram(boundaries=list(self.boundaries), **options)

    def observe(self, value: float, **labels: str) -> None:
        tags = self._tags(labels)
        if _in_replica():
            self._real.observe(value, tags)

    @contextmanager
    def timed(self, **labels: str) -> Iterator[None]:
        """Observe how many seconds a block takes, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - started, **labels)


class Level(Metric):
    """How many there are of something at the moment, in this process."""

    def __init__(self, name: str, description: str, **labels: Sequence[str] | None) -> None:
        super().__init__(name, description, **labels)
        self._now: Tally[tuple[str, ...]] = Tally()

    def _create(self, **options: Any) -> Any:
        return serve_metrics.Gauge(**options)

    @contextmanager
    def one(self, **labels: str) -> Iterator[None]:
        """Be one more while a block lasts. For one thread, such as that of an event loop."""
        tags = self._tags(labels)
        self._move(tags, 1)
        try:
            yield
        finally:
            self._move(tags, -1)

    def _move(self, tags: dict[str, str], by: int) -> None:
        key = tuple(tags.values())
        self._now[key] += by
        if _in_replica():
            self._real.set(self._now[key], tags)


PARTS = ("text", "pictures", "generator", "ranker", "shard")

answers = Counter(
    "mindseye_answers", "Answers, by the stage that they were ranked at.", stage=("text", "visual", "fused")
)
degraded = Counter(
    "mindseye_degraded_answers",
    "Answers that are not the one asked for, by what was missing.",
    reason=("busy", "down", "late", "failed", "starting", "deadline", "rejected", "dropped", "shards", "assistant"),
)
memory = Counter("mindseye_memory", "Queries whose images were remembered, or not.", outcome=("hit", "miss"))
refused = Counter(
    "mindseye_refused_requests",
    "Rejected requests, and failed ones (internal).",
    code=(
        "host-unknown",
        "key-missing",
        "key-unknown",
        "key-expired",
        "too-many-requests",
        "body-too-large",
        "body-too-slow",
        "busy",
        "internal",
    ),
)
stage_seconds = Histogram(
    "mindseye_stage_seconds",
    "Time that a request spends in each stage, and in all.",
    SECONDS,
    stage=("text", "read", "reword", "text_rank", "imagine", "nearest_rank", "rank", "assistant", "total"),
)
generation_seconds = Histogram("mindseye_generation_seconds", "Time of one run of the diffusion model.", SECONDS)
shard_seconds = Histogram(
    "mindseye_shard_seconds", "Time until a shard answered, as the ranker sees it.", SECONDS, shard=None
)
ASSISTED = ("rewrite", "ask", "judge", "list")
assistant_calls = Counter(
    "mindseye_assistant_calls",
    "Calls of the assistant, by the task and by how they ended.",
    task=ASSISTED,
    outcome=("answered", "down", "busy", "late", "refused", "rejected", "malformed", "cancelled"),
)
assistant_tokens = Counter(
    "mindseye_assistant_tokens",
    "Tokens that the assistant says were given to it (in) and taken from it (out).",
    task=ASSISTED,
    direction=("in", "out"),
)
assistant_seconds = Histogram(
    "mindseye_assistant_seconds", "Time of one call of the assistant.", SECONDS, task=ASSISTED
)
batch_size = Histogram("mindseye_batch_size", "Requests (pictures: images) done in one batch.", SIZES, part=PARTS)
waiting = Level(
    "mindseye_waiting_requests",
    "Requests that wait for a part or are in it, at this caller; of the ingress, searches that wait for a place.",
    part=("ingress", *PARTS),
)
