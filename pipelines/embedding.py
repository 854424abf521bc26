"""Embedding a batch: its list of inputs to parts of a Gallery.

    list of inputs ─▶ read, decode, preprocess ─▶ embed (a pool of workers) ─▶ write

An image is decoded once and crosses to a worker once: each worker holds both encoders. A pool for each encoder would
send every image's pixels twice, and on a GPU the two take turns anyway. An input that cannot be used becomes a row of
the rejected table. A checkpoint notes which inputs are written, so that an interrupted job is resumed there.
"""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc

from cluster.profile import Profile
from cluster.progress import ProgressCounter
from pipelines import checkpoint
from pipelines.decoder import Decoder
from pipelines.embedder import Embedder
from pipelines.encoders import Encoders
from pipelines.executor import Checkpoint, Each, Files, Workers
from pipelines.running import current_executor
from retrieval.artifacts import Gallery
from retrieval.artifacts.gallery import REJECTED_SCHEMA
from retrieval.folder import Folder
from retrieval.sources.reader import InputReader

BLOCKS, ROWS_PER_BLOCK = 1024, (64, 16_384)


def rows_per_block(rows: int) -> int:
    """Return how many inputs make a block, and a part: about a thousand of them, each neither tiny nor too long to be
    lost.
    """
    return min(max(rows // BLOCKS, ROWS_PER_BLOCK[0]), ROWS_PER_BLOCK[1])


def embed(
    batch: Folder,
    inputs: int,
    source: str,
    profile: Profile,
    encoders: Encoders,
    schema: pa.Schema,
    counter: ProgressCounter,
) -> None:
    """Embed the inputs that are listed in ``batch`` and not yet written there.

    Args:
        batch: holds ``inputs/``; is given ``parts/`` and ``checkpoint/``.
        inputs: how many there are in all.
        schema: of the parts.
    """
    stage = profile.embed
    listed = Files(batch, batch.files("inputs", ".parquet"), block=max(rows_per_block(inputs), stage.batch))
    preprocesses = encoders.vlm_preprocess, encoders.vision_preprocess
    # A worker on CPUs decodes with as many as it embeds with, in turn; one on a GPU is fed by tasks of one CPU each.
    threads = 1 if stage.gpus else max(1, int(stage.cpus))
    decoder = Decoder(InputReader(source), *preprocesses, batch=batch.name, threads=threads, counter=counter)
    current_executor().write(
        listed,
        Each(decoder, stage.batch),
        Workers(Embedder, (profile, encoders, counter), stage),
        sink=PartsSink(batch / "parts", schema, counter),
        checkpoint=Checkpoint(batch / "checkpoint", "input"),
    )


def count_written(batch: Folder) -> int:
    """Return how many inputs of a batch are written for good."""
    return checkpoint.count_written(batch / "checkpoint")


class PartsSink:
    """Writes embedded and rejected rows to two Parquet files of one name each (``Gallery.EMBEDDED``, ``REJECTED``)."""

    def __init__(self, folder: Folder, schema: pa.Schema, counter: ProgressCounter | None = None) -> None:
        self.folder = folder
        self.schema = schema
        self.counter = counter

    def write(self, rows: pa.Table, name: str) -> None:
        started = time.perf_counter()
        usable = rows["reason"].is_null()
        for ending, table in (
            (Gallery.EMBEDDED, rows.filter(usable).select(self.schema.names).cast(self.schema)),
            (Gallery.REJECTED, rows.filter(pc.invert(usable)).select(REJECTED_SCHEMA.names)),
        ):
            if table.num_rows:
                self.folder.write_table(name + ending, table)
        if self.counter is not None:
            self.counter.add(write=time.perf_counter() - started)
