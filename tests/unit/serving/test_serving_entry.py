"""What a query is remembered by, what an entry is as bytes, and a vocabulary that was imagined in batch."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import refused
from remembering import entry, same
from synthetic import D1, D2, directions, models, write_queries

from retrieval.artifacts import ModelRecord
from retrieval.errors import UserError
from serving.memory.entry import DamagedEntry, Remembered, memory_key, normalised
from serving.memory.local import MemoryStore
from serving.memory.memory import Memory
from serving.memory.sqlite import SqliteStore
from serving.memory.warm import warm

# Keys


def key(text: str = "red star", images: int = 4, seed: int = 0, **changed: Any) -> str:
    made_by = {"generator_fingerprint": "g", "vision_fingerprint": "d", "vlm_fingerprint": "v", "templates": ["{}"]}
    return memory_key(text, images, seed, **(made_by | changed))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  red\t\n star ", "red star"),
        ("red\u00a0\u2003star\u3000", "red star"),
        ("cafe\u0301", "café"),
        ("Å", "Å"),  # the sign of the unit is the letter
        ("Red STAR", "Red STAR"),
        ("x² ﬁne ｆｕｌｌ", "x² ﬁne ｆｕｌｌ"),
        ("half \ud83d", "half ?"),
        ("نجمة حمراء", "نجمة حمراء"),
        ("{} <b> \x00 😀", "{} <b> \x00 😀"),
    ],
)
def test_text_is_normalised(given: str, expected: str) -> None:
    assert normalised(given) == expected
    assert normalised(expected) == expected
    assert key(given) == key(expected)


def test_a_text_that_is_blank_or_too_long_has_no_key() -> None:
    for text in (" \n\u3000", "", "x" * 4001):
        with pytest.raises(UserError):
            key(text)


def test_whatever_an_entry_depends_on_is_in_its_key() -> None:
    keys = [
        key(),
        key("Red star"),
        key("red stars"),
        key(images=5),
        key(seed=1),
        key(generator_fingerprint="g2"),
        key(vision_fingerprint="d2"),
        key(vlm_fingerprint="v2"),
        key(templates=["a photo of {}"]),
        key(templates=["{}", "{}"]),
    ]
    assert len(set(keys)) == len(keys)
    assert len(key()) == 64


# Entries


@pytest.mark.parametrize("images", [0, 1, 8])
def test_an_entry_survives_as_bytes(images: int) -> None:
    made = entry("ünï 😀", images)
    read = Remembered.from_bytes(made.to_bytes())
    assert same(made, read)
    assert (read.vlm_D1.dtype, read.vision_KD2.dtype, read.seeds.dtype) == (np.float32, np.float32, np.int64)
    assert read.vision_KD2.shape == (images, D2)
    assert read.thumbnail(images) is None
    assert read.thumbnail(-1) is None
    assert [read.thumbnail(i) for i in range(images)] == made.thumbnails


def test_damaged_bytes_are_never_an_entry() -> None:
    data = entry().to_bytes()
    step = max(1, len(data) // 400)
    damaged = [data[:cut] for cut in range(0, len(data), step)]
    damaged += [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), step)]
    damaged += [data + b"\0", b"another format" * 10]
    for wrong in damaged:
        with pytest.raises(DamagedEntry):
            Remembered.from_bytes(wrong)


# What version 0.1.0 left behind

KEY = "5bef424629b50ee425a020af0de2df5af78bd77c60ca3005c9c1c2e4080ea228"
ENTRY = (  # deflated, in base 85
    "c-pO0F>ljA6n>5!$3&Lu0ihse@YsO?enF6`N>Rnokuf1Y6qnk8_|m3QhYTG$G8TkTg%Ik%z)*<+B({p7Yz&P20K~+EM9q757h;}bi%LA{eE0l)"
    "?|bij@0`SGl!-kNKAMQ}UU;jy@%_WYt+UDc^S5XBCu{G1=4gQp5CB;dd~l%-9<I<V2Yo=#!>41OpytyWz!XP-<G=!F<9Ltndxo?BE6-8Dzl!V7"
    "yh94KO#E1EiGdUmrIE;et@-u9a2(J^b1X$d>u1RMT%k)f%i$!sm-gfB4B#BO&V}MTRk}ZrcjIEA+b-ym-ym)p#RHK+h`hU+TdUH1nG*-B+xR%F"
    "(5~aigorZwX2?4&Xon@*9-fMaRe2gxIlfioaB=L!Sv*Psz9O%sYO?~)ZLvJBkcX`SUCp<v_WMF}Ko+!%=R<i&YiB!A6?uqIUD!TwQqXTN)hE8I"
    "_@wqFFYlEHcu=(dNPUgFr?`gd;=uH{j^lZxm`c5Nlu!4fYwPbv=EF5}Gkm26wxe>tfw?u&_th<-K5W<Yow8tIA(Wd}G6#$oFuYaR!?GM@{yct_"
    ";j0Y4$?!6NUPqVVU8c9m@J+U_9>aSqe#r14i=Q%l%Hn4XpZz&sZI8|Dn)!(FkC@&u!;cw$!hEt7))(*(e(jRD`=9kLi(4f<J{D1!$^LlWvuQsO"
    "w0`>Jdgs&moz6mg)+xqvykXv7DXD4M+Ae&TQ7Yu_=<iyozQHKP@>2SZ(f=EM0}V^OeE"
)
STORE = """
    CREATE TABLE entries (key TEXT PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL);
    CREATE INDEX by_use ON entries (used);
    CREATE TABLE leases (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    INSERT INTO settings VALUES ('index of here', 's3://there');
    PRAGMA user_version = 1;
"""


def test_what_an_earlier_version_remembered_is_a_hit(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "memory") as database:
        database.executescript(STORE)
        database.execute("INSERT INTO entries VALUES (?, 1, ?)", (KEY, zlib.decompress(base64.b85decode(ENTRY))))
    store = SqliteStore(tmp_path / "memory")
    found = asyncio.run(Memory(store).recall(key()))
    assert key() == KEY
    assert found
    assert (found.text, found.kind, found.rejected) == ("red star", "name", ["constant"])
    np.testing.assert_array_equal(found.vlm_D1, np.array([0.6, 0.8], np.float32))
    np.testing.assert_array_equal(found.vision_KD2, np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32))
    assert (found.seeds.tolist(), found.indices.tolist(), found.thumbnails) == ([7, 9], [0, 2], [b"one", b"two"])
    assert store.setting("index of here") == "s3://there"


# A vocabulary that was imagined in batch


def test_a_query_set_is_loaded_row_for_row_and_found_whatever_kind_its_texts_are_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text_QD1, images = directions(3, D1, rng), [directions(k, D2, rng) for k in (4, 0, 2)]
    made_by = models() | {"generator": ModelRecord(uri="local-dir:generator", fingerprint="sha256:g")}
    queries = write_queries(
        tmp_path / "queries",
        text_QD1,
        images,
        labels=[None] * 3,
        kinds=["name", "description", "description"],
        thumbnail=b"jpeg",
        records=made_by,
    )
    store = SqliteStore(tmp_path / "memory")
    assert warm(store, queries) == 3

    async def found(q: int) -> Remembered | None:
        fingerprints = {f"{role}_fingerprint": record.fingerprint for role, record in made_by.items()}
        key = memory_key(f" text  {q}", 4, 0, templates=["{}"], **fingerprints)
        return await Memory(store).recall(key)

    for q, vision_KD2 in enumerate(images):
        remembered = asyncio.run(found(q))
        assert remembered
        assert remembered.text == f"text {q}"
        np.testing.assert_array_equal(remembered.vlm_D1, text_QD1[q])
        np.testing.assert_array_equal(remembered.vision_KD2, vision_KD2)
        assert remembered.vision_KD2.shape == vision_KD2.shape
        assert remembered.thumbnails == [b"jpeg"] * len(vision_KD2)
        assert remembered.indices.tolist() == remembered.seeds.tolist() == list(range(len(vision_KD2)))
    assert asyncio.run(found(3)) is None


@pytest.mark.parametrize(("entries", "told"), [(2, True), (3, False)])
def test_a_query_set_that_the_store_cannot_keep_is_told(
    entries: int, told: bool, tmp_path: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    made_by = models() | {"generator": ModelRecord(uri="local-dir:generator", fingerprint="sha256:g")}
    vectors = directions(3, D1, rng), [directions(2, D2, rng)] * 3
    queries = write_queries(tmp_path / "queries", *vectors, labels=[None] * 3, records=made_by)
    for store in (MemoryStore(entries), SqliteStore(tmp_path / "memory", entries)):
        serve_log.clear()
        assert warm(store, queries) == 3
        said = [f"{queries.uri} has 3 queries, and the store keeps 2: its first 1 are not remembered"] if told else []
        assert [message.partition(";")[0] for message in serve_log.messages] == said


def test_a_query_set_of_unknown_models_is_refused(tmp_path: Path) -> None:
    vectors = directions(1, D1, np.random.default_rng(0)), [directions(2, D2, np.random.default_rng(0))]
    queries = write_queries(tmp_path, *vectors, labels=[None])
    with refused("unknown-model", "warm"):
        warm(MemoryStore(), queries)
