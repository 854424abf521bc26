"""What one image added to an index in an object store costs, as it was and as it is, in one run.

    .venv/bin/python -m benchmarks.add_one [--rows 100000] [--shards 4]

An index of synthetic embeddings (2 × 320 dimensions) is built in a bucket of moto's S3 server, in this process. Then a
gallery row is added by ``pipelines.growth.index_batch`` (without embedding it): once with all shards measured and no
cache, as it was; once more, on a machine whose cache is empty; and a third time there. A removal follows. Bytes are
those that the server sent. At last, up to half of the rows are removed, and recall is measured again over all shards.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("AWS_ACCESS_KEY_ID", "x")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "x")
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

import numpy as np
from moto.moto_server.threaded_moto_server import DomainDispatcherApplication, ThreadedMotoServer

from benchmarks.growth import with_batch
from benchmarks.index_scale import ROWS_PER_CLASS, write_gallery
from cluster.profile import load_profile
from cluster.session import session
from pipelines.growth import index_batch, remove
from pipelines.index import build_index
from pipelines.recall import measure_recall
from pipelines.selection import Selection
from retrieval.artifacts import Gallery, Index
from retrieval.folder import Folder
from retrieval.index.cache import BYTES, FOLDER

sent = 0


class Uncounted:
    """For what would count shards."""

    def add(self, _: int) -> None:
        pass


def count_bytes() -> None:
    plain: Callable[..., Any] = DomainDispatcherApplication.__call__

    def counting(self: Any, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        global sent
        for piece in plain(self, environ, start_response):
            sent += len(piece)
            yield piece

    DomainDispatcherApplication.__call__ = counting  # type: ignore[method-assign]


def tell(what: str, call: Callable[[], Any]) -> tuple[float, int]:
    started, before = time.monotonic(), sent
    call()
    seconds, read = time.monotonic() - started, sent - before
    print(f"{what:44} {seconds:7.1f} s {read / 1e6:9.1f} MB", flush=True)
    return seconds, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    profile, rows = load_profile("tiny"), arguments.rows
    count_bytes()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    target = Folder(f"s3://bucket/target?{options}")
    Folder(f"s3://bucket?{options}").create()
    with tempfile.TemporaryDirectory() as scratch, session("none"):
        folder = Path(scratch)
        os.environ[FOLDER] = str(folder / "builder")
        near, _, _ = write_gallery(folder / "gallery", rows)
        for name in [*near.parts(), "manifest.json"]:
            (target / "gallery").write_bytes(name, near.folder.read_bytes(name))
        gallery = Gallery.open(target / "gallery")
        index = build_index(gallery, (target / "index").uri, profile, shards=arguments.shards, factory="IVF256,SQ8")
        size = sum(record.bytes for record in index.manifest.shards)
        print(f"{rows:,} rows, {arguments.shards} shards, {index.manifest.factory}, {size / 1e6:.1f} MB", flush=True)

        def add(seed: int) -> None:
            nonlocal gallery, index
            new, _, _ = write_gallery(folder / f"new {seed}", 1, classes=rows // ROWS_PER_CLASS, seed=seed)
            index = index_batch(*with_batch(gallery, new), [], gallery, index, profile)
            gallery = Gallery.open(gallery.folder)

        with patch("pipelines.growth.measured_before", lambda _: []), patch.dict(os.environ, {BYTES: "0"}):
            was = tell("add, all measured, nothing cached (as it was)", lambda: add(1))
        os.environ[FOLDER] = str(folder / "another")
        now = tell("add, what is new measured", lambda: add(2))
        tell("add again", lambda: add(3))
        chosen = Selection(ids=[gallery.folder.read_table(gallery.parts()[0], ["id"])["id"][0].as_py()])
        tell("remove", lambda: remove(chosen, gallery, index, profile.index))
        with patch.dict(os.environ, {FOLDER: str(folder / "node")}):
            opened = Index.open(target / "index")
            tell("all shards opened on a node", opened.shards)
            tell("and once more", opened.shards)
        print(f"seconds: {now[0] / was[0]:.2f} of what it was; bytes: {now[1] / was[1]:.3f}", flush=True)
        for share in (0.1, 0.25, 0.5):
            rng, left = np.random.default_rng(0), [name for table in gallery.tables(["id"]) for name in table["id"]]
            gone = rng.choice(len(left), round(share * rows) - (rows - len(left)), replace=False)
            index = remove(Selection(ids=[left[n].as_py() for n in gone]), gallery, index, profile.index).index
            gallery = Gallery.open(gallery.folder)
            again = measure_recall(index, range(len(index.manifest.shards)), profile.index, Uncounted()).recall  # type: ignore[arg-type]
            for depth, of in again.items():
                known = index.manifest.recall[depth]
                print(f"{share:.0%} removed: recall@{depth} by λ is in the manifest {known}, measured again {of}")
    server.stop()


if __name__ == "__main__":
    main()
