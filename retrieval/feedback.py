"""What a user marks among the results becomes evidence of the next round: rows that are right and rows that are not.

As Rocchio (1971) weighs them: the mean of those that were picked for, that of those that were dropped against. A round
is a longer list of evidence (``retrieval.evidence``), so nothing else has to be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.evidence import MAX_PIECES, Row

PICKED = 2.0
"""Sum of the weights of all rows that were picked, beside a text of weight 1."""
DROPPED = 0.5
"""Sum of the weights of all rows that were dropped, against; more of it finds what is like nothing."""


def marked(
    picked: Sequence[str],
    dropped: Sequence[str],
    *,
    beside: int = 1,
    weights: tuple[float, float] = (PICKED, DROPPED),
) -> list[Row]:
    """Return rows that were marked as evidence, of which the newest are kept where there are too many.

    Args:
        picked: ids of the rows that are right, the newest last.
        dropped: ids of those that are not.
        beside: how many other pieces the query has.
        weights: sums of the weights of the picked and of the dropped.
    """
    room = max(MAX_PIECES - beside, 0)
    # Both kinds keep their part of the room, and what one does not need is the other's.
    share = min(len(dropped), max(room - len(picked), room // 2))
    kept_dropped = list(dropped)[len(dropped) - share :]
    kept_picked = list(picked)[max(len(picked) - (room - share), 0) :]
    rows = [Row(id, weights[0] / len(kept_picked)) for id in kept_picked if weights[0]]
    return rows + [Row(id, -weights[1] / len(kept_dropped)) for id in kept_dropped if weights[1]]
