"""What training draws from a gallery and a query set, against a plain version, and what it refuses or leaves out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from synthetic import D1, D2, directions, models, write_gallery, write_queries

from retrieval.artifacts import Gallery, QuerySet
from retrieval.artifacts.columns import matrix
from training.dataset import Batch, Examples, LeftOut, load_examples, sample_rows, split_labels, stream

LABELS = ["ant", "bee", "cat", "dog", "ünï 😀"]
QUERIES = [3, 1, 2, 1, 4]
ROWS = [6, 1, 9, 4, 30]
K = 5
SEED = 3


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Five labels of different sizes, the second with one image; the number of imagined images goes from 1 to 5."""
    rng = np.random.default_rng(0)
    query_label, row_label = np.repeat(np.arange(5), QUERIES), np.repeat(np.arange(5), ROWS)
    mask = np.arange(K) < (1 + np.arange(len(query_label)) % K)[:, None]
    images = directions(len(query_label) * K, D2, rng).reshape(-1, K, D2) * mask[..., None]
    rows = [directions(len(row_label), dim, rng).astype(np.float16) for dim in (D1, D2)]
    return Examples(LABELS, directions(len(query_label), D1, rng), images, mask, query_label, *rows, row_label)


def plain_draw(examples: Examples, step: int, batch: int, positives: int) -> Batch:
    """The whole batch of a step, label by label."""
    epochs = range((step + 1) * batch // len(LABELS) + 1)
    order = [label for e in epochs for label in np.random.default_rng([SEED, 0, e]).permutation(len(LABELS))]
    rng = np.random.default_rng([SEED, 1, step])
    of_query, of_row = rng.random(batch), rng.random((batch, positives))
    of_image, of_count = rng.random((batch, K)), rng.random(batch)
    labels, queries, rows, masks = order[step * batch : (step + 1) * batch], [], [], []
    for b, label in enumerate(labels):
        own_queries, own_rows = (
            np.flatnonzero(examples.query_label_Q == label),
            np.flatnonzero(examples.row_label_N == label),
        )
        queries.append(own_queries[int(of_query[b] * len(own_queries))])
        rows += [own_rows[int(chance * len(own_rows))] for chance in of_row[b]]
        present = np.flatnonzero(examples.mask_QK[queries[-1]])
        kept = sorted(present, key=lambda k: of_image[b, k])[: 1 + int(of_count[b] * len(present))]
        masks.append([k in kept for k in range(K)])
    return {
        "text": examples.text_QD1[queries], "images": examples.images_QKD2[queries], "mask": np.array(masks),
        "label": np.array(labels), "vlm": examples.vlm_ND1[rows], "vision": examples.vision_ND2[rows],
        "row_label": examples.row_label_N[rows],
    }  # fmt: skip


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize(("batch", "positives"), [(2, 1), (3, 4), (5, 2), (17, 3)])
def test_batches_equal_a_plain_version(examples: Examples, batch: int, positives: int) -> None:
    for step in (0, 1, 2, 7):
        drawn = examples.draw(step, batch=batch, positives=positives, seed=SEED)
        assert_equal(drawn, plain_draw(examples, step, batch, positives))
        assert drawn["vlm"].dtype == drawn["vision"].dtype == np.float16
        assert drawn["vlm"].shape == (batch * positives, D1)


def test_each_label_comes_once_before_any_comes_again(examples: Examples) -> None:
    labels = np.concatenate([examples.draw(step, batch=3, positives=1, seed=SEED)["label"] for step in range(50)])
    epochs = labels.reshape(-1, len(LABELS))
    assert (np.sort(epochs) == np.arange(len(LABELS))).all()
    assert len({tuple(epoch) for epoch in epochs}) > 15


def test_from_one_to_all_images_are_given_and_absent_ones_never(examples: Examples) -> None:
    counts: Counter[int] = Counter()
    seen = np.zeros(K, int)
    for step in range(400):
        drawn = examples.draw(step, batch=len(LABELS), positives=1, seed=SEED)
        for text, mask in zip(drawn["text"], drawn["mask"], strict=True):
            query = int(np.flatnonzero((examples.text_QD1 == text).all(axis=1))[0])
            assert 1 <= mask.sum() <= examples.mask_QK[query].sum()
            assert not (mask & ~examples.mask_QK[query]).any()
            if examples.mask_QK[query].all():
                counts[int(mask.sum())] += 1
                seen += mask
    assert sum(counts.values()) > 300
    for k in range(1, K + 1):
        assert counts[k] / counts.total() == pytest.approx(1 / K, abs=0.08)
    np.testing.assert_allclose(seen / counts.total(), 3 / K, atol=0.08)  # no place is preferred


def test_positives_are_of_the_querys_label_and_the_only_image_of_a_label_repeats(examples: Examples) -> None:
    found = set()
    for step in range(60):
        drawn = examples.draw(step, batch=5, positives=4, seed=SEED)
        assert (drawn["row_label"] == np.repeat(drawn["label"], 4)).all()
        for vlm, vision, label in zip(drawn["vlm"], drawn["vision"], drawn["row_label"], strict=True):
            row = int(np.flatnonzero((examples.vlm_ND1 == vlm).all(axis=1))[0])
            assert examples.row_label_N[row] == label
            assert (examples.vision_ND2[row] == vision).all()
            found.add(row)
        assert len(np.unique(drawn["vision"][drawn["row_label"] == 1], axis=0)) == 1
    assert found == set(range(sum(ROWS)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_workers_shares_make_up_the_batch(examples: Examples, world: int) -> None:
    for step in range(4):
        whole = examples.draw(step, batch=7, positives=2, seed=SEED)
        shares = [examples.draw(step, batch=7, positives=2, seed=SEED, rank=r, world=world) for r in range(world)]
        for name in ("text", "images", "mask", "label"):
            joined = np.empty_like(whole[name])
            for rank, share in enumerate(shares):
                joined[rank::world] = share[name]
            np.testing.assert_array_equal(joined, whole[name])
        for share in shares:
            for name in ("vlm", "vision", "row_label"):  # every worker has the same negatives
                np.testing.assert_array_equal(share[name], whole[name])


def test_a_batch_depends_on_seed_and_step_alone(examples: Examples) -> None:
    one = examples.draw(6, batch=4, positives=2, seed=1)
    examples.draw(2, batch=4, positives=2, seed=9)
    np.random.default_rng(0).random()
    assert_equal(one, examples.draw(6, batch=4, positives=2, seed=1))
    for step, seed in ((7, 1), (6, 2)):
        other = examples.draw(step, batch=4, positives=2, seed=seed)
        assert not np.array_equal(one["vlm"], other["vlm"])
        assert not np.array_equal(one["mask"], other["mask"])


def test_part_of_some_labels(examples: Examples) -> None:
    part = examples.of_labels([4, 0])
    assert part.labels == [LABELS[4], LABELS[0]]
    for place, label in enumerate([4, 0]):
        mine, theirs = part.query_label_Q == place, examples.query_label_Q == label
        np.testing.assert_array_equal(part.text_QD1[mine], examples.text_QD1[theirs])
        np.testing.assert_array_equal(part.images_QKD2[mine], examples.images_QKD2[theirs])
        np.testing.assert_array_equal(part.mask_QK[mine], examples.mask_QK[theirs])
        mine, theirs = part.row_label_N == place, examples.row_label_N == label
        np.testing.assert_array_equal(part.vlm_ND1[mine], examples.vlm_ND1[theirs])
        np.testing.assert_array_equal(part.vision_ND2[mine], examples.vision_ND2[theirs])
    assert len(part.query_label_Q) == QUERIES[4] + QUERIES[0]
    assert len(part.row_label_N) == ROWS[4] + ROWS[0]
    assert (np.diff(part.query_label_Q) >= 0).all()
    assert (np.diff(part.row_label_N) >= 0).all()
    assert (part.draw(0, batch=4, positives=3, seed=0)["row_label"] < 2).all()


def test_rows_of_the_other_labels_can_stay_to_be_ranked_against(examples: Examples) -> None:
    part = examples.of_labels([1, 3], rows_of_all=True)
    assert Counter(part.row_label_N.tolist()) == {-1: 45, 0: ROWS[1], 1: ROWS[3]}
    assert len(part.query_label_Q) == QUERIES[1] + QUERIES[3]
    np.testing.assert_array_equal(
        part.vision_ND2[part.row_label_N == 1], examples.vision_ND2[examples.row_label_N == 3]
    )
    assert {row.tobytes() for row in part.vlm_ND1} == {row.tobytes() for row in examples.vlm_ND1}


def test_labels_are_split_in_two_and_three_are_the_least() -> None:
    trained, held_out = split_labels(20, 0.25, seed=0)
    assert (len(trained), len(held_out)) == (15, 5)
    assert sorted(trained + held_out) == list(range(20))
    assert split_labels(20, 0.25, seed=0) == (trained, held_out)
    assert split_labels(20, 0.25, seed=1) != (trained, held_out)
    assert [len(part) for part in split_labels(3, 0.01, seed=0)] == [2, 1]
    assert [len(part) for part in split_labels(3, 0.99, seed=0)] == [2, 1]
    with pytest.raises(ValueError, match=r"2 labels with queries and images: training needs at least three"):
        split_labels(2, 0.25, seed=0)
    with pytest.raises(ValueError, match=r"1 label with"):
        split_labels(1, 0.25, seed=0)


@pytest.mark.ray
def test_the_stream_gives_the_batches_of_its_steps_in_order(examples: Examples, ray_session: None) -> None:
    import ray

    drawing = {"batch": 5, "positives": 2, "seed": SEED, "rank": 1, "world": 2}
    batches = list(stream(ray.put(examples), range(4, 13), drawing))
    assert len(batches) == 9
    for step, batch in zip(range(4, 13), batches, strict=True):
        assert_equal(batch, examples.draw(step, **drawing))
    assert list(stream(ray.put(examples), range(4, 4), drawing)) == []


# Galleries and query sets on disk.

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


@pytest.mark.ray
def test_sample_is_bounded_and_the_same_whatever_the_parts(gallery: Gallery, tmp_path: Path, ray_session: None) -> None:
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


@pytest.mark.ray
def test_queries_and_rows_are_joined_by_label(gallery: Gallery, tmp_path: Path, ray_session: None) -> None:
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


@pytest.mark.ray
def test_what_can_not_be_learned_from_is_left_out_and_counted(
    gallery: Gallery, tmp_path: Path, ray_session: None
) -> None:
    labels = ["dog", None, "owl", "bee", "cat", None, "cat", "emu", "owl"]
    queries = queries_of(tmp_path, labels, [3, 3, 2, 3, 0, 0, 1, 2, 1])
    examples, left_out = load(gallery, queries)
    assert left_out == LeftOut(unlabelled=2, without_images=1, without_rows=["emu", "owl"])
    assert examples.labels == ["bee", "cat", "dog"]
    assert examples.mask_QK.any(axis=1).all()
    assert len(examples.query_label_Q) == 3


@pytest.mark.ray
def test_a_label_with_one_image_is_learned_from(tmp_path: Path, ray_session: None) -> None:
    gallery = gallery_of(tmp_path / "g", ["ant", *["bee"] * 5, *["cat"] * 5])
    examples, left_out = load(gallery, queries_of(tmp_path / "q", ["ant", "bee", "cat"]))
    assert left_out == LeftOut(0, 0, [])
    assert np.bincount(examples.row_label_N).tolist() == [1, 5, 5]
    assert examples.draw(0, batch=3, positives=4, seed=0)["row_label"].tolist().count(0) == 4


@pytest.mark.ray
def test_nothing_left_to_learn_from_is_an_error_that_says_why(
    gallery: Gallery, tmp_path: Path, ray_session: None
) -> None:
    queries = queries_of(tmp_path / "q", [None, "ant", "owl", "emu"], [1, 0, 2, 2])
    with pytest.raises(
        ValueError, match=r"1 have no label, 1 no accepted image, and 2 labels have no image in .*\(emu, owl\)"
    ):
        load(gallery, queries)
    without_images = queries_of(tmp_path / "k0", ["ant", "bee", "cat"], [0, 0, 0])
    with pytest.raises(ValueError, match="0 have no label, 3 no accepted image, and 0 labels"):
        load(gallery, without_images)


def test_an_empty_query_set_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    queries = queries_of(tmp_path, ["ant"])
    queries.manifest.queries = 0
    with pytest.raises(ValueError, match=r"the query set .* is empty"):
        load(gallery, queries)


def test_artifacts_of_other_models_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    for role in ("vlm", "vision"):
        queries = queries_of(tmp_path / role, LABELS, records=models(**{role: "sha256:other"}))
        with pytest.raises(ValueError, match=rf"the {role} models differ.*\n.*gallery .*\n.*queryset .*sha256:other"):
            load(gallery, queries)


@pytest.mark.ray
@pytest.mark.parametrize(("what", "dims"), [("vlm", (D1 + 2, D2)), ("vision", (D1, D2 + 2))])
def test_other_dimensions_of_the_same_models_are_refused(
    what: str, dims: tuple[int, int], tmp_path: Path, ray_session: None
) -> None:
    gallery = gallery_of(tmp_path / "g", LABELS * 3, dims=dims)
    ours, theirs = {"vlm": (D1, D1 + 2), "vision": (D2, D2 + 2)}[what]
    with pytest.raises(
        ValueError, match=rf"the {what} vectors of .*/q have {ours} dimensions, those of .*/g have {theirs}"
    ):
        load(gallery, queries_of(tmp_path / "q", LABELS))
