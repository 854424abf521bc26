"""An index in an object store that grows and shrinks: what has not changed is neither downloaded nor measured again."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import D1, D2, directions, write_gallery
from test_growth import with_batch

from cluster.profile import Profile
from pipelines.growth import compact, index_batch, remove
from pipelines.index import build_index
from pipelines.publication import measured_before
from pipelines.recall import measure_recall
from pipelines.selection import Selection
from retrieval.artifacts import Gallery, Index
from retrieval.artifacts.manifests import RecallRecord
from retrieval.folder import Folder
from retrieval.fusion import unit
from retrieval.index.cache import FOLDER
from retrieval.index.files import INDEX, ROWS, VECTORS

pytestmark = pytest.mark.usefixtures("in_process")

ROWS_BUILT, KIND = 600, "IVF8,SQ8"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a test, empty as yet."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sent(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that the S3 server has sent, by VERSION/SHARD/FILE."""
    from moto.moto_server.threaded_moto_server import DomainDispatcherApplication

    found: Counter[str] = Counter()
    plain: Callable[..., Any] = DomainDispatcherApplication.__call__

    def counting(self: Any, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        for piece in plain(self, environ, start_response):
            if environ["REQUEST_METHOD"] == "GET":
                found["/".join(environ["PATH_INFO"].split("/")[-3:])] += len(piece)
            yield piece

    monkeypatch.setattr(DomainDispatcherApplication, "__call__", counting)
    return found


@pytest.fixture
def target(bucket: str, profile: Profile, tmp_path: Path) -> Folder:
    """A gallery and an index of two shards, in a bucket."""
    target = Folder(f"s3://bucket/{tmp_path.name}?{bucket}")
    gallery = some(tmp_path / "gallery", "first", ROWS_BUILT, target / "gallery")
    build_index(gallery, (target / "index").uri, profile, shards=2, factory=KIND)
    return target


def some(folder: Path, word: str, rows: int, upload: Folder | None = None) -> Gallery:
    rng = np.random.default_rng(len(word))
    vectors = (directions(rows, dim, rng) for dim in (D1, D2))
    made = write_gallery(folder, *vectors, ids=[f"{word}-{i:03d}" for i in range(rows)])
    if upload is None:
        return made
    for name in [*made.parts(), "manifest.json"]:
        upload.write_bytes(name, made.folder.read_bytes(name))
    return Gallery.open(upload)


def shards_read(sent: Counter[str]) -> set[str]:
    """The files with vectors among those that were sent."""
    return {name for name in sent if name.endswith((INDEX, VECTORS))}


def measured(index: Index) -> list[tuple[str, int, int]]:
    return [(record.version, record.shards, record.rows) for record in index.manifest.measured]


def test_one_image_more_or_less_costs_its_own_shard(
    target: Folder, profile: Profile, tmp_path: Path, place: Path, sent: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On another machine than that of the build: nothing is cached, and nothing old is downloaded.
    monkeypatch.setenv(FOLDER, str(tmp_path / "another"))
    gallery, index = (kind.open(target / kind.kind) for kind in (Gallery, Index))
    sent.clear()
    grown = with_batch(gallery, some(tmp_path / "one", "one more", 1))
    added = index_batch(*grown, [], gallery, index, profile)
    assert {name.split("/")[0] for name in shards_read(sent)} == {added.version} == {"000002"}
    assert measured(added) == [("000001", 2, ROWS_BUILT), ("000002", 1, 1)]
    assert added.manifest.measured[0].recall == index.manifest.recall == added.manifest.recall
    sent.clear()
    gone = remove(Selection(ids=["first-000"]), Gallery.open(gallery.folder), added, profile.index).index
    assert shards_read(sent) == set()
    assert gone.manifest.measured == added.manifest.measured
    assert (gone.manifest.rows, gone.manifest.removed) == (ROWS_BUILT, 1)
    whole = compact(Gallery.open(gallery.folder), gone, profile, factory=KIND)
    assert measured(whole) == [(whole.version, 1, ROWS_BUILT)]


def test_replicas_of_two_versions_share_the_shards_that_these_share(
    target: Folder, profile: Profile, tmp_path: Path, sent: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, before = (kind.open(target / kind.kind) for kind in (Gallery, Index))
    after = index_batch(*with_batch(gallery, some(tmp_path / "one", "one more", 1)), [], gallery, before, profile)
    monkeypatch.setenv(FOLDER, str(tmp_path / "node"))
    sent.clear()
    opened = [before.shard(0, verified=True), after.shard(0), *after.shards(), *before.shards()]
    assert len(opened) == 7
    for record in after.manifest.shards:
        for name in (INDEX, VECTORS, ROWS):
            assert sent[f"{record.version}/{record.name}/{name}"] == record.files[name]["bytes"]
    assert opened[0].vectors.filename == opened[1].vectors.filename  # type: ignore[attr-defined]


def opened_at_once(uri: str, ready: Any) -> None:
    index = Index.open(uri)
    ready.wait(120)
    assert len(index.shard(0)) == ROWS_BUILT // 2


@pytest.mark.slow
def test_two_processes_that_want_one_shard_download_it_once(
    target: Folder, tmp_path: Path, sent: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "node"))
    sent.clear()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    both = [context.Process(target=opened_at_once, args=((target / "index").uri, ready)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [0, 0]
    [record, _] = Index.open(target / "index").manifest.shards
    assert sent[f"{record.version}/{record.name}/{VECTORS}"] == record.files[VECTORS]["bytes"]


def test_recall_that_was_put_together_is_no_more_than_that_of_all_shards(profile: Profile, tmp_path: Path) -> None:
    """New rows lie where the old ones do not, and were removed from old shards; queries are of all of them."""
    rng = np.random.default_rng(0)
    gallery = write_gallery(tmp_path / "gallery", *(directions(1500, dim, rng) for dim in (D1, D2)))
    settings = profile.model_copy(update={"index": profile.index.model_copy(update={"recall_floor": 0.5})})
    index = build_index(gallery, str(tmp_path / "index"), settings, shards=2, factory="IVF32,SQ8")
    for number in (1, 2):
        aside = [unit(directions(500, dim, rng) + 2 * directions(1, dim, rng)) for dim in (D1, D2)]
        ids = [f"{number}-{i:03d}" for i in range(500)]
        grown = with_batch(gallery, write_gallery(tmp_path / str(number), *aside, ids=ids, parts=1))
        index = index_batch(*grown, [], gallery, index, settings)
        gallery = Gallery.open(gallery.folder)
        chosen = Selection(ids=[f"row-{i:05d}" for i in range(number, 300, 3)])
        index = remove(chosen, gallery, index, settings.index).index
        gallery = Gallery.open(gallery.folder)
    assert [record.rows for record in index.manifest.measured] == [1500, 500, 500]
    put_together = index.manifest.recall
    assert put_together == {
        depth: {weight: min(record.recall[depth][weight] for record in index.manifest.measured) for weight in of}
        for depth, of in put_together.items()
    }

    class Counting:
        def add(self, _: int) -> None: ...

    of_all = measure_recall(index, range(len(index.manifest.shards)), settings.index, Counting()).recall  # type: ignore[arg-type]
    for depth, by_weight in of_all.items():
        for weight, value in by_weight.items():
            assert value >= put_together[depth][weight] - 0.02


def test_a_manifest_without_what_was_measured_is_taken_for_one_measurement(profile: Profile, tmp_path: Path) -> None:
    gallery = some(tmp_path / "gallery", "first", 50)
    index = build_index(gallery, str(tmp_path / "index"), profile, shards=2)
    content = index.folder.read_json("manifest.json")
    assert len(content.pop("measured")) == 1
    index.folder.write_json("manifest.json", content)
    index = Index.open(tmp_path / "index")
    assert index.manifest.measured == []
    assert measured_before(index) == [
        RecallRecord(version="000001", shards=2, rows=50, recall=index.manifest.recall, text_recall=None)
    ]
    added = index_batch(*with_batch(gallery, some(tmp_path / "more", "more", 10)), [], gallery, index, profile)
    assert measured(added) == [("000001", 2, 50), ("000002", 1, 10)]


def test_it_is_said_when_much_was_removed_since_recall_was_measured(profile: Profile, tmp_path: Path) -> None:
    gallery = some(tmp_path / "gallery", "first", 40)
    index = build_index(gallery, str(tmp_path / "index"), profile)
    logged: list[str] = []
    for first, last, said in ((0, 10, 0), (10, 11, 1)):
        chosen = Selection(ids=[f"first-{i:03d}" for i in range(first, last)])
        index = remove(chosen, gallery, index, profile.index, log=logged.append).index
        gallery = Gallery.open(gallery.folder)
        assert len(logged) == said
    assert "before 28% of their rows were removed" in logged[0]
