"""One answer as a picture: what the text was imagined as, and what was found."""

from __future__ import annotations

from pipelines.contact_sheet import Section, Strip, draw, gallery_pictures
from retrieval.artifacts import Index
from retrieval.finder import Answer


def answer_sheet(text: str, answer: Answer, index: Index) -> bytes:
    """Draw an answer.

    Args:
        text: what was searched for, the title.
        answer: of ``Finder.search``.
        index: the index that was searched; it says where the images lie.

    Returns:
        PNG bytes.
    """
    rows = [found.row for found in answer]
    pictures = gallery_pictures(index.manifest.sources, rows)
    strips = [Strip("found", [pictures[row["batch"], row["path"]] for row in rows], [None] * len(rows))]
    if answer.imagined:
        strips.insert(0, Strip("imagined", answer.images, [None] * len(answer.images)))
    return draw([Section(text, strips)])
