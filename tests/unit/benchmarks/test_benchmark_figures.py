"""Figures of benchmarks: none where nothing was measured, and not an error."""

from __future__ import annotations

import math

import pytest

from benchmarks.live_service import quantiles


def test_times_of_no_answer_are_no_numbers() -> None:
    assert quantiles([0.001, 0.002, 0.003]) == pytest.approx({"p50": 2.0, "p99": 2.98})
    assert all(map(math.isnan, quantiles([]).values()))
