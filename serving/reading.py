"""What pictures become before a search: words, so that they can be imagined (``retrieval.bridge``), or one vector with
texts (``retrieval.composer``).
"""

from __future__ import annotations

from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from retrieval.assistant.endpoint import AssistantFault
from retrieval.assistant.material import Wanted
from retrieval.assistant.rewrite import not_worded
from retrieval.bridge import Said, bridges, composes, composing, merging
from retrieval.errors import UserError
from serving.asked import Asked, AskedPicture, AskedText, Shortfall, no_images_to_drop
from serving.assisting import Assisting
from serving.deployments.calls import Unavailable, call
from serving.deployments.messages import Piece, RowPiece
from serving.encoding import Encoding
from serving.memory.entry import normalised


class PictureReading:
    """Reads the pictures of searches, or composes them with texts. For one event loop.

    Args:
        ranker: where the dictionary and the composer are.
        encoding: of what is read.
        assisting: words what was read, if there is an assistant.

    Attributes:
        aspects: of the dictionary; None without one, and until it is known.
        has_composer: whether there is one; false until it is known.
    """

    def __init__(self, ranker: DeploymentHandle, encoding: Encoding, assisting: Assisting | None) -> None:
        self.aspects: list[str] | None = None
        self.has_composer = False
        self._ranker = ranker
        self._encoding = encoding
        self._assisting = assisting

    def due(self, asked: Asked) -> bool:
        """Return whether pictures of a search are to be read.

        Raises:
            UserError: they are to be, and cannot, for want of a dictionary.
        """
        pictures = bool(_wanted(asked))
        return bridges(asked.request.bridge, self.aspects, pictures=pictures, texts=bool(asked.texts))

    def composes(self, asked: Asked) -> bool:
        """Return whether pictures of a search are to be composed with its texts.

        Raises:
            UserError: they are to be, and there is no composer.
        """
        texts = any(text.weight > 0 for text in asked.texts)
        there = self.has_composer
        return composes(asked.request.bridge, composer=there, pictures=bool(_wanted(asked)), texts=texts)

    async def compose(self, asked: Asked) -> None:
        """Make one piece of all that is wanted. If that cannot be done just now, the search stays as it was given, and
        the answer is degraded.

        Raises:
            Unavailable: a text or a picture could not be encoded.
            UserError: a picture is not known, or pictures cancel each other out.
        """
        given = asked.evidence
        await self._encoding.encode(asked)
        texts = [one.vlm_D1 for one in asked.texts if one.weight > 0]
        weight, method, left = max(one.weight for one in given), self._ranker.compose, asked.deadline.left
        try:
            with asked.timed("compose"):
                made, asked.version = await call(
                    "the ranker",
                    method,
                    _pieces(asked),
                    texts,
                    weight,
                    asked.version,
                    left,
                    seconds=left,
                    refusals=(UserError,),
                )
        except Unavailable as error:
            asked.shortfalls.append(Shortfall(error.trouble, f"pictures were not composed with texts: {error}"))
            return
        kept, asked.brings_EG = composing([one.weight for one in given])
        asked.evidence = [made, *(given[n] for n in kept)]

    async def read(self, asked: Asked) -> None:
        """Read pictures into words, with what texts change of them; from then on the search is for the text that this
        makes. If they cannot be read just now, it stays as it was given, and the answer is degraded.

        Raises:
            Unavailable: a text or a picture could not be encoded.
            UserError: a picture is not known, or images are to be dropped of words that pictures do not make.
        """
        given = asked.evidence
        await self._encoding.encode(asked)
        said = [Said(one.text, one.vlm_D1, one.weight > 0) for one in asked.texts if one.vlm_D1 is not None]
        method, left = self._ranker.read, asked.deadline.left
        try:
            with asked.timed("read"):
                reading, asked.version = await call(
                    "the ranker", method, _pieces(asked), said, asked.version, left, seconds=left, refusals=(UserError,)
                )
        except Unavailable as error:
            asked.shortfalls.append(Shortfall(error.trouble, f"pictures were not read into words: {error}"))
            return
        unworded: Shortfall | None = None
        if self._assisting and asked.request.bridge == "words":
            wanted = Wanted.of(((one.text, one.weight) for one in asked.texts), [word.value for word in reading.words])
            try:
                with asked.timed("reword"):
                    worded = await self._assisting.reword(wanted, seconds=asked.deadline.left)
                reading = replace(reading, text=worded)
            except (Unavailable, AssistantFault) as error:
                unworded = Shortfall("assistant", not_worded(error))
        merged = merging(reading, [isinstance(one, AskedText) for one in given], [one.weight for one in given])
        if merged:
            kept, asked.brings_EG = merged
            text = AskedText(normalised(reading.text), max(one.weight for one in given), "what was read")
            asked.evidence = [text, *(given[n] for n in kept)]
            asked.read = reading
            asked.shortfalls += [unworded] if unworded else []
        elif asked.request.drop and not asked.query:
            raise no_images_to_drop()


def _wanted(asked: Asked) -> list[AskedPicture | RowPiece | Piece]:
    return [one for one in asked.evidence if not isinstance(one, AskedText) and one.weight > 0]


def _pieces(asked: Asked) -> list[Piece | RowPiece]:
    """Pictures and rows that are wanted, as the ranker takes them."""
    return [one.piece(visual=True) if isinstance(one, AskedPicture) else one for one in _wanted(asked)]
