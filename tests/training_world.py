"""A small world to train on, and training on it: shared by tests that train in this process and on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from synthetic import D1, D2, directions, write_gallery, write_queries

import training.trainer
from cluster.profile import Generator, IndexSettings, Models, Profile, Queries, Stage, Training
from retrieval.artifacts import Gallery, QuerySet
from retrieval.fusion import unit
from training.trainer import Trained

CLASSES = [f"class {chr(97 + i)}" for i in range(12)]
ROWS, K = 12, 4
SETTINGS = Training(
    cpus=0.5, layers=2, heads=2, dropout=0.1, batch=8, positives=2, rows_per_label=10, steps=30, warm_up=5,
    learning_rate=0.02, validate_every=5, patience=100,
)  # fmt: skip
PUBLISHED = ["curves.png", "manifest.json", "metrics.jsonl", "weights.safetensors"]


def profile_of(**changes: Any) -> Profile:
    """A profile of these training settings; it names no models, as training loads none."""
    stage = Stage(max_actors=1, batch=1)
    unused = Generator(uri="unused", steps=1, guidance=0, batch=1)
    return Profile(
        name="test", models=Models(vlm="unused", vision="unused", generator=unused), embed=stage, imagine=stage,
        queries=Queries(images=K, templates="none"), index=IndexSettings(rows_per_shard=1000),
        train=SETTINGS.model_copy(update=changes),
    )  # fmt: skip


class World(NamedTuple):
    gallery: Gallery
    queries: QuerySet


def write_world(folder: Path, *, spoilt_rows: slice = slice(0)) -> World:
    """Twelve classes of twelve images and two queries each; half of the vision coordinates are noise."""
    rng = np.random.default_rng(0)
    text_centres, centres = directions(len(CLASSES), D1, rng), directions(len(CLASSES), D2 // 2, rng)

    def texts(of: np.ndarray) -> np.ndarray:
        return unit(text_centres[of] + 2.0 * directions(len(of), D1, rng))

    def images(of: np.ndarray, noise: float) -> np.ndarray:
        known = centres[of] + 0.1 * rng.standard_normal((len(of), D2 // 2))
        return unit(np.concatenate([known, noise * directions(len(of), D2 // 2, rng)], axis=1))

    row_label, query_label = np.repeat(np.arange(12), ROWS), np.repeat(np.arange(12), 2)
    vlm, vision = texts(row_label), images(row_label, 1.0)
    vision[spoilt_rows, 0] = np.nan
    imagined = [images(np.repeat(label, 1 + q % K), 2.0) for q, label in enumerate(query_label)]
    return World(
        write_gallery(folder / "gallery", vlm, vision, labels=[CLASSES[i] for i in row_label]),
        write_queries(folder / "queries", texts(query_label), imagined, labels=[CLASSES[i] for i in query_label]),
    )


def train(
    world: World,
    target: Path,
    log: Callable[[str], None] = lambda line: None,
    *,
    address: str | None = "none",
    **changes: Any,
) -> Trained:
    """Train with these changes of the settings, by default in this process."""
    return training.trainer.train(*world, target, profile_of(**changes), address=address, log=log)


def lines_of(target: Path) -> list[dict[str, Any]]:
    """The history that a run has written so far."""
    file = target / training.trainer.HISTORY
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def checkpoints(target: Path) -> list[Path]:
    """The checkpoints of an unfinished run, the oldest first."""
    return sorted(target.glob("runs/*/step-*/state.pt"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.parent.name.split("-")[1])


def assert_same_weights(one: Trained, other: Trained, *, atol: float) -> None:
    ours, theirs = (dict(made.aggregator.network().state_dict()) for made in (one, other))
    for name in ours:
        if name.endswith("in_proj_bias"):
            # The bias of the keys shifts all attention scores alike: it has no effect and no gradient but rounding,
            # which AdamW scales up to a step.
            ours[name], theirs[name] = (torch.cat([bias[:D2], bias[2 * D2 :]]) for bias in (ours[name], theirs[name]))
        np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), rtol=0, atol=atol, err_msg=name)
