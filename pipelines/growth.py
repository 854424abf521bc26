"""An index that grows and shrinks without a rebuild: add, remove, compact, prune.

Whatever is done makes a new version; versions that exist never change. A version made by adding or removing shares the
shards of the one before: what was added lies in shards of its own, what was removed in a list of ids that its shards
leave out. The gallery itself has removed rows no longer, so that an index built anew has neither.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.profile import IndexSettings, Profile
from pipelines.gallery import grown_gallery, overwritten_batches, take_in
from pipelines.index import (
    PLAN,
    REFUSED,
    TRAINED,
    build_index,
    build_shards,
    cut,
    dims,
    open_version,
    plan_of,
    publish,
    train_quantisers,
)
from retrieval.artifacts import MANIFEST, Gallery, Index
from retrieval.artifacts.index import REMOVED_SCHEMA, new_version, published_versions, version_names
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, now
from retrieval.folder import Folder
from retrieval.index.files import ROWS
from retrieval.index.kinds import memory_of

Say = Callable[[str], None]


class Selection(NamedTuple):
    """Rows by what they are called: those that have one of these ids, paths or labels."""

    ids: Sequence[str] = ()
    paths: Sequence[str] = ()
    labels: Sequence[str] = ()

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return which rows are meant, bool (N,); the table has the columns id, path and label."""
        masks = [
            pc.is_in(rows[column], pa.array(values, pa.string()))
            for column, values in (("id", self.ids), ("path", self.paths), ("label", self.labels))
        ]
        return pc.or_(pc.or_(masks[0], masks[1]), masks[2])


class Replaced(NamedTuple):
    """Rows whose place new ones take: those of the same ids, and those of files of one source that have changed."""

    ids: pa.ChunkedArray
    paths: Sequence[str]
    batches: Sequence[str]
    lost: Sequence[str]
    """Batches that the index has and the gallery never took in: an addition was killed between, and begun anew."""

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return which rows are meant, bool (N,); the table has the columns id, path and batch."""
        changed = pc.is_in(rows["path"], pa.array(self.paths, pa.string()))
        of_source = pc.is_in(rows["batch"], pa.array(self.batches, pa.string()))
        of_lost = pc.is_in(rows["batch"], pa.array(self.lost, pa.string()))
        return pc.or_(pc.or_(pc.is_in(rows["id"], self.ids), pc.and_(changed, of_source)), of_lost)


_NAMES = ("id", "path", "label", "batch")


@dataclass(frozen=True)
class Removed:
    """The version without the rows, how many they were, and the names that no row has."""

    index: Index
    rows: int
    unknown: list[str]


def add(source: str, gallery: Gallery, index: Index, profile: Profile, *, overwrite: bool = False, say: Say) -> Index:
    """Embed what a source has and the gallery has not, and publish a version of the index with it.

    An input that has the id of a row, or whose file has changed since it was embedded from the same source, takes that
    row's place.

    Args:
        overwrite: begin anew, whatever an unfinished batch or version was begun with.

    Raises:
        ValueError: the index was not built from this gallery, other models, nothing new, or recall below the floor.
    """
    _check_belong(index, gallery)
    grown = grown_gallery(gallery, source, profile, overwrite=overwrite, say=say)
    return index_batch(*grown, gallery, index, profile, overwrite=overwrite, say=say)


def index_batch(
    grown: GalleryManifest,
    batch: BatchRecord,
    changed: Sequence[str],
    gallery: Gallery,
    index: Index,
    profile: Profile,
    *,
    overwrite: bool = False,
    say: Say,
) -> Index:
    """Publish a version of the index with a batch that was embedded, then take the batch into the gallery.

    Args:
        grown, batch, changed: what ``grown_gallery`` returned.

    Raises:
        ValueError: an unfinished version of another plan, or recall below the floor.
    """
    new = [part for part in grown.parts if part.name.startswith(f"{Gallery.batch(batch.name)}/")]
    ids = [gallery.folder.read_table(part.name, ["id"])["id"].combine_chunks() for part in new]
    same = [name for name, of in gallery.manifest.sources.items() if of == batch.source]
    lost = sorted(index.manifest.sources.keys() - grown.sources.keys())
    replaced = Replaced(pa.chunked_array(ids), changed, same, lost)
    if batch.name not in index.manifest.sources:  # else a run was killed just after it had published the version
        settings = profile.index
        begun = time.monotonic()
        with_new = Gallery(gallery.folder, grown)
        factory = index.manifest.factory
        shards = math.ceil(batch.rows / settings.rows_per_shard)
        _check_memory(factory, math.ceil(batch.rows / shards), sum(dims(with_new)), settings)
        version = open_version(index.root, plan_of(with_new, new, shards, factory), overwrite)
        trained = _trained_before(index) or train_quantisers(version, with_new, new, factory, settings)
        records = build_shards(version, with_new, cut(new, shards), factory, trained, settings, say=say)
        gone = _found(index, replaced)
        removed = pa.concat_tables([index.removed(), gone.select(REMOVED_SCHEMA.names)])
        if removed.num_rows:
            version.write_table(Index.REMOVED, removed)
        manifest = index.manifest.model_copy(
            update={
                "created": grown.created,
                "sources": grown.sources,
                "rows": index.manifest.rows - gone.num_rows + batch.rows,
                "shards": [*index.manifest.shards, *records],
                "removed": removed.num_rows,
                "recall": {},
            }
        )
        index = publish(Index(version, manifest), settings, begun)
    take_in(gallery.folder, _of_parts(grown, [*_without(gallery.folder, gallery.manifest.parts, replaced), *new]))
    return index


def _check_belong(index: Index, gallery: Gallery) -> None:
    # Not by its URI, since both may have been moved. The index is one batch ahead if a run was killed between the two.
    if not index.manifest.sources.items() >= gallery.manifest.sources.items():
        raise ValueError(
            f"the index {index.uri} was not built from the gallery {gallery.uri} as it is now;"
            " build it first: mindseye index SOURCE TARGET"
        )


def _check_memory(factory: str, rows: int, dim: int, settings: IndexSettings) -> None:
    """Refuse shards of the index's kind that are larger than the profile allows."""
    needed = memory_of(factory, rows, dim)
    if settings.memory_per_shard and needed > settings.memory_per_shard:
        raise ValueError(
            f"a shard of {rows:,} new rows of the index's kind, {factory}, takes {needed / 2**20:,.0f} MiB, and the"
            f" profile's memory_per_shard is {settings.memory_per_shard / 2**20:,.0f} MiB: lower its rows_per_shard, or"
            " give the index another kind first (mindseye index compact --factory)"
        )


def remove(selection: Selection, gallery: Gallery, index: Index, settings: IndexSettings, *, say: Say) -> Removed:
    """Publish a version of the index without some rows, and take them out of the gallery.

    Raises:
        ValueError: no row is meant, no row would be left, or an addition was killed that the gallery has not taken in.
    """
    begun = time.monotonic()
    _check_belong(index, gallery)
    if killed := index.manifest.sources.keys() - gallery.manifest.sources.keys():
        source = index.manifest.sources[min(killed)]
        raise ValueError(
            f"an addition of {source} was killed before the gallery took it in, and would bring back what is removed;"
            f" run it again first, as it was run: mindseye index add {source} TARGET"
        )
    found = _found(index, selection)
    if not found.num_rows:
        wanted = [*selection.ids, *selection.paths, *selection.labels]
        raise ValueError(f"no row of {index.uri} has the id, path or label {', '.join(wanted[:5])}; nothing is removed")
    if found.num_rows == index.manifest.rows:
        raise ValueError(f"nothing would be left of {index.uri}: an index needs a row; delete the folder instead")
    parts = _without(gallery.folder, gallery.manifest.parts, selection)
    Gallery.publish(gallery.folder, _of_parts(gallery.manifest, parts))
    version = new_version(index.root)
    removed = pa.concat_tables([index.removed(), found.select(REMOVED_SCHEMA.names)])
    version.write_table(Index.REMOVED, removed)
    manifest = index.manifest.model_copy(
        update={
            "created": now(),
            "rows": index.manifest.rows - found.num_rows,
            "removed": removed.num_rows,
            "recall": {},
        }
    )
    # Whoever wants rows removed wants that more than recall.
    made = publish(Index(version, manifest), settings.model_copy(update={"recall_floor": 0.0}), begun)
    if worst(made) < settings.recall_floor:
        say(f"recall is {worst(made):.3f} now, below the profile's {settings.recall_floor}: mindseye index compact")
    names = {name: set(found[name].to_pylist()) for name in ("id", "path", "label")}
    unknown = [
        value
        for name, values in zip(("id", "path", "label"), selection, strict=True)
        for value in values
        if value not in names[name]
    ]
    return Removed(made, found.num_rows, unknown)


def compact(
    gallery: Gallery,
    index: Index,
    profile: Profile,
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | None = None,
    overwrite: bool = False,
    say: Say,
) -> Index:
    """Build a version anew from the gallery: whole shards, freshly trained, without what was removed.

    Args:
        shards, factory, memory_per_shard: as ``build_index``; by default the profile's, not the version before's.
        overwrite: begin anew, whatever an unfinished version was begun with.

    Raises:
        ValueError: as ``build_index``.
    """
    return build_index(
        gallery,
        index.root.uri,
        profile,
        shards=shards,
        factory=factory,
        memory_per_shard=memory_per_shard,
        overwrite=overwrite,
        say=say,
    )


def prune(gallery: Gallery, root: Folder, keep: int) -> list[str]:
    """Delete all but the newest ``keep`` versions, what only they use, and what nothing uses any more.

    Raises:
        ValueError: ``keep`` is below 1.

    Returns:
        What was deleted, relative to the target.
    """
    if keep < 1:
        raise ValueError(f"at least one version must be kept, not {keep}")
    published = published_versions(root)
    newest = published[-1] if published else ""
    kept = [Index.open(root / name) for name in published[-keep:]]
    needed = {(record.version, record.name) for index in kept for record in index.manifest.shards}
    deleted = []
    for name in version_names(root):
        version = root / name
        unfinished = not version.exists(MANIFEST) and not version.exists(REFUSED)
        if name in published[-keep:] or (unfinished and name > newest):
            continue
        version.delete(PLAN)  # first: without a manifest, a plan is that of a build to go on with
        version.delete(MANIFEST)
        for shard in version.folders():
            if (name, shard) not in needed:
                version.delete(shard)
                version.delete(f"{shard}.json")
                deleted.append(f"{root.name}/{name}/{shard}")
        if not any(of == name for of, _ in needed):
            version.delete()
            deleted.append(f"{root.name}/{name}")
    return deleted + _pruned_gallery(gallery)


def worst(index: Index) -> float:
    """Return the lowest recall of a version, over depths and λ."""
    return min(value for by_weight in index.manifest.recall.values() for value in by_weight.values())


def _pruned_gallery(gallery: Gallery) -> list[str]:
    folder, used = gallery.folder, set(gallery.parts())
    deleted = []
    for batch in overwritten_batches(folder):
        batch.delete()
        deleted.append(f"{folder.name}/{Gallery.batch(batch.name)}")
    for name in gallery.manifest.sources:
        (folder / Gallery.batch(name)).delete("checkpoint")
        for file in folder.files(Gallery.batch(name, "parts"), Gallery.EMBEDDED):
            if file not in used:
                folder.delete(file)
                deleted.append(f"{folder.name}/{file}")
        for file in folder.files(Gallery.batch(name, "parts"), ".partial"):  # of a worker that was killed
            folder.delete(file)
    return deleted


def _trained_before(index: Index) -> Folder | None:
    """The folder of the trained index that the newest shards were filled from, if they were from one."""
    for record in reversed(index.manifest.shards):
        version = index.root / record.version
        if version.exists(TRAINED):
            return version
    return None


def _found(index: Index, selection: Selection | Replaced) -> pa.Table:
    """The rows that are meant and not removed yet: shard, id, path, label, batch."""
    chosen = ray.put(selection)
    tasks = [_in_shard.remote(index, number, [chosen]) for number in range(len(index.manifest.shards))]
    return pa.concat_tables(ray.get(tasks))


@ray.remote
def _in_shard(index: Index, number: int, chosen: list[ray.ObjectRef]) -> pa.Table:
    selection = ray.get(chosen[0])
    rows = index.shard_folder(number).read_table(ROWS, _NAMES)
    rows = rows.filter(pc.invert(pc.is_in(rows["id"], index.removed_ids(number).combine_chunks())))
    rows = rows.filter(selection.mask(rows))
    return rows.add_column(0, "shard", pa.array([number] * rows.num_rows, pa.int32()))


def _without(folder: Folder, parts: Sequence[PartRecord], selection: Selection | Replaced) -> list[PartRecord]:
    """The parts without the rows that are meant: those that have one are written anew, beside."""
    chosen = ray.put(selection)
    made = ray.get([_part_without.remote(folder, part, [chosen]) for part in parts])
    return [part for part in made if part.rows]


@ray.remote
def _part_without(folder: Folder, part: PartRecord, chosen: list[ray.ObjectRef]) -> PartRecord:
    selection = ray.get(chosen[0])
    gone = selection.mask(folder.read_table(part.name, _NAMES)).fill_null(False).to_numpy()
    if not gone.any():
        return part
    kept = np.flatnonzero(~gone)
    if not len(kept):
        return part.model_copy(update={"rows": 0})
    place = part.name.rsplit("/", 1)[0]
    name = f"{place}/{uuid.uuid4().hex}{Gallery.EMBEDDED}"
    folder.write_table(name, folder.read_table(part.name).take(pa.array(kept)))
    return PartRecord(name=name, rows=len(kept))


def _of_parts(manifest: GalleryManifest, parts: Sequence[PartRecord]) -> GalleryManifest:
    return manifest.model_copy(update={"parts": list(parts), "rows": sum(part.rows for part in parts)})
