"""``mindseye benchmark``: the queries of a published benchmark, with the rows that are relevant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from commands.console import out, quoted, say_made, say_next

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from pipelines.benchmark import ReadBenchmark

_NAMED = 5


def benchmark(name: str, folder: str, gallery: str, target: str, *, part: str | None = None) -> None:
    """Read a benchmark's own files into a file of queries with relevant and junk rows. Nothing is downloaded.

    Parameters
    ----------
    name
        circo, cvg-text, deeppatent2, ilias, imagecode, inquire, revisited, visual-rag or xtd10 (docs/benchmarks.md).
    folder
        The benchmark as its authors lay it out: folder or URI.
    gallery
        A gallery of its images: TARGET/gallery of mindseye index.
    target
        The file of queries, ending in .jsonl.
    part
        Split, protocol or language; by default the benchmark's first.
    """
    from pipelines.benchmark import read_benchmark

    _print(read_benchmark(name, folder, gallery, target, part=part), gallery)


def _print(read: ReadBenchmark, gallery: str) -> None:
    out.print(f"{read.benchmark.name}, {read.part}: {read.queries:,} queries, {read.relevant:,} relevant images")
    out.print(f"its authors report: {', '.join(read.benchmark.measures)}")
    for what, names in (
        ("images are not in the gallery", read.missing),
        ("images fit several rows of the gallery, and were not matched", read.ambiguous),
        ("queries have no relevant image and will not be measured", read.without_relevant),
    ):
        if names:
            out.print(f"{len(names):,} {what}: {_listed(names)}")
    if read.without_picture:
        reasons = [f"{id} ({why})" for id, why in read.without_picture.items()]
        out.print(f"{len(reasons):,} queries are left out, since their picture cannot be read: {_listed(reasons)}")
    say_made(read.file)
    if read.pictures:
        say_next(f"mindseye evaluate {quoted(gallery)} {quoted(read.file)} REPORT --profile PROFILE")
    else:
        say_next(f"mindseye queries {quoted(read.file)} QUERIES --profile PROFILE")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
