"""Queries made of evidence as vectors: texts and pictures through the models, rows out of the gallery.

What is made of the vectors is ``retrieval.evidence``, as for a search. E pieces of evidence, K imagined images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cluster.profile import Profile
from pipelines.evidence_file import EvidenceQuery, Piece, missing_rows
from pipelines.gallery_rows import vectors_of
from pipelines.query_models import query_models
from pipelines.running import current_executor
from retrieval.artifacts import Gallery, TrainedAggregator
from retrieval.artifacts.compatibility import check_made_by
from retrieval.errors import UserError
from retrieval.evidence import Encoded, halves, heavier_against
from retrieval.folder import Folder
from retrieval.images import MAX_BYTES, ImageRejected, decode

if TYPE_CHECKING:
    from retrieval.aggregator import Aggregator

_AT_ONCE = 32
"""Texts or pictures that are in memory with their pixels."""
_Box = tuple[float, ...] | None
_Vectors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Known:
    """The vectors of all that queries are made of.

    Attributes:
        texts: t and g_1 … g_K of each text, float32 (D1,) and (K, D2).
        pictures: τ and ν of each picture, by its URI and box.
        rows: the same of each row, by its id.
    """

    texts: dict[str, _Vectors]
    pictures: dict[tuple[str, _Box], _Vectors]
    rows: dict[str, _Vectors]

    def encoded(self, query: EvidenceQuery, network: Aggregator | None = None) -> Encoded:
        """Return a query's evidence; images of its texts are pooled by the network, or else as their mean."""
        vlm, vision = zip(*(self._of(piece, network) for piece in query.pieces), strict=True)
        encoded = Encoded(np.array([piece.weight for piece in query.pieces]), np.stack(vlm), np.stack(vision))
        return heavier_against(encoded, np.array([piece.text is not None for piece in query.pieces]))

    def of_text(self, text: str, network: Aggregator | None = None) -> _Vectors:
        """Return τ and ν of a text; ν is zero if no image could be imagined."""
        from retrieval.query import pool  # it loads torch, for which a driver should not wait

        vlm_D1, features_KD2 = self.texts[text]
        return vlm_D1, pool(features_KD2[None], np.ones((1, len(features_KD2)), bool), network)[0]

    def _of(self, piece: Piece, network: Aggregator | None) -> _Vectors:
        if piece.text is not None:
            return self.of_text(piece.text, network)
        return self.rows[piece.row] if piece.row is not None else self.pictures[_picture(piece)]


def known_vectors(
    gallery: Gallery,
    queries: Sequence[EvidenceQuery],
    profile: Profile,
    *,
    aggregator: TrainedAggregator | None = None,
    edits: bool = False,
) -> Known:
    """Encode all that queries are made of, each text, picture and row once.

    Args:
        gallery: that has the rows, made by the profile's models.
        queries: at least one.
        profile: whose models, images and seed are used, where the stage ``imagine`` runs.
        aggregator: that is to pool the images; it is checked to fit.
        edits: encode what the texts become in rounds, too.

    Raises:
        UserError: the gallery or the aggregator is of other models (code ``other-model``), it lacks a row that is
            evidence (``missing``), or a picture cannot be read (``unusable-image``); the query is named by file and
            line.
    """
    wanted = {piece.row for query in queries for piece in query.pieces if piece.row is not None}
    joint = vectors_of(gallery, wanted)
    for query, number, id in missing_rows(list(queries), set(joint)):
        raise UserError(
            f"{query.where}: no row of {gallery.uri} has the id {id!r}; {len(wanted) - len(joint):,} such ids are not"
            " in the gallery",
            code="missing",
            field=f"evidence.{number}.row",
        )
    vlm_dim = gallery.manifest.models["vlm"].dim
    assert vlm_dim is not None
    rows = {id: (vlm[0], vision[0]) for id, row in joint.items() for vlm, vision in [halves(row[None], vlm_dim)]}
    given = [piece.text for query in queries for piece in query.pieces if piece.text is not None]
    texts = list(dict.fromkeys([*given, *(text for query in queries for text in query.edits if edits)]))
    # Where a picture cannot be read, the first query that has it is named.
    pictures = {
        _picture(piece): f"{query.where}: evidence.{number}.picture"
        for query in reversed(queries)
        for number, piece in enumerate(query.pieces)
        if piece.picture is not None
    }
    if aggregator:
        aggregator.check_fits(gallery)
    if not texts and not pictures:
        return Known({}, {}, rows)
    made = current_executor().run(_encoded, gallery, texts, pictures, profile, aggregator, place=profile.imagine)
    return Known(*made.get(), rows)


def _picture(piece: Piece) -> tuple[str, _Box]:
    assert piece.picture is not None
    return piece.picture, tuple(piece.box) if piece.box else None


def _encoded(
    gallery: Gallery,
    texts: Sequence[str],
    pictures: dict[tuple[str, _Box], str],
    profile: Profile,
    aggregator: TrainedAggregator | None,
) -> tuple[dict[str, _Vectors], dict[tuple[str, _Box], _Vectors]]:
    encoder, settings = query_models(profile), profile.queries
    check_made_by(gallery, "vlm", encoder.vlm.uri, encoder.vlm.fingerprint)
    check_made_by(gallery, "vision", encoder.vision.uri, encoder.vision.fingerprint)
    if aggregator and encoder.generator:
        aggregator.check_generator(encoder.generator.uri, encoder.generator.fingerprint)
    of_texts: dict[str, _Vectors] = {}
    for start in range(0, len(texts), _AT_ONCE):
        for query in encoder.encode(texts[start : start + _AT_ONCE], settings.images, seed=settings.seed):
            of_texts[query.text] = query.vlm_D1, query.vision_KD2
    of_pictures: dict[tuple[str, _Box], _Vectors] = {}
    places = list(pictures)
    for start in range(0, len(places), _AT_ONCE):
        some = places[start : start + _AT_ONCE]
        vlm, vision = encoder.picture_vectors([_read(*place, pictures[place]) for place in some])
        of_pictures |= dict(zip(some, zip(vlm, vision, strict=True), strict=True))
    return of_texts, of_pictures


def read_piece(piece: Piece, where: str) -> Image.Image:
    """Return the picture that a piece is, or the part of it that is meant.

    Raises:
        UserError: it cannot be read or decoded (code ``unusable-image``, field ``picture``).
    """
    return _read(*_picture(piece), where)


def _read(uri: str, box: _Box, where: str) -> Image.Image:
    place = Folder(uri)
    try:
        with place.parent.open_input(place.name) as stream:
            image = decode(stream.read(MAX_BYTES + 1))
    except (OSError, ImageRejected) as error:
        message = f"{where}: the picture {uri} cannot be used: {error}"
        raise UserError(message, code="unusable-image", field="picture") from error
    if box is None:
        return image
    left, top, right, bottom = (side * length for side, length in zip(box, image.size * 2, strict=True))
    # Outwards to whole pixels, so that no box is empty.
    return image.crop((int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))))
