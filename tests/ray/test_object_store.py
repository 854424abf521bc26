"""Everything on an object store: index, add, remove, imagine, evaluate, search, serve, verify, prune."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from errors import refused
from serving_graph import local_service

from cluster.hold import hold, holds
from cluster.profile import Profile
from demo.grammar import categories
from demo.world import render
from pipelines import job
from pipelines.evaluate import evaluate
from pipelines.inspection import rejected, state, versions
from pipelines.queries import build_queries
from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import Gallery, Index
from retrieval.finder import Finder
from retrieval.folder import Folder
from serving.protocol import SearchRequest

pytestmark = [pytest.mark.slow, pytest.mark.long]


def draw(folder: Folder, name: str, number: int) -> None:
    data = BytesIO()
    render(categories()[number % 40], number).save(data, "PNG")
    folder.write_bytes(name, data.getvalue())


def test_the_whole_path(
    bucket: str, profile: Profile, profile_file: Path, query_encoder: Any, ray_session: None
) -> None:
    source, target = (Folder(f"s3://bucket/whole/{name}?{bucket}") for name in ("images", "target"))
    for i in range(12):
        draw(source, f"class {i % 3}/{i:02d}.png", i)
    source.write_bytes("broken.jpg", b"")
    built = job.index(source.uri, target.uri, profile, shards=2)
    gallery = built.gallery
    assert (gallery.manifest.rows, gallery.manifest.rejected, built.index.manifest.rows) == (12, {"empty": 1}, 12)
    with hold(target, "another"):
        assert [each.job for each in holds(target)] == ["another"]
        with refused("locked"):
            job.add(source.uri, target.uri, profile)

    draw(source, "class 9/new.png", 30)
    added = job.add(source.uri, target.uri, profile)
    batch = added.gallery.manifest.batches[-1]
    assert (added.index.manifest.rows, added.gallery.manifest.rows, batch.inputs) == (13, 13, 1)
    removed = job.remove(target.uri, profile, paths=["class 0/00.png"])
    gallery = Gallery.open(target / "gallery")
    assert removed.index.manifest.rows == gallery.manifest.rows == 12

    entries = [VocabularyEntry(f"thing {i}", "name", f"class {i}") for i in (1, 2)]
    queries = build_queries(entries, (target / "queries").uri, profile)
    measured = evaluate(gallery, queries)
    assert (measured.gallery_rows, len(measured.values("fused", "name"))) == (12, 2)

    answer = Finder(query_encoder, Index.open(target / "index")).search("thing 1", 20, images=2)
    paths = {found.row["path"] for found in answer.results}
    assert len(answer.results) == len(paths) == 12
    assert "class 9/new.png" in paths
    assert "class 0/00.png" not in paths

    service = local_service(target=target.uri, profile=str(profile_file), store="memory:")

    async def ask() -> tuple[Any, Any]:
        search = service.search()
        await search.warm_up()
        served = await search.answer(SearchRequest(query="thing 1", k=20, images=2), "an id")
        return served, await search.places.of(served.results[0].id)

    served, place = asyncio.run(ask())
    assert [result.id for result in served.results] == [found.row["id"] for found in answer.results]
    assert place == (served.results[0].path, source.uri)

    whole = job.compact(target.uri, profile).index
    assert [each.trouble for each in job.verify(target.uri, profile, sample=12)] == [None] * 4
    assert "index/000001" in job.prune(target.uri, keep=1)
    assert [each.name for each in versions(target / "index")] == [whole.version]
    assert (state(target).jobs, state(target).holds) == ([], [])
    assert rejected(target)["path"].to_pylist() == ["broken.jpg"]
