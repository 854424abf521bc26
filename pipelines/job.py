"""The jobs of an index, each as one call: build, grow, shrink, compact, prune, and what checks a target.

A target is a folder that holds a gallery and its index. Each job opens a session, and locks the target while it writes
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.hold import hold
from cluster.loading import GALLERY, INDEX
from cluster.profile import Profile, load_profile
from cluster.progress import Log, silent
from cluster.room import Demand, check_room
from cluster.session import session
from pipelines import growth, pruning
from pipelines.batch_contents import Summary, summary_of
from pipelines.duplicates import check_cosine, exact_duplicates, near_duplicates
from pipelines.encoders import describe_encoders
from pipelines.gallery import build_gallery, gallery_of
from pipelines.growth import Removed
from pipelines.index import build_index
from pipelines.selection import Selection
from pipelines.sizes import parse_size
from pipelines.verification import Finding, check_target
from retrieval.artifacts import MANIFEST, Gallery, Index, QuerySet
from retrieval.artifacts.index import published_versions
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.index.kinds import new_index


@dataclass(frozen=True)
class IndexReport:
    """What a job has made."""

    gallery: Gallery
    index: Index
    """The version that it has published."""
    summary: Summary | None
    """Of the embedding; None where the gallery was there already."""
    duplicates: int | None = None
    """Rows that were dropped as duplicates; None where they were not looked for."""


@dataclass(frozen=True)
class DuplicatesReport:
    """Images that are there more than once."""

    pairs: pa.Table
    """``id``, ``of`` (the image that it repeats) and ``cosine``."""
    rows: int
    """Images in all."""


def index(
    source: str | Path,
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | str | None = None,
    queries: str | Path | None = None,
    dedup: float | None = None,
    overwrite: bool = False,
    take_over: bool = False,
    address: str | None = None,
    log: Log = silent,
) -> IndexReport:
    """Embed a gallery of images and build its index. The same call resumes where an interrupted one stopped.

    Args:
        source: an image folder, Parquet, tars or a list of URIs: see docs/sources.md.
        target: folder or URI for the gallery and the index. A gallery of the same source and models that is there
            already is indexed again, not embedded again.
        profile: models and resources, by name, file or as loaded.
        shards: number of shards; by default the profile decides by the number of rows.
        factory: FAISS factory string; by default the profile's.
        memory_per_shard: memory that the compressed index of one shard may take, such as ``"2G"``, or bytes.
        queries: a query set to tune and measure the index with, as texts and images in the proportion of each λ; by
            default names of ImageNet classes, as texts.
        dedup: drop images whose vision vectors have this cosine or more to another's; 1 drops equal files only.
        overwrite: start over, or resume what was started so. What is published stays until the new gallery is complete.
        take_over: break the lock of another job. Be sure that it is dead.
        address: Ray cluster to use; by default ``RAY_ADDRESS``, else a local Ray. ``none`` runs in this process.
        log: is told what is resumed, line by line.

    Raises:
        UserError: the message says what was given, and what to do about it.
    """
    if dedup is not None:
        check_cosine(dedup)  # not only when everything is embedded
    _check_shards(shards)
    settings, place, memory = load_profile(profile), Folder(target), _memory(memory_per_shard)
    asked = QuerySet.open(queries) if queries else None
    Folder(source)  # a URI that is none is refused before Ray is started
    gallery_uri, root = (place / GALLERY).uri, place / INDEX
    with _running(place, f"mindseye index {source}", take_over, address):
        if overwrite or not (place / GALLERY).exists(MANIFEST):
            check_room(Demand("building a shard", "index", settings.index))
            _check_kind(factory or settings.index.factory, settings)
        if overwrite:
            gallery = build_gallery(str(source), gallery_uri, settings, overwrite=True, log=log)
        else:
            gallery = gallery_of(str(source), gallery_uri, settings, log=log)
        known = published_versions(root) and Index.open(root).manifest.sources == gallery.manifest.sources
        version = build_index(
            gallery,
            root.uri,
            settings,
            shards=shards,
            factory=factory,
            memory_per_shard=memory,
            queries=asked,
            overwrite=overwrite,
            log=log,
        )
        dropped = None
        if dedup is not None:
            again = _duplicates(version, dedup, settings)["id"].to_pylist()
            dropped = len(again)
            if again:
                version = growth.remove(Selection(ids=again), gallery, version, settings.index, log=log).index
                gallery = Gallery.open(gallery.folder)
    return IndexReport(gallery, version, None if known else _newest_summary(gallery), dropped)


def add(
    source: str | Path,
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    overwrite: bool = False,
    take_over: bool = False,
    address: str | None = None,
    log: Log = silent,
) -> IndexReport:
    """Embed what a source has and the target has not, and publish a version of the index with it.

    Files whose path, size and time are known are not read again. One that has changed takes its old row's place.

    Args:
        source: as for ``index``: the same source, grown, or another one.
        target: what ``index`` has made.
        profile: as for ``index``, with the models that the gallery was made with.
        overwrite: start over, whatever an unfinished addition was started with.
        take_over: as for ``index``.
        address: as for ``index``.
        log: as for ``index``.

    Raises:
        UserError: nothing is new, the profile has other models, or recall is below its floor.
    """
    settings, place = load_profile(profile), known_target(target)
    with _running(place, f"mindseye index add {source}", take_over, address):
        version = growth.add(str(source), *open_target(place), settings, overwrite=overwrite, log=log)
    gallery = Gallery.open(place / GALLERY)
    return IndexReport(gallery, version, _newest_summary(gallery))


def remove(
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    ids: Sequence[str] = (),
    paths: Sequence[str] = (),
    labels: Sequence[str] = (),
    take_over: bool = False,
    address: str | None = None,
    log: Log = silent,
) -> Removed:
    """Publish a version of the index that never finds some images again, and take them out of the gallery.

    Their vectors stay in the shards' files until ``compact`` and ``prune``.

    Args:
        target: what ``index`` has made.
        profile: as for ``index``.
        ids: images with one of these ids,
        paths: or of these paths,
        labels: or of these labels.
        take_over: as for ``index``.
        address: as for ``index``.
        log: as for ``index``.

    Raises:
        UserError: nothing is selected, no row has what is selected, or no row would be left.
    """
    settings, place, selection = load_profile(profile), known_target(target), Selection(ids, paths, labels)
    if not any(selection):
        raise UserError("give at least one id, path or label", code="nothing-selected", field="selection")
    with _running(place, "mindseye index remove", take_over, address):
        return growth.remove(selection, *open_target(place), settings.index, log=log)


def compact(
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: int | str | None = None,
    queries: str | Path | None = None,
    overwrite: bool = False,
    take_over: bool = False,
    address: str | None = None,
    log: Log = silent,
) -> IndexReport:
    """Build a version again from the gallery's vectors: whole shards, without what was removed.

    Args:
        target: what ``index`` has made.
        profile: as for ``index``.
        shards: as for ``index``; by default the profile decides, whatever the version before has.
        factory: likewise.
        memory_per_shard: likewise.
        queries: as for ``index``.
        overwrite: start over, whatever an unfinished version was started with.
        take_over: as for ``index``.
        address: as for ``index``.
        log: as for ``index``.

    Raises:
        UserError: as for ``index``.
    """
    _check_shards(shards)
    settings, place, memory = load_profile(profile), known_target(target), _memory(memory_per_shard)
    asked = QuerySet.open(queries) if queries else None
    with _running(place, "mindseye index compact", take_over, address):
        gallery, version = open_target(place)
        version = growth.compact(
            gallery,
            version,
            settings,
            shards=shards,
            factory=factory,
            memory_per_shard=memory,
            queries=asked,
            overwrite=overwrite,
            log=log,
        )
    return IndexReport(gallery, version, None)


def prune(target: str | Path, *, keep: int = 2, take_over: bool = False) -> list[str]:
    """Delete old versions of the index, and files that nothing uses any more. A service may still use old versions.

    Args:
        target: what ``index`` has made.
        keep: versions to keep, the newest.
        take_over: as for ``index``.

    Returns:
        What was deleted, relative to the target.

    Raises:
        UserError: ``keep`` is below 1.
    """
    place = known_target(target)
    with hold(place, "mindseye index prune", take_over=take_over):
        return pruning.prune(Gallery.open(place / GALLERY), place / INDEX, keep)


def duplicates(
    target: str | Path, profile: str | Path | Profile = "tiny", *, cosine: float = 1, address: str | None = None
) -> DuplicatesReport:
    """Find images that are there more than once.

    Args:
        target: what ``index`` has made.
        profile: as for ``index``.
        cosine: least cosine of two vision vectors; 1 means equal files.
        address: as for ``index``.

    Raises:
        UserError: ``cosine`` is not above 0 and at most 1.
    """
    check_cosine(cosine)
    settings, (_, version) = load_profile(profile), open_target(Folder(target))
    with session(address):
        return DuplicatesReport(_duplicates(version, cosine, settings), version.manifest.rows)


def verify(
    target: str | Path,
    profile: str | Path | Profile = "tiny",
    *,
    sample: int = 64,
    address: str | None = None,
    log: Log = silent,
) -> list[Finding]:
    """Check all that the newest version and its gallery consist of.

    Args:
        target: what ``index`` has made.
        profile: as for ``index``.
        sample: images to embed again and compare; 0 leaves that out.
        address: as for ``index``.
        log: is told the findings, check by check.

    Raises:
        UserError: the gallery or the index is not there, or ``sample`` is negative.
    """
    if sample < 0:
        raise UserError(f"sample must be 0 or more images, not {sample}", code="bad-sample", field="sample")
    settings, artifacts = load_profile(profile), open_target(Folder(target))
    with session(address):
        found = []
        for finding in check_target(*artifacts, settings, sample=sample):
            log(str(finding))
            found.append(finding)
    return found


def known_target(target: str | Path) -> Folder:
    """Return a target's folder.

    Raises:
        UserError: nothing of ours is there (``no-target``).
    """
    place = Folder(target)
    if not place.folders():
        raise UserError(
            f"there is no gallery and no index at {place.uri}; mindseye index makes both",
            code="no-target",
            field="target",
        )
    return place


def open_target(target: Folder) -> tuple[Gallery, Index]:
    """Open the gallery and the newest version of the index at a target.

    Raises:
        UserError: one of them is not there.
    """
    return Gallery.open(target / GALLERY), Index.open(target / INDEX)


@contextmanager
def _running(target: Folder, job: str, take_over: bool, address: str | None) -> Iterator[None]:
    with hold(target, job, take_over=take_over), session(address):
        yield


def _memory(size: int | str | None) -> int | None:
    return None if size is None else parse_size(size, "memory_per_shard")


def _check_shards(shards: int | None) -> None:
    """Refuse what no gallery can be cut into, before everything is embedded."""
    if shards is not None and shards < 1:
        raise UserError(f"an index has at least one shard, not {shards}", code="shard-count", field="shards")


def _check_kind(factory: str, settings: Profile) -> None:
    """Refuse a kind of index that FAISS does not have for the models' dimensions, before everything is embedded."""
    if factory != "auto":
        encoders = describe_encoders(settings)
        new_index(factory, (encoders.vlm.dim or 0) + (encoders.vision.dim or 0))


def _duplicates(version: Index, cosine: float, settings: Profile) -> pa.Table:
    return exact_duplicates(version) if cosine == 1 else near_duplicates(version, cosine, settings.index)


def _newest_summary(gallery: Gallery) -> Summary:
    return summary_of(gallery, gallery.manifest.batches[-1])
