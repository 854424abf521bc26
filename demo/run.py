"""``mindseye demo``: the main job from nothing to a table of results, in one folder.

Renders a gallery of unseen categories, embeds and indexes it, imagines a query of every kind for each category, and
evaluates. Before that, a gallery of the ``fitting`` categories decides the λ of the fused ranking, and an aggregator is
trained on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.loading import WORDS, load_aggregator
from cluster.profile import Profile
from demo.collection import dictionary, render_gallery, vocabulary
from demo.world import split
from pipelines.contact_sheet import contact_sheet
from pipelines.evaluate import Evaluation, evaluate
from pipelines.gallery import build_gallery
from pipelines.index import build_index
from pipelines.queries import build_queries
from pipelines.report import write_report
from retrieval.artifacts import Gallery, Index, QuerySet
from retrieval.errors import UserError
from retrieval.prompts import KINDS
from training.trainer import train

WEIGHTS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""λ that are tried on the fitting categories."""


@dataclass(frozen=True)
class Size:
    """How much the demo renders and imagines."""

    unseen_categories: int = 144
    unseen_images: int = 72
    fitting_categories: int = 48
    fitting_images: int = 24
    shards: int = 2


@dataclass(frozen=True)
class DemoResult:
    """What the demo has made and measured."""

    gallery: Gallery
    index: Index
    queries: QuerySet
    evaluation: Evaluation
    made: list[str]
    """Where the reports and the aggregator are."""
    example: str
    """A category that is in the gallery."""


def run_demo(folder: Path, profile: Profile, log: Callable[[str], None], size: Size | None = None) -> DemoResult:
    """Run the whole demo in ``folder``, which is emptied first if an earlier demo filled it. Needs an open session.

    Args:
        folder: where everything goes.
        profile: models and machines.
        log: is given a line at each step.
        size: how much is rendered and imagined; by default what the figures in the docs were measured on.

    Raises:
        UserError: ``folder`` holds something else.
    """
    size = size or Size()
    _empty(folder)
    unseen = split("unseen")[: size.unseen_categories]
    fitting = split("fitting")[: size.fitting_categories]

    images = {"unseen": (unseen, size.unseen_images), "fitting": (fitting, size.fitting_images)}
    total = sum(len(categories) * count for categories, count in images.values())
    log(f"rendering {total:,} images of {len(unseen)} unseen and {len(fitting)} fitting categories")
    for name, (categories, count) in images.items():
        render_gallery(folder / "images" / name, categories, count)

    log("choosing λ on fitting categories")
    fitting_gallery = build_gallery(str(folder / "images/fitting"), str(folder / "fitting/gallery"), profile)
    fitting_queries = build_queries(vocabulary(fitting, ("name",)), str(folder / "fitting/queries"), profile)
    weight = choose_weight(fitting_gallery, fitting_queries)
    log(f"λ = {weight}")

    log("training an aggregator on fitting categories")
    # In this process: workers would take longer to start than to train on so little.
    alone = profile.train.model_copy(update={"min_workers": 0, "max_workers": 0})
    settings = profile.model_copy(update={"train": alone})
    made = train(fitting_gallery, fitting_queries, folder / "aggregator", settings, log=log).aggregator

    log("the gallery of unseen categories: embedding, indexing")
    gallery = build_gallery(str(folder / "images/unseen"), str(folder / "gallery"), profile)
    index = build_index(gallery, str(folder / "index"), profile, shards=size.shards)
    log("the queries: imagining")
    queries = build_queries(vocabulary(unseen, KINDS), str(folder / "queries"), profile)
    log("a dictionary: imagining single words")
    build_queries(dictionary(), str(folder / WORDS), profile)
    log("evaluating")
    # The profile's own learned from many more categories than a demo has time for.
    shipped = load_aggregator(profile)
    aggregators = {"trained": made} | ({"shipped": shipped} if shipped else {})
    evaluation = evaluate(gallery, queries, weight=weight, aggregators=aggregators)
    best, learned = list(aggregators.items())[-1]
    files = write_report(
        evaluation,
        lambda: contact_sheet(gallery, queries, evaluation.weights[best], aggregator=learned),
        folder / "report",
    )
    places = [*files, made.uri]
    return DemoResult(gallery, index, queries, evaluation, places, unseen[-1].name)


def _empty(folder: Path) -> None:
    marker = folder / ".mindseye-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise UserError(
                f"{folder} is not empty and no demo made it; give another folder", code="not-empty", field="folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def choose_weight(gallery: Gallery, queries: QuerySet) -> float:
    """Return the λ of ``WEIGHTS`` with the best mAP, over all kinds of query."""
    evaluation = evaluate(gallery, queries, extra={str(weight): weight for weight in WEIGHTS})
    return max(
        WEIGHTS, key=lambda weight: np.mean([evaluation.mean(str(weight), kind).mean for kind in evaluation.kinds])
    )
