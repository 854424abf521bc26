"""What is relevant to a query: rows of its label, or rows that it names; what a gallery lacks of them.

A query that names its relevant rows by their ids is measured by these, another by its label. Rows that it names as junk
are taken out of its ranking before anything is counted, as the Revisited Oxford protocol does (Radenović et al., CVPR
2018): they are neither right nor wrong. A relevant id that the gallery lacks counts as never found. A query whose list
of relevant ids is empty has no average precision, and is left out of the mean.

Relevant ids can be as many as queries × rows. They stay in tasks and where these leave their results: a driver knows of
each query but how many rows are relevant to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.executor import Shared
from pipelines.gallery_rows import ROWS_READ, Run, runs
from pipelines.running import current_executor
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


class Truths(NamedTuple):
    """What is relevant to some queries.

    Attributes:
        different: each truth once.
        of_queries: the place of each query's among them.
    """

    different: list[Truth]
    of_queries: list[int]

    @classmethod
    def of(cls, truths: Sequence[Truth]) -> Truths:
        """Number the truths of queries."""
        numbers = {truth: number for number, truth in enumerate(dict.fromkeys(truths))}
        return cls(list(numbers), [numbers[truth] for truth in truths])


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
        queries: with all columns but what was imagined as pictures, and the ids that they name.
        truths: of the whole set.
        of_queries: which truth is that of each query.
        positives: of the same queries, how many rows are relevant, found or not.
        rows: of each truth, how many rows of the gallery are relevant or junk.
        left_out: the others.
    """

    queries: pa.Table
    truths: Shared[Truths]
    of_queries: list[int]
    positives: list[int]
    rows: list[int]
    left_out: LeftOut


class _Known(NamedTuple):
    """What a gallery, or a part of it, has of what is looked for."""

    labels: np.ndarray
    """How many rows each label has, int64."""
    ids: np.ndarray
    """Whether each id is there, bool."""

    def __or__(self, other: _Known) -> _Known:
        return _Known(self.labels + other.labels, self.ids | other.ids)


class _Chosen(NamedTuple):
    """Which queries can be measured, by their places, and what ``Measurable`` says of them."""

    places: list[int]
    of_queries: list[int]
    positives: list[int]
    rows: list[int]
    without_relevant: list[int]
    """Places of queries."""
    left_out: LeftOut
    """Without texts."""
    nothing: bool
    """None of them has a row in the gallery."""


def measurable(gallery: Gallery, query_set: QuerySet) -> Measurable:
    """Return the queries that a gallery can be measured with.

    Raises:
        UserError: there is none (code ``nothing-to-measure``, field ``label``).
    """
    queries = query_set.table(["id", "text", "kind", "label", "vlm", "vision"])
    return _measurable(gallery, queries, current_executor().run(_truths_of_set, query_set), query_set.uri)


def measurable_among(gallery: Gallery, queries: pa.Table, truths: Sequence[Truth], where: str) -> Measurable:
    """As ``measurable``, of queries whose truths are known.

    Args:
        gallery: to measure with.
        queries: with the column ``text`` and any others.
        truths: of the same.
        where: what has them, for the message.
    """
    return _measurable(gallery, queries, current_executor().share(Truths.of(truths)), where)


def _measurable(gallery: Gallery, queries: pa.Table, truths: Shared[Truths], where: str) -> Measurable:
    executor = current_executor()
    wanted = executor.run(_wanted, truths)
    known = executor.reduce(_known, [(run, wanted) for run in runs(gallery, ROWS_READ)], _Known.__or__)
    chosen = executor.run(_chosen, truths, wanted, known).get()
    texts = queries["text"].take(pa.array(chosen.without_relevant, pa.int64())).to_pylist()
    left_out = chosen.left_out._replace(without_relevant=texts)
    if chosen.nothing:
        raise UserError(
            f"no query of {where} can be measured with {gallery.uri}: {'; '.join(left_out.sentences())}",
            code="nothing-to-measure",
            field="label",
        )
    measured = queries.take(pa.array(chosen.places, pa.int64()))
    return Measurable(measured, truths, chosen.of_queries, chosen.positives, chosen.rows, left_out)


def _truths_of_set(query_set: QuerySet) -> Truths:
    return Truths.of(truths_of(query_set.table(["id", "label", "relevant", "junk"])))


def _wanted(truths: Shared[Truths]) -> tuple[pa.Array, pa.Array]:
    """Return the labels and ids that are looked for, each once, sorted."""
    different = truths.get().different
    labels = {truth.label for truth in different if truth.relevant is None and truth.label is not None}
    ids = {id for truth in different for id in (*(truth.relevant or ()), *truth.junk)}
    return pa.array(sorted(labels), pa.string()), pa.array(sorted(ids), pa.string())


def _known(run: Run, wanted: Shared[tuple[pa.Array, pa.Array]]) -> _Known:
    labels, ids = wanted.get()
    known = _Known(np.zeros(len(labels), np.int64), np.zeros(len(ids), bool))
    for block in run.blocks(["id", "label"] if len(ids) else ["label"]):
        places = _places(block["label"], labels)
        known.labels[:] += np.bincount(places[places >= 0], minlength=len(labels))
        if len(ids):
            places = _places(block["id"], ids)
            known.ids[places[places >= 0]] = True
    return known


def _chosen(truths: Shared[Truths], wanted: Shared[tuple[pa.Array, pa.Array]], shared_known: Shared[_Known]) -> _Chosen:
    different, of_queries = truths.get()
    (label_names, id_names), known = wanted.get(), shared_known.get()
    labels = dict(zip(label_names.to_pylist(), known.labels.tolist(), strict=True))
    unknown_ids = set(id_names.filter(pa.array(~known.ids)).to_pylist())

    absent: set[str] = set()
    without_relevant: list[int] = []
    places: list[int] = []
    unlabelled = 0
    for place, number in enumerate(of_queries):
        truth = different[number]
        if truth.relevant is not None:
            (places if truth.relevant else without_relevant).append(place)
        elif truth.label is None:
            unlabelled += 1
        elif labels[truth.label]:
            places.append(place)
        else:
            absent.add(truth.label)
    rows: list[int] = []
    unknown: set[str] = set()
    unknown_junk: set[str] = set()
    for truth in different:
        if truth.relevant is None:
            rows.append(labels[truth.label] if truth.label is not None else 0)
            continue
        missing, missing_junk = unknown_ids.intersection(truth.relevant), unknown_ids.intersection(truth.junk)
        rows.append(len(truth.relevant) - len(missing) + len(truth.junk) - len(missing_junk))
        unknown |= missing
        unknown_junk |= missing_junk
    of_places = [of_queries[place] for place in places]
    positives = [len(different[number].relevant or ()) or rows[number] for number in of_places]
    chosen = [different[number] for number in of_places]
    nothing = all(truth.relevant is not None and unknown_ids.issuperset(truth.relevant) for truth in chosen)
    left_out = LeftOut(unlabelled, sorted(absent), [], sorted(unknown), sorted(unknown_junk))
    return _Chosen(places, of_places, positives, rows, without_relevant, left_out, nothing)


def truths_of(queries: pa.Table) -> list[Truth]:
    """Return what is relevant to each query of a table with the columns ``label``, ``relevant`` and ``junk``."""
    columns = (queries[name].to_pylist() for name in ("label", "relevant", "junk"))
    return [
        Truth(label) if relevant is None else Truth(None, _each_once(relevant), _each_once(junk or ()))
        for label, relevant, junk in zip(*columns, strict=True)
    ]


def _each_once(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))


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
