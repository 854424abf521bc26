"""A vocabulary, imagined in batch: texts to a QuerySet, on Ray Data.

The models of a query sit together in each actor: generation takes nearly all of the time, so a pool of its own for the
encoders would move every generated image and save nothing.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from cluster.loading import load_query_encoder, prompt_templates, record_of
from cluster.profile import Profile
from cluster.progress import ProgressCounter, progress
from cluster.session import check_room
from pipelines.ray_executor import actor_pool
from retrieval.artifacts import MANIFEST, QuerySet, QuerySetManifest, queryset_schema
from retrieval.folder import Folder
from retrieval.images import thumbnail
from retrieval.prompts import KINDS, Kind, query_text, usable
from retrieval.query import EncodedQuery


class VocabularyEntry(NamedTuple):
    """One query to imagine. ``label`` is the gallery label that it should find, if that is known."""

    text: str
    kind: Kind = "name"
    label: str | None = None


def read_vocabulary(file: str | Path) -> list[VocabularyEntry]:
    """Read a vocabulary: a text file with one name a line, or CSV or Parquet with columns.

    Columns are ``name`` and/or ``description``, and optionally ``label`` (by default the name). Each row gives a query
    of every kind that its columns allow: with both, three. Or they are ``text``, ``kind`` and optionally ``label``,
    one query a row.

    Raises:
        ValueError: the file is missing or empty, or a column or value is wrong; the message names the row.
    """
    folder, name = Folder(Path(file).parent if "://" not in str(file) else str(file).rsplit("/", 1)[0]), Path(file).name
    if not folder.exists(name):
        raise ValueError(f"there is no vocabulary at {file}")
    data = folder.read_bytes(name)
    if name.endswith(".parquet"):
        try:
            rows: Iterable[Mapping[str, Any]] = pq.read_table(BytesIO(data)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is not Parquet: {error}") from error
    elif name.endswith(".csv"):
        rows = csv.DictReader(StringIO(_decoded(data, file), newline=""))
    else:
        rows = [{"name": line} for line in _decoded(data, file).splitlines() if line.strip()]
    entries = [entry for number, row in enumerate(rows, 1) for entry in _entries(row, f"{file}, row {number}")]
    if not entries:
        raise ValueError(f"{file} has no queries in it")
    return entries


def _decoded(data: bytes, file: str | Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error


def _entries(row: Mapping[str, Any], where: str) -> list[VocabularyEntry]:
    name, description, text = (str(row.get(column) or "").strip() for column in ("name", "description", "text"))
    label = str(row.get("label") or "") or name or None
    if text:
        kind = row.get("kind") or "name"
        if kind not in KINDS:
            raise ValueError(f"{where}: kind is {kind!r}; it must be one of {', '.join(KINDS)}")
        return [VocabularyEntry(text, kind, label)]
    if not name and not description:
        raise ValueError(f"{where}: expected a column name, description or text with a value; the row is {dict(row)}")
    kinds: list[Kind] = [
        kind for kind in KINDS if (name or "name" not in kind) and (description or "description" not in kind)
    ]
    return [VocabularyEntry(query_text(kind, name, description), kind, label) for kind in kinds]


def build_queries(
    vocabulary: Sequence[VocabularyEntry],
    target: str,
    profile: Profile,
    *,
    images: int | None = None,
    seed: int | None = None,
) -> QuerySet:
    """Imagine and encode every entry of a vocabulary and publish the QuerySet at ``target``.

    Args:
        images: K, images per query; by default the profile's.
        seed: seed of the images; by default the profile's.

    Raises:
        ValueError: the vocabulary is empty, a text is blank or too long, ``images`` is below 1, or ``target`` already
            holds a query set.
    """
    if not vocabulary:
        raise ValueError("the vocabulary is empty; give at least one text")
    for entry in vocabulary:
        usable(entry.text)
    images = profile.queries.images if images is None else images
    if images < 1:
        raise ValueError(f"at least one image must be imagined for each query, not {images}")
    folder = Folder(target)
    if folder.exists(MANIFEST):
        raise ValueError(f"{folder.uri} already holds a query set; give another target, or delete it first")
    folder.delete("queries")
    folder.create()
    seed = profile.queries.seed if seed is None else seed
    stage = profile.imagine
    check_room("imagining", "imagine", stage.cpus, stage.gpus)
    models = ray.get(_look_at_models.options(num_cpus=stage.cpus, num_gpus=stage.gpus).remote(profile))
    rows = pa.Table.from_pylist([entry._asdict() | {"id": query_id(entry)} for entry in dict.fromkeys(vocabulary)])
    # Each actor should get work in time: several small blocks for each.
    blocks = [rows.slice(start, stage.batch) for start in range(0, rows.num_rows, stage.batch)]
    with progress("imagining queries", rows.num_rows) as counter:
        dataset = ray.data.from_arrow(blocks).map_batches(
            Imaginer,
            fn_constructor_args=(profile, images, seed, counter),
            batch_size=stage.batch,
            batch_format="pyarrow",
            compute=actor_pool(stage),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus,
        )
        dataset.write_parquet(f"{folder.path}/queries", filesystem=folder.filesystem)
    manifest = QuerySetManifest(
        queries=rows.num_rows, images=images, seed=seed, templates=prompt_templates(profile), models=models
    )
    written = QuerySet(folder, manifest).table(["id", "rejected"])
    if written.num_rows != rows.num_rows:
        raise RuntimeError(f"{written.num_rows} queries of {rows.num_rows} arrived in {folder.uri}")
    manifest.rejected = dict(Counter(reason for row in written["rejected"].to_pylist() for reason in row))
    return QuerySet.publish(folder, manifest)


def query_id(entry: VocabularyEntry) -> str:
    """Return the id of a query: a hash of its text, kind and label."""
    return hashlib.blake2b("\x1f".join([entry.kind, entry.text, entry.label or ""]).encode(), digest_size=8).hexdigest()


@ray.remote
def _look_at_models(profile: Profile) -> dict:
    encoder = load_query_encoder(profile)
    return {role: record_of(getattr(encoder, role)) for role in ("vlm", "vision", "generator")}


class Imaginer:
    """Batches of vocabulary rows to rows of a query set."""

    def __init__(self, profile: Profile, images: int, seed: int, counter: ProgressCounter) -> None:
        self.encoder = load_query_encoder(profile)
        self.images, self.seed, self.counter = images, seed, counter
        self.schema = queryset_schema(self.encoder.vlm.dim, self.encoder.vision.dim)

    def __call__(self, batch: pa.Table) -> pa.Table:
        encoded = self.encoder.encode(batch["text"].to_pylist(), self.images, seed=self.seed)
        rows = [row | _as_columns(query) for row, query in zip(batch.to_pylist(), encoded, strict=True)]
        self.counter.add(len(rows))
        return pa.Table.from_pylist(rows, schema=self.schema)


def _as_columns(query: EncodedQuery) -> dict[str, Any]:
    imagined = query.imagined
    return {
        "vlm": query.vlm_D1,
        "vision": list(query.vision_KD2),
        "seeds": imagined.seeds,
        "thumbnails": [thumbnail(Image.fromarray(pixels)) for pixels in imagined.pixels_KHWC],
        "rejected": imagined.rejected,
    }
