"""The demo's world: its categories and splits, its pictures, its language, and the models that learned from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused

from demo import grammar
from demo.grammar import (
    COLOURS,
    PATTERNS,
    SHAPES,
    Category,
    Use,
    categories,
    describe,
    every_training_text,
    web_caption,
)
from demo.grammar import prompt as faithful_prompt
from demo.tokenizer import CONTEXT, load_tokenizer, new_tokenizer, tokenize
from demo.world import OUTLINES, SPLIT_SIZES, Split, render, split
from retrieval.artifacts import TrainedAggregator

MODELS = Path(__file__).parents[3] / "demo" / "models"
TABLES = {"colour": COLOURS, "pattern": PATTERNS, "shape": SHAPES}
SPLITS: tuple[Split, ...] = ("models", "fitting", "unseen")
STAR = Category("red", "striped", "star")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def pixels(category: Category = STAR, seed: int = 0, **settings: Any) -> np.ndarray:
    return np.asarray(render(category, seed, **settings)).astype(int)


# Categories


def test_every_composition_is_a_category_once() -> None:
    names = [category.name for category in categories()]
    assert len(names) == len(set(names)) == 720 == len(COLOURS) * len(PATTERNS) * len(SHAPES)
    assert set(OUTLINES) == set(SHAPES)


def test_the_three_splits_share_nothing_and_cover_all() -> None:
    parts = [set(split(name)) for name in SPLITS]
    assert [len(part) for part in parts] == [SPLIT_SIZES[name] for name in SPLITS] == [480, 96, 144]
    assert set.union(*parts) == set(categories())
    assert sum(map(len, parts)) == 720
    assert split("unseen") == split("unseen")


def test_the_models_have_seen_every_attribute_and_every_pair_with_its_shape() -> None:
    seen = split("models")
    for attribute, table in TABLES.items():
        assert {getattr(category, attribute) for category in seen} == set(table)


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with refused("unknown-split", "name"):
        split("test")  # type: ignore[arg-type]


# Pictures


@pytest.mark.parametrize("style", ["photo", "stock"])
def test_a_picture_is_the_same_every_time_and_another_for_another_seed(style: Any) -> None:
    first = pixels(style=style)
    np.testing.assert_array_equal(first, pixels(style=style))
    assert np.abs(first - pixels(seed=1, style=style)).mean() > 1
    assert np.abs(first - pixels(Category("blue", "striped", "star"), style=style)).mean() > 1


def test_what_was_rendered_before_does_not_matter() -> None:
    expected = pixels(seed=5)
    for seed, size in ((3, 32), (4, 64), (5, 100)):
        pixels(seed=seed, size=size)
    np.testing.assert_array_equal(pixels(seed=5), expected)


@pytest.mark.parametrize("size", [16, 64, 200])
@pytest.mark.parametrize("style", ["photo", "stock"])
def test_pictures_have_the_size_asked_for(size: int, style: Any) -> None:
    image = render(STAR, 0, style=style, size=size)
    assert image.size == (size, size)
    assert image.mode == "RGB"


def test_a_larger_picture_shows_the_same_scene() -> None:
    small, large = pixels(style="stock"), pixels(style="stock", size=256)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 4
    assert np.abs(pixels(style="stock", seed=1) - shrunk).mean() > 8


def test_stock_pictures_are_tidier_than_photos() -> None:
    """The border of a stock picture is a soft, light gradient; a photo's has texture, clutter and noise."""

    def roughness(image_HWC: np.ndarray) -> float:
        edge = np.concatenate([image_HWC[0], image_HWC[-1]]).astype(float)
        return float(np.abs(np.diff(edge, axis=0)).mean())

    chosen = split("unseen")[::12]
    stock = [pixels(category, style="stock") for category in chosen]
    photos = [pixels(category) for category in chosen]
    assert max(map(roughness, stock)) < min(map(roughness, photos))
    assert min(image[:2].mean() for image in stock) > 150


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_pattern_is_drawn_in_its_colour(shape: str) -> None:
    for pattern in PATTERNS:
        red, green = (pixels(Category(colour, pattern, shape), style="stock") for colour in ("red", "green"))
        assert ((red[..., 0] - red[..., 1]) > 80).mean() > 0.04
        assert ((green[..., 1] - green[..., 0]) > 60).mean() > 0.04
        assert ((green[..., 0] - green[..., 1]) > 80).mean() < 0.01


def test_patterns_differ_in_ink() -> None:
    means = {pattern: pixels(Category("grey", pattern, "square"), style="stock").mean() for pattern in PATTERNS}
    assert means["plain"] == max(means.values())
    assert len({round(value, 1) for value in means.values()}) == len(PATTERNS)


# Language

NAME_WORDS = {word for table in TABLES.values() for value in table for word in words(value)}


def clauses(use: Use) -> Iterator[tuple[str, str]]:
    """Yield every clause with the attribute value that it describes."""
    for table in TABLES.values():
        for value, wording in table.items():
            yield from ((value, clause) for clause in wording.clauses(use))


@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_descriptions_hold_no_word_of_any_name(use: Use) -> None:
    rng = np.random.default_rng(0)
    for category in categories():
        assert not NAME_WORDS.intersection(words(describe(category, use, rng)))
    for value, clause in clauses(use):
        assert not NAME_WORDS.intersection(words(clause)), value


@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_a_description_speaks_of_all_three_attributes(use: Use) -> None:
    rng = np.random.default_rng(1)
    for category in categories():
        text = describe(category, use, rng)
        for attribute, table in TABLES.items():
            wording: Any = table[getattr(category, attribute)]
            assert any(clause in text for clause in wording.clauses(use)), (text, attribute)
        assert "{" not in text


@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_a_clause_belongs_to_one_value(use: Use) -> None:
    found = [clause for _, clause in clauses(use)]
    assert len(found) == len(set(found))


def test_no_paraphrase_of_the_evaluation_is_in_training() -> None:
    everything = " | ".join([*every_training_text(), *training_captions()])
    for value, clause in clauses("evaluation"):
        assert clause not in everything, value
    assert not set(grammar._FRAMES["training"]) & set(grammar._FRAMES["evaluation"])


def test_every_word_of_the_evaluation_is_in_training() -> None:
    known = {word for text in training_captions() for word in words(text)}
    rng = np.random.default_rng(0)
    used = {word for category in categories() for word in words(describe(category, "evaluation", rng))}
    used |= {word for _, clause in clauses("evaluation") for word in words(clause)}
    assert used <= known


def training_captions() -> list[str]:
    rng = np.random.default_rng(0)
    return [learn(category, rng) for learn in (faithful_prompt, web_caption) for category in categories() * 4]


def test_the_captions_of_the_generator_are_true_and_those_of_the_vlm_not_always() -> None:
    rng = np.random.default_rng(0)
    named = [faithful_prompt(category, rng).startswith(category.name) for category in categories()]
    assert 0.5 < np.mean(named) < 0.7
    named = [category.name in web_caption(category, rng) for category in categories() * 3]
    assert 0.2 < np.mean(named) < 0.5


def test_texts_depend_on_the_random_generator_alone() -> None:
    for make in (faithful_prompt, web_caption):
        texts = [make(STAR, np.random.default_rng(seed)) for seed in range(40)]
        assert texts == [make(STAR, np.random.default_rng(seed)) for seed in range(40)]
        assert len(set(texts)) > 5


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return new_tokenizer(every_training_text())


def test_every_caption_fits_into_the_context(tokenizer: Any) -> None:
    def longest(options: Any) -> str:
        return max(options, key=lambda text: len(tokenizer(text).input_ids))

    texts = []
    for use in ("training", "evaluation"):
        carrier = longest(grammar._CARRIERS)
        for category in categories():
            parts = {
                attribute: longest(table[getattr(category, attribute)].clauses(use))  # type: ignore[attr-defined]
                for attribute, table in TABLES.items()
            }
            for frame in grammar._FRAMES[use]:  # type: ignore[index]
                texts.append(f"{category.name}, {frame.format(carrier=carrier, **parts)}")
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert max(lengths) <= CONTEXT
    assert max(lengths) > CONTEXT // 2


def test_tokens_are_padded_with_the_end_and_give_the_text_back(tokenizer: Any) -> None:
    tokens = tokenize(tokenizer, ["a red striped star", "Ünïcode 🎈"])
    assert tokens.shape == (2, CONTEXT)
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokens.max()
    assert (tokens[:, -1] == tokenizer.eos_token_id).all()
    assert tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == "a red striped star"
    assert tokenizer.decode(tokens[1], skip_special_tokens=True).strip() == "ünïcode 🎈"
    assert tokenizer.unk_token_id not in tokens[1, 1:8].tolist() or tokenizer.unk_token_id == tokenizer.eos_token_id


def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    text = ["something like a coin, with polka spots and sky coloured"]
    assert tokenize(load_tokenizer(tmp_path), text).equal(tokenize(tokenizer, text))


def vocabulary() -> set[str]:
    """Every word that a text of this world may have."""
    texts = [*every_training_text(), *(clause for _, clause in clauses("evaluation"))]
    return {word for text in texts for word in words(text)}


def test_every_word_of_the_grammar_is_one_token(tokenizer: Any) -> None:
    assert {word for word in vocabulary() if len(tokenizer.tokenize(word)) != 1} == set()


# The committed models


def committed(part: str, file: str) -> Path:
    if not (MODELS / part / file).exists():
        pytest.skip(f"demo/models/{part} is not there (yet)")
    return MODELS / part


def test_the_committed_vlm_loads_and_knows_this_world() -> None:
    folder = committed("vlm", "open_clip_model.safetensors")
    from retrieval.models.vlm import VLM

    vlm = VLM.load(f"local-dir:{folder}", device="cpu", dtype="float32")
    assert vlm.context_length == CONTEXT
    chosen = split("models")[::40]
    text_BD = vlm.encode_text([category.name for category in chosen])
    image_BD = vlm.encode_images(np.stack([vlm.preprocess.pixels(render(category, 5000)) for category in chosen]))
    right = (image_BD @ text_BD.T).argmax(axis=1) == np.arange(len(chosen))
    assert right.mean() > 0.5  # chance is 1 in 12


def test_the_committed_tokenizers_are_one_and_know_every_word() -> None:
    known = load_tokenizer(committed("vlm", "tokenizer.json"))
    assert {word for word in vocabulary() if len(known.tokenize(word)) != 1} == set()
    if (MODELS / "generator" / "tokenizer").exists():
        other = load_tokenizer(MODELS / "generator" / "tokenizer")
        assert other.get_vocab() == known.get_vocab()


def test_the_committed_vision_encoder_loads_and_tells_categories_apart() -> None:
    folder = committed("vision", "model.safetensors")
    from retrieval.models.vision import VisionEncoder

    vision = VisionEncoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")
    chosen = split("unseen")[::12]
    a_BD, b_BD = (
        vision.encode_images(np.stack([vision.preprocess.pixels(render(category, seed)) for category in chosen]))
        for seed in (5000, 5001)
    )
    right = (a_BD @ b_BD.T).argmax(axis=1) == np.arange(len(chosen))
    assert right.mean() > 0.5


def test_the_committed_generator_loads_and_paints_what_it_is_asked_for() -> None:
    folder = committed("generator", "model_index.json")
    from retrieval.models.generator import Generator

    generator = Generator.load(str(folder), steps=8, guidance=4.0, device="cpu")
    red, green = generator.imagine(["red plain square", "green plain square"], 2)
    assert red.pixels_KHWC.shape == (2, 64, 64, 3)
    assert red.rejected == green.rejected == []
    for middle, strong, weak in ((red.pixels_KHWC, 0, 1), (green.pixels_KHWC, 1, 0)):
        centre = middle[:, 24:40, 24:40].astype(int).mean(axis=(1, 2))
        assert (centre[:, strong] - centre[:, weak] > 30).all()


def test_committed_models_stay_small_and_say_how_they_came() -> None:
    if not MODELS.exists():
        pytest.skip("demo/models is not there (yet)")
    size = sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file())
    assert size < 25 * 2**20
    for part in {folder.name for folder in MODELS.iterdir() if folder.is_dir()} - {"aggregator"}:
        assert (MODELS / f"{part}.json").exists()
    trained = TrainedAggregator.open(MODELS / "aggregator").manifest.training
    assert set(trained["labels"]) | set(trained["validation_labels"]) == {
        c.name for c in split("models") + split("fitting")
    }
    assert trained["history"]
    assert str(MODELS.parents[1]) not in (MODELS / "aggregator/manifest.json").read_text()
