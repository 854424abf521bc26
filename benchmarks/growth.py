"""What growing and shrinking costs a search, and whether compacting gives it back, in one run.

    .venv/bin/python -m benchmarks.growth [--rows 100000] [--write]

A gallery of synthetic embeddings (as in ``benchmarks.index_scale``) is indexed; then five times a fifth of its rows is
removed and as many are added. Searches of one query over all shards are timed before, after each round, after
``compact``, and in an index that is built again from the same rows. ``--write`` puts the figures into docs/growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np

from benchmarks.index_scale import ROWS_PER_CLASS, THREADS, seconds_of, write_gallery
from cluster.profile import load_profile
from cluster.session import session
from pipelines.growth import compact, index_batch, remove
from pipelines.index import build_index
from pipelines.publication import worst_recall
from pipelines.selection import Selection
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest
from retrieval.fusion import fused_query
from retrieval.index.shard import Shard

ROUNDS, SHARE = 5, 5
WEIGHTS = (0.0, 0.5, 1.0)


def with_batch(gallery: Gallery, new: Gallery) -> tuple[GalleryManifest, BatchRecord]:
    """Copy a gallery's parts into another as its next batch, which no manifest has yet."""
    manifest = gallery.manifest
    name = f"{len(manifest.batches) + 1:06d}"
    parts = []
    for part in new.manifest.parts:
        file = f"{Gallery.batch(name, 'parts')}/{part.name.rsplit('/', 1)[-1]}"
        gallery.folder.write_bytes(file, new.folder.read_bytes(part.name))
        parts.append(part.model_copy(update={"name": file}))
    record = new.manifest.batches[0].model_copy(update={"name": name})
    changes = {
        "rows": manifest.rows + record.rows,
        "batches": [*manifest.batches, record],
        "parts": [*manifest.parts, *parts],
    }
    return manifest.model_copy(update=changes), record


def figures_of(index: Index, text: np.ndarray, visual: np.ndarray) -> dict[str, Any]:
    shards = index.shards()
    query = {weight: fused_query(text, visual, weight) for weight in WEIGHTS}
    p50 = {}
    for weight, rows in query.items():
        times = [seconds_of(partial(search_all, shards, one))[0] for one in rows]
        p50[str(weight)] = round(float(np.median(times)) * 1e3, 3)
    return {
        "shards": len(shards),
        "removed": index.manifest.removed,
        "worst recall": round(worst_recall(index), 4),
        "search_p50_ms": p50,
    }


def search_all(shards: list[Shard], query: np.ndarray) -> None:
    for shard in shards:
        shard.search(query, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help="write docs/growth.json")
    arguments = parser.parse_args()
    rows, some = arguments.rows, arguments.rows // SHARE
    rng = np.random.default_rng(0)
    profile = load_profile("tiny")
    states: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, session():
        folder = Path(scratch)
        gallery, text, visual = write_gallery(folder / "gallery", rows)
        index = build_index(gallery, str(folder / "index"), profile, shards=1)
        states["built"] = figures_of(index, text, visual)
        for number in range(1, ROUNDS + 1):
            alive = [name for table in gallery.tables(["id"]) for name in table["id"].to_pylist()]
            chosen = rng.choice(alive, some, replace=False).tolist()
            index = remove(Selection(ids=chosen), gallery, index, profile.index).index
            gallery = Gallery.open(gallery.uri)
            new, _, _ = write_gallery(folder / f"new {number}", some, classes=rows // ROWS_PER_CLASS, seed=number)
            grown, record = with_batch(gallery, new)
            index = index_batch(grown, record, [], gallery, index, profile)
            gallery = Gallery.open(gallery.uri)
            states[f"round {number}"] = figures_of(index, text, visual)
        seconds, index = seconds_of(lambda: compact(gallery, index, profile))
        states["compacted"] = {**figures_of(index, text, visual), "seconds": round(seconds, 1)}
        again = build_index(gallery, str(folder / "again"), profile, shards=len(index.manifest.shards))
        states["built again"] = figures_of(again, text, visual)
    for name, state in states.items():
        print(f"{name:12}", json.dumps(state))
    at = {name: state["search_p50_ms"] for name, state in states.items()}
    ratios = {
        f"{one} to {other}": {weight: round(at[one][weight] / at[other][weight], 2) for weight in at[one]}
        for one, other in ((f"round {ROUNDS}", "built"), ("compacted", f"round {ROUNDS}"), ("compacted", "built again"))
    }
    print(json.dumps(ratios, indent=2))
    if arguments.write:
        content = {"rows": rows, "threads": THREADS, "states": states, "ratios of p50": ratios}
        (Path(__file__).parents[1] / "docs/growth.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
