"""``mindseye train-composer``: a labelled Gallery and a dictionary to a Composer, by the loop of all training.

Checkpoints are under ``TARGET/runs``, as of the aggregator: the same call resumes where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.profile import Profile, load_profile
from cluster.session import session
from retrieval.artifacts import Gallery, QuerySet, TrainedComposer
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.compatibility import check_same_models
from retrieval.artifacts.queryset import text_vectors
from retrieval.composer import Centres, Composer
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import DEFAULT_WEIGHT
from retrieval.metrics import average_precision
from retrieval.words import Dictionary
from training.curves import draw_curves
from training.examples import split_labels
from training.learner import Learner
from training.loop import Line
from training.loss import Contrast
from training.sampling import sample_rows
from training.target import locked, publish
from training.trainer import CURVES, RUNS, check_workers, fitted, settings_of
from training.triplets import Triplets, changes_between, means_of_nearest, values_of


@dataclass(frozen=True)
class TrainedToCompose:
    """A published composer, and how it was made."""

    composer: TrainedComposer
    labels: int
    """Labels that it learned from, or was validated on."""
    left_out: list[str]
    """Labels of the gallery that name no value of the dictionary, or two of one aspect."""
    history: list[Line]
    """A line for each validation, the first of which is before training."""
    best_step: int
    """The step whose network was published."""
    best_map: float
    """Its mAP on held-out labels."""


class ComposedContrast(Contrast):
    """The composer, and the score of what it makes of a picture and a text."""

    def __init__(self, composer: Composer, temperature: float) -> None:
        super().__init__(temperature)
        self.composer = composer

    @property
    def network(self) -> Composer:
        return self.composer

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of each query, (b,). ``batch`` as Triplets.draw gives."""
        joint_bD = self.composer(batch["rows"], batch["types"], batch["mask"])
        positive_bN = batch["label"][:, None] == batch["row_label"][None, :]
        with torch.autocast(joint_bD.device.type, enabled=False):
            return self.contrast(self.scores(joint_bD.float(), batch["joint"]), positive_bN)

    def scores(self, joint_bD: Tensor, rows_ND: Tensor) -> Tensor:
        """The fused scores (b, N) at λ = DEFAULT_WEIGHT."""
        part = self.composer.vlm_dim
        text_bN, visual_bN = joint_bD[:, :part] @ rows_ND[:, :part].T, joint_bD[:, part:] @ rows_ND[:, part:].T
        return (1 - DEFAULT_WEIGHT) * text_bN + DEFAULT_WEIGHT * visual_bN


class ComposerLearner(Learner):
    """A ComposedContrast, trained as the aggregator is; ``dim`` is D."""

    def __init__(self, *given: Any, vlm_dim: int, centres: Centres, **where: Any) -> None:
        self._vlm_dim, self._centres = vlm_dim, centres
        super().__init__(*given, **where)

    def _contrast(self, dim: int) -> Contrast:
        layers, dropout = self.settings.layers, self.settings.dropout
        network = Composer(self._vlm_dim, dim - self._vlm_dim, self._centres, layers=layers, dropout=dropout)
        return ComposedContrast(network, self.settings.temperature)

    @torch.inference_mode()
    def validate(self, examples: Any) -> float:
        """mAP (trapezoids) of held-out changes; the picture itself is not among what is ranked."""
        module: Any = self.plain.eval()
        pictures, texts, targets = examples.measured()
        given = (torch.from_numpy(part).to(self.device) for part in examples.evidence(pictures, texts).values())
        rows = torch.from_numpy(examples.joint_ND).to(self.device).float()
        scores = module.scores(module.composer(*given), rows).cpu().numpy()
        scores[np.arange(len(pictures)), pictures] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        relevant = examples.row_label_N[order] == targets[:, None]
        return float(np.mean([average_precision(np.flatnonzero(hits), int(hits.sum())) for hits in relevant]))


def load_triplets(gallery: Gallery, words: QuerySet, *, rows_per_label: int, seed: int) -> tuple[Triplets, list[str]]:
    """Return the triplets of a labelled gallery, and the labels that a dictionary does not read.

    Raises:
        UserError: they are of different models, the dictionary has no aspects (code ``no-aspects``, field ``words``),
            or too few labels name its values (``no-triplets``, field ``gallery``).
    """
    check_same_models(gallery, words, ("vlm",))
    if not words.manifest.aspects:
        raise UserError(
            f"the query set {words.uri} has no aspects; give one whose vocabulary has the columns aspect and value",
            code="no-aspects",
            field="words",
        )
    dictionary = Dictionary.of(words)
    there = {label for table in gallery.tables(["label"]) for label in table["label"].drop_null().unique().to_pylist()}
    readable = {label for label in there if values_of(label, dictionary)}
    rows = sample_rows(gallery, readable, rows_per_label, seed)
    labels = sorted(readable)
    table = words.table(["id", "text", "vlm"])
    places = {text: place for place, text in enumerate(table["text"].to_pylist())}
    joint_ND = np.hstack([matrix(rows["vlm"]), matrix(rows["vision"])])
    triplets = Triplets(
        labels,
        joint_ND,
        means_of_nearest(joint_ND),
        np.searchsorted(labels, rows["label"].to_pylist()),
        text_vectors(table),
        changes_between(labels, dictionary, places),
        gallery.manifest.models["vlm"].dim or 0,
    )
    return triplets, sorted(there - readable)


def train_composer(
    gallery: str | Path | Gallery,
    words: str | Path | QuerySet,
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    take_over: bool = False,
    address: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> TrainedToCompose:
    """Train a composer on a gallery whose labels name values of a dictionary, and publish it.

    The same call resumes where a killed one stopped.

    Args:
        gallery: a labelled gallery, or its folder or URI.
        words: a query set of words with aspects, of the same VLM.
        target: folder or URI of the composer.
        profile: name or file; its part ``train`` says how.
        take_over: break the lock of another job. Be sure that it is dead.
        address: Ray cluster to use; by default RAY_ADDRESS, else a local Ray; "none" trains in this process.
        log: is given a line about what the run begins with.

    Raises:
        UserError: ``target`` holds an artifact (``target-exists``) or another job's lock (``locked``); this job has
            lost its own, and publishes nothing (``lock-lost``); as ``load_triplets``; or the loss was not a number.
    """
    folder = Folder(target)
    TrainedComposer.check_new(folder)
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
    words = words if isinstance(words, QuerySet) else QuerySet.open(words)
    settings = load_profile(profile).train
    with locked(folder, "mindseye train-composer", take_over=take_over), session(address):
        check_workers(settings)
        triplets, left_out = load_triplets(gallery, words, rows_per_label=settings.rows_per_label, seed=settings.seed)
        trained, held_out = split_labels(len(triplets.labels), settings.holdout, settings.seed)
        training, validation = triplets.of_labels(trained), triplets.of_labels(held_out, rows_of_all=True)
        record = {
            "gallery": {"uri": gallery.uri, "created": gallery.manifest.created, "rows": gallery.manifest.rows},
            "words": {"uri": words.uri, "created": words.manifest.created, "count": words.manifest.queries},
            "labels": [triplets.labels[i] for i in trained],
            "validation_labels": [triplets.labels[i] for i in held_out],
            **settings_of(settings),
        }
        about = (
            f"training on {len(trained)} labels, validating on {len(held_out)};"
            f" {len(training.changes)} changes, {len(triplets.joint_ND)} gallery images"
        )
        learner = partial(ComposerLearner, vlm_dim=triplets.vlm_dim, centres=training.centres)
        outcome = fitted("the composer", about, folder, settings, record, training, validation, learner, log)
        network = Composer(
            triplets.vlm_dim,
            triplets.dim - triplets.vlm_dim,
            layers=settings.layers,
            dropout=settings.dropout,
        )
        best = outcome.best
        network.load_state_dict(best.network)
        record |= {"best_step": best.step, "validation_map": best.map, "history": outcome.history}
        curves = {CURVES: draw_curves(outcome.history)}
        made = publish(folder, TrainedComposer, network, gallery.manifest.models, record, curves)
        folder.delete(RUNS)
        return TrainedToCompose(made, len(triplets.labels), left_out, outcome.history, best.step, best.map)
