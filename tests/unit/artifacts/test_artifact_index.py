"""The index: which version is opened, the state of each, and shards on a disk and on S3."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from errors import refused
from made_up_artifacts import MODELS
from tiny_artifacts import Collection

from retrieval.artifacts import Index
from retrieval.artifacts.index import PLAN, REFUSED, REMOVED_SCHEMA, new_version, version_names, version_states
from retrieval.artifacts.manifests import IndexManifest
from retrieval.folder import Folder
from retrieval.index.files import ROWS


def index_manifest(**changes: Any) -> IndexManifest:
    given = {"gallery": "/g", "sources": {}, "rows": 0, "factory": "Flat", "shards": [], "recall": {}, "models": MODELS}
    return IndexManifest(**given | changes)


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
    with refused("missing", "index"):
        Index.open(tmp_path)


def test_every_version_has_one_state(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    root.write_bytes("000001/shard-00000/vectors.npy", b"")  # what a later version shares
    Index.publish(root / "000002", index_manifest())
    root.write_bytes(f"000003/{PLAN}", b"{}")
    root.write_bytes(f"000004/{PLAN}", b"{}")
    root.write_bytes(f"000004/{REFUSED}", b"{}")
    Index.publish(root / "000005", index_manifest())
    root.write_bytes(f"000005/{PLAN}", b"{}")
    root.write_bytes(f"000006/{PLAN}", b"{}")
    root.write_bytes(f"000006/{REFUSED}", b"{}")
    root.write_bytes(f"000007/{PLAN}", b"{}")
    root.write_bytes("000008/removed.parquet", b"")  # a removal that was interrupted has no plan
    root.write_bytes("notes/x", b"")
    assert list(version_states(root).items()) == [
        ("000001", "pruned"),
        ("000002", "published"),
        ("000003", "superseded"),
        ("000004", "refused"),
        ("000005", "published"),
        ("000006", "refused"),
        ("000007", "unfinished"),
        ("000008", "unfinished"),
    ]


def test_versions_of_an_index_that_was_never_published_are_unfinished(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    assert version_states(root) == {}
    root.write_bytes(f"000001/{PLAN}", b"{}")
    assert version_states(root) == {"000001": "unfinished"}


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


def test_live_rows_are_those_of_a_shard_that_are_not_removed(collection: Collection, tmp_path: Path) -> None:
    shutil.copytree(collection.folder / "index", tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    ids = opened.shard(0).rows["id"].to_pylist()
    assert opened.live_rows(0, ["id"])["id"].to_pylist() == ids
    opened.folder.write_table(Index.REMOVED, pa.table({"shard": [0], "id": ids[:1]}, schema=REMOVED_SCHEMA))
    opened.manifest.removed = 1
    live = opened.live_rows(0, ["id", "label"])
    assert (live.column_names, live["id"].to_pylist()) == (["id", "label"], ids[1:])
    shard = opened.shard_folder(0)
    shard.write_bytes(ROWS, b"")
    with refused("damaged", (shard / ROWS).uri):
        opened.live_rows(0, ["id"])


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
