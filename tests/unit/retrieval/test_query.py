"""From a text to its vectors: templates, images that were accepted or not, pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from errors import refused
from PIL import Image

from retrieval.aggregator import Aggregator, mean_pool
from retrieval.models.imagined import Imagined
from retrieval.query import QueryEncoder, pool

TEXTS = ["a red striped star", "something round, with green checks", "{} {name}"]


def imagined(*counts: int) -> list[Imagined]:
    """Random pictures, so many for each query; two were asked for."""
    rng = np.random.default_rng(0)
    return [
        Imagined(rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8), np.arange(count), ["constant"] * (2 - count))
        for count in counts
    ]


def test_the_text_vector_is_the_unit_mean_over_the_templates(query_encoder: QueryEncoder) -> None:
    found = query_encoder.text_vectors(TEXTS)
    assert found.shape == (3, query_encoder.vlm.dim)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        rows = query_encoder.vlm.encode_text([text, f"a photo of a {text}"])
        mean = rows.mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.abs(found - query_encoder.vlm.encode_text(TEXTS)).max() > 1e-3


def test_no_texts_have_no_vectors(query_encoder: QueryEncoder) -> None:
    assert query_encoder.text_vectors([]).shape == (0, query_encoder.vlm.dim)
    assert query_encoder.encode([], 2) == []


def test_each_query_gets_the_vectors_of_its_own_images(query_encoder: QueryEncoder) -> None:
    pictures = imagined(2, 0, 1)
    found = query_encoder.image_vectors(pictures)
    assert [vectors.shape for vectors in found] == [(count, query_encoder.vision.dim) for count in (2, 0, 1)]
    for one, vectors in zip(pictures, found, strict=True):
        for pixels, vector in zip(one.pixels_KHWC, vectors, strict=True):
            alone = query_encoder.vision.preprocess.pixels(Image.fromarray(pixels))
            np.testing.assert_allclose(vector, query_encoder.vision.encode_images(alone[None])[0], atol=1e-5)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-4


def test_without_any_image_there_are_no_vectors(query_encoder: QueryEncoder) -> None:
    found = query_encoder.image_vectors(imagined(0, 0))
    assert [vectors.shape for vectors in found] == [(0, query_encoder.vision.dim)] * 2


def test_encoding_is_the_sum_of_its_parts_and_follows_the_seed(query_encoder: QueryEncoder) -> None:
    found = query_encoder.encode(TEXTS[:2], 2, seed=5)
    again = query_encoder.encode(TEXTS[:2], 2, seed=5)
    other = query_encoder.encode(TEXTS[:2], 2, seed=6)
    texts = query_encoder.text_vectors(TEXTS[:2])
    for i, query in enumerate(found):
        assert query.text == TEXTS[i]
        assert len(query.vision_KD2) == len(query.imagined.pixels_KHWC) == 2
        np.testing.assert_array_equal(query.vlm_D1, texts[i])
        np.testing.assert_array_equal(query.vision_KD2, query_encoder.image_vectors([query.imagined])[0])
        np.testing.assert_array_equal(query.vision_KD2, again[i].vision_KD2)
        assert np.abs(query.vision_KD2 - other[i].vision_KD2).max() > 1e-6


@pytest.mark.parametrize(("text", "code"), [("", "blank"), ("   ", "blank"), ("x" * 5000, "too-long")])
def test_a_text_that_no_encoder_should_get_is_refused(query_encoder: QueryEncoder, text: str, code: str) -> None:
    with refused(code, "text"):
        query_encoder.encode([text], 1)


@pytest.mark.parametrize("network", [None, Aggregator(5).eval()], ids=["mean", "aggregator"])
def test_pooling_leaves_queries_without_images_at_zero(network: Any) -> None:
    rng = np.random.default_rng(0)
    features_QKD2 = rng.standard_normal((4, 3, 5)).astype(np.float32)
    mask_QK = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
    pooled = pool(features_QKD2, mask_QK, network)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[[1, 3]], np.zeros((2, 5)))
    for q in (0, 2):
        present = torch.from_numpy(features_QKD2[q][mask_QK[q]])[None]
        with torch.no_grad():
            expected = (network or mean_pool)(present)[0].numpy()
        np.testing.assert_allclose(pooled[q], expected, atol=1e-6)
        assert np.linalg.norm(pooled[q]) == pytest.approx(1, abs=1e-5)


def test_pooling_queries_of_which_none_has_an_image() -> None:
    assert not pool(np.ones((2, 1, 5), np.float32), np.zeros((2, 1), bool)).any()
