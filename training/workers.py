"""Where the loop of a run runs: in this process, or in workers of Ray Train.

Ray Train starts the workers, joins them (gloo on CPUs, NCCL on GPUs), replaces those that are lost and keeps the
checkpoints.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import nn

from cluster.profile import Training
from cluster.room import cluster_nodes, preferred
from cluster.session import in_process
from retrieval.folder import Folder
from training import checkpoint
from training.gloo import RayAddresses
from training.loop import Line, Outcome, Run, train_loop

T = TypeVar("T")


def run_loop(run: Run) -> Outcome:
    """Run the loop where the settings and the open session say: without Ray, or for no workers, in this process."""
    if in_process() or run.settings.max_workers == 0:
        return train_loop(run, Alone(run))
    return _run_on_ray(run)


class Alone:
    """The only worker of a run, in this process."""

    rank, world = 0, 1

    def __init__(self, run: Run) -> None:
        self.device = torch.device("cuda" if run.settings.gpus and torch.cuda.is_available() else "cpu")
        self._checkpoints = Folder(run.checkpoints)

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def agree(self, value: T) -> T:
        return value

    def keep(self, line: Line, state: Mapping[str, Any] | None) -> None:
        checkpoint.write(self._checkpoints / checkpoint.folder_name(line["step"]), dict(state or {}))
        checkpoint.delete_old(self._checkpoints)


class OnRay:
    """A worker of Ray Train, which this process is."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def wrap(self, module: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(module) if self.world > 1 else module

    def agree(self, value: T) -> T:
        return broadcast_from_rank_zero(value)

    def keep(self, line: Line, state: Mapping[str, Any] | None) -> None:
        if state is None:
            ray.train.report(line)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(Folder(folder), dict(state))
            ray.train.report(
                line,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                # A name of its own each time: Ray Train deletes the checkpoint that it knew by an earlier one's name.
                checkpoint_dir_name=f"{checkpoint.folder_name(line['step'])}-{uuid.uuid4().hex[:8]}",
            )


def _run_on_ray(run: Run) -> Outcome:
    settings, checkpoints = run.settings, Folder(run.checkpoints)
    # Ray Train takes one selector for a run, and no fallback.
    selector, _ = preferred(settings, cluster_nodes(), max(1, settings.min_workers))
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"run": ray.put(run)},  # whose arrays the workers map
        torch_config=RayAddresses(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_workers(settings),
            use_gpu=settings.gpus > 0,
            label_selector=dict(selector) or None,
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=checkpoints.name,
            storage_path=checkpoints.parent.path,
            storage_filesystem=checkpoints.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=checkpoint.KEPT),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    return trainer.fit().return_value


def _workers(settings: Training) -> int | tuple[int, int]:
    """A number, or the least and the most, between which Ray Train takes what the cluster has."""
    least, most = max(1, settings.min_workers), settings.max_workers
    return most if least == most else (least, most)


def _work(config: dict[str, Any]) -> Outcome:
    return train_loop(ray.get(config["run"]), OnRay())
