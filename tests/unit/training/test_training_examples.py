"""The batches that training draws, against a plain version."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from errors import refused
from synthetic import D1, D2, directions

from training.examples import Batch, Examples, split_labels, stream

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
    for count in (0, 1, 2):
        with refused("too-few-labels", "label"):
            split_labels(count, 0.25, seed=0)


def test_the_stream_gives_the_batches_of_its_steps_in_order(examples: Examples) -> None:
    drawing = {"batch": 5, "positives": 2, "seed": SEED, "rank": 1, "world": 2}
    batches = list(stream(examples, range(4, 13), **drawing))
    assert len(batches) == 9
    for step, batch in zip(range(4, 13), batches, strict=True):
        assert_equal(batch, examples.draw(step, **drawing))
    for few in (1, 2):
        assert len(list(stream(examples, range(few), **drawing))) == few
    assert list(stream(examples, range(4, 4), **drawing)) == []


def test_an_error_of_the_thread_that_draws_is_raised_where_its_batch_is_asked_for() -> None:
    class Broken:
        def draw(self, step: int) -> Batch:
            if step == 1:
                raise ZeroDivisionError
            return {}

    batches = stream(Broken(), range(5))  # type: ignore[arg-type]
    assert next(batches) == {}
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_a_stream_that_is_left_ends_its_thread(examples: Examples) -> None:
    batches = stream(examples, range(100), batch=2, positives=1, seed=SEED)
    next(batches)
    assert any(thread.name.startswith("draw") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("draw") for thread in threading.enumerate())
