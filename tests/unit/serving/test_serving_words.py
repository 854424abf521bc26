"""Words, lenses and refinements as the service answers them: what one process answers, to the bit."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused
from serving_graph import local_service
from tiny_artifacts import Collection, write_words

from cluster.loading import find_words, open_index
from cluster.profile import Profile
from retrieval.evidence import Evidence, Row, Text
from retrieval.finder import Finder
from retrieval.folder import Folder
from retrieval.index.files import vector_text
from retrieval.query import QueryEncoder
from serving.protocol import SearchAnswer, SearchRequest
from serving.search import Search


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, collection: Collection, query_encoder: QueryEncoder) -> Path:
    """An index that knows its mean, beside a dictionary."""
    folder = tmp_path_factory.mktemp("target")
    shutil.copytree(collection.folder / "index", folder / "index")
    joint_ND = np.hstack([collection.vlm_ND1, collection.vision_ND2]).astype(np.float32)
    version = Folder(folder / "index" / collection.index.version)
    version.write_json(
        "manifest.json", version.read_json("manifest.json") | {"mean": vector_text(joint_ND.mean(axis=0))}
    )
    write_words(folder / "words", query_encoder)
    return folder


@pytest.mark.parametrize("local", [True, False])
def test_what_is_read_and_seen_through_lenses_equals_one_process(
    target: Path, profile: Profile, query_encoder: QueryEncoder, local: bool
) -> None:
    settings = profile.serve.model_copy(update={"local_index_bytes": 2**20 if local else 0})
    service = local_service(target=str(target), profile=profile.model_copy(update={"serve": settings}), store="memory:")
    finder = Finder(query_encoder, open_index(target), words=find_words(target))
    assert finder.means is not None
    row, against = {"row": "id-007"}, {"text": "striped", "weight": -0.4}
    asked: list[tuple[dict[str, Any], list[Evidence], dict[str, Any]]] = [
        ({"query": "red"}, [Text("red")], {}),
        ({"query": "red star"}, [Text("red star")], {"focus": "colour"}),
        ({"evidence": [row]}, [Row("id-007")], {"focus": "shape"}),
        ({"evidence": [row]}, [Row("id-007")], {"bridge": "words"}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {"bridge": "none", "ignore": ["shape"]}),
        ({"query": "blue", "evidence": [row]}, [Text("blue"), Row("id-007")], {"bridge": "none", "fuse": "max"}),
        (
            {"query": "blue fish", "evidence": [row, against]},
            [Text("blue fish"), Row("id-007"), Text("striped", -0.4)],
            {"rerank": "neighbours"},
        ),
    ]

    async def check() -> None:
        search: Search = service.search()
        await search.warm_up()
        for given, evidence, options in asked if local else asked[4:]:
            plain = finder.find(evidence, 6, images=1, **options)
            for _ in range(2 if not options and len(evidence) == 2 else 1):  # made, and remembered
                answer = await search.answer(
                    SearchRequest.model_validate({**given, **options, "k": 6, "images": 1}), ""
                )
                same(answer, plain, pieces=len(evidence))
            assert answer.query == given.get("query", "")
        request = SearchRequest.model_validate({"query": "blue", "evidence": [row], "k": 6, "images": 1})
        first, *_, last = [data async for _, data in search.stages(request, "")]
        assert isinstance(first, SearchAnswer)
        assert isinstance(last, SearchAnswer)
        assert first.recomposed == last.recomposed
        assert (await search.served()).aspects == ["pattern", "shape", "colour"]
        with refused("unknown", "focus") as error:
            await search.answer(SearchRequest(query="red", focus="size"), "")
        assert "pattern, shape, colour" in str(error.value)

    asyncio.run(check())


def same(answer: SearchAnswer, plain: Any, *, pieces: int) -> None:
    ours, theirs = (
        [(one.score, one.text_part, one.visual_part) for one in all_of] for all_of in (answer.results, plain)
    )
    assert [found.id for found in answer.results] == [found.id for found in plain]
    if pieces < 3:
        assert ours == theirs
    else:  # two texts that are encoded in one batch may differ in their last bit from each alone
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert answer.refinements == [of.text for of in plain.refinements]
    assert answer.words == ([word.value for word in plain.words.words] if plain.words else [])
    assert answer.recomposed == (plain.words.text if plain.words else None)
    if pieces > 1:
        np.testing.assert_allclose([found.shares for found in answer.results], plain.shares, atol=1e-6)
    assert (answer.degraded, answer.warnings) == (None, [])


def test_a_service_without_a_dictionary_says_so(collection: Collection, profile: Profile) -> None:
    service = local_service(target=str(collection.folder), profile=profile, store="memory:")

    async def ask(**options: Any) -> None:
        search: Search = service.search()
        await search.warm_up()
        await search.answer(SearchRequest.model_validate({"query": "red", **options}), "")

    with refused("no-words", "focus"):
        asyncio.run(ask(focus="colour"))
    with refused("no-words", "bridge"):
        asyncio.run(ask(bridge="words"))
