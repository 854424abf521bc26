"""Matrices as Arrow columns, whichever way they are cut."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrieval.artifacts.columns import fixed_size_list, matrix


def test_matrices_come_back_whatever_way_the_column_is_cut() -> None:
    rows_ND = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float16)
    column = fixed_size_list(rows_ND)
    assert column.type == pa.list_(pa.float16(), 3)
    np.testing.assert_array_equal(matrix(column), rows_ND)
    np.testing.assert_array_equal(matrix(column.slice(5, 7)), rows_ND[5:12])
    chunked = pa.chunked_array([column.slice(0, 4), column.slice(4, 0), column.slice(9, 3)])
    np.testing.assert_array_equal(matrix(chunked), np.concatenate([rows_ND[:4], rows_ND[9:12]]))
    np.testing.assert_array_equal(matrix(chunked.slice(2, 4)), np.concatenate([rows_ND[2:4], rows_ND[9:11]]))
    assert matrix(column.slice(0, 0)).shape == (0, 3)
    assert matrix(pa.chunked_array([], pa.list_(pa.float16(), 3))).shape == (0, 3)


def test_a_matrix_need_not_be_contiguous() -> None:
    rows_ND = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(matrix(fixed_size_list(rows_ND.T)), rows_ND.T)
    np.testing.assert_array_equal(matrix(fixed_size_list(rows_ND[:, ::2])), rows_ND[:, ::2])
    assert matrix(fixed_size_list(rows_ND[:0])).shape == (0, 4)
