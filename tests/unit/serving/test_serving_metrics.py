"""The service's metrics: silent outside Serve, of few labels, and what the Grafana board asks Prometheus for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import metrics
from serving.metrics import METRICS, SECONDS, Counter, Histogram, Level

BOARD = json.loads((Path(metrics.__file__).parent / "grafana.json").read_text(encoding="utf-8"))


@pytest.fixture
def in_replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple]]:
    """What Ray is told, as (kind, name, value, tags), as if this were a replica."""
    told: list[tuple] = []

    def kind(name: str, method: str) -> type:
        def tell(self: Any, value: float, tags: dict[str, str]) -> None:
            told.append((name, self.name, value, tags))

        def create(self: Any, *, name: str, description: str, tag_keys: tuple[str, ...], **boundaries: Any) -> None:
            assert description
            self.name = name

        return type(name, (), {"__init__": create, method: tell})

    monkeypatch.setattr(metrics, "_in_replica", lambda: True)
    for name, method in (("Counter", "inc"), ("Histogram", "observe"), ("Gauge", "set")):
        monkeypatch.setattr(metrics.serve_metrics, name, kind(name, method))
    yield told
    for metric in METRICS:
        metric.__dict__.pop("_real", None)


def use(metric: metrics.Metric) -> None:
    """Give a metric one value, with the first value that each label may have."""
    labels = {label: values[0] if values else "0" for label, values in metric.labels.items()}
    if isinstance(metric, Counter):
        metric.count(**labels)
    elif isinstance(metric, Histogram):
        metric.observe(0.3, **labels)
    elif isinstance(metric, Level):
        with metric.one(**labels):
            pass


def test_outside_a_replica_nothing_comes_to_life() -> None:
    for metric in METRICS:
        use(metric)
        assert "_real" not in metric.__dict__


def test_in_a_replica_ray_is_told(in_replica: list[tuple]) -> None:
    metrics.answers.count(stage="fused")
    metrics.assistant_tokens.count(0, task="judge", direction="in")
    metrics.shard_seconds.observe(0.25, shard="3")
    with metrics.stage_seconds.timed(stage="total"):
        time.sleep(0.02)
    assert in_replica[:2] == [
        ("Counter", "mindseye_answers", 1, {"stage": "fused"}),
        ("Histogram", "mindseye_shard_seconds", 0.25, {"shard": "3"}),
    ]
    kind, name, seconds, tags = in_replica[2]
    assert (kind, name, tags) == ("Histogram", "mindseye_stage_seconds", {"stage": "total"})
    assert 0.02 <= seconds < 60


def test_what_fails_is_timed_and_no_longer_waiting(in_replica: list[tuple]) -> None:
    with (
        pytest.raises(RuntimeError),
        metrics.waiting.one(part="generator"),
        metrics.waiting.one(part="text"),
        metrics.waiting.one(part="generator"),
        metrics.generation_seconds.timed(),
    ):
        raise RuntimeError
    levels = [(value, tags["part"]) for kind, _, value, tags in in_replica if kind == "Gauge"]
    assert levels == [
        *((1, "generator"), (1, "text"), (2, "generator")),
        *((1, "generator"), (0, "text"), (0, "generator")),
    ]
    assert sum(kind == "Histogram" for kind, *_ in in_replica) == 1


def test_a_label_never_takes_a_value_of_a_callers_choice(in_replica: list[tuple]) -> None:
    metrics.degraded.count(reason="the generator has as many requests waiting as it may")
    for shard in ("0", "999", "1000", "-1", "../x"):
        metrics.shard_seconds.observe(0.1, shard=shard)
    assert in_replica[0][3] == {"reason": "other"}
    assert [tags["shard"] for *_, tags in in_replica[1:]] == ["0", "999", "other", "other", "other"]
    with pytest.raises(AssertionError, match="mindseye_answers"):
        metrics.answers.count(step="text")


def test_names_are_distinct_and_of_one_form() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"mindseye_[a-z_]+", name) for name in names)
    assert list(SECONDS) == sorted(set(SECONDS))
    for metric in METRICS:
        assert not {"application", "deployment", "replica", "route"} & set(metric.labels)


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def test_the_board_asks_for_metrics_and_labels_that_exist() -> None:
    labels_of = {name: metric.labels for metric in METRICS for name in metric.exported}
    variables = [variable["query"]["query"] for variable in BOARD["templating"]["list"] if variable["type"] == "query"]
    asked = set()
    for expression in [*expressions(), *variables]:
        names = re.findall(r"\b(ray_\w+)", expression)
        assert names
        assert set(names) <= labels_of.keys(), expression
        asked |= set(names)
        by = {label.strip() for labels in re.findall(r"by \((.*?)\)", expression) for label in labels.split(",")}
        chosen = set(re.findall(r'(\w+)=~?"', expression))
        assert by | chosen <= {"le", "application", *labels_of[names[0]]}, expression
        for label, value in re.findall(r'(\w+)="(\w+)"', expression):
            assert value in (labels_of[names[0]][label] or ()), expression
    for metric in METRICS:
        assert asked & set(metric.exported), f"the board does not show {metric.name}"


def test_the_board_is_laid_out_without_overlap() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in BOARD["panels"]})
    for panel in BOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert all(expression.count("(") == expression.count(")") for expression in expressions())


def test_the_docs_list_every_metric_as_it_is() -> None:
    text = (Path(__file__).parents[3] / "docs/metrics.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for metric in METRICS:
        labels = (f"`{label}`{': ' + ', '.join(values) if values else ''}" for label, values in metric.labels.items())
        name = metric.exported[0].removesuffix("_bucket")
        expected.append([f"`{name}`", ", ".join(labels) or "–", metric.description])
    assert rows == expected
