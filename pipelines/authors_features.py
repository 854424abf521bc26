"""The features that CLETIR's authors released, as a Gallery and a QuerySet: their numbers, without extracting anything.

The layout is that of ``inf.py`` of github.com/faixan-khan/cletir, below a folder ``aggregator``; N rows, K images:

| file | what |
| --- | --- |
| ``VLM/SET_val_clip_db.npy`` | c, (N, D1) |
| ``VISION/SET_val_VISION_db.npy`` | d, (N, D2) |
| ``SET_val_cfg.json`` | by the number of a query: ``ok``, its relevant rows, perhaps ``junk`` |
| ``VISION/SET_VISION_q_img.pkl`` | by class: a sequence whose first entry is g_1…g_K, (D2, K) |
| ``VLM/SET_clip_q_text.pkl`` | by class: a text vector (D1,) or (1, D1), or one for each template (T, D1) |

The last two are of class names; those of descriptions end in ``_dbr``, of both in ``_classdbr``. Query i is the i-th
class of the images' file; ``imagenet`` has an order of its own there, which must be given. A text's vectors are
averaged and stay as they are: the mean of unit vectors is shorter than 1, and the authors do not scale it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.vocabulary import VocabularyEntry
from retrieval.artifacts import Gallery, ModelRecord, QuerySet, Role
from retrieval.artifacts.columns import fixed_size_list
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.prompts import Kind
from retrieval.published.files import damaged, read_bytes, read_json
from retrieval.unpickle import unpickle

_METHODS: Mapping[Kind, str] = {"name": "", "description": "_dbr", "name+description": "_classdbr"}
_ROWS_PER_PART = 8192
_UNIT_WITHIN = 1e-2
"""How far from 1 a norm may be: features may have been kept as float16."""
_NAMED = 3


@dataclass(frozen=True)
class ImportedFeatures:
    """What was imported.

    Attributes:
        gallery: the rows; their labels are classes where each row is of one class alone.
        queries: a query for each class and kind.
        kinds: the kinds of query that there were files for.
        text_norms: the least and the greatest norm of a text vector.
        ignored: classes in the queries' files that are no query, sorted.
    """

    gallery: Gallery
    queries: QuerySet
    kinds: list[Kind]
    text_norms: tuple[float, float]
    ignored: list[str]


def import_features(
    folder: str | Path,
    dataset: str,
    target: str | Path,
    *,
    vlm: str = "clip",
    vision: str = "dino",
    classes: Sequence[str] | None = None,
) -> ImportedFeatures:
    """Publish released features at ``target``/gallery and ``target``/queries.

    Args:
        folder: the unpacked features, with ``aggregator`` in it: folder or URI.
        dataset: as the files have it, such as ``cifar10``.
        target: folder or URI.
        vlm: folder of the VLM: clip, eva, meta, open or sig.
        vision: of the vision encoder: deit or dino.
        classes: in the order of the ground truth; by default as the images' file of names has them.

    Raises:
        UserError: a file is missing (code ``missing``), is no such file (``damaged``, ``not-plain``), or does not go
            with the others: shapes (``wrong-shape``), values that are not finite (``not-finite``), norms other than 1
            (``not-unit``), counts (``wrong-count``); ``imagenet`` without classes (``missing``, field ``classes``); or
            the target holds a gallery or a query set (``target-exists``).
    """
    source, place = Folder(folder) / "aggregator", Folder(target)
    Gallery.check_new(place / "gallery")
    QuerySet.check_new(place / "queries")
    if classes is None and "imagenet" in dataset:
        message = "the classes of imagenet are in the order of the authors' templates.py; give them, one a line"
        raise UserError(message, code="missing", field="classes")
    names = {
        "vlm": f"{vlm}/{dataset}_val_clip_db.npy",
        "vision": f"{vision}/{dataset}_val_{vision}_db.npy",
    }
    vlm_ND1, vision_ND2 = (_rows(source, name) for name in names.values())
    if len(vlm_ND1) != len(vision_ND2):
        message = f"{names['vlm']} has {len(vlm_ND1):,} rows and {names['vision']} {len(vision_ND2):,}"
        raise UserError(message, code="wrong-count", field="folder")
    truths = _truths(source, f"{dataset}_val_cfg.json", len(vlm_ND1))

    kinds: list[Kind] = []
    rows: list[dict[str, Any]] = []
    ignored: set[str] = set()
    for kind, method in _METHODS.items():
        images_file = f"{vision}/{dataset}_{vision}_q_img{method}.pkl"
        texts_file = f"{vlm}/{dataset}_clip_q_text{method}.pkl"
        if kind != "name" and not source.exists(images_file) and not source.exists(texts_file):
            continue
        images, texts = _classes(source, images_file), _classes(source, texts_file)
        classes = list(images) if classes is None else classes
        _check_classes(classes, truths, {images_file: images, texts_file: texts})
        ignored |= images.keys() | texts.keys()
        kinds.append(kind)
        for number, label in enumerate(classes):
            vision_KD2 = _images(images[label], vision_ND2.shape[1], f"{images_file}: {label}")
            text_D1 = _text(texts[label], vlm_ND1.shape[1], f"{texts_file}: {label}")
            relevant, junk = (tuple(map(_id, truths[number][what])) for what in ("ok", "junk"))
            entry = VocabularyEntry(label, kind, label, relevant, junk)
            pictures = {"seeds": list(range(len(vision_KD2))), "thumbnails": [b""] * len(vision_KD2), "rejected": []}
            rows.append({"id": entry.id, **entry._asdict(), "vlm": text_D1, "vision": list(vision_KD2), **pictures})
    assert classes is not None

    models: dict[Role, ModelRecord] = {
        "vlm": ModelRecord(uri=f"features:{vlm}", fingerprint=f"features:{vlm}", dim=vlm_ND1.shape[1]),
        "vision": ModelRecord(uri=f"features:{vision}", fingerprint=f"features:{vision}", dim=vision_ND2.shape[1]),
    }
    labels = _labels(classes, truths, len(vlm_ND1))
    tables = _tables(dataset, labels, vlm_ND1, vision_ND2)
    gallery = Gallery.of_tables((place / "gallery").uri, tables, source=source.uri, models=models)
    schema = queryset_schema(vlm_ND1.shape[1], vision_ND2.shape[1])
    (place / "queries").write_table("queries/000000.parquet", pa.Table.from_pylist(rows, schema=schema))
    most = max(len(row["seeds"]) for row in rows)
    manifest = QuerySetManifest(queries=len(rows), images=most, seed=0, templates=["{}"], models=models)
    queries = QuerySet.publish(place / "queries", manifest)
    norms = [float(np.linalg.norm(row["vlm"])) for row in rows]
    return ImportedFeatures(gallery, queries, kinds, (min(norms), max(norms)), sorted(ignored - set(classes)))


def _rows(source: Folder, name: str) -> np.ndarray:
    """Return a matrix of unit rows, float32."""
    data = io.BytesIO(read_bytes(source, name))
    try:
        found = np.load(data, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OSError) as error:
        raise damaged(source, name, f"it is not .npy of numbers ({error})") from error
    if found.ndim != 2 or not found.size:
        raise _wrong_shape(name, "(rows, dimensions)", found)
    return _unit(_finite(found, name), name)


def _classes(source: Folder, name: str) -> dict[str, Any]:
    found = unpickle(read_bytes(source, name), f"{source.uri}/{name}")
    if not isinstance(found, dict) or not found or not all(isinstance(label, str) for label in found):
        message = f"{source.uri}/{name} must be a dict of classes, not {type(found).__name__}"
        raise UserError(message, code="damaged", field="folder")
    return found


def _truths(source: Folder, name: str, rows: int) -> list[dict[str, list[int]]]:
    """Return for each query the places of its rows: ``ok`` and ``junk``."""
    where = f"{source.uri}/{name}"
    found: dict[str, Any] = read_json(source, name, dict)
    if sorted(found) != sorted(map(str, range(len(found)))):
        message = f"{where} must have the numbers of the queries from 0 as its keys"
        raise UserError(message, code="damaged", field="folder")
    truths = []
    for number in range(len(found)):
        truth = found[str(number)]
        places = {what: truth.get(what, []) if isinstance(truth, dict) else None for what in ("ok", "junk")}
        for what, of_query in places.items():
            if not isinstance(of_query, list) or not all(type(row) is int and 0 <= row < rows for row in of_query):
                message = f"{where}: {what} of query {number} must be places among {rows:,} rows, not {of_query!r:.60}"
                raise UserError(message, code="damaged", field="folder")
        truths.append({what: of_query or [] for what, of_query in places.items()})
    return truths


def _check_classes(classes: Sequence[str], truths: Sequence[Any], files: Mapping[str, Mapping[str, Any]]) -> None:
    if len(classes) != len(truths):
        message = f"there are {len(classes):,} classes, and the ground truth has {len(truths):,} queries"
        raise UserError(message, code="wrong-count", field="classes")
    for name, of_file in files.items():
        if lacks := [label for label in classes if label not in of_file]:
            message = f"{name} lacks {len(lacks):,} classes: {', '.join(lacks[:_NAMED])}"
            raise UserError(message, code="wrong-count", field="folder")


def _images(found: Any, dim: int, where: str) -> np.ndarray:
    """Return g_1…g_K, (K, D2)."""
    first = found[0] if isinstance(found, list | tuple | np.ndarray) and len(found) else None
    if not isinstance(first, np.ndarray) or first.ndim != 2 or first.shape[0] != dim or not first.size:
        raise _wrong_shape(where, f"a sequence whose first entry is ({dim}, images)", first)
    return _unit(_finite(first.T, where), where)


def _text(found: Any, dim: int, where: str) -> np.ndarray:
    """Return the mean of a text's vectors, (D1,), as long as it is."""
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 2) or found.shape[-1] != dim or not found.size:
        raise _wrong_shape(where, f"({dim},) or (templates, {dim})", found)
    mean_D1 = _finite(found.reshape(-1, dim), where).astype(np.float64).mean(axis=0).astype(np.float32)
    if not 0 < np.linalg.norm(mean_D1) <= 1 + _UNIT_WITHIN:
        message = f"{where}: the norm of a text vector is above 0 and at most 1, not {np.linalg.norm(mean_D1):.4g}"
        raise UserError(message, code="not-unit", field="folder")
    return mean_D1


def _finite(found: np.ndarray, where: str) -> np.ndarray:
    if found.dtype.kind not in "fiu":
        raise UserError(f"{where} has {found.dtype}, not numbers", code="damaged", field="folder")
    values = found.astype(np.float32)
    if bad := int(np.count_nonzero(~np.isfinite(values).all(axis=-1))):
        raise UserError(f"{where}: {bad:,} vectors are not finite", code="not-finite", field="folder")
    return values


def _unit(rows: np.ndarray, where: str) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    if len(bad := np.flatnonzero(np.abs(norms - 1) > _UNIT_WITHIN)):
        message = f"{where}: {len(bad):,} vectors are not of norm 1; the first, {bad[0]}, has {norms[bad[0]]:.4g}"
        raise UserError(message, code="not-unit", field="folder")
    return rows


def _wrong_shape(where: str, expected: str, found: Any) -> UserError:
    what = f"{found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
    return UserError(f"{where} must be of the shape {expected}, not {what}", code="wrong-shape", field="folder")


def _labels(classes: Sequence[str], truths: Sequence[Mapping[str, list[int]]], rows: int) -> list[str | None]:
    """Return the class of each row; none at all where a row is of several, which a label cannot say."""
    of_row: list[str | None] = [None] * rows
    if any(count > 1 for count in Counter(row for truth in truths for row in truth["ok"]).values()):
        return of_row
    for label, truth in zip(classes, truths, strict=True):
        for row in truth["ok"]:
            of_row[row] = label
    return of_row


def _tables(
    dataset: str, labels: Sequence[str | None], vlm_ND1: np.ndarray, vision_ND2: np.ndarray
) -> Iterator[pa.Table]:
    for start in range(0, len(labels), _ROWS_PER_PART):
        part = slice(start, min(start + _ROWS_PER_PART, len(labels)))
        numbers = range(part.start, part.stop)
        yield pa.table(
            {
                "id": list(map(_id, numbers)),
                "path": [f"{dataset}/{number}" for number in numbers],
                "label": pa.array(labels[part], pa.string()),
                "width": pa.array([0] * len(numbers), pa.int32()),
                "height": pa.array([0] * len(numbers), pa.int32()),
                "vlm": fixed_size_list(vlm_ND1[part].astype(np.float16)),
                "vision": fixed_size_list(vision_ND2[part].astype(np.float16)),
            }
        )


def _id(number: int) -> str:
    return f"{number:08d}"
