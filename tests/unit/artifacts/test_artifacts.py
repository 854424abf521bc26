"""The artifacts on disk: what opens, what is refused and how, the columns, and what order things are written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_artifacts import Collection, records

from retrieval.aggregator import Aggregator
from retrieval.artifacts import MANIFEST, Gallery, Index, QuerySet, TrainedAggregator
from retrieval.artifacts.columns import fixed_size_list, matrix
from retrieval.artifacts.compatibility import check_same_models
from retrieval.artifacts.gallery import REJECTED_SCHEMA, gallery_schema
from retrieval.artifacts.index import new_version, version_names
from retrieval.artifacts.manifests import GalleryManifest, IndexManifest, QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema, text_vectors, vision_vectors
from retrieval.folder import Folder

FORMAT = 2  # of galleries
MODELS: Any = records(vlm="sha256:aa", vision="sha256:bb")


def gallery_manifest(**changes: Any) -> GalleryManifest:
    batch = {"name": "000001", "source": "/images", "inputs": 2, "rows": 2}
    return GalleryManifest(**{"rows": 2, "batches": [batch], "parts": [], "models": MODELS} | changes)


def publish_gallery(folder: Path, **changes: Any) -> Gallery:
    return Gallery.publish(Folder(folder), gallery_manifest(**changes))


def edited(folder: Path, **changes: Any) -> None:
    """Change fields of a published manifest; None takes a field out."""
    content = json.loads((folder / MANIFEST).read_text())
    content = {key: value for key, value in (content | changes).items() if value is not None}
    (folder / MANIFEST).write_text(json.dumps(content))


def index_manifest(**changes: Any) -> IndexManifest:
    given = {"gallery": "/g", "sources": {}, "rows": 0, "factory": "Flat", "shards": [], "recall": {}, "models": MODELS}
    return IndexManifest(**given | changes)


# Opening


def test_a_published_artifact_opens_with_the_same_manifest(tmp_path: Path) -> None:
    batch = {"name": "000001", "source": "/i", "inputs": 5, "rows": 2, "rejected": {"empty": 3}}
    written = gallery_manifest(batches=[batch, batch])
    assert written.rejected == {"empty": 6}
    assert written.sources == {"000001": "/i"}
    Gallery.publish(Folder(tmp_path), written)
    opened = Gallery.open(tmp_path)
    assert opened.manifest == written
    assert opened.manifest.format == FORMAT
    assert opened.uri == tmp_path.as_posix()
    assert Gallery.open(str(tmp_path)).manifest == Gallery.open(Folder(tmp_path)).manifest == written


def test_a_missing_artifact_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no gallery at") as error:
        Gallery.open(tmp_path / "nothing")
    message = str(error.value)
    assert str(tmp_path / "nothing") in message
    assert "mindseye index makes one" in message
    assert "exists" not in message


@pytest.mark.parametrize(
    ("kind", "command"),
    [(QuerySet, "mindseye queries"), (Index, "mindseye index"), (TrainedAggregator, "mindseye train")],
)
def test_each_kind_names_its_own_command(tmp_path: Path, kind: type[Any], command: str) -> None:
    with pytest.raises(ValueError, match=f"there is no {kind.kind} at.*{command} makes one"):
        kind.open(tmp_path / "nothing")


def test_a_folder_without_manifest_is_said_to_be_there(tmp_path: Path) -> None:
    Folder(tmp_path).write_bytes("parts/000000.parquet", b"")
    with pytest.raises(ValueError, match=r"The folder exists.*not finished"):
        Gallery.open(tmp_path)


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    publish_gallery(tmp_path)
    with pytest.raises(ValueError, match="holds a gallery, where a queryset is expected"):
        QuerySet.open(tmp_path)


@pytest.mark.parametrize("form", [FORMAT + 1, None, str(FORMAT)])
def test_another_format_is_refused_with_both_versions(tmp_path: Path, form: Any) -> None:
    publish_gallery(tmp_path)
    edited(tmp_path, format=form, mindseye="9.8.7")
    with pytest.raises(ValueError, match=f"reads format {FORMAT}") as error:
        Gallery.open(tmp_path)
    assert "9.8.7" in str(error.value)
    assert MANIFEST in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"artifact": "gallery", "format"', b"\xff\xfe\x00", b'{"artifact": "gallery", "format": 2}'],
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Gallery.open(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"gallery"', b"{}"])
def test_json_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match="where a gallery is expected"):
        Gallery.open(tmp_path)


def test_a_wrong_field_of_a_manifest_is_named(tmp_path: Path) -> None:
    publish_gallery(tmp_path)
    edited(tmp_path, rows="many")
    with pytest.raises(ValueError, match=r"damaged.*\n.*rows"):
        Gallery.open(tmp_path)


# Publishing


def test_publishing_writes_the_manifest_alone_and_leaves_nothing_partial(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_bytes("parts/000000.parquet", b"x")
    Gallery.publish(folder, gallery_manifest())
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [MANIFEST, "parts/000000.parquet"]


def test_an_aggregator_exists_only_once_its_weights_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    write = Folder.write_bytes

    def watched(self: Folder, name: str, data: bytes) -> None:
        order.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write_bytes", watched)
    TrainedAggregator.save(tmp_path, Aggregator(8), MODELS, {})
    assert order == [TrainedAggregator.WEIGHTS, MANIFEST]


def test_a_write_that_fails_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Folder, name: str, data: bytes) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Folder, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        publish_gallery(tmp_path)
    with pytest.raises(ValueError, match="there is no gallery"):
        Gallery.open(tmp_path)


# Models


def test_artifacts_of_the_same_models_go_together(tmp_path: Path) -> None:
    a, b = publish_gallery(tmp_path / "a"), publish_gallery(tmp_path / "b", rows=7)
    check_same_models(a, b, ["vlm", "vision"])


def test_the_refusal_names_role_artifacts_uris_and_fingerprints(tmp_path: Path) -> None:
    other = records(vlm="sha256:aa", vision="sha256:cc")
    a, b = publish_gallery(tmp_path / "a"), publish_gallery(tmp_path / "b", models=other)
    check_same_models(a, b, ["vlm"])
    with pytest.raises(ValueError, match="the vision models differ") as error:
        check_same_models(a, b, ["vlm", "vision"])
    message = str(error.value)
    for part in (a.uri, b.uri, "local-dir:vision", "sha256:bb", "sha256:cc"):
        assert part in message
    assert "sha256:aa" not in message


@pytest.mark.parametrize("turn", [1, -1])
def test_a_manifest_that_is_silent_about_a_model_is_refused(tmp_path: Path, turn: int) -> None:
    silent = publish_gallery(tmp_path / "silent", models=records(vlm="sha256:aa"))
    pair = [publish_gallery(tmp_path / "full"), silent][::turn]
    with pytest.raises(ValueError, match="silent does not say which vision model"):
        check_same_models(pair[0], pair[1], ["vlm", "vision"])


# Columns


def test_matrices_come_back_whatever_way_the_column_is_cut() -> None:
    rows_ND = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float16)
    column = fixed_size_list(rows_ND)
    assert column.type == pa.list_(pa.float16(), 3)
    np.testing.assert_array_equal(matrix(column), rows_ND)
    np.testing.assert_array_equal(matrix(column.slice(5, 7)), rows_ND[5:12])
    chunked = pa.chunked_array([column.slice(0, 4), column.slice(4, 0), column.slice(9, 3)])
    np.testing.assert_array_equal(matrix(chunked), np.concatenate([rows_ND[:4], rows_ND[9:12]]))
    np.testing.assert_array_equal(matrix(chunked.slice(2, 4)), np.concatenate([rows_ND[2:4], rows_ND[9:11]]))
    assert matrix(column.slice(0, 0)).shape == (0, 3)
    assert matrix(pa.chunked_array([], pa.list_(pa.float16(), 3))).shape == (0, 3)


def test_a_matrix_need_not_be_contiguous() -> None:
    rows_ND = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(matrix(fixed_size_list(rows_ND.T)), rows_ND.T)
    np.testing.assert_array_equal(matrix(fixed_size_list(rows_ND[:, ::2])), rows_ND[:, ::2])
    assert matrix(fixed_size_list(rows_ND[:0])).shape == (0, 4)


def gallery_table(first: int, rows: int) -> pa.Table:
    numbers = np.arange(first, first + rows)
    vectors = {"vlm": np.stack([numbers] * 2, 1), "vision": np.stack([numbers] * 3, 1)}
    columns = {
        "id": [f"{i:03d}" for i in numbers],
        "path": [f"ü/{i}.jpg" for i in numbers],
        "label": [None if i % 2 else "red star" for i in numbers],
        "width": numbers,
        "height": numbers,
        "batch": ["000001"] * rows,
    }
    lists = {name: fixed_size_list(rows_ND.astype(np.float16)) for name, rows_ND in vectors.items()}
    return pa.table(columns | lists).cast(gallery_schema(2, 3))


def test_a_gallery_is_read_part_by_part_in_blocks(tmp_path: Path) -> None:
    given = [gallery_table(first, rows).drop_columns("batch") for first, rows in [(0, 5), (5, 3)]]
    gallery = Gallery.of_tables(tmp_path, given, source="/images", models=MODELS)
    Folder(tmp_path).write_bytes("batches/000001/parts/other-embedded.parquet", b"of a job that has not finished")
    assert gallery.parts() == [f"batches/000001/parts/00000{i}-embedded.parquet" for i in range(2)]
    assert [table.num_rows for table in gallery.tables(rows=2)] == [2, 2, 1, 2, 1]
    assert pa.concat_tables(gallery.tables()).equals(gallery_table(0, 8))
    assert [table.column_names for table in gallery.tables(["id", "vision"])] == [["id", "vision"]] * 2


def test_rejected_inputs_are_one_table_even_when_there_are_none(tmp_path: Path) -> None:
    gallery = publish_gallery(tmp_path)
    assert gallery.rejected().equals(REJECTED_SCHEMA.empty_table())
    for i in range(2):
        rows = [{"path": f"{i}.jpg", "reason": "empty", "detail": "it has no bytes"}]
        gallery.folder.write_table(
            f"batches/000001/parts/{i}-rejected.parquet", pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
        )
    assert gallery.rejected()["path"].to_pylist() == ["0.jpg", "1.jpg"]


def queries(*counts: int, first: int = 0) -> pa.Table:
    """A query table with so many images for each query; every number of a vision vector is unlike all others."""
    rows = []
    for i, count in enumerate(counts, first):
        rows.append(
            {
                "id": f"q{i:02d}",
                "text": f"text {i}",
                "kind": "name",
                "label": None,
                "vlm": [float(i), 0.5],
                "vision": [[100.0 * i + 10 * k + d for d in range(3)] for k in range(count)],
                "seeds": list(range(count)),
                "thumbnails": [b"\xff"] * count,
                "rejected": ["constant"] * (2 - count),
            }
        )
    return pa.Table.from_pylist(rows, schema=queryset_schema(2, 3))


def queryset_manifest() -> QuerySetManifest:
    return QuerySetManifest(queries=3, images=2, seed=0, templates=["{}"], rejected={"constant": 3}, models=MODELS)


def test_a_query_set_comes_back_whole_and_in_the_order_of_ids(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_table("queries/0.parquet", queries(1, 2, first=5))
    folder.write_table("queries/1.parquet", queries(0))
    QuerySet.publish(folder, queryset_manifest())
    opened = QuerySet.open(tmp_path)
    assert opened.manifest == queryset_manifest().model_copy(update={"created": opened.manifest.created})
    assert (
        opened.table().combine_chunks().equals(pa.concat_tables([queries(0), queries(1, 2, first=5)]).combine_chunks())
    )
    assert opened.table(["id", "text"]).column_names == ["id", "text"]
    np.testing.assert_array_equal(text_vectors(opened.table()), [[0, 0.5], [5, 0.5], [6, 0.5]])


def test_missing_images_are_zero_and_masked() -> None:
    features_QKD2, mask_QK = vision_vectors(queries(0, 1, 2))
    assert features_QKD2.dtype == np.float32
    assert mask_QK.dtype == np.bool_
    expected = np.zeros((3, 2, 3), np.float32)
    expected[1, 0] = [100, 101, 102]
    expected[2] = [[200, 201, 202], [210, 211, 212]]
    np.testing.assert_array_equal(features_QKD2, expected)
    np.testing.assert_array_equal(mask_QK, [[False, False], [True, False], [True, True]])


@pytest.mark.parametrize("counts", [(0,), (0, 0), (1, 1, 1), (2,)])
def test_every_count_of_images_can_be_the_only_one(counts: tuple[int, ...]) -> None:
    features_QKD2, mask_QK = vision_vectors(queries(*counts))
    assert features_QKD2.shape == (len(counts), max(1, *counts, 0), 3)
    assert mask_QK.sum(axis=1).tolist() == list(counts)


def test_vision_vectors_of_cut_and_chunked_tables() -> None:
    whole_features, whole_mask = vision_vectors(queries(2, 0, 1, 2, 1))
    table = queries(2, 0, 1, 2, 1)
    for cut, rows in (
        (table.slice(2, 2), slice(2, 4)),
        (pa.concat_tables([table.slice(0, 2), table.slice(2, 3)]), slice(0, 5)),
        (pa.concat_tables([table.slice(0, 2), table.slice(2, 3)]).slice(1, 3), slice(1, 4)),
    ):
        features_QKD2, mask_QK = vision_vectors(cut)
        np.testing.assert_array_equal(features_QKD2, whole_features[rows])
        np.testing.assert_array_equal(mask_QK, whole_mask[rows])
        np.testing.assert_array_equal(text_vectors(cut), text_vectors(table)[rows])


# Index


def test_the_newest_published_version_is_opened(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    for rows in (1, 2):
        Index.publish(new_version(root), index_manifest(rows=rows))
    assert Index.open(tmp_path).manifest.rows == 2
    assert Index.open(tmp_path).version == "000002"
    assert Index.open(tmp_path / "000001").manifest.rows == 1


def test_an_unpublished_version_is_passed_over_and_its_number_not_used_again(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    Index.publish(new_version(root), index_manifest(rows=1))
    new_version(root).write_bytes("shard-00000/vectors.npy", b"")
    assert Index.open(tmp_path).version == "000001"
    assert new_version(root).name == "000003"
    root.write_bytes("notes/x", b"")
    assert version_names(root) == ["000001", "000002"]


def test_the_tenth_version_is_newer_than_the_ninth(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    for rows in range(1, 12):
        Index.publish(new_version(root), index_manifest(rows=rows))
    assert Index.open(tmp_path).manifest.rows == 11


def test_an_index_without_a_published_version_does_not_exist(tmp_path: Path) -> None:
    new_version(Folder(tmp_path)).create()
    with pytest.raises(ValueError, match="there is no index at"):
        Index.open(tmp_path)


def test_shards_hold_the_rows_of_the_gallery(collection: Collection) -> None:
    opened = Index.open(collection.folder / "index")
    shards = opened.shards()
    assert [len(shard) for shard in shards] == [record.rows for record in opened.manifest.shards]
    rows = [row for shard in shards for row in shard.rows.to_pylist()]
    assert sorted(row["id"] for row in rows) == collection.ids
    assert set(rows[0]) == {"id", "path", "label", "width", "height", "batch"}
    joint = np.concatenate([collection.vlm_ND1, collection.vision_ND2], axis=1)
    place = {name: i for i, name in enumerate(collection.ids)}
    for shard in shards:
        np.testing.assert_array_equal(shard.vectors, joint[[place[name] for name in shard.rows["id"].to_pylist()]])


# Aggregator


def test_a_saved_aggregator_answers_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Aggregator(8, heads=2, layers=3, dropout=0.25).eval()
    with torch.no_grad():
        network.lamda.fill_(0.7)
    TrainedAggregator.save(tmp_path, network, MODELS, {"steps": 5})
    opened = TrainedAggregator.open(tmp_path)
    features_BKD = torch.randn(4, 5, 8)
    loaded = opened.network()
    assert not loaded.training
    assert torch.equal(loaded(features_BKD), network(features_BKD))
    assert loaded.config == network.config
    assert opened.manifest.weight == network.fusion_weight
    assert opened.manifest.training == {"steps": 5}
    assert opened.manifest.models == MODELS


# S3


def test_folder_and_gallery_on_s3(bucket: str) -> None:
    uri = f"s3://bucket/deep/gallery?{bucket}"
    folder = Folder(uri)
    assert not folder.exists()
    with pytest.raises(ValueError, match="there is no gallery at s3://bucket/deep/gallery"):
        Gallery.open(uri)
    folder.write_table("parts/000000.parquet", gallery_table(0, 5))
    with pytest.raises(ValueError, match="The folder exists"):
        Gallery.open(uri)
    folder.delete("parts")
    given = gallery_table(0, 5).drop_columns("batch")
    manifest = Gallery.of_tables(uri, [given], source="/images", models=MODELS).manifest

    opened = Gallery.open(uri)
    assert opened.manifest == manifest
    assert opened.uri == uri
    assert pa.concat_tables(opened.tables()).equals(gallery_table(0, 5))
    assert folder.files() == [MANIFEST]
    assert folder.files("batches/000001/parts") == opened.parts()
    assert (Folder(f"s3://bucket?{bucket}") / "deep").folders() == ["gallery"]
    assert Folder((Folder(f"s3://bucket/deep?{bucket}") / "gallery").uri).exists(MANIFEST)
    folder.delete("batches")
    assert folder.folders() == []


def test_an_index_is_searched_on_s3_as_on_disk(bucket: str, collection: Collection) -> None:
    here, there = collection.index, new_version(Folder(f"s3://bucket/index?{bucket}"))
    for record in here.manifest.shards:
        for name in record.files:
            (there / record.name).write_bytes(name, (here.folder / record.name).read_bytes(name))
    Index.publish(there, here.manifest)
    opened = Index.open(f"s3://bucket/index?{bucket}")
    assert opened.version == "000001"
    query_QD = np.concatenate([collection.vlm_ND1, collection.vision_ND2], axis=1)[:3].astype(np.float32)
    for ours, theirs in zip(here.shards(), opened.shards(), strict=True):
        np.testing.assert_array_equal(ours.search(query_QD, 5).ids, theirs.search(query_QD, 5).ids)
        np.testing.assert_array_equal(ours.search(query_QD, 5).scores, theirs.search(query_QD, 5).scores)


def test_an_aggregator_on_s3(bucket: str) -> None:
    network = Aggregator(8).eval()
    TrainedAggregator.save(f"s3://bucket/aggregator?{bucket}", network, MODELS, {})
    features_BKD = torch.randn(2, 3, 8)
    opened = TrainedAggregator.open(f"s3://bucket/aggregator?{bucket}")
    assert torch.equal(opened.network()(features_BKD), network(features_BKD))
