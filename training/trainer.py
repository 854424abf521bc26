"""``mindseye train``: a labelled Gallery and a QuerySet of seen categories to an Aggregator, by Ray Train.

Ray Train starts the workers, joins them (gloo on CPUs, NCCL on GPUs), replaces those that are lost and keeps the
checkpoints under ``TARGET/runs/<fingerprint of everything that decides the result>``: the same command goes on where a
killed one stopped, another one starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from cluster.profile import Profile, Training
from cluster.progress import ProgressCounter, progress
from cluster.session import check_room
from retrieval.aggregator import Aggregator
from retrieval.artifacts import MANIFEST, Gallery, QuerySet, TrainedAggregator, check_disjoint
from retrieval.folder import Folder
from training import checkpoint
from training.curves import draw_curves
from training.dataset import Examples, LeftOut, load_examples, split_labels, stream
from training.learner import Learner
from training.tracking import Tracker

HISTORY = "metrics.jsonl"
_WHERE_IT_RUNS = {"min_workers", "max_workers", "cpus", "gpus", "max_failures"}
"""Settings that the result does not depend on: a run goes on with others."""
CURVES = "curves.png"


@dataclass(frozen=True)
class Run:
    """What every worker is told."""

    settings: Training
    folder: str
    """URI of the run's checkpoints."""
    dim: int
    training: ray.ObjectRef
    validation: ray.ObjectRef
    counter: ProgressCounter
    tracker: Tracker


@dataclass(frozen=True)
class Trained:
    """A published aggregator, and what its making left out."""

    aggregator: TrainedAggregator
    left_out: LeftOut
    history: list[dict[str, float]]


def train_aggregator(
    gallery: Gallery,
    queries: QuerySet,
    target: str,
    profile: Profile,
    *,
    evaluation: QuerySet | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train the aggregator and λ, and publish both at ``target``.

    Args:
        evaluation: queries that the aggregator will be measured on; a label they share with ``queries`` is an error.
        say: is told, line by line, what the run begins with.

    Raises:
        ValueError: ``target`` holds an aggregator; the artifacts are of different models or dimensions; labels are
            shared with ``evaluation``; too few labels are left to learn from; or the loss was not a number.
    """
    folder = Folder(target)
    if folder.exists(MANIFEST):
        raise ValueError(f"{folder.uri} already holds an aggregator; give another target, or delete it first")
    settings = profile.train
    # Besides the workers there are the tasks that draw examples.
    check_room("training", "train", settings.min_workers * settings.cpus + 1, settings.min_workers * settings.gpus)
    examples, left_out = load_examples(gallery, queries, rows_per_label=settings.rows_per_label, seed=settings.seed)
    if evaluation:
        wanted = set(evaluation.table(["id", "label"])["label"].drop_null().to_pylist())
        check_disjoint(examples.labels, wanted, evaluation.uri)
    trained, held_out = split_labels(len(examples.labels), settings.holdout, settings.seed)
    record = _record(gallery, queries, settings, examples, trained, held_out)
    run_name = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    run_folder = folder / "runs" / run_name
    (folder / "runs").create()
    if state := checkpoint.newest(run_folder):
        say(f"going on from step {state['learner']['step']} of an earlier run")
    say(
        f"training on {len(trained)} labels, validating on {len(held_out)};"
        f" {len(examples.query_label_Q)} queries, {len(examples.row_label_N)} gallery images"
    )
    with progress("training the aggregator, steps", settings.steps) as counter:
        run = Run(
            settings,
            run_folder.uri,
            examples.images_QKD2.shape[2],
            ray.put(examples.of_labels(trained)),
            ray.put(examples.of_labels(held_out, rows_of_all=True)),
            counter,
            Tracker(folder.uri, HISTORY, run_name, settings.model_dump(mode="json")),
        )
        outcome = _fit(run, folder, run_name)
    if outcome["fault"]:
        raise ValueError(outcome["fault"])
    network = Aggregator(run.dim, settings.heads, settings.layers, settings.dropout)
    network.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in outcome["best"].items()})
    folder.write_bytes(CURVES, draw_curves(outcome["history"]))
    record |= {"best_step": outcome["best_step"], "validation_map": outcome["best_map"], "history": outcome["history"]}
    made = TrainedAggregator.save(target, network, queries.manifest.models, record)
    folder.delete("runs")
    return Trained(made, left_out, outcome["history"])


def _record(
    gallery: Gallery,
    queries: QuerySet,
    settings: Training,
    examples: Examples,
    trained: list[int],
    held_out: list[int],
) -> dict[str, Any]:
    """What decides the result, JSON-ready: it names the run, and goes into the manifest."""
    return {
        "gallery": {"uri": gallery.uri, "created": gallery.manifest.created, "rows": gallery.manifest.rows},
        "queries": {"uri": queries.uri, "created": queries.manifest.created, "count": queries.manifest.queries},
        "images": [1, examples.images_QKD2.shape[1]],
        "labels": [examples.labels[i] for i in trained],
        "validation_labels": [examples.labels[i] for i in held_out],
        "settings": settings.model_dump(mode="json", exclude=_WHERE_IT_RUNS),
        "versions": {name: version(name) for name in ("torch", "ray")},
    }


def _fit(run: Run, folder: Folder, name: str) -> dict[str, Any]:
    settings = run.settings
    workers = (settings.min_workers, settings.max_workers)
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"run": run},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,
            use_gpu=settings.gpus > 0,
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{folder.path}/runs",
            storage_filesystem=folder.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    return trainer.fit().return_value


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker does: train to the end, or until validation stops it, from the newest checkpoint on.

    Returns:
        ``best`` (the network's arrays at its best validation), ``best_step``, ``best_map``, ``history`` (a line for
        each validation) and ``fault`` (why the run had to stop, or None).
    """
    run: Run = config["run"]
    settings = run.settings
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    learner = Learner(
        settings,
        run.dim,
        device=ray.train.torch.get_device(),
        wrap=ray.train.torch.prepare_model if world > 1 else lambda module: module,
        world=world,
    )
    state = checkpoint.newest(Folder(run.folder)) or {"best": {}, "best_step": 0, "best_map": -1.0, "history": []}
    if "learner" in state:
        learner.load(state["learner"])
    validation: Examples = ray.get(run.validation)
    drawing = {"batch": settings.batch, "positives": settings.positives, "seed": settings.seed}
    batches = stream(run.training, range(learner.step_number, settings.steps), drawing | {"rank": rank, "world": world})
    counted = run.counter.done()
    losses: list[float] = []
    outcome: dict[str, Any] = {"fault": None}
    if not state["history"]:
        _validate(run, learner, validation, state, losses)
    for batch in batches:
        if _patience_is_over(state["history"], settings):
            break
        done = learner.step(batch, rank)
        # The gradient is the same on all workers, so all of them stop here.
        if not math.isfinite(done.norm):
            outcome["fault"] = _explain(learner, done.loss, ray.get(run.training), drawing)
            break
        losses.append(done.loss)
        if rank == 0 and learner.step_number > counted:  # after a restart, what was done before counts as well
            run.counter.add(learner.step_number - counted)
            counted = learner.step_number
        if learner.step_number % settings.validate_every == 0 or learner.step_number == settings.steps:
            _validate(run, learner, validation, state, losses)
            losses = []
    return (
        outcome
        | {name: state[name] for name in ("best_step", "best_map", "history")}
        | {"best": {name: tensor.numpy() for name, tensor in state["best"].items()}}
    )


def _validate(run: Run, learner: Learner, validation: Examples, state: dict[str, Any], losses: list[float]) -> None:
    """Measure mAP on held-out labels, keep the best network, and write a checkpoint.

    The first worker measures and writes; all of them know the result, by which they stop together.
    """
    first = ray.train.get_context().get_world_rank() == 0
    accuracy = broadcast_from_rank_zero(learner.validate(validation) if first else None)
    line = {
        "step": learner.step_number,
        "loss": round(learner.mean_over_workers(sum(losses) / len(losses)), 6) if losses else None,
        "map": round(accuracy, 6),
        "weight": round(learner.network.fusion_weight, 6),
        "scale": round(learner.plain.log_scale.exp().item(), 4),
    }
    state["history"] = [*state["history"], line]
    if accuracy > state["best_map"]:
        best = {name: tensor.detach().cpu().clone() for name, tensor in learner.network.state_dict().items()}
        state |= {"best": best, "best_step": learner.step_number, "best_map": accuracy}
    if not first:
        ray.train.report(line)
        return
    run.tracker.write(state["history"])
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder), state | {"learner": learner.state()})
        ray.train.report(
            line,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            # A name of its own each time: Ray Train deletes the checkpoint that it knew by an earlier one's name.
            checkpoint_dir_name=f"{checkpoint.folder_name(learner.step_number)}-{uuid.uuid4().hex[:8]}",
        )


def _patience_is_over(history: list[dict[str, Any]], settings: Training) -> bool:
    best = max(range(len(history)), key=lambda i: history[i]["map"])
    return len(history) - 1 - best >= settings.patience


def _explain(learner: Learner, loss: float, examples: Examples, drawing: dict[str, int]) -> str:
    labels = examples.draw(learner.step_number, **drawing)["label"]
    names = [examples.labels[i] for i in labels[:8]]
    return (
        f"the gradient is not a number at step {learner.step_number + 1} (loss {loss}); its batch has the labels"
        f" {', '.join(names)}{' …' if len(labels) > 8 else ''}. Look for vectors that are not finite in the gallery"
        " and the query set, or lower train.learning_rate in the profile."
    )
