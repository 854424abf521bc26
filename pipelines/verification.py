"""Whether a version of an index and its gallery are whole: sizes, checksums, numbers of rows, a sample of vectors."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.profile import Profile
from cluster.progress import ProgressCounter, progress
from pipelines.decoder import decoded_side
from pipelines.encoders import load_encoders
from pipelines.running import current_executor
from retrieval.artifacts import Gallery, Index, Role
from retrieval.artifacts.columns import matrix
from retrieval.artifacts.manifests import PartRecord
from retrieval.errors import DamagedError, UserError
from retrieval.folder import Folder
from retrieval.images import ImageRejected, decode_reduced
from retrieval.index.files import ROWS, verify
from retrieval.sources.lookup import ImageLookup

if TYPE_CHECKING:  # takes seconds to import
    from retrieval.models.image_encoder import ImageEncoder

SAME = 0.999
"""Least cosine of a vector and the one that is made of the same image again."""


class Finding(NamedTuple):
    """One check of ``check_target``: what was checked, and what is wrong with it, if so."""

    what: str
    trouble: str | None

    def __str__(self) -> str:
        return f"FAIL {self.what}: {self.trouble}" if self.trouble else f"ok   {self.what}"


def check_target(gallery: Gallery, index: Index, profile: Profile, *, sample: int, seed: int = 0) -> Iterator[Finding]:
    """Check all that a version and its gallery consist of: sizes and checksums, numbers of rows, and whether images of
    a random sample still give the vectors that are there. Findings are yielded check by check.
    """
    executor, shards = current_executor(), index.manifest.shards
    with progress("checking rows of shards", sum(record.rows for record in shards)) as counter:
        each = [(index, number, counter) for number in range(len(shards))]
        checked = executor.map(_check_shard, each, place=profile.index.resized(1))
    yield from checked  # not before the display has ended, which on a terminal takes what is printed meanwhile
    parts = gallery.manifest.parts
    with progress("checking rows of the gallery", gallery.manifest.rows) as counter:
        found = executor.map(_check_part, [(gallery.folder, part, counter) for part in parts])
    troubles = [trouble for trouble in found if trouble]
    yield from (Finding("a part of the gallery", trouble) for trouble in troubles)
    if not troubles:
        yield Finding(f"{len(parts)} parts of the gallery, {gallery.manifest.rows:,} rows", None)
    in_index, in_gallery = index.manifest.rows, gallery.manifest.rows
    differ = f"the index finds {in_index:,} rows, the gallery has {in_gallery:,}" if in_index != in_gallery else None
    yield Finding("index and gallery have as many rows", differ)
    if sample:
        with progress("embedding a sample again", min(sample, in_gallery)) as counter:
            given = gallery, profile, sample, seed, counter
            embedded = executor.run(_check_sample, *given, place=profile.embed)
        yield embedded.get()


def _check_shard(index: Index, number: int, counter: ProgressCounter) -> Finding:
    record = index.manifest.shards[number]
    trouble = _trouble_of_shard(index, number)
    counter.add(record.rows)
    return Finding(f"{record.version}/{record.name}, {record.rows:,} rows", trouble)


def _trouble_of_shard(index: Index, number: int) -> str | None:
    record, folder = index.manifest.shards[number], index.shard_folder(number)
    try:
        with tempfile.TemporaryDirectory(prefix="mindseye-verify-") as copy:
            place = folder.local_path or Path(copy)
            if folder.local_path is None:
                for name in record.files:
                    folder.download(name, place / name)
            verify(place, record.files)
            ids = set(pq.read_table(place / ROWS, columns=["id"])["id"].to_pylist())
        if len(ids) != record.rows:
            return f"{folder.uri} has {len(ids):,} different ids, its record says {record.rows:,}"
        if strange := set(index.removed_ids(number).to_pylist()) - ids:
            return f"{len(strange)} removed ids are none of {folder.uri}"
    except (OSError, UserError, pa.ArrowException) as error:
        return str(error)
    return None


def _check_part(folder: Folder, part: PartRecord, counter: ProgressCounter) -> str | None:
    rows = 0
    try:
        for table in folder.tables(part.name):  # reads all of it, so that damage is seen
            rows += table.num_rows
            counter.add(table.num_rows)
    except (OSError, UserError, pa.ArrowException) as error:
        return f"{folder.uri}/{part.name} cannot be read: {error}"
    return None if rows == part.rows else f"{folder.uri}/{part.name} has {rows:,} rows, recorded were {part.rows:,}"


def _check_sample(gallery: Gallery, profile: Profile, sample: int, seed: int, counter: ProgressCounter) -> Finding:
    try:
        rows = _sampled(gallery, sample, seed)
    except DamagedError as damage:
        return Finding("a sample embedded again", str(damage))
    vlm, vision = load_encoders(profile)
    encoders: dict[Role, ImageEncoder] = {"vlm": vlm, "vision": vision}
    worst, gone, other = 1.0, 0, Counter[str]()
    for name, encoder in encoders.items():
        if encoder.fingerprint != gallery.manifest.models[name].fingerprint:
            return Finding("a sample embedded again", f"the profile's {name} model is not the gallery's")
    side = decoded_side(encoder.preprocess for encoder in encoders.values())
    sources = {name: ImageLookup(source, links_out=True) for name, source in gallery.manifest.sources.items()}
    for row in range(rows.num_rows):
        counter.add(1)
        path = rows["path"][row].as_py()
        try:
            data = sources[rows["batch"][row].as_py()].bytes_of(path)
            image = decode_reduced(data, side) if data is not None else None
        except (ImageRejected, OSError):
            other[path] += 1
            continue
        if image is None:
            gone += 1
            continue
        for name, encoder in encoders.items():
            [made_D] = encoder.encode_images(encoder.preprocess.pixels(image)[None])
            cosine = float(matrix(rows[name].slice(row, 1))[0].astype(np.float32) @ made_D)
            worst = min(worst, cosine)
            if cosine < SAME:
                other[path] += 1
    what = f"{rows.num_rows} images embedded again, least cosine {worst:.4f}"
    if other:
        return Finding(what, f"{len(other)} images are not what the gallery holds: {', '.join(list(other)[:5])}")
    return Finding(what, f"{gone} of them are no longer in their source" if gone else None)


def _sampled(gallery: Gallery, sample: int, seed: int) -> pa.Table:
    manifest = gallery.manifest
    chosen = np.random.default_rng(seed).choice(manifest.rows, min(sample, manifest.rows), replace=False)
    ends = np.cumsum([part.rows for part in manifest.parts])
    tables = []
    for part, end in zip(manifest.parts, ends, strict=True):
        inside = chosen[(chosen < end) & (chosen >= end - part.rows)] - (end - part.rows)
        if len(inside):
            with gallery.reading(part.name):
                tables.append(gallery.folder.take(part.name, np.sort(inside), ["path", "batch", "vlm", "vision"]))
    return pa.concat_tables(tables).combine_chunks()
