"""``mindseye train``: the aggregator, trained on your own classes, or imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import Cluster, Profile, TakeOver, out, quoted, say_made, say_next

if TYPE_CHECKING:
    from training.trainer import Trained


def train(
    gallery: str,
    query_set: str,
    target: str,
    *,
    evaluation: str | None = None,
    profile: Profile = "tiny",
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Train the aggregator and λ on a labelled gallery and a query set of the same labels.

    The same command resumes where a killed run stopped.

    Parameters
    ----------
    gallery
        The gallery: TARGET/gallery of mindseye index, with labels.
    query_set
        The query set, of the same models. Queries and gallery images of one label belong together.
    target
        Folder or URI of the aggregator.
    evaluation
        A query set that the aggregator will be measured on: labels that it shares with this one are an error.
    """
    import training.trainer

    made = training.trainer.train(
        gallery,
        query_set,
        target,
        profile,
        evaluation=evaluation,
        take_over=take_over,
        address=address,
        log=out.print,
    )
    _print_trained(made)
    say_next(f"mindseye evaluate GALLERY QUERIES_OF_OTHER_LABELS REPORT --aggregator {quoted(target)}")


def _print_trained(made: Trained) -> None:
    left, uri = made.left_out, made.aggregator.uri
    if left.unlabelled or left.without_images:
        out.print(f"left out: {left.unlabelled} queries without a label, {left.without_images} without an image")
    if left.without_rows:
        out.print(
            f"left out: {len(left.without_rows)} labels without a gallery image: {', '.join(left.without_rows[:10])}"
        )
    before, weight = made.history[0]["map"], made.aggregator.manifest.weight
    out.print(
        f"mAP on held-out labels: {before:.3f} before training, {made.best_map:.3f} at step {made.best_step};"
        f" λ = {weight:.3f}"
    )
    say_made(uri, f"{uri}/metrics.jsonl", f"{uri}/curves.png")


def train_composer(
    gallery: str,
    words: str,
    target: str,
    *,
    profile: Profile = "tiny",
    take_over: TakeOver = False,
    address: Cluster = None,
) -> None:
    """Train the composer, which makes one query of a picture and a text that changes it, on a labelled gallery.

    The same command resumes where a killed run stopped.

    Parameters
    ----------
    gallery
        The gallery: TARGET/gallery of mindseye index, with labels that name values of the words' aspects.
    words
        The dictionary: a query set of words with the columns aspect and value, of the same models.
    target
        Folder or URI of the composer.
    """
    import training.composing

    made = training.composing.train_composer(
        gallery, words, target, profile, take_over=take_over, address=address, log=out.print
    )
    if made.left_out:
        out.print(
            f"left out: {len(made.left_out)} labels that do not name one value of each of some aspects:"
            f" {', '.join(made.left_out[:10])}"
        )
    before, uri = made.history[0]["map"], made.composer.uri
    out.print(f"mAP on held-out labels: {before:.3f} before training, {made.best_map:.3f} at step {made.best_step}")
    say_made(uri, f"{uri}/metrics.jsonl", f"{uri}/curves.png")
    say_next(f"mindseye search TEXT TARGET --image FILE --bridge composer --composer {quoted(target)}")


def import_aggregator(file: Path, target: str, gallery: str, *, take_over: TakeOver = False) -> None:
    """Import a checkpoint that CLETIR's authors released.

    Parameters
    ----------
    file
        The checkpoint (.pth); only tensors are loaded from it.
    target
        Folder or URI of the aggregator.
    gallery
        A gallery of the models that the checkpoint was trained with.
    """
    from retrieval.artifacts import Gallery
    from training.reference import import_reference

    made = import_reference(file, target, Gallery.open(gallery), take_over=take_over)
    manifest = made.manifest
    out.print(f"{manifest.layers} layers of {manifest.dim} dimensions, λ = {manifest.weight:.3f}")
    say_made(made.uri)
    say_next(f"mindseye search TEXT TARGET --aggregator {quoted(target)}")
