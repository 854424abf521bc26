"""A simulated user who searches in rounds: looks at the first results, picks, drops, and may edit the text.

What the user has looked at is taken out of the ranking that is measured next (the residual gallery, after Rocchio), and
each round is compared with the first search over the same rest: so neither gains by what was marked already. Hits at
k are cumulative, as in ChatIR (Levy et al., NeurIPS 2023): who has found something stays so. BRI is the Best log Rank
Integral of PlugIR (Lee et al., ACL 2024): the mean over rounds, by trapezoids, of the logarithm of the best rank so
far, so that less is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.gallery_rows import ids_of_labels, vectors_of
from pipelines.ranking import best_rows, exact_measures
from pipelines.running import current_executor
from pipelines.truth import Truth, Truths
from retrieval.artifacts import Gallery
from retrieval.errors import UserError
from retrieval.evidence import Encoded, compiled, halves
from retrieval.feedback import DROPPED, PICKED, marked
from retrieval.metrics import Interval, average_precision, bootstrap_mean, paired_bootstrap

SYSTEMS = ("rounds", "first search")


class Opening(NamedTuple):
    """A search that a user begins with.

    Attributes:
        id: of the query.
        text: for people.
        kind: of query.
        encoded: its evidence.
        truth: what it is to find.
        edits: what the first piece becomes in round 1, 2, …: its τ and ν, float32 (D1,) and (D2,); after the last it
            stays as it is.
    """

    id: str
    text: str
    kind: str
    encoded: Encoded
    truth: Truth
    edits: Sequence[tuple[np.ndarray, np.ndarray]] = ()

    def in_round(self, number: int) -> Encoded:
        """Return its evidence as the user has edited it by then."""
        if not number or not self.edits:
            return self.encoded
        vlm_ED1, vision_ED2 = self.encoded.vlm_ED1.copy(), self.encoded.vision_ED2.copy()
        vlm_ED1[0], vision_ED2[0] = self.edits[min(number, len(self.edits)) - 1]
        return Encoded(self.encoded.weights_E, vlm_ED1, vision_ED2)


@dataclass(frozen=True)
class User:
    """How a user looks and marks. Chosen on fitting categories: docs/evidence.md.

    Attributes:
        k: results that are looked at in each round.
        picks: of these, how many relevant ones are marked at most, the first ones.
        drops: how many others.
        weights: of what was picked and of what was dropped, as ``retrieval.feedback.marked`` takes them.
        noise: the share of judgements that are wrong.
        seed: of the noise.
    """

    k: int = 10
    picks: int = 4
    drops: int = 1
    weights: tuple[float, float] = (PICKED, DROPPED)
    noise: float = 0.0
    seed: int = 0


@dataclass
class _Session:
    """What one user has seen and marked so far."""

    opening: Opening
    relevant: tuple[str, ...]
    seen: dict[str, None]
    picked: list[str]
    dropped: list[str]

    def evidence(self, number: int, user: User, joint: Mapping[str, np.ndarray], vlm_dim: int) -> Encoded:
        base = self.opening.in_round(number)
        rows = marked(self.picked, self.dropped, beside=len(base.weights_E), weights=user.weights)
        if not rows:
            return base
        vlm_ED1, vision_ED2 = halves(np.stack([joint[row.id] for row in rows]), vlm_dim)
        return Encoded(
            np.append(base.weights_E, [row.weight for row in rows]),
            np.concatenate([base.vlm_ED1, vlm_ED1]),
            np.concatenate([base.vision_ED2, vision_ED2]),
        )

    def rest(self) -> Truth:
        """What is still to be found, in what has not been seen."""
        left = tuple(id for id in self.relevant if id not in self.seen)
        return Truth(None, left, tuple(dict.fromkeys([*self.opening.truth.junk, *self.seen])))

    def look(self, found: Sequence[Mapping[str, Any]], user: User, rng: np.random.Generator) -> int:
        """Look at the best of what has not been seen, and mark some of it; return how much of it is relevant."""
        new = [row["id"] for row in found if row["id"] not in self.seen and row["id"] not in self.opening.truth.junk]
        shown = new[: user.k]
        right = np.isin(shown, self.relevant)
        judged = right ^ (rng.random(len(shown)) < user.noise)
        self.picked += [id for id, yes in zip(shown, judged, strict=True) if yes][: user.picks]
        self.dropped += [id for id, yes in zip(shown, judged, strict=True) if not yes][: user.drops]
        self.seen |= dict.fromkeys(shown)
        return int(right.sum())


@dataclass(frozen=True)
class Rounds:
    """What users found, round by round.

    Attributes:
        table: one row per query, round and system: query, text, kind, round (0 is the first search), system (``rounds``
            or ``first search``, over the same residual gallery), relevant (rows that are left to find), ap (by
            trapezoids; null where nothing is left), best_rank (of the nearest relevant row that is left, 0-based; null
            likewise), shown_relevant (of the k that the user looked at; null for the first search).
        k: how many results were looked at in each round.
    """

    table: pa.Table
    k: int

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(self.table["kind"].to_pylist()))

    @property
    def rounds(self) -> int:
        """How many rounds follow the first search."""
        return int(pc.max(self.table["round"]).as_py())

    def _values(self, kind: str, column: str, system: str = SYSTEMS[0]) -> np.ndarray:
        """Return a column for each query in each round, float64 (Q, R), NaN where it is null."""
        rows = self.table.filter((pc.field("kind") == kind) & (pc.field("system") == system))
        rows = rows.sort_by([("query", "ascending"), ("round", "ascending")])
        return rows[column].cast(pa.float64()).to_numpy().reshape(-1, self.rounds + 1)

    def mean(self, kind: str, number: int, system: str = SYSTEMS[0]) -> Interval | None:
        """Return mAP over the residual gallery of a round, with its 95% interval over the queries that have something
        left to find; None if none has.
        """
        values = self._values(kind, "ap", system)[:, number]
        there = np.isfinite(values)
        return bootstrap_mean(values[there]) if there.any() else None

    def gain(self, kind: str, number: int) -> Interval | None:
        """Return the paired gain in AP of a round over the first search, both over the same residual gallery."""
        ours, first = (self._values(kind, "ap", system)[:, number] for system in SYSTEMS)
        there = np.isfinite(ours)
        return paired_bootstrap(ours[there], first[there]) if there.any() else None

    def hits(self, kind: str) -> np.ndarray:
        """Return the share of queries that have found a relevant row among the k of any round so far, (R,)."""
        shown = self._values(kind, "shown_relevant")
        return np.logical_or.accumulate(shown > 0, axis=1).mean(axis=0)

    def shown(self, kind: str) -> np.ndarray:
        """Return the mean share of relevant rows among those that each round shows, (R,)."""
        return self._values(kind, "shown_relevant").mean(axis=0) / self.k

    def best_log_rank(self, kind: str) -> float:
        """Return BRI: the logarithm of the best rank so far, from 1, by trapezoids over the rounds, and their mean."""
        ranks = np.where(np.isfinite(found := self._values(kind, "best_rank")), found, np.inf)
        best = np.log(np.minimum.accumulate(ranks, axis=1) + 1)
        inside = best[:, 1:-1].sum(axis=1)
        return float(((best[:, 0] + best[:, -1]) / 2 + inside).mean() / self.rounds)

    def summary(self) -> dict[str, Any]:
        """Return the figures by kind, JSON-ready; lists go by round."""
        numbers = range(self.rounds + 1)
        return {
            kind: {
                "hits": self.hits(kind).tolist(),
                "shown_relevant": self.shown(kind).tolist(),
                "ap": [_figures(self.mean(kind, number)) for number in numbers],
                "ap_of_first_search": [_figures(self.mean(kind, number, SYSTEMS[1])) for number in numbers],
                "gain_over_first_search": [_figures(self.gain(kind, number)) for number in numbers],
                "best_log_rank": self.best_log_rank(kind),
            }
            for kind in self.kinds
        }


def _figures(interval: Interval | None) -> dict[str, float] | None:
    return vars(interval) if interval else None


def simulate(
    gallery: Gallery, openings: Sequence[Opening], rounds: int, *, weight: float, user: User | None = None
) -> Rounds:
    """Let users search a gallery exactly, each for a query, in so many rounds after the first search.

    Args:
        gallery: the gallery, ranked by tasks of the open session.
        openings: the searches that they begin with; each has a relevant row in the gallery.
        rounds: from 1.
        weight: λ.
        user: how they look and mark.

    Raises:
        UserError: there is no round or no opening (code ``out-of-range`` or ``empty``).
    """
    user = user or User()
    if rounds < 1:
        raise UserError(f"there must be at least one round, not {rounds}", code="out-of-range", field="rounds")
    if not openings:
        raise UserError("there is no query to begin with", code="empty", field="queries")
    vlm_dim, rng = openings[0].encoded.vlm_ED1.shape[1], np.random.default_rng(user.seed)
    of_labels = ids_of_labels(gallery, {each.truth.label for each in openings if each.truth.label is not None})
    sessions = [
        _Session(each, of_labels[each.truth.label] if each.truth.label else each.truth.relevant or (), {}, [], [])
        for each in openings
    ]
    first = [compiled(each.encoded, weight)[0] for each in openings]
    joint: dict[str, np.ndarray] = {}
    measured: list[pa.Table] = []
    for number in range(rounds + 1):
        rest = [session.rest() for session in sessions]
        queries = [compiled(session.evidence(number, user, joint, vlm_dim), weight)[0] for session in sessions]
        measured.append(_measured(gallery, openings, number, queries, first, rest))
        most = max(len(session.seen) + len(session.opening.truth.junk) for session in sessions)
        found = best_rows(gallery, np.concatenate(queries), user.k + most)
        shown = [session.look(of_one, user, rng) for session, of_one in zip(sessions, found, strict=True)]
        column = pa.array([*shown, *[None] * len(shown)], pa.int64())
        measured[-1] = measured[-1].append_column("shown_relevant", column)
        marks = {id for session in sessions for id in (*session.picked, *session.dropped)}
        joint |= vectors_of(gallery, marks - joint.keys())
    return Rounds(pa.concat_tables(measured), user.k)


def _measured(
    gallery: Gallery,
    openings: Sequence[Opening],
    number: int,
    queries: Sequence[np.ndarray],
    first: Sequence[np.ndarray],
    rest: Sequence[Truth],
) -> pa.Table:
    """Measure the queries of a round and those of the first search over what has not been seen."""
    places = [q for q, truth in enumerate(rest) if truth.relevant]
    ap: list[float | None] = [None] * (2 * len(rest))
    best: list[int | None] = [None] * (2 * len(rest))
    if places:
        of_both = [place + half * len(rest) for half in (0, 1) for place in places]
        joint_MD = np.concatenate([*queries, *first])[of_both]
        truths = [rest[place % len(rest)] for place in of_both]
        numbered = Truths.of(truths)
        rows = [len(truth.relevant or ()) + len(truth.junk) for truth in numbered.different]
        positives = [len(truth.relevant or ()) for truth in truths]
        shared, of_M = current_executor().share(numbered), numbered.of_queries
        for m, of_one in exact_measures(gallery, joint_MD, shared, of_M, rows, positives, _ap_and_best):
            if of_one:
                ap[of_both[m]], best[of_both[m]] = of_one[0], int(of_one[1])
    return pa.table(
        {
            "query": [each.id for each in openings] * 2,
            "text": [each.text for each in openings] * 2,
            "kind": [each.kind for each in openings] * 2,
            "round": pa.array([number] * (2 * len(rest)), pa.int64()),
            "system": [system for system in SYSTEMS for _ in rest],
            "relevant": pa.array([len(truth.relevant or ()) for truth in rest] * 2, pa.int64()),
            "ap": pa.array(ap, pa.float64()),
            "best_rank": pa.array(best, pa.int64()),
        }
    )


def _ap_and_best(ranks: np.ndarray, positives: int) -> list[float]:
    return [average_precision(ranks, positives), float(ranks[0])] if len(ranks) else []
