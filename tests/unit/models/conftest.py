"""The tiny models that tests of the adapters share, loaded once; tiny networks are run by one thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval.models.generator import Generator
from retrieval.models.vision import VisionEncoder
from retrieval.models.vlm import VLM
from retrieval.query import QueryEncoder

SIZES = [(64, 64), (100, 70), (31, 200), (5, 3), (1, 1), (640, 480), (64, 1900)]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vlm(query_encoder: QueryEncoder) -> VLM:
    return query_encoder.vlm


@pytest.fixture(scope="session")
def vision(query_encoder: QueryEncoder) -> VisionEncoder:
    return query_encoder.vision


@pytest.fixture(scope="session")
def generator(query_encoder: QueryEncoder) -> Generator:
    """Of two steps and guidance 4."""
    return query_encoder.generator


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Random pictures of many sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]
