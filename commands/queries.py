"""``mindseye queries``: a vocabulary to a query set."""

from __future__ import annotations

from commands.console import Cluster, Profile, listed, out, say_made, say_next


def queries(
    vocabulary: str,
    target: str,
    *,
    profile: Profile = "tiny",
    images: int | None = None,
    seed: int | None = None,
    address: Cluster = None,
) -> None:
    """Imagine a vocabulary in batch: texts to a query set.

    Parameters
    ----------
    vocabulary
        A text file with a name on each line, or CSV or Parquet with columns name, description, label; or text, kind,
        label.
    target
        Folder or URI of the query set.
    images
        Images to imagine for each query; by default the profile's.
    seed
        Seed of the images; by default the profile's.
    """
    from cluster.profile import load_profile
    from cluster.session import session
    from pipelines.queries import build_queries, read_vocabulary

    settings = load_profile(profile)
    entries = read_vocabulary(vocabulary)
    with session(address):
        made = build_queries(entries, target, settings, images=images, seed=seed)
    rejected = made.manifest.rejected
    out.print(f"{made.manifest.queries:,} queries, {made.manifest.images} images each", end="")
    out.print(f"; rejected images: {listed(rejected)}" if rejected else "")
    say_made(made.uri)
    say_next(f"mindseye evaluate GALLERY {target}")
