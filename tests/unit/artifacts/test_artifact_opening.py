"""Opening and publishing any artifact: what opens, what is refused and how, and that a manifest comes last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from errors import refused
from made_up_artifacts import MODELS, gallery_manifest, publish_gallery

from retrieval.aggregator import Aggregator
from retrieval.artifacts import MANIFEST, Gallery, Index, QuerySet, TrainedAggregator
from retrieval.folder import Folder

FORMAT = 2  # of galleries


def edited(folder: Path, **changes: Any) -> None:
    """Change fields of a published manifest; None takes a field out."""
    content = json.loads((folder / MANIFEST).read_text())
    content = {key: value for key, value in (content | changes).items() if value is not None}
    (folder / MANIFEST).write_text(json.dumps(content))


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


@pytest.mark.parametrize("kind", [Gallery, QuerySet, Index, TrainedAggregator])
def test_a_missing_artifact_is_named(tmp_path: Path, kind: type[Any]) -> None:
    with refused("missing", kind.kind) as error:
        kind.open(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(error.value)
    assert "exists" not in str(error.value)


def test_a_folder_without_manifest_is_said_to_be_there(tmp_path: Path) -> None:
    Folder(tmp_path).write_bytes("parts/000000.parquet", b"")
    with refused("missing", "gallery") as error:
        Gallery.open(tmp_path)
    assert "The folder exists" in str(error.value)


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    publish_gallery(tmp_path)
    with refused("wrong-kind", "queryset"):
        QuerySet.open(tmp_path)


@pytest.mark.parametrize("form", [FORMAT + 1, None, str(FORMAT)])
def test_another_format_is_refused_with_both_versions(tmp_path: Path, form: Any) -> None:
    publish_gallery(tmp_path)
    edited(tmp_path, format=form, mindseye="9.8.7")
    with refused("wrong-format", "gallery") as error:
        Gallery.open(tmp_path)
    assert f"reads format {FORMAT}" in str(error.value)
    assert "9.8.7" in str(error.value)
    assert MANIFEST in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"artifact": "gallery", "format"', b"\xff\xfe\x00", b'{"artifact": "gallery", "format": 2}'],
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with refused("damaged", (tmp_path / MANIFEST).as_posix()):
        Gallery.open(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"gallery"', b"{}"])
def test_json_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with refused("wrong-kind", "gallery"):
        Gallery.open(tmp_path)


def test_a_wrong_field_of_a_manifest_is_named(tmp_path: Path) -> None:
    publish_gallery(tmp_path)
    edited(tmp_path, rows="many")
    with refused("damaged", (tmp_path / MANIFEST).as_posix()) as error:
        Gallery.open(tmp_path)
    assert "rows" in str(error.value)


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
    with refused("missing", "gallery"):
        Gallery.open(tmp_path)


def test_artifacts_alone_do_not_load_pytorch() -> None:
    program = "import sys, retrieval.artifacts, retrieval.index.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
