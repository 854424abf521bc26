"""``mindseye train``: a labelled Gallery and a QuerySet of seen categories to an Aggregator.

Checkpoints are under ``TARGET/runs/<fingerprint of everything that decides the result>``: the same call resumes where a
killed one stopped, another one starts over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.profile import Profile, Training, load_profile
from cluster.progress import progress
from cluster.room import Demand, check_room
from cluster.session import session
from retrieval.aggregator import Aggregator
from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
from retrieval.artifacts.compatibility import check_disjoint
from retrieval.errors import UserError
from retrieval.folder import Folder
from training import checkpoint
from training.curves import draw_curves
from training.dataset import LeftOut, load_examples
from training.examples import Drawn, Examples, split_labels
from training.learner import Learner
from training.loop import Line, Outcome, Run
from training.target import locked, publish
from training.tracking import Tracker
from training.workers import run_loop

HISTORY = "metrics.jsonl"
CURVES = "curves.png"
RUNS = "runs"
_WHERE_IT_RUNS = {"min_workers", "max_workers", "cpus", "gpus", "labels", "fallback", "max_failures"}
"""Settings that the result does not depend on: a run resumes with others."""


@dataclass(frozen=True)
class Trained:
    """A published aggregator, and how it was made."""

    aggregator: TrainedAggregator
    left_out: LeftOut
    history: list[Line]
    """A line for each validation, the first of which is before training."""
    best_step: int
    """The step whose network was published."""
    best_map: float
    """Its mAP on held-out labels."""


def train(
    gallery: str | Path | Gallery,
    query_set: str | Path | QuerySet,
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    evaluation: str | Path | QuerySet | None = None,
    take_over: bool = False,
    address: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train the aggregator and λ on a labelled gallery and a query set of the same labels, and publish both.

    The same call resumes where a killed one stopped.

    Args:
        gallery: a labelled gallery, or its folder or URI.
        query_set: of the same models; queries and gallery images of one label belong together.
        target: folder or URI of the aggregator.
        profile: name or file; its part ``train`` says how.
        evaluation: queries that the aggregator will be measured on; a label they share with ``query_set`` is an error.
        take_over: break the lock of another job. Be sure that it is dead.
        address: Ray cluster to use; by default RAY_ADDRESS, else a local Ray; "none" trains in this process.
        log: is given a line about what the run begins with.

    Raises:
        UserError: ``target`` holds an aggregator (``target-exists``) or another job's lock (``locked``); this job has
            lost its own, and publishes nothing (``lock-lost``); the artifacts are of different models or dimensions;
            labels are shared with ``evaluation``; too few labels are left to learn from; or the loss was not a number.
    """
    folder = Folder(target)
    TrainedAggregator.check_new(folder)
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    query_set = query_set if isinstance(query_set, QuerySet) else QuerySet.open(query_set)
    if evaluation is not None and not isinstance(evaluation, QuerySet):
        evaluation = QuerySet.open(evaluation)
    settings = load_profile(profile).train
    with locked(folder, "mindseye train", take_over=take_over), session(address):
        return _train(gallery, query_set, folder, settings, evaluation, log)


def _train(
    gallery: Gallery,
    query_set: QuerySet,
    folder: Folder,
    settings: Training,
    evaluation: QuerySet | None,
    log: Callable[[str], None],
) -> Trained:
    check_workers(settings)
    examples, left_out = load_examples(gallery, query_set, rows_per_label=settings.rows_per_label, seed=settings.seed)
    if evaluation:
        wanted = set(evaluation.table(["id", "label"])["label"].drop_null().to_pylist())
        check_disjoint(examples.labels, wanted, evaluation.uri)
    trained, held_out = split_labels(len(examples.labels), settings.holdout, settings.seed)
    record = _record(gallery, query_set, settings, examples, trained, held_out)
    about = (
        f"training on {len(trained)} labels, validating on {len(held_out)};"
        f" {len(examples.query_label_Q)} queries, {len(examples.row_label_N)} gallery images"
    )
    training, validation = examples.of_labels(trained), examples.of_labels(held_out, rows_of_all=True)
    outcome = fitted("the aggregator", about, folder, settings, record, training, validation, Learner, log)
    best = outcome.best
    network = Aggregator(examples.dim, settings.heads, settings.layers, settings.dropout)
    network.load_state_dict(best.network)
    curves = draw_curves(outcome.history)
    record |= {"best_step": best.step, "validation_map": best.map, "history": outcome.history}
    made = publish(folder, TrainedAggregator, network, query_set.manifest.models, record, {CURVES: curves})
    folder.delete(RUNS)
    return Trained(made, left_out, outcome.history, best.step, best.map)


def _record(
    gallery: Gallery,
    query_set: QuerySet,
    settings: Training,
    examples: Examples,
    trained: list[int],
    held_out: list[int],
) -> dict[str, Any]:
    """What decides the result, JSON-ready: it names the run, and goes into the manifest."""
    return {
        "gallery": {"uri": gallery.uri, "created": gallery.manifest.created, "rows": gallery.manifest.rows},
        "queries": {"uri": query_set.uri, "created": query_set.manifest.created, "count": query_set.manifest.queries},
        "images": [1, examples.images_QKD2.shape[1]],
        "labels": [examples.labels[i] for i in trained],
        "validation_labels": [examples.labels[i] for i in held_out],
        **settings_of(settings),
    }


def check_workers(settings: Training) -> None:
    """Refuse workers that the cluster has no room for; errors as ``check_room``."""
    if settings.max_workers:
        check_room(Demand("a worker", "train", settings, max(1, settings.min_workers)))


def settings_of(settings: Training) -> dict[str, Any]:
    """What of the settings and the libraries decides the result, JSON-ready."""
    return {
        "settings": settings.model_dump(mode="json", exclude=_WHERE_IT_RUNS),
        "versions": {name: version(name) for name in ("torch", "ray")},
    }


def fitted(
    what: str,
    about: str,
    folder: Folder,
    settings: Training,
    record: dict[str, Any],
    training: Drawn,
    validation: Drawn,
    learner: Callable[..., Learner],
    log: Callable[[str], None],
) -> Outcome:
    """Run the loop to its end, from where an unfinished run of the same record stopped.

    Args:
        what: is trained, for people.
        about: what it is trained on, for people.
        folder: in which checkpoints and metrics are written.
        settings, training, validation, learner: as of ``Run``.
        record: what decides the result, JSON-ready; it names the run.
        log: is given a line if it resumes, and then ``about``.

    Raises:
        UserError: the loss was not a number (code ``not-finite``).
    """
    run_name = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    (folder / RUNS).create()
    if state := checkpoint.newest(folder / RUNS / run_name):
        log(f"resuming from step {state['learner']['step']} of an unfinished run")
    log(about)
    with progress(f"training {what}, steps", settings.steps) as counter:
        tracker = Tracker(folder.uri, HISTORY, run_name, settings.model_dump(mode="json"))
        checkpoints = (folder / RUNS / run_name).uri
        outcome = run_loop(Run(settings, checkpoints, training, validation, counter, tracker, learner))
    if outcome.fault:
        raise UserError(outcome.fault, code="not-finite")
    return outcome
