"""Matrices as Arrow columns of fixed-size lists, and back. N rows, D dimensions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def fixed_size_list(rows_ND: np.ndarray) -> pa.FixedSizeListArray:
    """Turn a matrix (N, D) into an Arrow column of N lists of D values, without a copy where NumPy allows it."""
    flat = pa.array(np.ascontiguousarray(rows_ND).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows_ND.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Turn an Arrow column of N fixed-size lists, none of them null, into a matrix (N, D) of its values' dtype."""
    array = whole(column)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array. ``combine_chunks`` leaves a chunked array where it has more than one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
