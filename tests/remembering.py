"""Entries of the query memory that are made up, and makers of them that take their time or fail."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import numpy as np
from synthetic import D1, D2, directions

from serving.memory.entry import Remembered


def entry(text: str = "red star", images: int = 3, seed: int = 0) -> Remembered:
    rng = np.random.default_rng(seed)
    return Remembered(
        text=text,
        kind="name",
        vlm_D1=directions(1, D1, rng)[0],
        vision_KD2=directions(images, D2, rng) if images else np.zeros((0, D2), np.float32),
        seeds=rng.integers(0, 2**63 - 1, images),
        indices=np.arange(images),
        thumbnails=[f"jpeg {i}".encode() for i in range(images)],
        rejected=["constant"],
    )


def same(a: Remembered, b: Remembered) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Remembered))


class Maker:
    """Makes an entry, slowly or when it ``may``; counts how often it was asked to, and how often it finished."""

    def __init__(self, seconds: float = 0.1, error: Exception | None = None, *, may: bool = True) -> None:
        self.seconds, self.error = seconds, error
        self.begun = self.ended = 0
        self.may = asyncio.Event()
        if may:
            self.may.set()

    async def __call__(self) -> Remembered:
        self.begun += 1
        await self.may.wait()
        await asyncio.sleep(self.seconds)
        self.ended += 1
        if self.error:
            raise self.error
        return entry()
