"""What one run says: figures, each against a peer and a limit, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One comparison. Without ``ours`` it was not measured, and ``reason`` says why.

    Attributes:
        what: is measured.
        unit: of ``ours`` and ``peer``; more is better.
        peer_name: what it is compared with.
        wanted: the least ratio of ours to the peer's.
        limit: share of the device's own limit that ours reaches, where that can be said.
        peak: bytes of GPU memory at most while ours ran; None on a CPU.
        details: what else is to be known of it, JSON-ready.
    """

    what: str
    unit: str
    peer_name: str
    wanted: float
    ours: float | None = None
    peer: float | None = None
    limit: float | None = None
    peak: int | None = None
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours ÷ the peer's."""
        return self.ours / self.peer if self.ours and self.peer else None

    def as_json(self) -> dict[str, Any]:
        """All of it, with the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table of Markdown, one a line."""
    rows = [["what", "ours", "peer", "ratio", "wanted", "of the limit", "GPU memory"], ["---"] * 7]
    for one in figures:
        if one.ours is None:
            rows.append([one.what, f"not measured: {one.reason}", "", "", f"{one.wanted:.2f}", "", ""])
            continue
        rows.append(
            [
                one.what,
                f"{_number(one.ours)} {one.unit}",
                "" if one.peer is None else f"{_number(one.peer)}, {one.peer_name}",
                "" if one.ratio is None else f"{one.ratio:.2f}",
                f"{one.wanted:.2f}",
                "" if one.limit is None else f"{one.limit:.0%}",
                "" if one.peak is None else f"{one.peak / 2**30:.1f} GiB",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
