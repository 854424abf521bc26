"""INQUIRE: expert texts about the natural world, over the images of iNat24 (Vendrow et al., NeurIPS 2024).

The format is that of ``data/README.md`` of github.com/inquire-benchmark/INQUIRE: ``inquire_queries_val.csv`` and
``inquire_queries_test.csv`` have ``query_id`` and ``query_text``, ``inquire_annotations.csv`` a row for every relevant
pair, ``query_id`` and ``image_path`` (``train/04686_…/903be103….jpg``). The folder is theirs, ``data/inquire``. Their
``src/metrics.py`` gives AP and nDCG at 50; AP is divided by min(50, relevant images).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from retrieval.folder import Folder
from retrieval.published.files import read_csv
from retrieval.published.query import Benchmark, BenchmarkQuery


def read(folder: Folder, part: str) -> Iterator[BenchmarkQuery]:
    """Yield the queries of a split."""
    relevant: defaultdict[str, list[str]] = defaultdict(list)
    for row in read_csv(folder, "inquire_annotations.csv", ("query_id", "image_path")):
        relevant[row["query_id"]].append(row["image_path"])
    for row in read_csv(folder, f"inquire_queries_{part}.csv", ("query_id", "query_text")):
        yield BenchmarkQuery(row["query_id"], tuple(relevant[row["query_id"]]), text=row["query_text"])


BENCHMARK = Benchmark("inquire", ("test", "val"), ("ap_at_50", "ndcg_at_50"), read)
