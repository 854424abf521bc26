"""Duplicates in an index, against plain loops over all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from errors import refused
from hypothesis import given
from hypothesis import strategies as st
from synthetic import D1, D2, directions, write_gallery
from tiny_artifacts import write_index

from cluster.profile import IndexSettings
from cluster.session import session
from pipelines.duplicates import PAIRS, _grouped, exact_duplicates, near_duplicates
from retrieval.artifacts import Index
from retrieval.fusion import unit

COSINE = 0.97


class Doubled(NamedTuple):
    index: Index
    ids: list[str]
    vision_ND2: np.ndarray


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Doubled:
    """An index of 30 rows, of which 10 have the bytes of another one and 6 are only close to one."""
    folder = tmp_path_factory.mktemp("doubled")
    rng = np.random.default_rng(0)
    vlm, vision = directions(30, D1, rng), directions(30, D2, rng)
    vision[:10] = vision[10:20]
    vision[20:26] = unit(vision[:6] + 0.03 * directions(6, D2, rng))
    contents = [f"{i if i >= 10 else i + 10:08x}" for i in range(30)]
    ids = [f"{content}-{rng.integers(2**32):08x}" for content in contents]
    gallery = write_gallery(folder / "gallery", vlm, vision, ids=ids)
    described = pa.concat_tables(gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    half = vision.astype(np.float16)
    index = write_index(folder / "index", gallery, described, vlm.astype(np.float16), half, shards=3)
    return Doubled(index, described["id"].to_pylist(), half.astype(np.float64))


def test_equal_bytes_are_found(doubled: Doubled) -> None:
    contents: dict[str, list[str]] = {}
    for id in sorted(doubled.ids):
        contents.setdefault(id.split("-")[0], []).append(id)
    expected = [(id, group[0], 1.0) for group in contents.values() for id in group[1:]]
    assert len(expected) == 10
    with session("none"):
        assert [tuple(row.values()) for row in exact_duplicates(doubled.index).to_pylist()] == expected


def test_of_different_bytes_none_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vlm, vision = directions(6, D1, rng).astype(np.float16), directions(6, D2, rng).astype(np.float16)
    gallery = write_gallery(tmp_path / "gallery", vlm, vision)
    described = pa.concat_tables(gallery.tables(["id", "path", "label", "width", "height", "batch"]))
    contents = described["id"].to_pylist()
    described = described.set_column(0, "id", pa.array([f"{i}{id[-1]}-0" for i, id in enumerate(contents)]))
    index = write_index(tmp_path / "index", gallery, described, vlm, vision, shards=2)
    with session("none"):
        assert exact_duplicates(index).equals(PAIRS.empty_table())


def test_close_vectors_are_found(doubled: Doubled) -> None:
    cosines = doubled.vision_ND2 @ doubled.vision_ND2.T
    np.fill_diagonal(cosines, 0)
    rows = {id: row for row, id in enumerate(doubled.ids)}
    with session("none"):
        found = near_duplicates(doubled.index, COSINE, IndexSettings(rows_per_shard=1000)).to_pylist()
    # Groups are chains of pairs here, each through the row of the vector that was copied.
    groups: dict[str, set[str]] = {}
    for pair in found:
        groups.setdefault(pair["of"], {pair["of"]}).add(pair["id"])
        assert pair["cosine"] == pytest.approx(cosines[rows[pair["id"]]].max(), abs=1e-6)
    close = {(a, b) for a, b in zip(*np.nonzero(cosines >= COSINE), strict=True)}
    grouped = {(rows[a], rows[b]) for group in groups.values() for a in group for b in group if a != b}
    assert len(grouped) == 6 * 6 + 4 * 2
    assert close <= grouped
    assert all(of == min(group) for of, group in groups.items())


def test_cosine_out_of_range_is_refused(doubled: Doubled) -> None:
    for cosine in (0, -0.5, 1.01, 2, float("nan")):
        with refused("out-of-range", "cosine"):
            near_duplicates(doubled.index, cosine, IndexSettings(rows_per_shard=1000))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.floats(0.5, 1, width=32)), max_size=20))
def test_groups_are_joined_through_any_pairs(pairs: list[tuple[int, int, float]]) -> None:
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    rows = [{"id": f"{a:02d}", "of": f"{b:02d}", "cosine": cosine} for a, b, cosine in pairs]
    group, closest = {}, {}
    for row in rows:
        for name in (row["id"], row["of"]):
            group.setdefault(name, {name})
            closest[name] = max(closest.get(name, 0), row["cosine"])
        joined = group[row["id"]] | group[row["of"]]
        group |= dict.fromkeys(joined, joined)
    expected = [
        {"id": name, "of": min(group[name]), "cosine": closest[name]}
        for name in sorted(group)
        if name != min(group[name])
    ]
    assert _grouped(pa.Table.from_pylist(rows, schema=PAIRS)).to_pylist() == expected
