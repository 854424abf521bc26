"""What a plan says of storage, memory and hours: against what is really written, and against reckoning by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from errors import refused

from cluster.profile import Profile, load_profile
from cluster.rates import Known
from cluster.sheet import Cut, Figure, Sheet, Workload, cut_of
from pipelines.capacity import add_jobs, add_memory, add_storage, entry_bytes
from retrieval.artifacts import Gallery, ModelRecord, Role
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.queryset import OPTIONAL, queryset_schema
from retrieval.folder import Folder
from retrieval.fusion import unit
from retrieval.index.build import build_shard
from retrieval.index.shard import Shard

D1, D2 = 64, 96
ROWS = 20_000
WITHIN = 0.15


def sheet_of(workload: Workload, index: dict[str, Any] | None = None, name: str = "tiny", **rates: Any) -> Sheet:
    profile = indexed(index or {}, name)
    known = Known.of(given={"vlm_dim": D1, "vision_dim": D2, **rates})
    sheet = Sheet(workload, known, cut_of(workload, known.rates, profile))
    add_storage(sheet, profile)
    add_memory(sheet)
    add_jobs(sheet, profile)
    return sheet


def indexed(index: dict[str, Any], name: str = "tiny") -> Profile:
    profile = load_profile(name)
    return profile.model_copy(update={"index": profile.index.model_copy(update=index)})


def figure(sheet: Sheet, section: str, name: str) -> Figure:
    [found] = [one for one in sheet.figures if (one.section, one.name) == (section, name)]
    return found


def value(sheet: Sheet, section: str, name: str) -> float:
    found = figure(sheet, section, name).value
    assert found is not None
    return found


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "id": [f"{number:016x}-{place:08x}" for place, number in enumerate(rng.integers(2**62, size=ROWS))],
            "path": [f"some folder/{number:09d}.jpg" for number in rng.integers(10**9, size=ROWS)],
            "label": ["some folder"] * ROWS,
            "width": pa.array([640] * ROWS, pa.int32()),
            "height": pa.array([480] * ROWS, pa.int32()),
            "vlm": fixed_size_list(unit(rng.standard_normal((ROWS, D1))).astype(np.float16)),
            "vision": fixed_size_list(unit(rng.standard_normal((ROWS, D2))).astype(np.float16)),
        }
    )
    models: dict[Role, ModelRecord] = {
        "vlm": ModelRecord(uri="random:vlm", fingerprint="v", dim=D1),
        "vision": ModelRecord(uri="random:vision", fingerprint="d", dim=D2),
    }
    parts = (table.slice(start, 5000) for start in range(0, ROWS, 5000))
    return Gallery.of_tables(tmp_path_factory.mktemp("gallery"), parts, source="nowhere", models=models)


@pytest.mark.parametrize("factory", ["Flat", "IVF128,SQ8", "IVF128,RaBitQ"])
def test_files_and_memory_of_a_shard_are_as_large_as_planned(gallery: Gallery, tmp_path: Path, factory: str) -> None:
    columns = ["id", "path", "label", "width", "height", "batch"]
    files = build_shard(
        tmp_path,
        gallery.tables(columns),
        gallery.tables(["id", "vlm", "vision"]),
        vlm_dim=D1,
        factory=factory,
        trained=None,
    )
    shard = Shard.open(tmp_path, mmap=False)
    written = {name: int(record["bytes"]) for name, record in files.items()}
    row_file, row = written["rows.parquet"] / ROWS, shard.rows.nbytes / ROWS
    sheet = sheet_of(Workload(images=ROWS), {"factory": factory}, row_file_bytes=row_file, row_bytes=row)
    parts = sum((Path(gallery.folder.path) / name).stat().st_size for name in gallery.parts())
    held = len(faiss.serialize_index(shard.index)) + shard.rows.nbytes + shard.alive.nbytes
    assert value(sheet, "storage", "gallery") == pytest.approx(parts, rel=WITHIN)
    assert value(sheet, "storage", "exact vectors") == pytest.approx(written["vectors.npy"], rel=0.001)
    assert value(sheet, "storage", f"index, {factory}") == pytest.approx(written["index.faiss"], rel=WITHIN)
    assert value(sheet, "memory of a shard", "held") == pytest.approx(held, rel=WITHIN)


def test_an_imagined_query_is_as_large_as_planned(tmp_path: Path) -> None:
    from serving.memory.entry import Remembered

    rng, images, thumbnail, text = np.random.default_rng(0), 8, 3000, "a yellow dotted fish"
    vision = rng.standard_normal((images, D2)).astype(np.float32)
    entry = Remembered(
        text=text,
        kind="name",
        vlm_D1=rng.standard_normal(D1).astype(np.float32),
        vision_KD2=vision,
        seeds=np.arange(images),
        indices=np.arange(images),
        thumbnails=[rng.bytes(thumbnail) for _ in range(images)],
        rejected=[],
    )
    planned = entry_bytes(images, D1, D2, len(text), thumbnail)
    assert planned == pytest.approx(len(entry.to_bytes()), rel=WITHIN)
    count = 20
    rows = {
        "id": [str(number) for number in range(count)],
        "text": [f"{text} {number}" for number in range(count)],
        "kind": ["name"] * count,
        "label": [None] * count,
        "vlm": rng.standard_normal((count, D1)).astype(np.float32).tolist(),
        "vision": rng.standard_normal((count, images, D2)).astype(np.float32).tolist(),
        "seeds": [list(range(images))] * count,
        "thumbnails": [[rng.bytes(thumbnail) for _ in range(images)] for _ in range(count)],
        "rejected": [[]] * count,
        **{name: [None] * count for name in OPTIONAL.names},
    }
    Folder(tmp_path).write_table("queries.parquet", pa.table(rows, schema=queryset_schema(D1, D2)))
    assert planned == pytest.approx((tmp_path / "queries.parquet").stat().st_size / count, rel=WITHIN)


def test_a_billion_images_are_cut_as_the_profile_says() -> None:
    known = Known.of(given={"vlm_dim": 768, "vision_dim": 1024})
    workload = Workload(images=10**9)
    assert cut_of(workload, known.rates, load_profile("paper")) == Cut(500, 2_000_000, 1792, "IVF5656,SQ8")
    small = indexed({"memory_per_shard": 600 * 2**20}, "paper")
    assert cut_of(workload, known.rates, small).factory == "IVF5656,RaBitQ"
    with refused("too-large", "memory_per_shard"):
        cut_of(workload, known.rates, indexed({"memory_per_shard": 2**20}, "paper"))
    with refused("missing", "vision_dim"):
        cut_of(workload, Known.of(given={"vlm_dim": 768}).rates, load_profile("paper"))


def test_hours_are_rows_by_rate_and_machine() -> None:
    sheet = sheet_of(
        Workload(images=36_000_000, queries=1000),
        name="paper",
        embed_rows_per_s=500,
        decode_rows_per_s=100,
        imagine_images_per_s=2,
        products_per_s=1e10,
        values_per_s=1e6,
        shard_s=36,
        kmeans_rounds=12,
        train_steps_per_s=10,
    )
    assert value(sheet, "jobs", "embedding") == pytest.approx(20)
    assert value(sheet, "jobs", "embedding, GPUs") == pytest.approx(20)
    assert value(sheet, "jobs", "embedding, 64 workers") == pytest.approx(20 / 64)
    assert value(sheet, "jobs", "decoding, CPUs") == pytest.approx(100)
    assert value(sheet, "jobs", "imagining, GPUs") == pytest.approx(1000 * 16 / 2 / 3600)
    assert value(sheet, "jobs", "filling shards, CPUs") == pytest.approx(36e6 * 5656 * 160 / 1e10 / 3600)
    assert value(sheet, "jobs", "training the lists, CPUs") == pytest.approx(12 * 64 * 5656**2 * 160 / 1e10 / 3600)
    assert value(sheet, "jobs", "rest of the shards, CPUs") == pytest.approx(36e6 * 160 / 1e6 / 3600 + 18 * 36 / 3600)
    assert figure(sheet, "jobs", "embedding").assumed == ()


def test_what_is_not_known_says_what_is_missing_and_is_no_number() -> None:
    sheet = sheet_of(Workload(images=10**9, queries=10), name="paper", imagine_images_per_s=2)
    for name in ("embedding", "embedding, GPUs", "embedding, 64 workers"):
        found = figure(sheet, "jobs", name)
        assert (found.value, found.missing) == (None, ("embed_rows_per_s",))
    assert figure(sheet, "storage", "sources").missing == ("source_bytes",)
    assert figure(sheet, "jobs", "imagining").value
    assert figure(sheet, "storage", "gallery").assumed == ("row_file_bytes",)


def test_a_small_gallery_has_no_lists_to_train() -> None:
    sheet = sheet_of(Workload(images=1000))
    assert sheet.cut == Cut(1, 1000, D1 + D2, "Flat")
    assert not [one for one in sheet.figures if "lists" in one.name and one.section == "jobs"]
