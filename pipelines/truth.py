"""What is relevant to a query: rows of its label, or rows that it names; what a gallery lacks of them.

A query that names its relevant rows by their ids is measured by these, another by its label. Rows that it names as junk
are taken out of its ranking before anything is counted, as the Revisited Oxford protocol does (Radenović et al., CVPR
2018): they are neither right nor wrong. A relevant id that the gallery lacks counts as never found. A query whose list
of relevant ids is empty has no average precision, and is left out of the mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.artifacts import Gallery, QuerySet
from retrieval.errors import UserError

_NAMED = 5


class Truth(NamedTuple):
    """What is relevant to a query.

    Attributes:
        label: rows of this label are relevant, where ``relevant`` is None.
        relevant: ids of the relevant rows, each once.
        junk: ids of rows that are taken out of the ranking, none of them relevant.
    """

    label: str | None = None
    relevant: tuple[str, ...] | None = None
    junk: tuple[str, ...] = ()

    def judge(self, id: str, label: str | None) -> bool | None:
        """Return whether a row is relevant; None if it is junk, or nothing is known."""
        if self.relevant is not None:
            return None if id in self.junk else id in self.relevant
        return None if self.label is None else label == self.label


class LeftOut(NamedTuple):
    """What of a query set was not measured, and what the gallery lacks.

    Attributes:
        unlabelled: how many queries have neither a label nor relevant ids.
        absent_labels: labels of queries that no image of the gallery has, sorted; their queries are not measured.
        without_relevant: texts of queries whose list of relevant ids is empty; they are not measured.
        unknown_relevant: relevant ids that the gallery lacks, sorted; each counts as never found.
        unknown_junk: junk ids that the gallery lacks, sorted.
    """

    unlabelled: int
    absent_labels: list[str]
    without_relevant: list[str]
    unknown_relevant: list[str]
    unknown_junk: list[str]

    def sentences(self) -> list[str]:
        """Return a sentence for each thing that was left out or is unknown, with the first few names."""
        said = []
        if self.unlabelled:
            said.append(f"{self.unlabelled:,} queries have no label and were not measured")
        if self.absent_labels:
            said.append(
                f"{len(self.absent_labels):,} labels have no image in the gallery and were not measured:"
                f" {_listed(self.absent_labels)}"
            )
        if self.without_relevant:
            said.append(
                f"{len(self.without_relevant):,} queries have an empty list of relevant rows and were not measured:"
                f" {_listed(self.without_relevant)}"
            )
        if self.unknown_relevant:
            said.append(
                f"{len(self.unknown_relevant):,} relevant rows are not in the gallery and count as never found:"
                f" {_listed(self.unknown_relevant)}"
            )
        if self.unknown_junk:
            said.append(f"{len(self.unknown_junk):,} junk rows are not in the gallery: {_listed(self.unknown_junk)}")
        return said


class Measurable(NamedTuple):
    """The queries of a set that can be measured.

    Attributes:
        queries: with all columns of the set but what was imagined as pictures.
        truths: of the same queries.
        positives: of the same queries, how many rows are relevant, found or not.
        rows: of each truth, how many rows of the gallery are relevant or junk.
        left_out: the others.
    """

    queries: pa.Table
    truths: list[Truth]
    positives: list[int]
    rows: dict[Truth, int]
    left_out: LeftOut


def measurable(gallery: Gallery, query_set: QuerySet) -> Measurable:
    """Return the queries that a gallery can be measured with.

    Raises:
        UserError: there is none (code ``nothing-to-measure``, field ``label``).
    """
    queries = query_set.table(["id", "text", "kind", "label", "vlm", "vision", "relevant", "junk"])
    return measurable_among(gallery, queries, query_set.uri)


def measurable_among(gallery: Gallery, queries: pa.Table, where: str) -> Measurable:
    """As ``measurable``, of a table with the columns ``text``, ``label``, ``relevant``, ``junk`` and any others.

    Args:
        gallery: to measure with.
        queries: any.
        where: what has them, for the message.
    """
    truths = truths_of(queries)
    labels, known_ids = _known(gallery, truths)

    absent: set[str] = set()
    without_relevant, unlabelled, chosen = [], 0, []
    for row, (truth, text) in enumerate(zip(truths, queries["text"].to_pylist(), strict=True)):
        if truth.relevant is not None:
            if truth.relevant:
                chosen.append(row)
            else:
                without_relevant.append(text)
        elif truth.label is None:
            unlabelled += 1
        elif truth.label in labels:
            chosen.append(row)
        else:
            absent.add(truth.label)
    named = {id for truth in truths for id in truth.relevant or ()}
    unknown = sorted(named - known_ids)
    unknown_junk = sorted({id for truth in truths for id in truth.junk} - known_ids)
    left_out = LeftOut(unlabelled, sorted(absent), without_relevant, unknown, unknown_junk)
    if not any(truths[row].relevant is None for row in chosen) and len(unknown) == len(named):
        raise UserError(
            f"no query of {where} can be measured with {gallery.uri}: {'; '.join(left_out.sentences())}",
            code="nothing-to-measure",
            field="label",
        )
    of_chosen = [truths[row] for row in chosen]
    positives = [len(truth.relevant) if truth.relevant else labels[truth.label or ""] for truth in of_chosen]
    rows = {
        truth: len(known_ids.intersection((*truth.relevant, *truth.junk))) if truth.relevant else count
        for truth, count in zip(of_chosen, positives, strict=True)
    }
    return Measurable(queries.take(pa.array(chosen, pa.int64())), of_chosen, positives, rows, left_out)


def truths_of(queries: pa.Table) -> list[Truth]:
    """Return what is relevant to each query of a table with the columns ``label``, ``relevant`` and ``junk``."""
    columns = (queries[name].to_pylist() for name in ("label", "relevant", "junk"))
    return [
        Truth(label) if relevant is None else Truth(None, _each_once(relevant), _each_once(junk or ()))
        for label, relevant, junk in zip(*columns, strict=True)
    ]


def _each_once(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))


def _known(gallery: Gallery, truths: Sequence[Truth]) -> tuple[Counter[str], set[str]]:
    """Return how many rows each label has, and which of the ids that are named the gallery has."""
    wanted = pa.array(sorted({id for truth in truths for id in (*(truth.relevant or ()), *truth.junk)}), pa.string())
    labels: Counter[str] = Counter()
    ids: set[str] = set()
    for table in gallery.tables(["id", "label"] if len(wanted) else ["label"]):
        labels.update({row["values"]: row["counts"] for row in table["label"].drop_null().value_counts().to_pylist()})
        if len(wanted):
            ids.update(table["id"].filter(pc.is_in(table["id"], wanted)).to_pylist())
    return labels, ids


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


class Targets(NamedTuple):
    """Which rows of a gallery are relevant or junk to which truths. T numbers of truths.

    Attributes:
        labels: the labels that are looked for, each once.
        of_labels: the truth of each.
        ids: the ids that are looked for, each once.
        starts: where in ``of_ids`` the truths of each id begin, and the last one's end.
        of_ids: truths of the ids, one id after the other.
        junk: of the same, whether the id is junk to the truth.
    """

    labels: pa.Array
    of_labels: np.ndarray
    ids: pa.Array
    starts: np.ndarray
    of_ids: np.ndarray
    junk: np.ndarray

    @classmethod
    def of(cls, truths: Sequence[Truth]) -> Targets:
        """Number truths by their places."""
        by_label = [(truth.label, number) for number, truth in enumerate(truths) if truth.relevant is None]
        by_id = [
            (id, number, is_junk)
            for number, truth in enumerate(truths)
            for is_junk, ids in ((False, truth.relevant or ()), (True, truth.junk))
            for id in ids
        ]
        by_id.sort()
        ids, starts = np.unique(np.array([id for id, _, _ in by_id], object), return_index=True)
        return cls(
            pa.array([label for label, _ in by_label], pa.string()),
            np.array([number for _, number in by_label], np.int64),
            pa.array(ids, pa.string()),
            np.append(starts, len(by_id)).astype(np.int64),
            np.array([number for _, number, _ in by_id], np.int64),
            np.array([is_junk for _, _, is_junk in by_id], bool),
        )

    def among(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find what is looked for among rows with the columns ``id`` and ``label``.

        Returns:
            Pairs, sorted by truth: its number, the place of the row, both int64, and whether it is junk, bool.
        """
        label_of_N = _places(rows["label"], self.labels)
        labelled = np.flatnonzero(label_of_N >= 0)
        id_of_N = _places(rows["id"], self.ids)
        named = np.flatnonzero(id_of_N >= 0)
        first = self.starts[id_of_N[named]]
        counts = self.starts[id_of_N[named] + 1] - first
        pairs = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        truths = np.concatenate([self.of_labels[label_of_N[labelled]], self.of_ids[pairs]])
        places = np.concatenate([labelled, np.repeat(named, counts)])
        junk = np.concatenate([np.zeros(len(labelled), bool), self.junk[pairs]])
        order = np.argsort(truths, kind="stable")
        return truths[order], places[order], junk[order]


def _places(column: pa.ChunkedArray, wanted: pa.Array) -> np.ndarray:
    """Return the place of each value among those wanted, or -1."""
    if not len(wanted):
        return np.full(len(column), -1)
    return pc.fill_null(pc.index_in(column, value_set=wanted), -1).to_numpy()
