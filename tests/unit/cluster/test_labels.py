"""Label selectors: what is refused, compared with Ray's own rules, and which nodes they select."""

from __future__ import annotations

import pytest
from ray._private.label_utils import validate_label_selector

from cluster.labels import check_selector, selects

LONG = "a" * 63


@pytest.mark.parametrize(
    ("key", "condition"),
    [
        ("pool", "gpu"),
        ("mindseye/pool", "!gpu"),
        ("ray.io/accelerator-type", "in(A100,H100)"),
        ("a.b-c.d/e_f.g", "!in(a,b)"),
        ("1", "2"),
        (LONG, LONG),
        (f"{'a.' * 126}a/pool", "gpu"),
    ],
)
def test_what_ray_takes_is_taken(key: str, condition: str) -> None:
    assert validate_label_selector({key: condition}) is None
    check_selector({key: condition})


@pytest.mark.parametrize(
    ("key", "condition"),
    [
        ("", "gpu"),
        ("mindseye/", "gpu"),
        ("a/b/c", "gpu"),
        ("-pool", "gpu"),
        ("pool_", "gpu"),
        ("po ol", "gpu"),
        (LONG + "a", "gpu"),
        (f"{'a.' * 127}a/pool", "gpu"),
        ("pool", "-gpu"),
        ("pool", "gpu_"),
        ("pool", "g pu"),
        ("pool", "!!gpu"),
        ("pool", "in()"),
        ("pool", "in(a,)"),
        ("pool", "in(a"),
        ("pool", "in(!a)"),
        ("pool", "gpu\n"),
        ("pool", "{shard}"),
        ("pool", LONG + "a"),
    ],
)
def test_what_ray_refuses_is_refused(key: str, condition: str) -> None:
    with pytest.raises(ValueError, match="label"):
        check_selector({key: condition})
    assert validate_label_selector({key: condition}) is not None


@pytest.mark.parametrize("condition", ["", "(a,b)", "!(a)", "in(a, b)"])
def test_what_ray_takes_by_mistake_is_refused_too(condition: str) -> None:
    with pytest.raises(ValueError, match="no condition"):
        check_selector({"pool": condition})


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("gpu", {"gpu"}),
        ("!gpu", {"cpu", None}),
        ("in(gpu,cpu)", {"gpu", "cpu"}),
        ("in(gpu,head)", {"gpu"}),
        ("!in(gpu,head)", {"cpu", None}),
        ("g", set()),
    ],
)
def test_a_condition_selects(condition: str, fits: set[str | None]) -> None:
    for value in ("gpu", "cpu", None):
        labels = {"other": "gpu"} | ({"pool": value} if value else {})
        assert selects({"pool": condition}, labels) == (value in fits), value


def test_all_conditions_count_and_none_select_every_node() -> None:
    assert selects({"a": "1", "b": "!2"}, {"a": "1"})
    assert not selects({"a": "1", "b": "!2"}, {"a": "1", "b": "2"})
    assert selects({}, {})
