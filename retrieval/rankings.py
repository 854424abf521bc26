"""Several imagined images of a text: which joint queries they make, and how the lists these find become one.

| fuse | queries | a row's score |
| --- | --- | --- |
| mean | [(1-λ)t ; λv] of the pooled images: by the aggregator, or their mean | as ever |
| max | [(1-λ)t ; λg] of each image | the best of them: its visual part is by the image that it is most like |
| rrf | [t ; 0], and [0 ; g] of each image | Σ share / (RANK_OFFSET + rank) over the lists, ranks from 1 |

Reciprocal rank fusion (Cormack et al., SIGIR 2009; of imagined images: VisRet) gives the list by text a share of 1 - λ,
and those by images λ between them, so that λ = 1 is VisRet's. Whatever else is asked for takes part in each query. V
queries, E pieces of evidence, K images, D1 and D2 dimensions of VLM and vision encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.evidence import Encoded, compiled, shares

Fuse = Literal["mean", "max", "rrf"]
RANK_OFFSET = 60
"""k₀ of reciprocal rank fusion. Chosen on fitting categories: docs/evidence.md."""


class Scored(NamedTuple):
    """A row of a ranking: ``score`` is the sum of both parts, and by ``rerank_score``, if there is one, it was put in
    its place.
    """

    id: str
    score: float
    text_part: float
    visual_part: float
    rerank_score: float | None = None


def image_by_image(encoded: Encoded, images: Mapping[int, NDArray[np.float32]]) -> list[Encoded]:
    """Return evidence once for each image that its wanted texts were imagined as: the i-th time with the i-th of each.

    What is against stays pooled, or a row could take the image that it is least like; as does a text that has no i-th.

    Args:
        encoded: with pooled images.
        images: of each piece that was imagined, (K, D2) unit rows.

    Returns:
        K of them; none if nothing that is wanted was imagined.
    """
    wanted = {piece: rows_KD2 for piece, rows_KD2 in images.items() if encoded.weights_E[piece] > 0}
    alone = []
    for i in range(max(map(len, wanted.values()), default=0)):
        vision_ED2 = encoded.vision_ED2.copy()
        for piece, rows_KD2 in wanted.items():
            vision_ED2[piece] = rows_KD2[i] if i < len(rows_KD2) else vision_ED2[piece]
        alone.append(encoded._replace(vision_ED2=vision_ED2))
    return alone


def joint_queries(encoded: Encoded, alone: Sequence[Encoded], fuse: Fuse, weight: float) -> NDArray[np.float32]:
    """Return what the index is searched by, float32 (V, D1 + D2): one query without images to fuse.

    Args:
        encoded: with pooled images.
        alone: what ``image_by_image`` made of it.
        fuse: how.
        weight: λ, as ``compiled`` returned it.

    Raises:
        UserError: pieces cancel each other out (code ``no-direction``).
    """
    ways = [(encoded, weight)]
    if alone and weight and fuse == "max":
        ways = [(one, weight) for one in alone]
    elif alone and weight and fuse == "rrf":
        ways = [*([(encoded, 0.0)] if weight < 1 else []), *((one, 1.0) for one in alone)]
    return np.concatenate([compiled(one, of_one)[0] for one, of_one in ways])


def one_ranking(
    lists: Sequence[Sequence[Scored]], fuse: Fuse, weight: float, k: int, *, offset: int = RANK_OFFSET
) -> list[Scored]:
    """Return the k best rows of the lists that ``joint_queries`` found; equal scores by ascending id.

    By ``max`` they are exact where each list has the k best of its query: a row that is among the best of all is so in
    the list that its score is from. By ``rrf`` a row has nothing from a list that it is not in.
    """
    if len(lists) == 1:
        return list(lists[0][:k])
    by_id: dict[str, list[tuple[int, int, Scored]]] = {}
    for number, ranking in enumerate(lists):
        for rank, row in enumerate(ranking, 1):
            by_id.setdefault(row.id, []).append((number, rank, row))
    if fuse == "max":
        rows = [_best([row for *_, row in found]) for found in by_id.values()]
    else:
        by_text = int(weight < 1)  # the first list
        by_images = len(lists) - by_text
        factors = [1 - weight] * by_text + [weight / by_images] * by_images
        rows = []
        for id, found in by_id.items():
            terms = [(number, factors[number] / (offset + rank)) for number, rank, _ in found]
            text, visual = (math.fsum(x for number, x in terms if (number < by_text) == of) for of in (True, False))
            rows.append(Scored(id, math.fsum(x for _, x in terms), text, visual))
    return sorted(rows, key=lambda row: (-row.score, row.id))[:k]


def _best(found: Sequence[Scored]) -> Scored:
    """A row as the image scores it that it is most like; the text part is the same in all."""
    return found[0]._replace(score=max(row.score for row in found), visual_part=max(row.visual_part for row in found))


def ranking_shares(
    encoded: Encoded,
    alone: Sequence[Encoded],
    fuse: Fuse,
    weight: float,
    joint_ND: NDArray[np.float16],
    vlm_dim: int,
) -> list[list[float]]:
    """Return what each piece of evidence brings to the score of each row, N lists of E: by ``max`` as evidence with the
    image that the row is most like; empty lists by ``rrf``, since ranks have no shares. Arguments as of the above.
    """
    if not alone or not weight or fuse == "mean":
        return shares(encoded, weight, joint_ND[:, :vlm_dim], joint_ND[:, vlm_dim:]).tolist()
    if fuse == "rrf":
        return [[] for _ in joint_ND]
    each_KNE = np.stack([shares(one, weight, joint_ND[:, :vlm_dim], joint_ND[:, vlm_dim:]) for one in alone])
    best_N = each_KNE.sum(axis=2).argmax(axis=0)
    return each_KNE[best_N, np.arange(len(best_N))].tolist()
