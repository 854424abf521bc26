"""Several data sets, evaluated alike: every method on every set and kind of query, and what the plots of a report show.

Shapes: N rows of a gallery, Q queries, K images, D1 VLM dimensions, D2 vision dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from cluster.progress import Log, silent
from pipelines.class_sheet import ClassSheet, class_sheets
from pipelines.evaluate import Evaluation, evaluate
from retrieval.artifacts import Gallery, QuerySet, Role, TrainedAggregator
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.manifests import SpentRecord
from retrieval.artifacts.queryset import text_vectors, vision_vectors
from retrieval.datasets.prepare import RECORD, DatasetRecord
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.fusion import DEFAULT_WEIGHT
from retrieval.metrics import Interval

METHODS: Final = {"text": "text", "visual": "image mean", "fused": "joint", "fixed": "fixed", "trained": "aggregator"}
"""The methods of the tables, by the systems of an Evaluation."""
FIXED: Final = 0.1
"""λ of the method ``fixed``, as the authors have it."""
WEIGHTS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""λ of the plot of mAP against it."""
_SYSTEMS: Final = {0.0: "text", FIXED: "fixed", DEFAULT_WEIGHT: "fused", 1.0: "visual"}
_ROLES: Final[tuple[Role, ...]] = ("vlm", "vision", "generator")
_ROWS_SHOWN: Final = 1_000


class Setting(NamedTuple):
    """The models of a row of the tables."""

    vlm: str
    vision: str
    generator: str


class Gap(NamedTuple):
    """Two modalities in one space: how far apart their means are, and a plane that shows both.

    Attributes:
        space: which encoder's.
        names: of the two.
        distance: of the means of the unit vectors (Liang et al. 2022, "Mind the Gap").
        first_N2, second_N2: coordinates in the plane of the two main directions of both, float.
    """

    space: str
    names: tuple[str, str]
    distance: float
    first_N2: np.ndarray
    second_N2: np.ndarray


@dataclass(frozen=True)
class Measurement:
    """What was measured on one data set with one setting of models.

    Attributes:
        dataset: its name; titles come from ``record``.
        record: how it was prepared, None if it was not by a recipe.
        setting: the models.
        evaluation: with the systems of ``METHODS``; ``trained`` only where there is an aggregator of these models.
        by_weight: mAP of the mean of the images by kind and λ.
        by_images: mAP of ``fused`` by kind and number of images.
        gaps: of texts and images, and of imagined and real images.
        spent: what making the queries took; None where their set does not say.
        images: K, the images of a query that were asked for.
        sheets: of the classes that gain most and of those that lose most; none where none was asked for.
    """

    dataset: str
    record: DatasetRecord | None
    setting: Setting
    evaluation: Evaluation
    by_weight: dict[str, dict[float, Interval]]
    by_images: dict[str, dict[int, Interval]]
    gaps: list[Gap]
    spent: SpentRecord | None
    images: int
    sheets: list[ClassSheet]

    @property
    def title(self) -> str:
        return self.record.title if self.record else self.dataset

    def seconds(self, images: int) -> float | None:
        """Return the seconds that a query with so many images took; None where they are not known."""
        if self.spent is None:
            return None
        of = self.spent.seconds
        return (of["text"] + (of["imagine"] + of["embed"]) * images / self.images) / self.spent.queries


def measure_all(
    targets: Sequence[str | Path],
    *,
    aggregators: Sequence[TrainedAggregator] = (),
    sheets: bool = True,
    log: Log = silent,
) -> list[Measurement]:
    """Measure every method on several data sets, each a folder with ``gallery`` and ``queries`` in it.

    Args:
        targets: folders or URIs, in the order of the tables' columns. One that was prepared by a recipe has a
            ``dataset.json`` too.
        aggregators: of different models; each is measured where it fits.
        sheets: draw contact sheets of each; the gallery's images must be there.
        log: is told which one is measured.

    Returns:
        A measurement of each, in the same order.

    Raises:
        UserError: nothing is given (``empty``), two are of the same data set and models (``twice``), an artifact is
            missing, or as ``evaluate``.
    """
    if not targets:
        raise UserError("give at least one folder with a gallery and queries", code="empty", field="targets")
    measured: list[Measurement] = []
    for target in targets:
        log(f"measuring {target}")
        one = _measure(Folder(target), aggregators, sheets=sheets)
        if any((one.dataset, one.setting) == (other.dataset, other.setting) for other in measured):
            message = f"{target} is {one.dataset} with the same models again; give each data set and models once"
            raise UserError(message, code="twice", field="targets")
        measured.append(one)
    return measured


def _measure(target: Folder, aggregators: Sequence[TrainedAggregator], *, sheets: bool) -> Measurement:
    gallery, query_set = Gallery.open((target / "gallery").uri), QuerySet.open((target / "queries").uri)
    record = _record(target)
    fitting = [each for each in aggregators if _fits(each, query_set)]
    extra = {"fixed": FIXED} | {_of_weight(weight): weight for weight in WEIGHTS if weight not in _SYSTEMS}
    evaluation = evaluate(gallery, query_set, extra=extra, aggregators={"trained": fitting[0]} if fitting else None)
    by_weight = {
        kind: {weight: evaluation.mean(_of_weight(weight), kind) for weight in WEIGHTS} for kind in evaluation.kinds
    }
    return Measurement(
        dataset=record.name if record else target.name,
        record=record,
        setting=Setting(*(_model(query_set, role) for role in _ROLES)),
        evaluation=evaluation,
        by_weight=by_weight,
        by_images=_by_images(gallery, query_set, evaluation),
        gaps=_gaps(gallery, query_set),
        spent=query_set.manifest.spent,
        images=query_set.manifest.images,
        sheets=class_sheets(gallery, query_set, evaluation) if sheets else [],
    )


def _model(query_set: QuerySet, role: Role) -> str:
    """Return the name of a model; features that were imported do not say which generator imagined their images."""
    record = query_set.manifest.models.get(role)
    return model_name(record.uri) if record else "–"


def _of_weight(weight: float) -> str:
    """Return what the system that fuses the mean of the images at a λ is called."""
    return _SYSTEMS.get(weight, f"λ = {weight:.1f}")


def _fits(aggregator: TrainedAggregator, query_set: QuerySet) -> bool:
    ours, theirs = aggregator.manifest.models, query_set.manifest.models
    both = [role for role in theirs if role in ours]
    return bool(both) and all(ours[role].fingerprint == theirs[role].fingerprint for role in both)


def _record(target: Folder) -> DatasetRecord | None:
    if not target.exists(RECORD):
        return None
    try:
        return DatasetRecord.model_validate_json(target.read_bytes(RECORD))
    except ValidationError as error:
        message = f"{(target / RECORD).uri} is damaged ({error}); prepare the data set again"
        raise UserError(message, code="damaged", field="targets") from error


def model_name(uri: str) -> str:
    """Return a model's URI as a table has it: a hub's name as it is, of a local folder its last parts."""
    name = uri.removeprefix("hf-hub:").removeprefix("local-dir:").partition("?")[0]
    return "/".join(name.rsplit("/", 3)[-3:]) if name.startswith("/") else name


def _by_images(gallery: Gallery, query_set: QuerySet, whole: Evaluation) -> dict[str, dict[int, Interval]]:
    """Return mAP of ``fused`` with 1, 2, 4, … and all images."""
    most = query_set.manifest.images
    counts = [2**power for power in range(most.bit_length()) if 2**power < most]
    evaluations = {count: evaluate(gallery, query_set, images=count) for count in counts} | {most: whole}
    return {
        kind: {count: evaluation.mean("fused", kind) for count, evaluation in evaluations.items()}
        for kind in whole.kinds
    }


def _gaps(gallery: Gallery, query_set: QuerySet) -> list[Gap]:
    queries = query_set.table(["id", "vlm", "vision"])
    features_QKD2, mask_QK = vision_vectors(queries)
    step = max(1, gallery.manifest.rows // _ROWS_SHOWN)
    taken = []
    at = 0
    for table in gallery.tables(["vlm", "vision"]):
        taken.append(table.take(pa.array(np.arange(-at % step, len(table), step))))
        at += len(table)
    rows = pa.concat_tables(taken)
    images_ND1, images_ND2 = (matrix(rows[name]).astype(np.float32) for name in ("vlm", "vision"))
    gaps = [_gap("VLM", ("texts", "images"), text_vectors(queries), images_ND1)]
    if mask_QK.any():
        gaps.append(_gap("vision encoder", ("imagined", "images"), features_QKD2[mask_QK], images_ND2))
    return gaps


def _gap(space: str, names: tuple[str, str], first_ND: np.ndarray, second_ND: np.ndarray) -> Gap:
    distance = float(np.linalg.norm(first_ND.mean(axis=0) - second_ND.mean(axis=0)))
    first_ND = first_ND[:: max(1, len(first_ND) // _ROWS_SHOWN)]
    both_ND = np.concatenate([first_ND, second_ND]).astype(np.float64)
    both_ND -= both_ND.mean(axis=0)
    directions = np.linalg.svd(both_ND, full_matrices=False)[2][:2]
    plane_N2 = both_ND @ directions.T
    return Gap(space, names, distance, plane_N2[: len(first_ND)], plane_N2[len(first_ND) :])
