"""The indexing job's counts on Ray's Prometheus endpoint, under the names that docs/indexing.md gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus import scraped

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile

DOCS = Path(__file__).parents[2] / "docs" / "indexing.md"


def samples(page: str, name: str) -> dict[frozenset[str], float]:
    """Return a metric's values by its labels, as in ``batch="000001"``."""
    found = {}
    for line in page.splitlines():
        if line.startswith(f"{name}{{"):
            labels, value = line.removeprefix(f"{name}{{").rsplit("} ", 1)
            found[frozenset(labels.split(","))] = float(value)
    return found


def total(page: str, name: str, *labels: str) -> float:
    return sum(value for of, value in samples(page, name).items() if of >= set(labels))


@pytest.mark.slow
def test_prometheus_sees_rows_by_outcome_and_shards(
    ray_session: None, profile: Profile, collection: Any, tmp_path: Path
) -> None:
    import ray

    from cluster.progress import RayCounter
    from pipelines.embedder import Embedder
    from pipelines.encoders import Encoders
    from pipelines.index import build_index

    vlm, vision = load_vlm(profile), load_vision(profile)
    expected = Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)
    # An actor of the job ends with it, often before Ray asks for its counts; this one stays.
    embedder = ray.remote(Embedder).options(num_cpus=0).remote(profile, expected, RayCounter.start("embedding", 4))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    table = pa.table({"reason": pa.array([None, "empty", None, None], pa.string()), "detail": [None, "x", None, None]})
    table = table.append_column("batch", pa.array(["metrics"] * 4))
    table = table.append_column("vlm_pixels", pa.FixedShapeTensorArray.from_numpy_ndarray(pixels))
    ray.get(embedder.__call__.remote(table))
    index = build_index(collection.gallery, str(tmp_path / "index"), profile, shards=2)

    def embedded(page: str) -> dict[str, float]:
        outcomes = ("embedded", "rejected")
        return {
            of: total(page, "ray_mindseye_index_rows_total", 'batch="metrics"', f'outcome="{of}"') for of in outcomes
        }

    def built(page: str) -> float:
        return total(page, "ray_mindseye_index_shard_rows_total", f'version="{index.version}"')

    seen = scraped(lambda page: built(page) >= index.manifest.rows and all(embedded(page).values()))
    assert embedded(seen) == {"embedded": 3, "rejected": 1}
    assert built(seen) >= index.manifest.rows  # a build of the same version elsewhere in this Ray counts as well
    ray.kill(embedder)
    for name in ("ray_mindseye_index_rows_total", "ray_mindseye_index_shard_rows_total"):
        assert f"`{name}`" in DOCS.read_text(encoding="utf-8")
