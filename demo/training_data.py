"""What the tiny models are trained on; and the rendered sets of it, cached as uint8 arrays."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.lib.format import open_memmap

from cluster.cores import usable_cores
from demo.grammar import Category
from demo.world import Split, Style, render, split

C = TypeVar("C")


class TrainingSet(NamedTuple, Generic[C]):
    """N square images, uint8 (N, H, W, 3), the number (N,) of each one's category, and the categories."""

    images_NHWC: np.ndarray
    category_N: np.ndarray
    categories: list[C]


def rendered(folder: Path, name: Split, style: Style, per_category: int, *, first: int = 0) -> TrainingSet[Category]:
    """Render ``per_category`` images of every category of a split, or map the file that an earlier call left in
    ``folder``.
    """
    chosen = split(name)
    file = folder / f"{name}-{style}-{first}+{per_category}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npy")
        images = open_memmap(partial, "w+", np.uint8, (len(chosen) * per_category, 64, 64, 3))
        jobs = [(category, style, per_category, first) for category in chosen]
        with ProcessPoolExecutor(usable_cores()) as pool:
            for i, block in enumerate(pool.map(_render_category, jobs, chunksize=8)):
                images[i * per_category : (i + 1) * per_category] = block
        images.flush()
        partial.rename(file)
    images_NHWC = np.load(file, mmap_mode="r", allow_pickle=False)
    return TrainingSet(images_NHWC, np.repeat(np.arange(len(chosen)), per_category), chosen)


def _render_category(job: tuple[Category, Style, int, int]) -> np.ndarray:
    category, style, count, first = job
    return np.stack([np.asarray(render(category, first + i, style=style)) for i in range(count)])
