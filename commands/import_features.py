"""``mindseye import-features``: features that CLETIR's authors released, as a gallery and a query set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands.console import out, quoted, say_made, say_next

if TYPE_CHECKING:  # what a command computes with is loaded when it runs
    from pipelines.authors_features import ImportedFeatures


def import_features(
    folder: str, dataset: str, target: str, *, vlm: str = "clip", vision: str = "dino", classes: str | None = None
) -> None:
    """Import features that CLETIR's authors released, to check their numbers without extracting anything again.

    Parameters
    ----------
    folder
        The unpacked features, with aggregator in it: folder or URI.
    dataset
        As the files have it, such as cifar10 or dtd.
    target
        Folder or URI for the results: TARGET/gallery and TARGET/queries.
    vlm
        Whose texts and images: clip, eva, meta, open or sig.
    vision
        Whose images: deit or dino.
    classes
        A text file of the classes in the order of the ground truth, one a line; imagenet needs it.
    """
    from pipelines.authors_features import import_features
    from pipelines.vocabulary import read_vocabulary

    names = [entry.text for entry in read_vocabulary(classes)] if classes else None
    _print(import_features(folder, dataset, target, vlm=vlm, vision=vision, classes=names))


def _print(made: ImportedFeatures) -> None:
    manifest = made.queries.manifest
    out.print(
        f"{made.gallery.manifest.rows:,} rows; {manifest.queries:,} queries ({', '.join(made.kinds)}),"
        f" up to {manifest.images} images each"
    )
    least, most = made.text_norms
    out.print(f"text vectors keep their norms, {least:.4f} to {most:.4f}")
    if made.ignored:
        out.print(f"{len(made.ignored):,} classes of the queries' files are no query: {', '.join(made.ignored[:5])}")
    say_made(made.gallery.uri, made.queries.uri)
    say_next(f"mindseye evaluate {quoted(made.gallery.uri)} {quoted(made.queries.uri)} REPORT --weight 0.1")
