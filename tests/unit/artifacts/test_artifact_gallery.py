"""The gallery: its parts in blocks, its rejected inputs, on a disk and on S3."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from errors import refused
from made_up_artifacts import MODELS, gallery_table, publish_gallery

from retrieval.artifacts import MANIFEST, Gallery
from retrieval.artifacts.gallery import REJECTED_SCHEMA
from retrieval.folder import Folder


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


def test_a_part_that_is_cut_or_missing_is_named(tmp_path: Path) -> None:
    given = [gallery_table(0, 5).drop_columns("batch")]
    gallery = Gallery.of_tables(tmp_path, given, source="/images", models=MODELS)
    file = tmp_path / gallery.parts()[0]
    data = file.read_bytes()
    for content in (b"", data[: len(data) // 2]):
        file.write_bytes(content)
        with refused("damaged", file.as_posix()):
            list(gallery.tables())
    file.unlink()
    with refused("damaged", file.as_posix()):
        list(gallery.tables())


def test_folder_and_gallery_on_s3(bucket: str) -> None:
    uri = f"s3://bucket/deep/gallery?{bucket}"
    folder = Folder(uri)
    assert not folder.exists()
    with refused("missing", "gallery") as error:
        Gallery.open(uri)
    assert "s3://bucket/deep/gallery" in str(error.value)
    folder.write_table("parts/000000.parquet", gallery_table(0, 5))
    with refused("missing", "gallery") as error:
        Gallery.open(uri)
    assert "The folder exists" in str(error.value)
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
