"""``mindseye index`` and its sub-commands: build, grow, shrink, look after."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.table import Table

from commands.console import Cluster, Profile, listed, out, say_made, say_next, with_profile

if TYPE_CHECKING:
    from cluster.profile import Profile as Settings
    from retrieval.artifacts import Gallery, Index

# Commands import what they need themselves: torch and Ray take seconds, which --help need not wait for.

app = App(name="index")
TakeOver = Annotated[
    bool, Parameter(help="Go on although another job holds the target. Be sure that it is dead.", negative="")
]
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@app.default
def index(
    source: str,
    target: str,
    *,
    profile: Profile = "tiny",
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: str | None = None,
    dedup: float | None = None,
    overwrite: bool = False,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Embed a gallery of images and build its index. The same command goes on where a killed run stopped.

    Parameters
    ----------
    source
        An image folder (its first-level folders are the labels); Parquet with columns image, path and perhaps label;
        a folder of WebDataset tars; or a list of URIs (.csv, .txt or Parquet).
    target
        Folder or URI for the results: TARGET/gallery and TARGET/index. A gallery of the same
        source and models that is there already is indexed anew, not embedded again.
    shards
        Number of shards; by default the profile decides by the number of rows.
    factory
        FAISS factory string, such as IVF4096,SQ8; by default the profile's.
    memory_per_shard
        Memory that the compressed index of one shard may take, such as 2G; a kind of index is chosen that fits.
    dedup
        Drop images whose vision vectors have this cosine or more to another's, such as 0.98; 1 drops equal files only.
    overwrite
        Begin anew, or go on with what was begun so. What is published stays until the new gallery is complete.
    """
    from cluster.session import check_room
    from pipelines.duplicates import check_cosine
    from pipelines.gallery import build_gallery, gallery_of, summary_of
    from pipelines.index import build_index
    from retrieval.artifacts import MANIFEST, Index
    from retrieval.artifacts.index import published_versions
    from retrieval.folder import Folder

    if dedup is not None:
        check_cosine(dedup)  # not only when everything is embedded
    settings, place = _profile(profile), Folder(target)
    budget = _bytes(memory_per_shard) if memory_per_shard else None
    with _job(place, f"mindseye index {source}", take_over, address):
        where = (place / "gallery").uri
        if overwrite or not (place / "gallery").exists(MANIFEST):
            check_room("building a shard", "index", settings.index.cpus)
            _check_kind(factory or settings.index.factory, settings)
        if overwrite:
            gallery = build_gallery(source, where, settings, overwrite=True, say=out.print)
        else:
            gallery = gallery_of(source, where, settings, say=out.print)
        root = place / "index"
        known = published_versions(root) and Index.open(root).manifest.sources == gallery.manifest.sources
        version = build_index(
            gallery,
            root.uri,
            settings,
            shards=shards,
            factory=factory,
            memory_per_shard=budget,
            overwrite=overwrite,
            say=out.print,
        )
        if dedup is not None:
            version = _drop_duplicates(gallery, version, dedup, settings)
    if known:
        add = with_profile(f"mindseye index add {source} {target}", profile)
        out.print(f"the gallery is what it was; {add} takes in what is new")
    else:
        _say_summary(summary_of(gallery, gallery.manifest.batches[-1]))
    _say_version(version)
    say_made(gallery.uri, version.uri)
    following = f'mindseye search "a category in words" {target}', f"mindseye queries VOCABULARY {target}/queries"
    say_next(*(with_profile(command, profile) for command in following))


def _check_kind(factory: str, settings: Settings) -> None:
    """Raise a ValueError where FAISS refuses a kind for the models' dimensions, before everything is embedded."""
    from pipelines.gallery import look_at_encoders
    from retrieval.index.kinds import new_index

    if factory != "auto":
        encoders = look_at_encoders(settings)
        new_index(factory, (encoders.vlm.dim or 0) + (encoders.vision.dim or 0))


@app.command
def add(
    source: str,
    target: str,
    *,
    profile: Profile = "tiny",
    overwrite: bool = False,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Embed what a source has and TARGET has not, and publish a version of the index with it.

    Files whose path, size and time are known are not read again. One that has changed takes its old row's place.

    Parameters
    ----------
    source
        As for mindseye index: the same source, grown, or another one.
    target
        What mindseye index has made.
    overwrite
        Begin anew, whatever an unfinished addition was begun with.
    """
    from pipelines import growth
    from pipelines.gallery import summary_of
    from retrieval.artifacts import Gallery
    from retrieval.folder import Folder

    settings, place = _profile(profile), _known(Folder(target))
    with _job(place, f"mindseye index add {source}", take_over, address):
        version = growth.add(source, *_opened(place), settings, overwrite=overwrite, say=out.print)
    gallery = Gallery.open(place / "gallery")
    _say_summary(summary_of(gallery, gallery.manifest.batches[-1]))
    _say_version(version)
    say_made(version.uri)
    say_next(f"mindseye index list {target}")


@app.command
def remove(
    target: str,
    *,
    id: list[str] | None = None,
    path: list[str] | None = None,
    label: list[str] | None = None,
    profile: Profile = "tiny",
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Publish a version of the index that never finds some images again, and take them out of the gallery.

    Their vectors stay in the shards' files until mindseye index compact and prune.

    Parameters
    ----------
    target
        What mindseye index has made.
    id, path, label
        Which images; each can be given more than once.
    """
    from pipelines import growth
    from retrieval.folder import Folder

    settings, place = _profile(profile), _known(Folder(target))
    selection = growth.Selection(id or (), path or (), label or ())
    if not any(selection):
        raise ValueError("give at least one --id, --path or --label")
    with _job(place, "mindseye index remove", take_over, address):
        removed = growth.remove(selection, *_opened(place), settings.index, say=out.print)
    out.print(f"{removed.rows:,} rows removed")
    if removed.unknown:
        out.print(f"no row has {', '.join(removed.unknown[:10])}{' …' if len(removed.unknown) > 10 else ''}")
    _say_version(removed.index)
    say_made(removed.index.uri)
    say_next(f"mindseye index compact {target}")


@app.command
def compact(
    target: str,
    *,
    profile: Profile = "tiny",
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: str | None = None,
    overwrite: bool = False,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Build a version anew from the gallery's vectors: whole shards, without what was removed.

    Parameters
    ----------
    target
        What mindseye index has made.
    shards
        Number of shards; by default the profile decides, whatever the version before has; so with the next two.
    factory
        FAISS factory string, or auto.
    memory_per_shard
        Memory that the compressed index of one shard may take, such as 2G.
    overwrite
        Begin anew, whatever an unfinished version was begun with.
    """
    from pipelines import growth
    from retrieval.folder import Folder

    settings, place = _profile(profile), _known(Folder(target))
    with _job(place, "mindseye index compact", take_over, address):
        version = growth.compact(
            *_opened(place),
            settings,
            shards=shards,
            factory=factory,
            memory_per_shard=_bytes(memory_per_shard) if memory_per_shard else None,
            overwrite=overwrite,
            say=out.print,
        )
    _say_version(version)
    say_made(version.uri)
    say_next(f"mindseye index prune {target}")


@app.command
def prune(target: str, *, keep: int = 2, take_over: TakeOver = False) -> None:
    """Delete old versions of the index, and files that nothing uses any more. A service may still use old versions.

    Parameters
    ----------
    target
        What mindseye index has made.
    keep
        Versions to keep, the newest.
    """
    from cluster.hold import hold
    from pipelines import growth
    from retrieval.artifacts import Gallery
    from retrieval.folder import Folder

    place = _known(Folder(target))
    with hold(place, "mindseye index prune", take_over=take_over):
        deleted = growth.prune(Gallery.open(place / "gallery"), place / "index", keep)
    for name in deleted:
        out.print(f"deleted {name}")
    out.print(f"{len(deleted)} files and folders deleted" if deleted else "nothing to delete")


@app.command
def duplicates(target: str, *, cosine: float = 1.0, profile: Profile = "tiny", address: Cluster = None) -> None:
    """Report images that are there more than once.

    Parameters
    ----------
    target
        What mindseye index has made.
    cosine
        Least cosine of two vision vectors; 1 means equal files.
    """
    from cluster.session import session
    from pipelines.duplicates import exact_duplicates, near_duplicates
    from retrieval.folder import Folder

    settings = _profile(profile)
    _, version = _opened(Folder(target))
    with session(address):
        pairs = exact_duplicates(version) if cosine == 1 else near_duplicates(version, cosine, settings.index)
    for pair in pairs.slice(0, 20).to_pylist():
        out.print(f"  {pair['id']} is {pair['of']} again, cosine {pair['cosine']:.4f}", soft_wrap=True)
    out.print(f"{pairs.num_rows:,} of {version.manifest.rows:,} images are duplicates")
    if pairs.num_rows:
        say_next(with_profile(f"mindseye index SOURCE {target} --dedup {cosine:g}", profile))


@app.command(name="list")
def list_versions(target: str) -> None:
    """List the versions of an index.

    Parameters
    ----------
    target
        What mindseye index has made.
    """
    from pipelines.growth import worst
    from pipelines.inspection import versions
    from retrieval.folder import Folder

    table = Table()
    numbers = ("rows", "removed", "shards", "size", "worst recall")
    for heading in ("version", "state", "created", *numbers[:3], "kind", *numbers[3:], "models"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for each in versions(_known(Folder(target)) / "index"):
        if each.index is None:
            table.add_row(each.name, each.state)
            continue
        manifest = each.index.manifest
        models = ", ".join(record.uri.rsplit("/", 1)[-1] for record in manifest.models.values())
        figures = (manifest.rows, manifest.removed, len(manifest.shards))
        size = _size(sum(record.bytes for record in manifest.shards))
        recall = f"{worst(each.index):.3f}"
        counts = (f"{figure:,}" for figure in figures)
        table.add_row(each.name, each.state, manifest.created[:16], *counts, manifest.factory, size, recall, models)
    out.print(table)


@app.command
def verify(target: str, *, sample: int = 64, profile: Profile = "tiny", address: Cluster = None) -> None:
    """Check all that the newest version and its gallery consist of; exit code 1 if something is wrong.

    Parameters
    ----------
    target
        What mindseye index has made.
    sample
        Images to embed again and compare; 0 leaves that out.
    """
    from cluster.session import session
    from pipelines.inspection import check_target
    from retrieval.folder import Folder

    settings = _profile(profile)
    wrong = 0
    with session(address):
        for finding in check_target(*_opened(Folder(target)), settings, sample=sample):
            wrong += finding.trouble is not None
            line = f"{'FAIL' if finding.trouble else 'ok  '} {finding.what}"
            out.print(f"{line}: {finding.trouble}" if finding.trouble else line, soft_wrap=True)
    if wrong:
        sys.exit(1)


@app.command
def status(target: str) -> None:
    """Say how far the job at a target is, running or dead, from what it has written.

    Parameters
    ----------
    target
        Where mindseye index writes.
    """
    from pipelines.inspection import state
    from retrieval.folder import Folder

    found = state(_known(Folder(target)))
    for each in found.holds:
        out.print(f"{'a dead job was here' if each.stale else 'running'}: {each}", soft_wrap=True)
    if not found.holds:
        out.print("no job runs here")
    for job in found.jobs:
        ago = f", last written {time.time() - job.written:.0f} s ago" if job.written else ""
        share = job.done / job.total if job.total else 0
        done = f"{job.done:,} of {job.total:,} {job.unit} ({share:.0%})"
        out.print(f"unfinished: {job.what}: {done}{ago}", soft_wrap=True)
    for version in found.versions:
        if version.index:
            out.print(f"{version.state}: index version {version.name}, {version.index.manifest.rows:,} rows")
    if found.jobs:
        say_next("the same mindseye index command goes on")


@app.command
def failed(target: str, *, reason: str | None = None, examples: int = 3) -> None:
    """List rejected inputs by reason.

    Parameters
    ----------
    target
        Where mindseye index writes.
    reason
        List this reason alone, and all its inputs.
    examples
        Inputs to show of each reason.
    """
    import pyarrow.compute as pc

    from pipelines.inspection import rejected
    from retrieval.folder import Folder

    table = rejected(_known(Folder(target)))
    counts = table["reason"].value_counts().to_pylist()
    for count in sorted(counts, key=lambda each: -each["counts"]):
        if reason not in (None, count["values"]):
            continue
        out.print(f"{count['counts']:,} {count['values']}")
        rows = table.filter(pc.equal(table["reason"], count["values"]))
        for row in rows.slice(0, examples if reason is None else None).to_pylist():
            out.print(f"  {row['path']}: {row['detail']}", soft_wrap=True)
    if not table.num_rows:
        out.print("nothing was rejected")


def _profile(name: str):
    from cluster.profile import load_profile

    return load_profile(name)


@contextmanager
def _job(target, what: str, take_over: bool, address: str | None) -> Iterator[None]:
    from cluster.hold import hold
    from cluster.session import session

    with hold(target, what, take_over=take_over), session(address):
        yield


def _known(target):
    """The target, if anything of ours is there."""
    if not target.folders():
        raise ValueError(f"there is no gallery and no index at {target.uri}; mindseye index makes both")
    return target


def _opened(target) -> tuple[Gallery, Index]:
    from retrieval.artifacts import Gallery, Index

    return Gallery.open(target / "gallery"), Index.open(target / "index")


def _drop_duplicates(gallery: Gallery, version: Index, cosine: float, settings) -> Index:
    from pipelines.duplicates import exact_duplicates, near_duplicates
    from pipelines.growth import Selection, remove

    pairs = exact_duplicates(version) if cosine == 1 else near_duplicates(version, cosine, settings.index)
    out.print(f"{pairs.num_rows:,} duplicates dropped")
    if not pairs.num_rows:
        return version
    return remove(Selection(ids=pairs["id"].to_pylist()), gallery, version, settings.index, say=out.print).index


def _say_summary(summary) -> None:
    rejected = sum(summary.rejected.values())
    out.print(f"{summary.read:,} inputs, {summary.embedded:,} images embedded, {rejected:,} rejected", end="")
    out.print(f" ({listed(summary.rejected)}; mindseye index failed says more)" if rejected else "")
    more = (
        (summary.duplicates, "with the bytes of another"),
        (summary.already_there, "done by an earlier run"),
        (summary.unchanged, "left out, known and unchanged"),
    )
    for count, what in more:
        if count:
            out.print(f"  {count:,} {what}")
    total = sum(summary.spent.values()) or 1
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.spent.items())
    out.print(f"  {summary.seconds:,.0f} s, {summary.rows_per_s:,.1f} rows/s; workers spent their time on: {shares}")


def _say_version(version: Index) -> None:
    manifest = version.manifest
    size = _size(sum(record.bytes for record in manifest.shards))
    removed = f", {manifest.removed:,} removed" if manifest.removed else ""
    out.print(
        f"index version {version.version}: {manifest.rows:,} rows{removed}, {len(manifest.shards)} shards,"
        f" {manifest.factory}, {size}"
    )
    for depth, recall in manifest.recall.items():
        out.print(f"  recall@{depth} against exact search, by λ: {listed(recall)}")


def _size(count: int) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"--memory-per-shard must be a size such as 500M or 2G, not {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])
