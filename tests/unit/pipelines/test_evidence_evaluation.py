"""Queries made of evidence are measured by the rankings that a search gives; boxes, junk and rounds included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from errors import refused
from PIL import Image
from tiny_artifacts import Collection

from cluster.profile import Profile
from commands.results import rounds_table
from pipelines.report import measure
from retrieval.evidence import Evidence, Picture, Row, Text
from retrieval.finder import Finder
from retrieval.metrics import average_precision
from retrieval.query import QueryEncoder

pytestmark = pytest.mark.usefixtures("in_process")

STAR, RED = "a star", "red"
BOX = [0.25, 0, 0.9, 1]
PIXELS = (16, 0, 58, 64)


@pytest.fixture(scope="module")
def file(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    path = next(collection.gallery.tables(["path"]))["path"][3].as_py()
    Image.open(collection.folder / "images" / path).save(folder / "given.png")
    ids = collection.ids
    picture = {"picture": "given.png", "box": BOX, "weight": 0.7}
    rows = [
        {"id": "text", "text": STAR, "relevant": ids[:4], "edits": [RED]},
        {"id": "signed", "text": STAR, "evidence": [{"text": RED, "weight": -0.4}], "relevant": ids[:4],
         "junk": ids[4:7]},
        {"id": "picture", "evidence": [picture], "relevant": ids[:3], "junk": [ids[3], "elsewhere"]},
        {"id": "mixed", "kind": "all", "evidence": [picture, {"row": ids[9], "weight": -0.2}, {"text": RED}],
         "relevant": [*ids[2:5], "gone"]},
        {"id": "nothing", "text": STAR, "relevant": []},
    ]  # fmt: skip
    file = folder / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def evidence_of(row: dict[str, Any], folder: Path) -> list[Evidence]:
    pieces: list[Evidence] = [Text(row["text"])] if "text" in row else []
    for piece in row.get("evidence", []):
        weight = piece.get("weight", 1.0)
        if "text" in piece:
            pieces.append(Text(piece["text"], weight))
        elif "row" in piece:
            pieces.append(Row(piece["row"], weight))
        else:
            pieces.append(Picture(Image.open(folder / piece["picture"]).convert("RGB"), weight, PIXELS))
    return pieces


def test_queries_are_ranked_as_the_finder_ranks_them(
    file: Path, collection: Collection, query_encoder: QueryEncoder, profile: Profile, tmp_path: Path
) -> None:
    measured = measure(collection.gallery, file, tmp_path, weight=0.3, profile=profile, rounds=2, address="none")
    evaluation, finder = measured.evaluation, Finder(query_encoder, collection.index)
    rows = {(row["query"], row["system"]): row for row in evaluation.table.to_pylist()}
    written = [row for row in map(json.loads, file.read_text().splitlines()) if row["relevant"]]
    assert set(rows) == {(row["id"], system) for row in written for system in ("text", "visual", "fused")}
    for row in written:
        evidence = evidence_of(row, file.parent)
        for system, weight in (("text", 0.0), ("visual", 1.0), ("fused", 0.3)):
            found = [each.id for each in finder.find(evidence, 24, weight=weight, images=profile.queries.images)]
            left = [id for id in found if id not in row.get("junk", [])]
            hits = [left.index(id) for id in row["relevant"] if id in left]
            expected = average_precision(hits, len(row["relevant"]))
            assert rows[row["id"], system]["ap"] == pytest.approx(expected, abs=1e-12), (row["id"], system)
    assert evaluation.kinds == ["all", "picture", "text"]
    assert evaluation.left_out.without_relevant == [STAR]
    assert (evaluation.left_out.unknown_relevant, evaluation.left_out.unknown_junk) == (["gone"], ["elsewhere"])
    names = ["results.parquet", "summary.json", "gains.png", "contact-sheet.png", "rounds.parquet", "rounds.png"]
    assert sorted(Path(name).name for name in measured.files) == sorted(names)
    assert measured.rounds
    assert rounds_table(measured.rounds).row_count == 3 * 3
    assert pq.read_table(tmp_path / "rounds.parquet").equals(measured.rounds.table)
    assert set(json.loads((tmp_path / "summary.json").read_text())["rounds"]) == {"all", "picture", "text"}
    for name in names[2::3]:
        assert Image.open(tmp_path / name).width > 300
    assert Image.open(tmp_path / "contact-sheet.png").width > 300
    # The text of the first query becomes another in the first round, and so does its ranking.
    first = [row["ap"] for row in measured.rounds.table.to_pylist() if (row["query"], row["round"]) == ("text", 0)]
    assert first[0] == first[1] == rows["text", "fused"]["ap"]


def test_rows_that_are_not_in_the_gallery_are_named(collection: Collection, profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    lines = [{"evidence": [{"row": id}], "relevant": [collection.ids[0]]} for id in (collection.ids[1], "no such id")]
    file.write_text("\n".join(map(json.dumps, lines)))
    with refused("missing", "evidence.0.row") as error:
        measure(collection.gallery, file, tmp_path / "report", profile=profile, address="none")
    assert "line 2: no row" in str(error.value)
    assert "'no such id'" in str(error.value)


def test_a_picture_that_cannot_be_read_and_pieces_that_cancel_out_name_their_line(
    collection: Collection, profile: Profile, tmp_path: Path
) -> None:
    file = tmp_path / "queries.jsonl"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    truth = {"relevant": [collection.ids[0]]}
    good = {"evidence": [{"row": collection.ids[0]}], **truth}
    file.write_text("\n".join(map(json.dumps, [good, {"evidence": [{"picture": "bad.png"}], **truth}])))
    with refused("unusable-image", "picture") as error:
        measure(collection.gallery, file, tmp_path / "report", profile=profile, address="none")
    assert f"{file}, line 2: evidence.0.picture" in str(error.value)
    both = [{"row": collection.ids[0], "weight": weight} for weight in (1, -1)]
    file.write_text("\n".join(map(json.dumps, [good, {"evidence": both, **truth}])))
    with refused("no-direction", "evidence") as error:
        measure(collection.gallery, file, tmp_path / "report", profile=profile, address="none")
    assert f"{file}, line 2: " in str(error.value)


def test_rows_alone_need_no_model(collection: Collection, tmp_path: Path, profile: Profile) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text(json.dumps({"evidence": [{"row": collection.ids[5]}], "relevant": [collection.ids[5]]}))
    absent = profile.model_copy(update={"models": profile.models.model_copy(update={"vlm": "local-dir:/nowhere"})})
    measured = measure(collection.gallery, file, tmp_path / "report", profile=absent, address="none")
    assert measured.evaluation.values("fused", "row").tolist() == [1.0]
    assert np.isfinite(measured.evaluation.gain("fused", "row").mean)
