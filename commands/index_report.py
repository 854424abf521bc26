"""What ``mindseye index`` and its sub-commands print of what their jobs return."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.table import Table

from commands.console import listed, out
from pipelines.sizes import format_size

if TYPE_CHECKING:  # take seconds to import
    import pyarrow as pa

    from pipelines.batch_contents import Summary
    from pipelines.growth import Removed
    from pipelines.inspection import TargetState, Version
    from pipelines.job import DuplicatesReport, IndexReport
    from retrieval.artifacts import Index


def print_index(report: IndexReport) -> None:
    """Print what was embedded, and the version that was built."""
    if report.duplicates is not None:
        out.print(f"{report.duplicates:,} duplicates dropped")
    if report.summary:
        _print_summary(report.summary)
    _print_version(report.index)


def print_removed(removed: Removed) -> None:
    """Print how many rows are gone, which names no row has, and the version without the rows."""
    out.print(f"{removed.rows:,} rows removed")
    if removed.unknown:
        out.print(f"no row has {', '.join(removed.unknown[:10])}{' …' if len(removed.unknown) > 10 else ''}")
    _print_version(removed.index)


def print_deleted(names: list[str]) -> None:
    """Print what was deleted."""
    for name in names:
        out.print(f"deleted {name}")
    out.print(f"{len(names)} files and folders deleted" if names else "nothing to delete")


def print_duplicates(report: DuplicatesReport) -> None:
    """Print the first duplicates, and how many there are."""
    for pair in report.pairs.slice(0, 20).to_pylist():
        out.print(f"  {pair['id']} is {pair['of']} again, cosine {pair['cosine']:.4f}", soft_wrap=True)
    out.print(f"{report.pairs.num_rows:,} of {report.rows:,} images are duplicates")


def print_versions(versions: list[Version]) -> None:
    """Print a table of versions."""
    from pipelines.publication import worst_recall

    table = Table()
    numbers = ("rows", "removed", "shards", "size", "worst recall")
    for heading in ("version", "state", "created", *numbers[:3], "kind", *numbers[3:], "models"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for each in versions:
        if each.index is None:
            table.add_row(each.name, each.state)
            continue
        manifest = each.index.manifest
        table.add_row(
            each.name,
            each.state,
            manifest.created[:16],
            *(f"{count:,}" for count in (manifest.rows, manifest.removed, len(manifest.shards))),
            manifest.factory,
            _size(each.index),
            f"{worst_recall(each.index):.3f}",
            ", ".join(record.uri.rsplit("/", 1)[-1] for record in manifest.models.values()),
        )
    out.print(table)


def print_state(state: TargetState) -> None:
    """Print who has the target, what is unfinished there, and the versions."""
    for each in state.holds:
        out.print(f"{'a dead job was here' if each.stale else 'running'}: {each}", soft_wrap=True)
    if not state.holds:
        out.print("no job runs here")
    for job in state.jobs:
        ago = f", last written {time.time() - job.written:.0f} s ago" if job.written else ""
        share = job.done / job.total if job.total else 0
        done = f"{job.done:,} of {job.total:,} {job.unit} ({share:.0%})"
        out.print(f"unfinished: {job.what}: {done}{ago}", soft_wrap=True)
    for version in state.versions:
        if version.index:
            out.print(f"{version.state}: index version {version.name}, {version.index.manifest.rows:,} rows")


def print_rejected(rejected: pa.Table, reason: str | None, examples: int) -> None:
    """Print rejected inputs by reason, with some of each; or all of one reason."""
    import pyarrow.compute as pc

    counts = rejected["reason"].value_counts().to_pylist()
    for count in sorted(counts, key=lambda each: -each["counts"]):
        if reason not in (None, count["values"]):
            continue
        out.print(f"{count['counts']:,} {count['values']}")
        rows = rejected.filter(pc.equal(rejected["reason"], count["values"]))
        for row in rows.slice(0, examples if reason is None else None).to_pylist():
            out.print(f"  {row['path']}: {row['detail']}", soft_wrap=True)
    if not rejected.num_rows:
        out.print("nothing was rejected")


def _print_summary(summary: Summary) -> None:
    """Print what one run has embedded, rejected and left out, and where its time went."""
    rejected = sum(summary.rejected.values())
    out.print(f"{summary.read:,} inputs, {summary.embedded:,} images embedded, {rejected:,} rejected", end="")
    out.print(f" ({listed(summary.rejected)}; mindseye index failed lists them)" if rejected else "")
    more = (
        (summary.duplicates, "with the bytes of another"),
        (summary.already_there, "done by an earlier run"),
        (summary.unchanged, "left out, known and unchanged"),
    )
    for count, what in more:
        if count:
            out.print(f"  {count:,} {what}")
    if summary.duplicates is None:
        out.print("  duplicates were not counted: that failed, as is said above")
    total = sum(summary.spent.values()) or 1
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.spent.items())
    out.print(f"  {summary.seconds:,.0f} s, {summary.rows_per_s:,.1f} rows/s; workers spent their time on: {shares}")


def _print_version(version: Index) -> None:
    manifest = version.manifest
    removed = f", {manifest.removed:,} removed" if manifest.removed else ""
    out.print(
        f"index version {version.version}: {manifest.rows:,} rows{removed}, {len(manifest.shards)} shards,"
        f" {manifest.factory}, {_size(version)}"
    )
    for depth, recall in manifest.recall.items():
        out.print(f"  recall@{depth} against exact search, by λ: {listed(recall)}")
    for depth, recall in (manifest.text_recall or {}).items():
        out.print(f"  recall@{depth} of texts, by λ: {listed(recall)}")
    for kind, of_kind in (manifest.evidence_recall or {}).items():
        for depth, recall in of_kind.items():
            out.print(f"  recall@{depth} of {kind} queries (docs/evidence.md), by λ: {listed(recall)}")
    if (gone := sum(record.rows for record in manifest.measured) - manifest.rows) > 0:
        out.print(f"  measured before {gone:,} rows were removed")


def _size(version: Index) -> str:
    return format_size(sum(record.bytes for record in version.manifest.shards))
