"""The fused query and score against plain arithmetic, and that scores do not depend on blocks or order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from errors import refused

from retrieval.fusion import fused_query, products, score, unit

RNG = np.random.default_rng(0)
TEXT, VISUAL = unit(RNG.standard_normal((3, 12))), unit(RNG.standard_normal((3, 20)))
VLM = unit(RNG.standard_normal((50, 12))).astype(np.float16)
VISION = unit(RNG.standard_normal((50, 20))).astype(np.float16)


def test_score_is_the_weighted_sum_of_both_similarities() -> None:
    expected = 0.7 * TEXT @ VLM.astype(np.float32).T + 0.3 * VISUAL @ VISION.astype(np.float32).T
    np.testing.assert_allclose(score(TEXT, VISUAL, 0.3, VLM, VISION), expected, atol=1e-6)


def test_score_is_one_inner_product_with_the_joint_row() -> None:
    query = fused_query(TEXT, VISUAL, 0.3)
    assert query.shape == (3, 32)
    assert query.dtype == np.float32
    joint = np.concatenate([VLM, VISION], axis=1)
    np.testing.assert_array_equal(products(query, joint).astype(np.float32), score(TEXT, VISUAL, 0.3, VLM, VISION))


def test_weight_zero_ranks_like_text_and_one_like_vision() -> None:
    text_order = np.argsort(-products(TEXT, VLM).astype(np.float32), kind="stable")
    vision_order = np.argsort(-products(VISUAL, VISION).astype(np.float32), kind="stable")
    for weight, order in ((0, text_order), (1, vision_order)):
        np.testing.assert_array_equal(np.argsort(-score(TEXT, VISUAL, weight, VLM, VISION), kind="stable"), order)


def test_each_query_may_have_its_own_weight() -> None:
    weights = np.array([0.0, 0.4, 1.0])
    together = score(TEXT, VISUAL, weights, VLM, VISION)
    for q, weight in enumerate(weights):
        alone = score(TEXT[q], VISUAL[q], weight, VLM, VISION)
        np.testing.assert_array_equal(together[q], alone[0])


def test_products_are_exact_in_any_order_and_block() -> None:
    query = unit(RNG.standard_normal((1, 1792)))
    rows = unit(RNG.standard_normal((40, 1792))).astype(np.float16)
    on_grid = np.rint(query[0].astype(np.float64) * 2**24) / 2**24
    # math.fsum adds float64 without rounding error, and these products need no more than 53 bits.
    exact = [math.fsum(on_grid * row.astype(np.float64)) for row in rows]
    np.testing.assert_array_equal(products(query, rows)[0], exact)
    shuffled = RNG.permutation(1792)
    np.testing.assert_array_equal(products(query[:, shuffled], rows[:, shuffled])[0], exact)
    one_by_one = np.concatenate([products(query, row[None])[0] for row in rows])
    np.testing.assert_array_equal(one_by_one, exact)


@pytest.mark.parametrize("weight", [-0.01, 1.01, math.nan, math.inf, "0.5", None, True, [[0.5]], [0.5, math.nan, 0.5]])
def test_a_weight_that_is_no_number_from_zero_to_one_is_refused(weight: object) -> None:
    with refused("out-of-range", "weight"):
        fused_query(TEXT, VISUAL, weight)  # type: ignore[arg-type]


def test_mismatched_shapes_are_named() -> None:
    with refused("wrong-shape", "visual"):
        fused_query(TEXT, VISUAL[:2], 0.5)
    with refused("wrong-shape", "visual"):
        fused_query(TEXT, VISUAL, [0.1, 0.2])
    with refused("wrong-shape", "query"):
        score(TEXT, VISUAL, 0.5, VLM, VLM)


def test_unit_scales_rows_of_any_magnitude() -> None:
    rows = np.array([[3.0, 4.0], [3e30, 4e30], [3e-40, 4e-40]])
    np.testing.assert_allclose(unit(rows), [[0.6, 0.8]] * 3, rtol=1e-6)
    assert unit(rows).dtype == np.float32


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_unit_names_the_row_without_direction(bad: list[float]) -> None:
    with refused("no-direction", "rows") as error:
        unit([[1.0, 2.0], bad, [3.0, 4.0]])
    assert "row 1 of 3" in str(error.value)
