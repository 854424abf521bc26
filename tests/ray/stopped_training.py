"""A run that its test kills: it trains on a Ray of its own, and stays as it is after its fourth validation.

Arguments: the gallery, the query set, the target.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from training_world import World, train

import training.trainer
from retrieval.artifacts import Gallery, QuerySet


class Waiting(training.trainer.Tracker):
    def write(self, history: list[dict[str, Any]]) -> None:
        super().write(history)
        if len(history) == 4:  # the fourth is written down, and three checkpoints were reported
            threading.Event().wait()


if __name__ == "__main__":
    training.trainer.Tracker = Waiting  # type: ignore[misc]
    gallery, queries, target = sys.argv[1:]
    world = World(Gallery.open(gallery), QuerySet.open(queries))
    train(world, Path(target), address="local", min_workers=1, max_workers=1)
