"""Rates and prices that a capacity plan is computed from: each given, measured, or assumed and said to be so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError

from cluster.profile import Settings
from retrieval.errors import UserError

Origin = Literal["given", "measured", "of the model", "assumed"]
"""Where a rate comes from; ``assumed`` is what a plan takes where nobody says otherwise."""


class Rates(Settings):
    """What is not known is None, and nothing is guessed for it. Those with another default are assumptions."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

    vlm_dim: int | None = Field(default=None, ge=1)
    """D1, dimensions of the VLM."""
    vision_dim: int | None = Field(default=None, ge=1)
    """D2, dimensions of the vision encoder."""

    source_bytes: float | None = Field(default=None, gt=0)
    """Bytes of an image in its source."""
    row_bytes: float = Field(default=103, gt=0)
    """Bytes of a row in memory beside its vectors: id, path, label, further columns. Assumed: the demo's index."""
    row_file_bytes: float = Field(default=39, gt=0)
    """The same on disk, in Parquet. Assumed: the demo's index."""
    thumbnail_bytes: float = Field(default=6_400, gt=0)
    """Bytes of the small JPEG of an imagined image. Assumed: the mean of 300 photos of Caltech-101."""
    text_bytes: float = Field(default=40, gt=0)
    """Bytes of the text of a query."""

    embed_rows_per_s: float | None = Field(default=None, gt=0)
    """Images that one embedder takes through both encoders in a second, with what the profile's ``embed`` gives it."""
    decode_rows_per_s: float | None = Field(default=None, gt=0)
    """Images that one CPU reads, decodes and resizes in a second."""
    imagine_images_per_s: float | None = Field(default=None, gt=0)
    """Images that one worker of ``imagine`` generates and embeds in a second."""
    products_per_s: float | None = Field(default=None, gt=0)
    """Products that one CPU multiplies and adds in a second as FAISS assigns rows to lists."""
    kmeans_rounds: float = Field(default=10, gt=0)
    """Rounds of k-means over the sample that lists are trained on. Assumed: the most; it ends early where it can."""
    values_per_s: float | None = Field(default=None, gt=0)
    """Values (rows times dimensions) of a shard that a CPU reads, encodes, tunes, writes and checks in a second."""
    shard_s: float = Field(default=3.3, ge=0)
    """CPU seconds that any shard takes to tune and to check, however small. Assumed: docs/capacity.md."""
    train_steps_per_s: float | None = Field(default=None, gt=0)
    """Steps of the aggregator's training in a second, of all workers together."""

    requests_per_s: float | None = Field(default=None, gt=0)
    """Requests that one replica of the ingress answers in a second, all else being quick."""
    texts_per_s: float | None = Field(default=None, gt=0)
    """Queries that one replica of the VLM encodes in a second, in all templates."""
    pictures_per_s: float | None = Field(default=None, gt=0)
    """Imagined images that one replica of the vision encoder embeds in a second."""
    generator_images_per_s: float | None = Field(default=None, gt=0)
    """Images that one replica of the generator makes in a second."""
    shard_search_ms: float | None = Field(default=None, gt=0)
    """CPU milliseconds of one search of one shard."""
    call_ms: float = Field(default=1.5, gt=0)
    """CPU milliseconds that a call to a deployment of shards costs the ranker. Assumed: docs/capacity.md."""
    part_ms: float = Field(default=0.08, gt=0)
    """CPU milliseconds of the ranker to take up and merge what one shard found. Assumed: docs/capacity.md."""
    row_ms: float = Field(default=0.004, gt=0)
    """CPU milliseconds of the ranker for each row of the result. Assumed: docs/capacity.md."""
    result_bytes: float = Field(default=330, gt=0)
    """Bytes of one result in an answer to a client. Assumed: the demo's."""
    busy: float = Field(default=0.7, gt=0, le=1)
    """Share of its time that a replica is to be busy, so that what arrives together is answered in time."""

    gpu_hour: float | None = Field(default=None, ge=0)
    """Price of a GPU for an hour."""
    cpu_hour: float | None = Field(default=None, ge=0)
    """Price of a CPU for an hour, with the memory that comes with it."""
    memory_gb_hour: float = Field(default=0, ge=0)
    """Price of a gigabyte of memory for an hour, of shards, where the CPUs' price does not hold it."""
    storage_gb_month: float | None = Field(default=None, ge=0)
    """Price of a gigabyte in the object store for a month."""
    egress_gb: float | None = Field(default=None, ge=0)
    """Price of a gigabyte that leaves for clients."""


CALIBRATED = frozenset(
    {
        "vlm_dim",
        "vision_dim",
        "embed_rows_per_s",
        "decode_rows_per_s",
        "imagine_images_per_s",
        "thumbnail_bytes",
        "products_per_s",
        "values_per_s",
        "shard_s",
        "texts_per_s",
        "pictures_per_s",
        "generator_images_per_s",
    }
)
"""What a calibration measures, and of images of one's own also ``source_bytes``."""


@dataclass(frozen=True)
class Known:
    """Rates, and where those come from that were not left out."""

    rates: Rates
    origins: Mapping[str, Origin]

    @classmethod
    def of(cls, **sources: Mapping[str, Any]) -> Self:
        """Return the rates of several sources, the first of which that has a rate decides.

        Args:
            sources: rates by name; of ``given``, ``measured`` and ``of_the_model``.

        Raises:
            UserError: there is no such rate, or it cannot be what it is (``wrong-setting``).
        """
        values: dict[str, Any] = {}
        origins: dict[str, Origin] = dict.fromkeys(Rates.model_fields, "assumed")
        for source, rates in reversed(sources.items()):
            values |= rates
            origins |= dict.fromkeys(rates, source.replace("_", " "))  # type: ignore[arg-type]
        return cls(_validated(values), origins)

    def value(self, name: str) -> float | None:
        """Return a rate, None if it is not known."""
        value: float | None = getattr(self.rates, name)
        return value


def read_rates(file: str | Path) -> dict[str, Any]:
    """Return the rates in a YAML or JSON file, by name.

    Raises:
        UserError: it is not there (``missing``), or holds something else (``malformed``).
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no file {str(file)!r} of rates", code="missing", field="rates")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}", code="malformed", field="rates") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path} must hold rates and their values, not {kind}", code="malformed", field="rates")
    return content


def parse_rates(assignments: Iterable[str]) -> dict[str, Any]:
    """Return rates written as ``name=value``.

    Raises:
        UserError: one is not written so (``malformed``).
    """
    rates = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if not re.fullmatch(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
            raise UserError(
                f"a rate is given as NAME=NUMBER, such as embed_rows_per_s=500, not {assignment!r}",
                code="malformed",
                field="rate",
            )
        rates[name.strip()] = float(value)
    return rates


def _validated(values: Mapping[str, Any]) -> Rates:
    whole = {name: int(value) for name, value in values.items() if isinstance(value, float) and value.is_integer()}
    try:
        return Rates.model_validate({**values, **whole})
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])), each) for each in error.errors()]
        problems = [f"  {name}: {each['msg']} (given: {each['input']!r})" for name, each in wrong]
        raise UserError(
            f"{len(problems)} wrong rate(s); docs/capacity.md lists them:\n" + "\n".join(problems),
            code="wrong-setting",
            field=wrong[0][0],
        ) from error
