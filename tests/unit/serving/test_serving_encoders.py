"""Batches of texts in a replica: cut into parts, which idle cores compute at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.profile import load_profile
from serving.deployments import encoders
from serving.deployments.encoders import LEAST_PART, VLMTowers, idle_cores, parts_of


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
@pytest.mark.parametrize("count", [1, LEAST_PART, 2 * LEAST_PART - 1, 2 * LEAST_PART, 16, 37])
def test_parts_are_the_batch_in_its_order(count: int, cores: int) -> None:
    texts = [str(i) for i in range(count)]
    parts = parts_of(texts, cores)
    assert [text for part in parts for text in part] == texts
    assert len(parts) <= cores
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == 1 or min(lengths) >= LEAST_PART
    assert len(parts) == max(1, min(cores, count // LEAST_PART))


def test_idle_cores_are_those_that_pytorch_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "usable_cores", lambda: 8)
    for threads, cores in ((1, 8), (4, 2), (16, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert idle_cores("cpu") == cores
        assert idle_cores("cuda") == 1


def test_parts_of_a_batch_are_computed_at_once(profile_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "usable_cores", lambda: 2 * torch.get_num_threads())
    replica: Any = VLMTowers.func_or_class(load_profile(profile_file))
    texts = [f"a {'red ' * i}star" for i in range(2 * LEAST_PART)]
    alone = [replica._many_texts([text])[0] for text in texts]
    both, encode = threading.Barrier(2), replica._vlm.encode_text

    def meeting(texts: Sequence[str]) -> np.ndarray:
        both.wait(60)  # fails unless another thread is in here as well
        return encode(texts)

    monkeypatch.setattr(replica._vlm, "encode_text", meeting)
    together = replica._many_texts(texts)
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found.vlm_D1, expected.vlm_D1, atol=1e-5)
        assert found.tokens == expected.tokens
