"""Texts that a version is tuned and measured with: a query set's, or class names that the VLM embeds.

Queries made of gallery rows lie among the images. A VLM's texts do not (the modality gap: texts are nearer to each
other than to any image), so their nearest rows lie in more lists, and only texts show how far a search must look.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.loading import load_vlm, prompt_templates
from cluster.profile import Profile
from cluster.progress import Log
from cluster.room import Demand, cluster_nodes, may_grow, trouble
from cluster.session import in_process
from pipelines.running import current_executor
from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.compatibility import check_same_models, recorded
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import fused_query
from retrieval.index.effort import LAMBDA_GRID

TEXTS = "texts.parquet"
"""In a version's folder: columns vlm (D1), and vision (D2) where the texts have imagined images."""
MOST = 200
"""Texts; every second one tunes shards, and the others measure recall."""


def write_texts(
    version: Folder, gallery: Gallery, profile: Profile, factory: str, queries: QuerySet | None, log: Log
) -> None:
    """Choose the texts of a version. ``Flat`` needs none, since it finds what an exact search finds.

    Without a query set they are names of ImageNet classes. Where the gallery's VLM is not at hand, there are none.

    Raises:
        UserError: other models made the query set than the gallery.
    """
    if factory == "Flat" or version.exists(TEXTS):
        return
    made = _from_query_set(gallery, queries) if queries else _from_class_names(gallery, profile)
    if isinstance(made, str):
        log(f"recall of texts will not be measured: {made}")
    else:
        version.write_table(TEXTS, made)


def _from_query_set(gallery: Gallery, queries: QuerySet) -> pa.Table:
    check_same_models(gallery, queries, ("vlm", "vision"))
    return current_executor().run(_chosen, queries).get()


def _from_class_names(gallery: Gallery, profile: Profile) -> pa.Table | str:
    """Return what cannot be had instead, in words."""
    fingerprint = recorded(gallery, "vlm").fingerprint
    there = [] if in_process() else cluster_nodes()
    if there and not may_grow(there) and (found := trouble([Demand("the VLM", "embed", profile.embed)], there)):
        return found.sentence
    return current_executor().run(_embedded, profile, fingerprint, place=profile.embed).get()


def carry_texts(before: Folder, version: Folder) -> None:
    """Measure a version with the texts of the one that it shares shards with, which were tuned with them."""
    if before.exists(TEXTS) and not version.exists(TEXTS):
        version.write_table(TEXTS, before.read_table(TEXTS))


def tuning_texts(version: Folder, vision_dim: int) -> Mapping[float, NDArray[np.float32]]:
    """Return joint queries (Q, D) to tune shards with, by λ; of texts without images at λ = 0 alone."""
    return _joint(version, vision_dim, slice(0, None, 2))


def measuring_texts(version: Folder, vision_dim: int) -> Mapping[float, NDArray[np.float32]]:
    """Return joint queries (Q, D) to measure recall with, none of which has tuned a shard; otherwise as above."""
    return _joint(version, vision_dim, slice(1, None, 2))


def _joint(version: Folder, vision_dim: int, which: slice) -> dict[float, NDArray[np.float32]]:
    if not version.exists(TEXTS):
        return {}
    table = version.read_table(TEXTS)
    text = matrix(table["vlm"])[which]
    if not len(text):
        return {}
    if "vision" not in table.column_names:
        return {0.0: fused_query(text, np.zeros((len(text), vision_dim)), 0.0)}
    visual = matrix(table["vision"])[which]
    return {weight: fused_query(text, visual, weight) for weight in LAMBDA_GRID}


def _chosen(queries: QuerySet) -> pa.Table:
    from retrieval.query import pool  # it loads torch, for which a driver should not wait

    table = queries.table(["id", "vlm", "vision"])
    features, mask = vision_vectors(table)
    # Without an image there is nothing to rank by at λ = 1.
    chosen = np.flatnonzero(mask.any(axis=1) | ~mask.any())[:MOST]
    columns = {"vlm": fixed_size_list(text_vectors(table)[chosen])}
    if mask.any():
        columns["vision"] = fixed_size_list(pool(features[chosen], mask[chosen]))
    return pa.table(columns)


def _embedded(profile: Profile, fingerprint: str) -> pa.Table | str:
    from open_clip import IMAGENET_CLASSNAMES

    from retrieval import query

    try:
        vlm = load_vlm(profile)
    except UserError as error:
        return str(error)
    if vlm.fingerprint != fingerprint:
        return f"the profile's VLM, {vlm.uri}, is not the one that made the gallery"
    names = IMAGENET_CLASSNAMES[:: len(IMAGENET_CLASSNAMES) // MOST]
    return pa.table({"vlm": fixed_size_list(query.text_vectors(vlm, prompt_templates(profile), names))})
