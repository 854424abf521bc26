"""The demo's aggregator: trained by ``mindseye train``'s own code on the categories that are not evaluated.

Photos and queries of the ``models`` and ``fitting`` categories; encoders and generator know the former from their own
training, the latter are as new to them as those of the evaluation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.profile import Profile, load_profile
from cluster.session import session
from demo.collection import render_gallery
from demo.grammar import describe
from demo.world import split
from pipelines.gallery import build_gallery
from pipelines.queries import build_queries
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import MANIFEST, Gallery, QuerySet
from retrieval.folder import Folder
from training.trainer import train

ROOT = Path(__file__).parents[1]
PHOTOS = 32
"""Gallery photos per category."""


def seen_gallery(work: Path, profile: Profile) -> Gallery:
    """Return the embedded photos of all seen categories, made in ``work`` if they are not there."""
    target = Folder(work / "gallery")
    if target.exists(MANIFEST):
        return Gallery.open(target)
    images = work / "photos"
    if not images.exists():
        render_gallery(images, split("models") + split("fitting"), PHOTOS)
    return build_gallery(str(images), target.uri, profile)


def seen_queries(work: Path, profile: Profile) -> QuerySet:
    """Return a name and a description of each seen category, imagined, made in ``work`` if they are not there.

    Descriptions are of the kind that captions have; the paraphrases of the evaluation stay unheard of.
    """
    target = Folder(work / "queries")
    if target.exists(MANIFEST):
        return QuerySet.open(target)
    rng = np.random.default_rng(0)
    entries = []
    for category in split("models") + split("fitting"):
        entries.append(VocabularyEntry(category.name, "name", category.name))
        entries.append(VocabularyEntry(describe(category, "training", rng), "description", category.name))
    return build_queries(entries, target.uri, profile)


def build(work: Path, target: Path) -> None:
    """Train the aggregator of the profile ``tiny`` from the committed models; it ends in ``target``."""
    profile = load_profile("tiny")
    work.mkdir(parents=True, exist_ok=True)
    with session():
        gallery, queries = seen_gallery(work, profile), seen_queries(work, profile)
        Folder(target).delete()
        train(gallery, queries, target, profile, log=print)
    # What is committed should not say where it was made.
    manifest = target / MANIFEST
    manifest.write_text(manifest.read_text().replace(f"{ROOT}/", ""))
