"""An index that grows and shrinks without a rebuild: add, remove, compact.

Whatever is done makes a new version; versions that exist never change. A version made by adding or removing shares the
shards of the one before: what was added lies in shards of its own, what was removed in a list of ids (tombstones) that
its shards leave out. The gallery itself has removed rows no longer, so that an index built again has neither.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.hold import check_held
from cluster.profile import IndexSettings, Profile
from cluster.progress import Log, silent
from pipelines.gallery import commit_batch, grown_gallery
from pipelines.index import build_index
from pipelines.index_plan import open_version, plan_of
from pipelines.publication import lost_shares, measured_before, publish
from pipelines.quantisers import TRAINED, train_quantisers
from pipelines.selection import Replaced, Selection, find_rows, parts_without
from pipelines.shards import build_shards, cut, dims, mean_of
from pipelines.text_queries import carry_texts
from retrieval.artifacts import Gallery, Index, QuerySet
from retrieval.artifacts.index import REMOVED_SCHEMA, new_version
from retrieval.artifacts.manifests import BatchRecord, GalleryManifest, PartRecord, now
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.index.kinds import memory_of

MUCH = 0.25
"""Of the rows that recall was measured with; with more removed, it should be measured again (docs/indexing.md)."""


@dataclass(frozen=True)
class Removed:
    """The version without the rows, how many they were, and the names that no row has."""

    index: Index
    rows: int
    unknown: list[str]


def add(
    source: str, gallery: Gallery, index: Index, profile: Profile, *, overwrite: bool = False, log: Log = silent
) -> Index:
    """Embed what a source has and the gallery has not, and publish a version of the index with it.

    An input that has the id of a row, or whose file has changed since it was embedded from the same source, takes that
    row's place.

    Args:
        overwrite: start over, whatever an unfinished batch or version was started with.

    Raises:
        UserError: the index was not built from this gallery (``other-gallery``), other models, nothing new
            (``nothing-new``), or recall below the floor (``low-recall``).
    """
    _check_belong(index, gallery)
    grown = grown_gallery(gallery, source, profile, overwrite=overwrite, log=log)
    return index_batch(*grown, gallery, index, profile, overwrite=overwrite, log=log)


def index_batch(
    grown: GalleryManifest,
    batch: BatchRecord,
    changed: Sequence[str],
    gallery: Gallery,
    index: Index,
    profile: Profile,
    *,
    overwrite: bool = False,
    log: Log = silent,
) -> Index:
    """Publish a version of the index with a batch that was embedded, then commit the batch to the gallery.

    Args:
        grown, batch, changed: what ``grown_gallery`` returned.

    Raises:
        UserError: an unfinished version of another plan, shards that need more memory than the profile allows
            (``too-large``), or recall below the floor (``low-recall``).
    """
    new = [part for part in grown.parts if part.name.startswith(f"{Gallery.batch(batch.name)}/")]
    ids = [gallery.folder.read_table(part.name, ["id"])["id"].combine_chunks() for part in new]
    same = [name for name, of in gallery.manifest.sources.items() if of == batch.source]
    lost = sorted(index.manifest.sources.keys() - grown.sources.keys())
    replaced = Replaced(pa.chunked_array(ids), changed, same, lost)
    if batch.name not in index.manifest.sources:  # else a run was interrupted just after it had published it
        settings = profile.index
        started, spent = time.monotonic(), dict[str, float]()
        with_new = Gallery(gallery.folder, grown)
        factory = index.manifest.factory
        shards = math.ceil(batch.rows / settings.rows_per_shard)
        _check_memory(factory, math.ceil(batch.rows / shards), sum(dims(with_new)), settings)
        version = open_version(index.root, plan_of(with_new, new, shards, factory), overwrite)
        carry_texts(index.folder, version)
        trained = _trained_before(index) or train_quantisers(version, with_new, new, factory, settings, spent)
        records = build_shards(version, with_new, cut(new, shards), factory, trained, settings, spent, log=log)
        gone = find_rows(index, replaced)
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
                "measured": measured_before(index),
                "mean": mean_of(version, records, index),
            }
        )
        index = publish(Index(version, manifest), settings, started, spent)
        _advise(index, log)
    kept = parts_without(gallery, gallery.manifest.parts, replaced)
    commit_batch(gallery.folder, _of_parts(grown, [*kept, *new]))
    return index


def _check_belong(index: Index, gallery: Gallery) -> None:
    # Not by its URI, since both may have been moved. The index is one batch ahead if a run was interrupted in between.
    if not index.manifest.sources.items() >= gallery.manifest.sources.items():
        raise UserError(
            f"the index {index.uri} was not built from the gallery {gallery.uri} as it is now;"
            " build it first: mindseye index SOURCE TARGET",
            code="other-gallery",
            field="index",
        )


def _check_memory(factory: str, rows: int, dim: int, settings: IndexSettings) -> None:
    """Refuse shards of the index's kind that are larger than the profile allows."""
    needed = memory_of(factory, rows, dim)
    if settings.memory_per_shard and needed > settings.memory_per_shard:
        raise UserError(
            f"a shard of {rows:,} new rows of the index's kind, {factory}, takes {needed / 2**20:,.0f} MiB, and the"
            f" profile's memory_per_shard is {settings.memory_per_shard / 2**20:,.0f} MiB: lower its rows_per_shard, or"
            " give the index another kind first (mindseye index compact --factory)",
            code="too-large",
            field="index.memory_per_shard",
        )


def remove(
    selection: Selection, gallery: Gallery, index: Index, settings: IndexSettings, *, log: Log = silent
) -> Removed:
    """Publish a version of the index without some rows, and take them out of the gallery.

    Raises:
        UserError: no row is meant (``no-such-row``), no row would be left (``nothing-left``), or an addition was
            interrupted that the gallery has not committed (``unfinished-addition``).
    """
    started = time.monotonic()
    _check_belong(index, gallery)
    if lost := index.manifest.sources.keys() - gallery.manifest.sources.keys():
        source = index.manifest.sources[min(lost)]
        raise UserError(
            f"an addition of {source} was interrupted before the gallery committed it, and would bring back what is"
            f" removed; run it again first, as it was run: mindseye index add {source} TARGET",
            code="unfinished-addition",
            field="target",
        )
    found = find_rows(index, selection)
    if not found.num_rows:
        wanted = [*selection.ids, *selection.paths, *selection.labels]
        raise UserError(
            f"no row of {index.uri} has the id, path or label {', '.join(wanted[:5])}; nothing is removed",
            code="no-such-row",
            field="selection",
        )
    if found.num_rows == index.manifest.rows:
        raise UserError(
            f"nothing would be left of {index.uri}: an index needs a row; delete the folder instead",
            code="nothing-left",
            field="selection",
        )
    parts = parts_without(gallery, gallery.manifest.parts, selection)
    check_held(gallery.folder)
    Gallery.publish(gallery.folder, _of_parts(gallery.manifest, parts))
    version = new_version(index.root)
    carry_texts(index.folder, version)
    removed = pa.concat_tables([index.removed(), found.select(REMOVED_SCHEMA.names)])
    version.write_table(Index.REMOVED, removed)
    manifest = index.manifest.model_copy(
        update={
            "created": now(),
            "rows": index.manifest.rows - found.num_rows,
            "removed": removed.num_rows,
            "measured": measured_before(index),
        }
    )
    # Removing rows matters more than recall.
    made = publish(Index(version, manifest), settings.model_copy(update={"recall_floor": 0.0}), started, {})
    _advise(made, log)
    return Removed(made, found.num_rows, selection.unknown(found))


def compact(
    gallery: Gallery,
    index: Index,
    profile: Profile,
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | None = None,
    queries: QuerySet | None = None,
    overwrite: bool = False,
    log: Log = silent,
) -> Index:
    """Build a version from the gallery again: whole shards, freshly trained, without what was removed.

    Args:
        shards, factory, memory_per_shard: as ``build_index``; by default the profile's, not the version before's.
        queries: as ``build_index``.
        overwrite: start over, whatever an unfinished version was started with.

    Raises:
        UserError: as ``build_index``.
    """
    return build_index(
        gallery,
        index.root.uri,
        profile,
        shards=shards,
        factory=factory,
        memory_per_shard=memory_per_shard,
        queries=queries,
        overwrite=overwrite,
        log=log,
    )


def _advise(index: Index, log: Log) -> None:
    """Say when recall should be measured again. Shards of which no row is left do not count in it."""
    if (most := max(share for share in lost_shares(index) if share < 1)) > MUCH:
        log(
            f"recall of some shards was measured before {most:.0%} of their rows were removed;"
            " mindseye index compact measures it again"
        )


def _trained_before(index: Index) -> Folder | None:
    """The folder of the trained index that the newest shards were filled from, if they were from one."""
    for record in reversed(index.manifest.shards):
        version = index.root / record.version
        if version.exists(TRAINED):
            return version
    return None


def _of_parts(manifest: GalleryManifest, parts: Sequence[PartRecord]) -> GalleryManifest:
    return manifest.model_copy(update={"parts": list(parts), "rows": sum(part.rows for part in parts)})
