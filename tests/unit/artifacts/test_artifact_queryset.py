"""The query set: its order, its vectors, and images that are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from made_up_artifacts import MODELS

from retrieval.artifacts import QuerySet
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema, text_vectors, vision_vectors
from retrieval.folder import Folder


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
    chosen = opened.chosen(["q06", "q00"])
    assert chosen.to_pylist() == [*queries(2, first=6).to_pylist(), *queries(0).to_pylist()]
    np.testing.assert_array_equal(text_vectors(opened.table()), [[0, 0.5], [5, 0.5], [6, 0.5]])


def test_a_query_set_that_is_cut_is_named(tmp_path: Path) -> None:
    opened = QuerySet.publish(Folder(tmp_path), queryset_manifest())
    with refused("damaged", f"{opened.uri}/queries"):
        opened.table()
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries/0.parquet").write_bytes(b"PAR1")
    with refused("damaged", f"{opened.uri}/queries/0.parquet"):
        opened.table()


def test_a_query_set_that_lacks_a_part_is_damaged(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_table("queries/0.parquet", queries(1, 2, first=5))
    folder.write_table("queries/1.parquet", queries(0))
    opened = QuerySet.publish(folder, queryset_manifest())
    folder.delete("queries/1.parquet")
    with refused("damaged", f"{opened.uri}/queries") as error:
        opened.table(["id"])
    assert "has 2 queries, and its manifest records 3" in str(error.value)


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
