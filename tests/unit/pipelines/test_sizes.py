"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import pytest
from errors import refused

from pipelines.sizes import format_size, parse_size


def test_sizes_are_read_with_their_units() -> None:
    sizes = [12, "12", "500M", "2G", "1.5 GiB", "3kb"]
    assert [parse_size(size, "memory") for size in sizes] == [12, 12, 500 * 2**20, 2 * 2**30, 3 * 2**29, 3 * 2**10]


@pytest.mark.parametrize("size", ["much", "", "-1", "2X", "1G2"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with refused("not-a-size", "memory"):
        parse_size(size, "memory")


def test_sizes_are_printed_with_the_unit_that_suits_them() -> None:
    assert [format_size(size) for size in (12, 1500, 2_340_000, 7e9, 5e15)] == [
        "12 B",
        "1.5 KB",
        "2.34 MB",
        "7 GB",
        "5e+03 TB",
    ]
