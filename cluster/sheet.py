"""The sheet of a capacity plan: figures, each computed from rates and other figures, or not known for want of one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.profile import Profile
from cluster.rates import Known, Rates
from retrieval.errors import UserError
from retrieval.index.kinds import choose_factory


@dataclass(frozen=True)
class Workload:
    """What is planned for.

    Attributes:
        images: N, of the gallery.
        queries: Q, of a vocabulary that is imagined in batch.
        load: requests in a second, fused ones: new queries, and remembered ones.
        hits: share of them that are remembered.
        k: results of a request.
    """

    images: int
    queries: int = 0
    load: float = 0.0
    hits: float = 0.0
    k: int = 100


@dataclass(frozen=True)
class Cut:
    """How an index is cut: ``shards`` of so many ``rows`` of ``dim`` dimensions, each of the kind ``factory``."""

    shards: int
    rows: int
    dim: int
    factory: str

    @property
    def lists(self) -> int:
        """L, 0 for a kind without lists."""
        found = re.search(r"IVF(\d+)", self.factory)
        return int(found[1]) if found else 0


def cut_of(workload: Workload, rates: Rates, profile: Profile) -> Cut:
    """Return the shards that the indexing job would make.

    Raises:
        UserError: the dimensions are not known (``missing``), or no kind of index fits the profile's
            ``memory_per_shard``.
    """
    settings = profile.index
    if rates.vlm_dim is None or rates.vision_dim is None:
        raise UserError(
            f"the dimensions of {profile.models.vlm} and {profile.models.vision} are not known: give the rates"
            " vlm_dim and vision_dim, or calibrate",
            code="missing",
            field="vlm_dim" if rates.vlm_dim is None else "vision_dim",
        )
    shards = math.ceil(workload.images / settings.rows_per_shard)
    rows, dim = math.ceil(workload.images / shards), rates.vlm_dim + rates.vision_dim
    return Cut(shards, rows, dim, choose_factory(settings.factory, rows, dim, settings.memory_per_shard))


@dataclass(frozen=True)
class Figure:
    """One figure of a plan; ``value`` is None where a rate that it needs is not known.

    Attributes:
        unit: ``B``, ``h``, ``/s`` and so on; empty for a count.
        how: how it is computed, in words and symbols.
        missing: rates that it needs and that are not known.
        assumed: rates that it is computed from and that were assumed.
    """

    section: str
    name: str
    unit: str
    value: float | None
    how: str
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass
class Sheet:
    """Figures in the order in which they are added, and the rates that they are computed from."""

    workload: Workload
    known: Known
    cut: Cut
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is to be known of the plan as a whole."""

    @property
    def rates(self) -> Rates:
        return self.known.rates

    def add(
        self,
        section: str,
        name: str,
        unit: str,
        how: str,
        compute: Callable[..., float],
        *needed: str | Figure,
    ) -> Figure:
        """Add the figure that ``compute`` returns of the values of what it ``needs``: rates by name, and figures.

        Where one of them is not known, neither is the figure.
        """
        values = [self.known.value(one) if isinstance(one, str) else one.value for one in needed]
        missing, assumed = set[str](), set[str]()
        for one, value in zip(needed, values, strict=True):
            if isinstance(one, Figure):
                missing |= set(one.missing)
                assumed |= set(one.assumed)
            elif value is None:
                missing.add(one)
            elif self.known.origins[one] == "assumed":
                assumed.add(one)
        value = None if missing else float(compute(*values))
        figure = Figure(section, name, unit, value, how, tuple(sorted(missing)), tuple(sorted(assumed)))
        self.figures.append(figure)
        return figure

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-ready: what was asked, every figure, and each rate with where it comes from."""
        rates = {
            name: {"value": value, "origin": self.known.origins[name] if value is not None else "not known"}
            for name, value in self.rates.model_dump().items()
        }
        figures = [asdict(figure) for figure in self.figures]
        return {
            "workload": asdict(self.workload),
            "cut": asdict(self.cut),
            "rates": rates,
            "figures": figures,
            "notes": self.notes,
        }
