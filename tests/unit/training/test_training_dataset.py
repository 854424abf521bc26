"""How a gallery and a query set are joined by label, and what that refuses or leaves out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from errors import refused
from far_folder import FarFolder
from synthetic import D1, D2, directions, models, write_gallery, write_queries

from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.columns import matrix
from training.dataset import LeftOut, load_examples
from training.examples import Examples
from training.sampling import sample_rows

LABELS = ["ant", "bee", "cat", "dog", "ünï 😀"]
GIVEN = [*LABELS, None]


def gallery_of(
    folder: Path, labels: list[str | None], *, parts: int = 3, turn: bool = False, dims: tuple[int, int] = (D1, D2)
) -> Gallery:
    """A gallery of these labels, each row with the same id and vectors whatever the parts and the order."""
    rng = np.random.default_rng(5)
    vlm, vision = (directions(len(labels), dim, rng) for dim in dims)
    ids, order = [f"{rng.integers(2**32):08x}-{i}" for i in range(len(labels))], slice(None, None, -1 if turn else 1)
    return write_gallery(folder, vlm[order], vision[order], ids=ids[order], labels=labels[order], parts=parts)


def queries_of(folder: Path, labels: list[str | None], counts: list[int] | None = None, **more: object) -> QuerySet:
    """A query set of these labels; ``counts`` says how many images each query has, by default three."""
    rng = np.random.default_rng(6)
    images = [
        directions(count, D2, rng) if count else np.zeros((0, D2), np.float32) for count in counts or [3] * len(labels)
    ]
    return write_queries(folder, directions(len(labels), D1, rng), images, labels=labels, **more)  # type: ignore[arg-type]


def load(gallery: Gallery, queries: QuerySet, rows_per_label: int = 8) -> tuple[Examples, LeftOut]:
    return load_examples(gallery, queries, rows_per_label=rows_per_label, seed=0)


def labels_by_vector(gallery: Gallery) -> dict[bytes, str | None]:
    rows = [row for table in gallery.tables(["label", "vlm"]) for row in table.to_pylist()]
    return {np.array(row["vlm"], np.float16).tobytes(): row["label"] for row in rows}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Rows of five labels and some without, mixed."""
    return gallery_of(tmp_path_factory.mktemp("gallery"), [GIVEN[i % len(GIVEN)] for i in range(120)])


def test_sample_is_bounded_and_the_same_whatever_the_parts(gallery: Gallery, tmp_path: Path) -> None:
    labels = [row for table in gallery.tables(["label"]) for row in table["label"].to_pylist()]
    wanted = {"bee", "dog", "no such label"}
    sampled = sample_rows(gallery, wanted, 8, seed=0)
    assert Counter(sampled["label"].to_pylist()) == {"bee": 8, "dog": 8}
    assert sampled["label"].to_pylist() == sorted(sampled["label"].to_pylist())
    for parts, turn in ((1, False), (7, True)):
        other = gallery_of(tmp_path / str(parts), labels, parts=parts, turn=turn)
        assert sample_rows(other, wanted, 8, seed=0).equals(sampled)
    assert not sample_rows(gallery, wanted, 8, seed=1).equals(sampled)
    everything = sample_rows(gallery, wanted, 1000, seed=0)
    assert Counter(everything["label"].to_pylist()) == {"bee": 20, "dog": 20}
    given = {vector for vector, label in labels_by_vector(gallery).items() if label in wanted}
    assert {row.tobytes() for row in matrix(everything["vlm"])} == given


def test_a_copy_of_any_row_that_is_drawn_is_refused_whatever_the_parts(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 8
    vlm, vision = directions(count, D1, rng), directions(count, D2, rng)
    ids = [f"row-{i}" for i in range(count)]

    def made(name: str, rows: list[int]) -> Gallery:
        return write_gallery(
            tmp_path / name, vlm[rows], vision[rows], ids=[ids[i] for i in rows], labels=["bee"] * len(rows), parts=2
        )

    once, twice = made("once", [*range(count)]), made("twice", [3, *range(count), 3])
    for drawn in range(1, count + 1):
        sampled = sample_rows(once, {"bee"}, drawn, seed=0)
        if vlm[3].astype(np.float16).tobytes() in {row.tobytes() for row in matrix(sampled["vlm"])}:
            with refused("duplicate-id", "gallery"):
                sample_rows(twice, {"bee"}, drawn, seed=0)
        else:
            assert sample_rows(twice, {"bee"}, drawn, seed=0).equals(sampled)


@pytest.mark.parametrize(("wanted", "drawn"), [(["label 03"], 8), ([f"label {i:02d}" for i in range(40)], 2)])
def test_vectors_are_read_where_the_sample_has_rows(tmp_path: Path, wanted: list[str], drawn: int) -> None:
    labels: list[str | None] = [f"label {i // 200:02d}" for i in range(8000)]
    dim = 256
    near = gallery_of(tmp_path, labels, parts=4, dims=(dim, dim))
    far = FarFolder(tmp_path)
    gallery = Gallery(far, near.manifest)

    def bytes_of(columns: list[str]) -> int:
        before = far.traffic.bytes
        for _ in gallery.tables(columns):
            pass
        return far.traffic.bytes - before

    names, vectors = bytes_of(["id", "label"]), bytes_of(["id", "vlm", "vision"])
    before = far.traffic.bytes
    sampled = sample_rows(gallery, set(wanted), drawn, seed=0)
    read = far.traffic.bytes - before
    assert sampled.equals(sample_rows(near, set(wanted), drawn, seed=0))
    assert sampled.num_rows == len(wanted) * drawn
    # All vectors were read before: of 8,000 rows here 8 or 80 are drawn, which lie in 2 or all of 32 row groups.
    groups = len({row // 256 for row, label in enumerate(labels) if label in wanted})
    assert read < names + (groups / 32) * vectors * 1.1 + 300_000
    if len(wanted) == 1:
        assert read < 0.3 * (names + vectors)


def test_queries_and_rows_are_joined_by_label(gallery: Gallery, tmp_path: Path) -> None:
    queries = queries_of(tmp_path, ["dog", "ünï 😀", "bee", "dog", "cat"], [3, 1, 4, 2, 3])
    examples, left_out = load(gallery, queries)
    assert left_out == LeftOut(0, 0, [])
    assert examples.labels == ["bee", "cat", "dog", "ünï 😀"]
    assert examples.query_label_Q.tolist() == [0, 1, 2, 2, 3]
    assert examples.mask_QK.sum(axis=1).tolist() == [4, 3, 3, 2, 1]
    assert (examples.images_QKD2.shape, examples.text_QD1.shape) == ((5, 4, D2), (5, D1))
    assert np.bincount(examples.row_label_N).tolist() == [8, 8, 8, 8]
    place = {row["id"]: row for row in queries.table().to_pylist()}
    np.testing.assert_array_equal(examples.text_QD1[0], np.array(place["query-002"]["vlm"], np.float32))
    np.testing.assert_array_equal(examples.images_QKD2[4, 0], np.array(place["query-001"]["vision"][0], np.float32))
    assert not examples.images_QKD2[~examples.mask_QK].any()
    by_vector = labels_by_vector(gallery)
    assert [by_vector[row.tobytes()] for row in examples.vlm_ND1] == [examples.labels[i] for i in examples.row_label_N]


def test_what_can_not_be_learned_from_is_left_out_and_counted(gallery: Gallery, tmp_path: Path) -> None:
    labels = ["dog", None, "owl", "bee", "cat", None, "cat", "emu", "owl"]
    queries = queries_of(tmp_path, labels, [3, 3, 2, 3, 0, 0, 1, 2, 1])
    examples, left_out = load(gallery, queries)
    assert left_out == LeftOut(unlabelled=2, without_images=1, without_rows=["emu", "owl"])
    assert examples.labels == ["bee", "cat", "dog"]
    assert examples.mask_QK.any(axis=1).all()
    assert len(examples.query_label_Q) == 3


def test_a_label_with_one_image_is_learned_from(tmp_path: Path) -> None:
    gallery = gallery_of(tmp_path / "g", ["ant", *["bee"] * 5, *["cat"] * 5])
    examples, left_out = load(gallery, queries_of(tmp_path / "q", ["ant", "bee", "cat"]))
    assert left_out == LeftOut(0, 0, [])
    assert np.bincount(examples.row_label_N).tolist() == [1, 5, 5]
    assert examples.draw(0, batch=3, positives=4, seed=0)["row_label"].tolist().count(0) == 4


def test_nothing_left_to_learn_from_is_an_error_that_says_why(gallery: Gallery, tmp_path: Path) -> None:
    queries = queries_of(tmp_path / "q", [None, "ant", "owl", "emu"], [1, 0, 2, 2])
    with refused("nothing-to-learn", "query_set") as error:
        load(gallery, queries)
    for fact in ("1 have no label", "1 no accepted image", "2 labels have no image", "(emu, owl)"):
        assert fact in str(error.value)
    without_images = queries_of(tmp_path / "k0", ["ant", "bee", "cat"], [0, 0, 0])
    with refused("nothing-to-learn", "query_set") as error:
        load(gallery, without_images)
    for fact in ("0 have no label", "3 no accepted image", "0 labels have no image"):
        assert fact in str(error.value)


def test_an_empty_query_set_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    queries = queries_of(tmp_path, ["ant"])
    queries.manifest.queries = 0
    with refused("no-queries", "query_set"):
        load(gallery, queries)


def test_artifacts_of_other_models_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    for role in ("vlm", "vision"):
        queries = queries_of(tmp_path / role, LABELS, records=models(**{role: "sha256:other"}))
        with pytest.raises(ValueError, match=rf"the {role} models differ.*\n.*gallery .*\n.*queryset .*sha256:other"):
            load(gallery, queries)


@pytest.mark.parametrize(("what", "dims"), [("vlm", (D1 + 2, D2)), ("vision", (D1, D2 + 2))])
def test_other_dimensions_of_the_same_models_are_refused(what: str, dims: tuple[int, int], tmp_path: Path) -> None:
    gallery = gallery_of(tmp_path / "g", LABELS * 3, dims=dims)
    ours, theirs = {"vlm": (D1, D1 + 2), "vision": (D2, D2 + 2)}[what]
    with refused("dimensions-differ", what) as error:
        load(gallery, queries_of(tmp_path / "q", LABELS))
    for fact in (f"/q have {ours} ", f"/g have {theirs};"):
        assert fact in str(error.value)
