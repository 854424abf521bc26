"""``mindseye index`` and its sub-commands: build, grow, shrink, look after. Each parses, makes one call, and prints."""

from __future__ import annotations

import sys

from cyclopts import App

from commands.console import Cluster, Profile, TakeOver, out, quoted, say_made, say_next, with_profile

# Commands import what they need themselves: torch and Ray take seconds, which --help need not wait for.

app = App(name="index")


@app.default
def index(
    source: str,
    target: str,
    *,
    profile: Profile = "tiny",
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: str | None = None,
    queries: str | None = None,
    dedup: float | None = None,
    overwrite: bool = False,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Embed a gallery of images and build its index. The same command resumes where an interrupted run stopped.

    Parameters
    ----------
    source
        An image folder (its first-level folders are the labels); Parquet with columns image, path and perhaps label;
        a folder of WebDataset tars; or a list of URIs (.csv, .txt or Parquet).
    target
        Folder or URI for the results: TARGET/gallery and TARGET/index. A gallery of the same
        source and models that is there already is indexed again, not embedded again.
    shards
        Number of shards; by default the profile decides by the number of rows.
    factory
        FAISS factory string, such as IVF4096,SQ8; by default the profile's.
    memory_per_shard
        Memory that the compressed index of one shard may take, such as 2G; a kind of index is chosen that fits.
    queries
        What mindseye queries has made: the index is tuned and measured with it, not with names of ImageNet classes.
    dedup
        Drop images whose vision vectors have this cosine or more to another's, such as 0.98; 1 drops equal files only.
    overwrite
        Start over, or resume what was started so. What is published stays until the new gallery is complete.
    """
    from commands.index_report import print_index
    from pipelines import job

    report = job.index(
        source,
        target,
        profile,
        shards=shards,
        factory=factory,
        memory_per_shard=memory_per_shard,
        queries=queries,
        dedup=dedup,
        overwrite=overwrite,
        take_over=take_over,
        address=address,
        log=out.print,
    )
    if report.summary is None:
        command = with_profile(f"mindseye index add {quoted(source)} {quoted(target)}", profile)
        out.print(f"the gallery is what it was; {command} adds what is new")
    print_index(report)
    say_made(report.gallery.uri, report.index.uri)
    following = (
        f'mindseye search "a category in words" {quoted(target)}',
        f"mindseye queries VOCABULARY {quoted(target, 'queries')}",
    )
    say_next(*(with_profile(command, profile) for command in following))


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
        Start over, whatever an unfinished addition was started with.
    """
    from commands.index_report import print_index
    from pipelines import job

    report = job.add(source, target, profile, overwrite=overwrite, take_over=take_over, address=address, log=out.print)
    print_index(report)
    say_made(report.index.uri)
    say_next(f"mindseye index list {quoted(target)}")


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
    from commands.index_report import print_removed
    from pipelines import job

    removed = job.remove(
        target,
        profile,
        ids=id or (),
        paths=path or (),
        labels=label or (),
        take_over=take_over,
        address=address,
        log=out.print,
    )
    print_removed(removed)
    say_made(removed.index.uri)
    say_next(f"mindseye index compact {quoted(target)}")


@app.command
def compact(
    target: str,
    *,
    profile: Profile = "tiny",
    shards: int | None = None,
    factory: str | None = None,
    memory_per_shard: str | None = None,
    queries: str | None = None,
    overwrite: bool = False,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Build a version again from the gallery's vectors: whole shards, without what was removed.

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
    queries
        What mindseye queries has made: the index is tuned and measured with it, not with names of ImageNet classes.
    overwrite
        Start over, whatever an unfinished version was started with.
    """
    from commands.index_report import print_index
    from pipelines import job

    report = job.compact(
        target,
        profile,
        shards=shards,
        factory=factory,
        memory_per_shard=memory_per_shard,
        queries=queries,
        overwrite=overwrite,
        take_over=take_over,
        address=address,
        log=out.print,
    )
    print_index(report)
    say_made(report.index.uri)
    say_next(f"mindseye index prune {quoted(target)}")


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
    from commands.index_report import print_deleted
    from pipelines import job

    print_deleted(job.prune(target, keep=keep, take_over=take_over))


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
    from commands.index_report import print_duplicates
    from pipelines import job

    report = job.duplicates(target, profile, cosine=cosine, address=address)
    print_duplicates(report)
    if report.pairs.num_rows:
        say_next(with_profile(f"mindseye index SOURCE {quoted(target)} --dedup {cosine:g}", profile))


@app.command(name="list")
def list_versions(target: str) -> None:
    """List the versions of an index.

    Parameters
    ----------
    target
        What mindseye index has made.
    """
    from cluster.loading import INDEX
    from commands.index_report import print_versions
    from pipelines.inspection import versions
    from pipelines.job import known_target

    print_versions(versions(known_target(target) / INDEX))


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
    from pipelines import job

    def say(finding: str) -> None:
        out.print(finding, soft_wrap=True)

    findings = job.verify(target, profile, sample=sample, address=address, log=say)
    if any(finding.trouble for finding in findings):
        sys.exit(1)


@app.command
def status(target: str) -> None:
    """Report how far the job at a target is, running or dead, from what it has written.

    Parameters
    ----------
    target
        Where mindseye index writes.
    """
    from commands.index_report import print_state
    from pipelines.inspection import state
    from pipelines.job import known_target

    found = state(known_target(target))
    print_state(found)
    if found.jobs:
        say_next("the same mindseye index command resumes it")


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
    from commands.index_report import print_rejected
    from pipelines.inspection import rejected
    from pipelines.job import known_target

    print_rejected(rejected(known_target(target)), reason, examples)
