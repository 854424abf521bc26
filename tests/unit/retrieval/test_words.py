"""Words that pictures are read into, the bridge to a text, lenses and refinements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web
from assistant_server import Body, completion, given, serving
from errors import refused
from PIL import Image
from tiny_artifacts import Collection, write_words

from retrieval.aggregator import Aggregator
from retrieval.artifacts import Index, QuerySet, TrainedComposer
from retrieval.assistant.endpoint import Assistant
from retrieval.bridge import Said, bridges, merging, recomposed
from retrieval.composer import Composer
from retrieval.evidence import Encoded, Picture, Row, Text, summed
from retrieval.finder import Finder
from retrieval.folder import Folder
from retrieval.fusion import unit
from retrieval.index.files import vector_text
from retrieval.lens import lens
from retrieval.means import Means, centred
from retrieval.query import QueryEncoder
from retrieval.words import NEIGHBOURS, Dictionary, Value, Word, mean_of_words

D = 16
COLOURS, SHAPES = ("blue", "green", "red"), ("circle", "star")
VALUES = [Value("colour", name, (name, f"{name}ish")) for name in COLOURS] + [Value("shape", n, (n,)) for n in SHAPES]
RNG = np.random.default_rng(0)
AXES = np.linalg.qr(RNG.standard_normal((D, D)))[0][:6]
"""One direction for each value, and one that all texts share."""
WORDS_WD = AXES[:5] + 2 * AXES[5]


@pytest.fixture
def dictionary() -> Dictionary:
    return Dictionary(["colour", "shape"], VALUES, WORDS_WD, WORDS_WD)


def image(*values: str) -> np.ndarray:
    """A vector that shows these, (1, D)."""
    return unit(sum(AXES[[value.name for value in VALUES].index(name)] for name in values))[None]


def said(text: str, *, wanted: bool = True, vector: np.ndarray | None = None) -> Said:
    return Said(text, np.zeros(D, np.float32) if vector is None else vector, wanted)


def test_an_image_is_read_as_the_nearest_value_of_each_aspect(dictionary: Dictionary) -> None:
    shown = image("red", "star")
    read = dictionary.read(shown, shown, None)
    assert [(word.aspect, word.value) for word in read] == [("colour", "red"), ("shape", "star")]
    far_D = 5 * RNG.standard_normal(D).astype(np.float32)  # what all images have in common, and the means take out
    assert [word.value for word in dictionary.read(shown + far_D, shown + far_D, Means(far_D, far_D))] == [
        "red",
        "star",
    ]


def test_without_aspects_the_nearest_names_are_read() -> None:
    names = Dictionary([], [Value(None, value.name, (value.name,)) for value in VALUES], WORDS_WD, WORDS_WD)
    read = names.read(image("star"), image("star"), None, names=2)
    assert (len(read), read[0].value, read[0].aspect) == (2, "star", None)
    assert read[0].similarity > read[1].similarity


@pytest.mark.parametrize(
    ("texts", "expected", "replaced", "told"),
    [
        ([said("blue")], "blue star", ["red"], 0.5),
        ([said("Blue")], "blue star", ["red"], 0.5),
        ([said("greenish circle")], "green circle", ["red", "star"], 1.0),
        ([said("in blue, on a beach")], "star, in blue, on a beach", ["red"], 0.5),
        ([said("red", wanted=False)], "star", ["red"], 0.0),
        ([said("blue", wanted=False)], "red star", [], 0.0),
        ([said("green"), said("star", wanted=False)], "green", ["red", "star"], 1.0),
        ([said("on a beach")], "red star, on a beach", [], 1 / 3),
        ([said("like the sea", vector=WORDS_WD[0].astype(np.float32))], "star, like the sea", ["red"], 0.5),
        ([], "red star", [], 0.0),
    ],
)
def test_texts_take_the_places_of_what_was_read(
    dictionary: Dictionary, texts: list[Said], expected: str, replaced: list[str], told: float
) -> None:
    words = [Word("colour", "red", 0.9), Word("shape", "star", 0.8)]
    if texts and texts[0].text == "on a beach":  # near none of the values
        texts = [texts[0]._replace(vlm_D1=dictionary.means.vlm_D1)]
    reading = recomposed(dictionary, words, texts)
    assert (reading.text, reading.replaced, reading.told) == (expected, replaced, pytest.approx(told))


def test_shares_of_a_recomposed_text_go_to_what_told_its_words(dictionary: Dictionary) -> None:
    reading = recomposed(dictionary, [Word("colour", "red", 1.0), Word("shape", "star", 1.0)], [said("blue")])
    kept, brings_EG = merging(reading, [False, True, False, True], [1.0, 1.0, 3.0, -0.4]) or pytest.fail("no text")
    assert kept == [3]
    np.testing.assert_allclose(brings_EG, [[0.125, 0.5, 0.375, 0], [0, 0, 0, 1]])


def test_words_that_change_nothing_leave_the_picture(dictionary: Dictionary) -> None:
    reading = recomposed(dictionary, [Word("colour", "red", 1.0)], [said("blue", wanted=False)])
    assert merging(reading, [False, True], [1.0, -0.4]) is None
    gone = recomposed(dictionary, [Word("colour", "red", 1.0)], [said("red", wanted=False)])
    assert merging(gone, [False, True], [1.0, -0.4]) is None
    further = recomposed(dictionary, [Word("colour", "red", 1.0)], [said("of glass " * 300), said("of wood " * 300)])
    assert merging(further, [False, True, True], [1.0] * 3) is None  # longer than a text may be


def test_when_a_picture_is_read(dictionary: Dictionary) -> None:
    assert bridges("auto", dictionary.aspects, pictures=True, texts=True)
    assert not bridges("auto", dictionary.aspects, pictures=True, texts=False)
    assert bridges("words", dictionary.aspects, pictures=True, texts=False)
    assert not bridges("none", dictionary.aspects, pictures=True, texts=True)
    assert not bridges("auto", None, pictures=True, texts=True)
    with refused("no-words", "bridge"):
        bridges("words", None, pictures=True, texts=True)
    with refused("no-aspects", "bridge"):
        bridges("words", [], pictures=True, texts=True)
    with refused("unknown", "bridge"):
        bridges("always", dictionary.aspects, pictures=True, texts=True)  # type: ignore[arg-type]


def test_focus_leaves_one_aspect_and_ignore_the_others(dictionary: Dictionary) -> None:
    shown = image("red", "star")
    encoded = Encoded(np.ones(1), shown, shown)
    focused, ignored = (
        lens(dictionary, *asked)(encoded).vlm_ED1[0]  # type: ignore[misc]
        for asked in (("colour", ()), (None, ("colour",)))
    )
    rows = {name: image(name)[0] for name in (*COLOURS, *SHAPES)}
    assert focused @ rows["red"] > 0.4
    assert abs(focused @ rows["star"]) < 1e-6
    by_colour = [ignored @ rows[name] for name in COLOURS]
    np.testing.assert_allclose(by_colour, by_colour[0], atol=1e-6)
    assert ignored @ rows["star"] > 0.6
    # as P is of the rows, to the same scores
    span = lens(dictionary, "colour").focus  # type: ignore[union-attr]
    assert span is not None
    assert [half.shape for half in span] == [(2, D), (2, D)]
    projected = {name: span[0].T @ (span[0] @ row) for name, row in rows.items()}
    for name in rows:
        assert focused @ rows[name] == pytest.approx(float(shown[0] @ projected[name]), abs=1e-6)


def test_a_lens_of_what_is_not_there_is_refused(dictionary: Dictionary) -> None:
    with refused("unknown", "focus") as error:
        lens(dictionary, "background")
    assert "colour, shape" in str(error.value)
    with refused("unknown", "ignore"):
        lens(dictionary, "colour", ["size"])
    with refused("overlap", "ignore"):
        lens(dictionary, "colour", ["colour"])
    with refused("no-words", "focus"):
        lens(None, "colour")
    with refused("one-value", "focus"):
        lens(Dictionary(["colour"], VALUES[:1], WORDS_WD[:1], WORDS_WD[:1]), "colour")
    assert lens(None, None) is None


def test_refinements_split_results_evenly(dictionary: Dictionary) -> None:
    shown = np.concatenate([image("red", "star")] * 6 + [image("blue", "star")] * 3 + [image("green", "star")] * 3)
    found = dictionary.refinements(shown, shown, None)
    assert [(of.text, of.share) for of in found] == [("red", 0.5), ("blue", 0.25), ("green", 0.25)]
    assert dictionary.refinements(shown[:6], shown[:6], None) == []
    assert dictionary.refinements(shown[:0], shown[:0], None) == []


def test_means_are_taken_out_where_kinds_mix_alone() -> None:
    vectors = unit(RNG.standard_normal((2, D)))
    encoded = Encoded(np.ones(2), vectors, np.stack([vectors[0], np.zeros(D, np.float32)]))
    texts, images = Means(vectors[0] / 2, vectors[0] / 4), Means(vectors[1] / 3, vectors[1])
    assert centred(encoded, np.array([True, True]), texts, images) is encoded
    assert centred(encoded, np.array([True, False]), texts, None) is encoded
    mixed = centred(encoded, np.array([True, False]), texts, images)
    np.testing.assert_allclose(mixed.vlm_ED1, [vectors[0] / 2, vectors[1] * 2 / 3], atol=1e-6)
    np.testing.assert_allclose(mixed.vision_ED2, [vectors[0] * 0.75, np.zeros(D)], atol=1e-6)
    assert np.linalg.norm(summed(np.ones(1), mixed.vlm_ED1[:1])) == pytest.approx(1)
    real = centred(encoded, np.array([True, False]), texts, images, nearest_E=np.array([True, False]))
    np.testing.assert_array_equal(real.vlm_ED1, mixed.vlm_ED1)
    np.testing.assert_allclose(real.vision_ED2, [vectors[0] - vectors[1], np.zeros(D)], atol=1e-6)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, query_encoder: QueryEncoder) -> QuerySet:
    return write_words(tmp_path_factory.mktemp("words"), query_encoder)


@pytest.fixture(scope="module")
def finder(query_encoder: QueryEncoder, collection: Collection, words: QuerySet) -> Finder:
    return Finder(query_encoder, collection.index, words=words)


def test_a_query_set_is_a_dictionary(finder: Finder) -> None:
    assert finder.dictionary is not None
    assert [value.name for value in finder.dictionary.values] == ["plain", "striped", "fish", "star", "blue", "red"]
    assert finder.dictionary.aspects == ["pattern", "shape", "colour"]


def test_the_means_of_a_dictionary_are_those_of_its_manifest(words: QuerySet, tmp_path: Path) -> None:
    """Each value weighs the same, however many texts say it; other texts do not count."""
    rows = words.table().to_pylist()
    rows[1] |= {"aspect": rows[0]["aspect"], "value": rows[0]["value"]}
    rows[2] |= {"aspect": None, "value": None}
    place = Folder(tmp_path)
    for part, some in enumerate((rows[::2], rows[1::2])):
        place.write_table(f"queries/{part}.parquet", pa.Table.from_pylist(some, schema=words.table().schema))
    older = QuerySet(place, words.manifest)
    before = Dictionary.of(older).means
    mean_D = mean_of_words(older)
    np.testing.assert_allclose(mean_D, np.concatenate(before), atol=1e-7)
    written = QuerySet(place, words.manifest.model_copy(update={"mean": vector_text(mean_D + 1)}))
    np.testing.assert_array_equal(np.concatenate(Dictionary.of(written).means), mean_D + 1)
    trained = Dictionary.of(written, Aggregator(len(before.vision_D2), heads=1, layers=1).eval()).means
    np.testing.assert_array_equal(trained.vlm_D1, mean_D[: len(trained.vlm_D1)] + 1)  # by that network v is another
    assert np.abs(trained.vision_D2).max() < 1
    with refused("damaged", "manifest.json"):
        Dictionary.of(QuerySet(place, words.manifest.model_copy(update={"mean": "AAAA"})))


def test_a_picture_with_a_text_is_answered_as_the_text_that_it_becomes(finder: Finder, collection: Collection) -> None:
    row = Row(collection.ids[0])
    answer = finder.find([Text("blue"), row], 5, images=1)
    reading = answer.words
    assert reading is not None
    assert [word.aspect for word in reading.words] == ["pattern", "shape", "colour"]
    assert reading.text.split()[2] == "blue"
    same = finder.find([Text(reading.text)], 5, images=1)
    assert same.words is None
    assert [(found.id, found.score) for found in answer] == [(found.id, found.score) for found in same]
    for found, brought in zip(answer, answer.shares, strict=True):
        assert len(brought) == 2
        assert sum(brought) == pytest.approx(found.score, abs=1e-5)
    assert finder.find([Text("blue"), row], 5, images=1, bridge="none").words is None
    assert finder.find([row], 5, images=1).words is None


def test_a_dictionary_changes_nothing_of_one_text(
    finder: Finder, query_encoder: QueryEncoder, collection: Collection
) -> None:
    with_words, without = (
        found.search("a red striped star", 8, images=2) for found in (finder, Finder(query_encoder, collection.index))
    )
    assert [(found.id, found.score) for found in with_words] == [(found.id, found.score) for found in without]
    assert (len(with_words.refinements) > 0, without.refinements) == (True, [])


def test_a_lens_of_the_finder_is_the_projected_query(finder: Finder, collection: Collection) -> None:
    answer = finder.find([Row(collection.ids[3])], 24, focus="colour", ignore=["shape"])
    c, d = collection.vlm_ND1[3].astype(float), collection.vision_ND2[3].astype(float)
    halves = []
    assert finder.dictionary is not None
    for vector, means in ((c, finder.dictionary.vlm_WD1), (d, finder.dictionary.vision_WD2)):
        vector = vector / np.linalg.norm(vector)  # the index of this collection has no mean
        for aspect, focus in (("colour", True), ("shape", False)):
            members = means[finder.dictionary.members(aspect)].astype(float)
            axis = members[0] - members[1]
            onto = axis * (axis @ vector) / (axis @ axis)
            vector = onto if focus else vector - onto
        halves.append(vector / np.linalg.norm(vector))
    expected = 0.5 * (collection.vlm_ND1.astype(float) @ halves[0] + collection.vision_ND2.astype(float) @ halves[1])
    for found in answer:
        assert found.score == pytest.approx(expected[collection.ids.index(found.id)], abs=1e-5)
    with refused("unknown", "focus"):
        finder.find([Row(collection.ids[3])], focus="size")


def test_an_index_without_means_is_searched_without_them(finder: Finder, collection: Collection) -> None:
    assert collection.index.mean() is None
    assert finder.means is None
    assert finder.find([Text("blue"), Row(collection.ids[0])], 3, images=1, bridge="none").results


def test_the_mean_of_a_damaged_manifest_is_named(collection: Collection, tmp_path: Path) -> None:
    manifest = collection.index.manifest.model_copy(update={"mean": "AAAA"})
    with refused("damaged", "manifest.json"):
        Index(Folder(tmp_path), manifest).mean()


def test_a_composer_makes_one_query_of_a_row_and_a_text(
    finder: Finder, query_encoder: QueryEncoder, collection: Collection, tmp_path: Path
) -> None:
    network = Composer(query_encoder.vlm.dim, query_encoder.vision.dim, layers=1)
    made = TrainedComposer.save(tmp_path, network, collection.index.manifest.models, {})
    composing = Finder(query_encoder, collection.index, composer=made)
    row, against = Row(collection.ids[0]), Text("red", -0.4)
    answer = composing.find([Text("blue"), row], 5, bridge="composer")
    places = [collection.ids.index(found.id) for found in composing.find([row], NEIGHBOURS)]
    c, d = unit(collection.vlm_ND1[0].astype(np.float32)), unit(collection.vision_ND2[0].astype(np.float32))
    rows_ND = np.hstack([collection.vlm_ND1, collection.vision_ND2])
    halves = network.eval().compose(c, d, rows_ND[places], list(query_encoder.text_vectors(["blue"])))
    scores = 0.5 * (rows_ND.astype(np.float32) @ np.concatenate(halves))
    assert [found.score for found in answer] == pytest.approx(sorted(scores.tolist(), reverse=True)[:5], abs=1e-3)
    assert (answer.imagined, answer.visual, answer.degraded, answer.words) == ([], "given", None, None)
    for found, brought in zip(answer, answer.shares, strict=True):
        assert brought == pytest.approx([found.score / 2] * 2, abs=1e-5)
    assert len(composing.find([against, Text("blue"), row], 3, images=1, bridge="composer").shares[0]) == 3
    alone, plain = composing.find([row], 3, bridge="composer"), finder.find([row], 3, bridge="none")
    assert [(found.id, found.score) for found in alone] == [(found.id, found.score) for found in plain]
    with refused("no-composer", "bridge"):
        finder.find([Text("blue"), row], bridge="composer")


def test_pictures_may_be_searched_by_their_words(finder: Finder, collection: Collection) -> None:
    path = next((collection.folder / "images").rglob("*.png"))
    answer = finder.find([Picture(Image.open(path).convert("RGB"))], 3, images=1, bridge="words")
    assert answer.words is not None
    assert len(answer.words.text.split()) == 3
    assert answer.imagined


def test_an_assistant_words_what_was_read_and_where_it_fails_the_dictionary_does(
    query_encoder: QueryEncoder, collection: Collection, words: QuerySet
) -> None:
    answers = iter(['{"text": "a large blue star"}', *["nonsense"] * 3])
    bodies: list[Body] = []

    async def answering(request: web.Request, body: Body) -> web.Response:
        bodies.append(body)
        return completion(next(answers))

    evidence = [Text("blue"), Row(collection.ids[0])]
    with serving(answering) as url:
        finder = Finder(query_encoder, collection.index, words=words, assistant=Assistant(url, "model"))
        plain = finder.find(evidence, 3, images=1)
        assert not bodies
        first, second, both = (
            finder.find(evidence, 3, images=1, bridge="words", rerank=rerank) for rerank in ("none", "none", "list")
        )
    assert plain.words
    assert first.words
    assert second.words
    assert given(bodies[0])["picture"] == [word.value for word in plain.words.words]
    assert (first.words.text, first.degraded) == ("a large blue star", None)
    assert [one.id for one in first] == [one.id for one in finder.find([Text("a large blue star")], 3, images=1)]
    assert (second.words.text, second.degraded) == (
        plain.words.text,
        "the assistant did not word the query: the assistant's answer is not what was asked for",
    )
    calls = [one.spent.calls if one.spent else 0 for one in (plain, first, second, both)]
    assert calls == [0, 1, 1, 2]
    assert both.spent
    assert (both.spent.tokens_in, both.spent.tokens_out) == (14, 6)
