"""``mindseye queries``: a vocabulary to a query set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands.console import Cluster, Profile, TakeOver, listed, out, quoted, say_made, say_next

if TYPE_CHECKING:  # PyTorch and Ray take seconds, which --help need not wait for
    from retrieval.artifacts import QuerySet


def queries(
    vocabulary: str,
    target: str,
    *,
    profile: Profile = "tiny",
    images: int | None = None,
    seed: int | None = None,
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Imagine a vocabulary in batch: texts to a query set. The same command resumes where an interrupted run stopped.

    Parameters
    ----------
    vocabulary
        A text file with a name on each line, or CSV, Parquet or JSON lines with columns name, description, label; or
        text, kind, label. Columns relevant and junk list ids of gallery rows, and are measured in place of the label.
    target
        Folder or URI of the query set.
    images
        Images to imagine for each query; by default the profile's.
    seed
        Seed of the images; by default the profile's.
    """
    from pipelines.queries import imagine

    made = imagine(
        vocabulary, target, profile, images=images, seed=seed, take_over=take_over, address=address, log=out.print
    )
    _print(made)
    say_next(f"mindseye evaluate GALLERY {quoted(target)}")


def _print(made: QuerySet) -> None:
    manifest = made.manifest
    rejected = f"; rejected images: {listed(manifest.rejected)}" if manifest.rejected else ""
    out.print(f"{manifest.queries:,} queries, {manifest.images} images each{rejected}")
    say_made(made.uri)
