"""Texts through the VLM: tokens, any text, many texts, several threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from errors import refused
from tiny_models import CONTEXT, VLM_DIM

from retrieval.models.vlm import TEXT_BATCH, VLM
from retrieval.prompts import MAX_CHARACTERS


def test_token_count_is_that_of_the_uncut_text(vlm: VLM) -> None:
    assert vlm.context_length == CONTEXT
    assert vlm.token_count("a red striped star") == 6
    assert vlm.token_count("star " * 100) == 102
    assert vlm.token_count("star " * (CONTEXT - 2)) == CONTEXT


def test_token_count_of_open_clips_own_tokenizer() -> None:
    vlm = VLM.load("random:RN50", device="cpu", dtype="float32")
    assert vlm.context_length == 77
    assert vlm.token_count("a photo of a duck") == 7
    assert vlm.token_count("duck " * 100) == 102
    for text in ("x" * MAX_CHARACTERS, "é" * MAX_CHARACTERS):
        started = time.perf_counter()
        assert vlm.token_count(text) > 77
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text", ["x", "\x00", "a\x00b\x1b[0m\x7f", "\ud800", "مرحبا", "🦆", "{} {0}", "!!!", "'" * 300]
)
def test_any_text_is_embedded(vlm: VLM, text: str) -> None:
    assert vlm.encode_text([text]).shape == (1, VLM_DIM)
    assert vlm.token_count(text) >= 2


@pytest.mark.parametrize(
    ("text", "code"), [("", "blank"), ("   ", "blank"), ("\n", "blank"), ("x" * 2**20, "too-long")]
)
def test_unusable_text_is_refused_at_once(vlm: VLM, text: str, code: str) -> None:
    started = time.perf_counter()
    with refused(code, "text"):
        vlm.encode_text(["a star", text])
    with refused(code, "text"):
        vlm.token_count(text)
    assert time.perf_counter() - started < 20


def test_many_texts_go_through_in_batches(vlm: VLM) -> None:
    texts = ["a star" if i % 2 else "a photo of a blue dotted circle" for i in range(TEXT_BATCH + 3)]
    np.testing.assert_allclose(vlm.encode_text(texts)[-2:], vlm.encode_text(texts[-2:]), atol=1e-5)


def test_one_string_is_not_a_list_of_letters(vlm: VLM) -> None:
    with refused("wrong-type", "texts"):
        vlm.encode_text("a star")


def test_threads_may_share_a_tokenizer(vlm: VLM) -> None:
    errors: list[Exception] = []

    def use() -> None:
        try:
            for _ in range(20):
                vlm.token_count("star " * 60)
                vlm.encode_text(["a star", "a photo of a blue dotted circle"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
