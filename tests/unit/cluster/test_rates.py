"""Rates of a capacity plan: where each comes from, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from errors import refused

from cluster.rates import CALIBRATED, Known, Rates, parse_rates, read_rates

DOCUMENT = Path(__file__).parents[3] / "docs" / "capacity.md"


def test_the_first_source_that_has_a_rate_decides() -> None:
    known = Known.of(given={"busy": 0.5}, measured={"busy": 0.6, "texts_per_s": 9.0}, of_the_model={"vlm_dim": 768})
    assert (known.value("busy"), known.value("texts_per_s"), known.value("vlm_dim")) == (0.5, 9.0, 768)
    origins = [known.origins[name] for name in ("busy", "texts_per_s", "vlm_dim", "row_bytes")]
    assert origins == ["given", "measured", "of the model", "assumed"]
    assert known.value("embed_rows_per_s") is None


@pytest.mark.parametrize(
    ("rates", "field"),
    [
        ({"embed_rows": 5}, "embed_rows"),
        ({"busy": 1.5}, "busy"),
        ({"gpu_hour": "two"}, "gpu_hour"),
        ({"busy": 0}, "busy"),
        ({"kmeans_rounds": float("inf")}, "kmeans_rounds"),
    ],
)
def test_a_rate_that_cannot_be_is_refused_by_name(rates: dict[str, float], field: str) -> None:
    with refused("wrong-setting", field) as error:
        Known.of(given=rates)
    assert "docs/capacity.md" in str(error.value)


def test_rates_are_read_from_yaml_and_json_and_from_a_command(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text("embed_rows_per_s: 500  # of an H100\ngpu_hour: 2.5\n")
    (tmp_path / "rates.json").write_text('{"gpu_hour": 2.5}')
    assert read_rates(tmp_path / "rates.yaml") == {"embed_rows_per_s": 500, "gpu_hour": 2.5}
    assert read_rates(tmp_path / "rates.json") == {"gpu_hour": 2.5}
    given = parse_rates(["vlm_dim=768", "products_per_s=5e10", "busy = .5"])
    assert Known.of(given=given).rates.vlm_dim == 768
    assert given["products_per_s"] == 5e10


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [\n", "\xff"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rates.yaml"
    file.write_bytes(content.encode("latin-1"))
    with refused("malformed", "rates"):
        read_rates(file)
    with refused("missing", "rates"):
        read_rates(tmp_path / "other.yaml")


@pytest.mark.parametrize("text", ["busy", "busy=", "busy=much", "busy=nan", "busy=-1", "busy=1_0"])
def test_a_rate_is_a_name_and_a_number(text: str) -> None:
    with refused("malformed", "rate"):
        parse_rates([text])


def test_every_rate_is_explained_and_in_the_docs() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert table == set(Rates.model_fields)
    assert set(Rates.model_fields) >= CALIBRATED
    for name, field in Rates.model_fields.items():
        assert field.description, name
        # What is not None is an assumption, or a price that there need not be.
        assert field.default in (None, 0) or name in ("text_bytes", "busy") or "Assumed: " in field.description, name
