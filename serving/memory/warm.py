"""Loading a query set, which was imagined in batch, into a store."""

from __future__ import annotations

import logging

import numpy as np

from retrieval.artifacts import QuerySet
from retrieval.errors import UserError
from serving.memory.entry import Remembered, memory_key
from serving.memory.store import Store

log = logging.getLogger("ray.serve")


def warm(store: Store, queries: QuerySet) -> int:
    """Put a query set into a store, so that its queries are answered without imagining; return how many there are.

    The keys have the models, templates, K and seed of its manifest: a service with others does not find them. A store
    that keeps fewer evicts the first ones, and the log says so.

    Raises:
        UserError: the query set does not say which models made it.
        StoreError: the store cannot be used.
    """
    manifest = queries.manifest
    made_by = {role: record.fingerprint for role, record in manifest.models.items()}
    if missing := {"generator", "vision", "vlm"} - set(made_by):
        raise UserError(
            f"the query set {queries.uri} does not say which model made it: {', '.join(sorted(missing))}",
            code="unknown-model",
            field="warm",
        )
    count = 0
    for name in queries.folder.files("queries", ".parquet"):
        for batch in queries.folder.read_table(name).to_batches():
            for i in range(batch.num_rows):
                row = batch.slice(i, 1)
                entry = Remembered.of_row(row, np.arange(len(row["thumbnails"][0])))
                key = memory_key(
                    entry.text,
                    manifest.images,
                    manifest.seed,
                    generator_fingerprint=made_by["generator"],
                    vision_fingerprint=made_by["vision"],
                    vlm_fingerprint=made_by["vlm"],
                    templates=manifest.templates,
                )
                store.put(key, entry.to_bytes())
                count += 1
    if store.entries is not None and count > store.entries:
        log.warning(
            "%s has %s queries, and the store keeps %s: its first %s are not remembered; a redis:// store has room",
            queries.uri,
            *(f"{number:,}" for number in (count, store.entries, count - store.entries)),
        )
    return count
