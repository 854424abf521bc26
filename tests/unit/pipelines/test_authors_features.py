"""Features in the layout that CLETIR's authors released: their script's numbers, and what does not go together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from errors import refused
from synthetic import directions

from pipelines.authors_features import import_features
from pipelines.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("in_process")

ROWS, VLM_DIM, VISION_DIM, IMAGES = 40, 6, 5, 3
CLASSES = ["zebra", "ant", "bee"]
METHODS = ("", "_dbr")


def features(rng: np.random.Generator) -> dict[str, Any]:
    """Files by name: arrays, dicts to pickle, and JSON."""
    files: dict[str, Any] = {
        "clip/toys_val_clip_db.npy": directions(ROWS, VLM_DIM, rng),
        "dino/toys_val_dino_db.npy": directions(ROWS, VISION_DIM, rng),
        "toys_val_cfg.json": {
            "0": {"ok": list(range(10))},
            "1": {"ok": list(range(10, 25)), "junk": [0, 39]},
            "2": {"ok": list(range(25, 38))},
        },
    }
    for method in METHODS:
        files[f"dino/toys_dino_q_img{method}.pkl"] = {
            label: [directions(IMAGES, VISION_DIM, rng).T, "names of files"] for label in [*CLASSES, "unused"]
        }
        files[f"clip/toys_clip_q_text{method}.pkl"] = {
            label: directions(7, VLM_DIM, rng) for label in [*CLASSES[::-1], "unused"]
        }
    return files


def write(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        file = root / "aggregator" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".npy"):
            np.save(file, content, allow_pickle=True)
        else:
            file.write_bytes(pickle.dumps(content) if name.endswith(".pkl") else json.dumps(content).encode())
    return root


def their_ap(scores: np.ndarray, truth: dict[str, list[int]]) -> float:
    """Average precision as their script has it: junk out, then trapezoids."""
    order = [row for row in np.argsort(-scores, kind="stable") if row not in truth.get("junk", [])]
    area, found = 0.0, 0
    for place, row in enumerate(order):
        if row in truth["ok"]:
            before = found / place if place else 1.0
            found += 1
            area += (before + found / (place + 1)) / 2
    return area / len(truth["ok"])


@pytest.fixture
def files() -> dict[str, Any]:
    return features(np.random.default_rng(0))


CHOSEN = {"classes": CLASSES}


def test_the_numbers_are_those_of_the_script(tmp_path: Path, files: dict[str, Any]) -> None:
    made = import_features(write(tmp_path / "released", files), "toys", tmp_path / "made", **CHOSEN)
    assert made.kinds == ["name", "description"]
    assert made.ignored == ["unused"]
    assert made.text_norms[1] < 0.95  # means of templates, as they are
    result = evaluate(made.gallery, made.queries, extra={"fixed": 0.1})
    found = {(row["label"], row["kind"], row["system"]): row["ap"] for row in result.table.to_pylist()}
    assert len(found) == 3 * 2 * 4
    c, d = (files[name].astype(np.float16).astype(np.float64) for name in list(files)[:2])
    for kind, method in zip(made.kinds, METHODS, strict=True):
        for number, label in enumerate(CLASSES):
            t = files[f"clip/toys_clip_q_text{method}.pkl"][label].mean(axis=0)
            v = files[f"dino/toys_dino_q_img{method}.pkl"][label][0].mean(axis=1)
            v /= np.linalg.norm(v)
            truth = files["toys_val_cfg.json"][str(number)]
            assert found[label, kind, "text"] == pytest.approx(their_ap(c @ t, truth), abs=1e-12)
            fixed = 0.9 * (c @ t) + 0.1 * (d @ v)
            assert found[label, kind, "fixed"] == pytest.approx(their_ap(fixed, truth), abs=1e-12)


def test_rows_have_the_labels_of_their_classes_unless_they_are_of_several(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    made = import_features(write(tmp_path / "released", files), "toys", tmp_path / "made", **CHOSEN)
    labels = [label for table in made.gallery.tables(["label"]) for label in table["label"].to_pylist()]
    assert labels == ["zebra"] * 10 + ["ant"] * 15 + ["bee"] * 13 + [None] * 2
    files["toys_val_cfg.json"]["2"]["ok"].append(0)
    made = import_features(write(tmp_path / "released", files), "toys", tmp_path / "again", **CHOSEN)
    assert [table["label"].null_count for table in made.gallery.tables(["label"])] == [ROWS]


def test_the_order_of_the_classes_is_that_of_the_images_file(tmp_path: Path, files: dict[str, Any]) -> None:
    for name in files:
        if name.endswith(".pkl"):
            del files[name]["unused"]
    made = import_features(write(tmp_path / "released", files), "toys", tmp_path / "made")
    rows = {row["label"]: row["relevant"] for row in made.queries.table(["label", "relevant", "id"]).to_pylist()}
    assert rows["ant"] == [f"{number:08d}" for number in range(10, 25)]
    assert made.ignored == []


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(files: dict[str, Any]) -> None:
        files[name] = value(files[name])

    return change


def of_class(label: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: found | {label: value(found[label])}


IMAGES_FILE, TEXTS_FILE, DB, CFG = (
    "dino/toys_dino_q_img.pkl",
    "clip/toys_clip_q_text.pkl",
    "clip/toys_val_clip_db.npy",
    "toys_val_cfg.json",
)


@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        (changed(DB, lambda rows: rows[:-1]), "wrong-count", "has 39 rows and dino/toys_val_dino_db.npy 40"),
        (changed(DB, lambda rows: rows * 2), "not-unit", "40 vectors are not of norm 1; the first, 0, has 2"),
        (changed(DB, lambda rows: np.where(rows == rows[3], np.nan, rows)), "not-finite", "1 vectors are not finite"),
        (changed(DB, lambda rows: rows[0]), "wrong-shape", "must be of the shape (rows, dimensions), not (6,)"),
        (changed(DB, lambda rows: rows.astype(object)), "damaged", "it is not .npy of numbers"),
        (changed(DB, lambda rows: rows.astype(str)), "damaged", "not numbers"),
        (changed(CFG, lambda cfg: {"0": cfg["0"], "1": cfg["1"]}), "wrong-count", "the ground truth has 2"),
        (changed(CFG, lambda cfg: cfg | {"0": {"ok": [40]}}), "damaged", "ok of query 0 must be places among 40 rows"),
        (changed(CFG, lambda cfg: cfg | {"zebra": {"ok": [1]}}), "damaged", "the numbers of the queries from 0"),
        (changed(CFG, lambda cfg: [cfg]), "damaged", "must be dict, not list"),
        (changed(IMAGES_FILE, lambda found: {"zebra": found["zebra"]}), "wrong-count", "lacks 2 classes: ant, bee"),
        (changed(IMAGES_FILE, of_class("ant", lambda found: [found[0].T])), "wrong-shape", "ant must be of the shape"),
        (changed(IMAGES_FILE, of_class("ant", lambda found: [])), "wrong-shape", "not NoneType"),
        (changed(IMAGES_FILE, of_class("bee", lambda found: [found[0] / 2])), "not-unit", "bee: 3 vectors"),
        (changed(IMAGES_FILE, list), "damaged", "must be a dict of classes, not list"),
        (changed(TEXTS_FILE, of_class("ant", lambda found: found[:, :5])), "wrong-shape", "(templates, 6), not"),
        (changed(TEXTS_FILE, of_class("ant", lambda found: found * 3)), "not-unit", "ant: the norm of a text"),
        (changed(TEXTS_FILE, of_class("ant", lambda found: found * np.inf)), "not-finite", "ant: 7 vectors"),
    ],
)  # fmt: skip
def test_files_that_do_not_go_together_are_named(
    tmp_path: Path, files: dict[str, Any], change: Callable[[dict[str, Any]], None], code: str, fact: str
) -> None:
    change(files)
    with refused(code) as error:
        import_features(write(tmp_path / "released", files), "toys", tmp_path / "made", **CHOSEN)
    assert fact in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("missing", [DB, CFG, TEXTS_FILE, "clip/toys_clip_q_text_dbr.pkl"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, files: dict[str, Any], missing: str) -> None:
    del files[missing]
    with refused("missing", "folder") as error:
        import_features(write(tmp_path / "released", files), "toys", tmp_path / "made", **CHOSEN)
    assert missing in str(error.value)


def test_imagenet_needs_its_order_and_a_target_is_not_overwritten(tmp_path: Path, files: dict[str, Any]) -> None:
    with refused("missing", "classes"):
        import_features(tmp_path, "imagenet", tmp_path / "made")
    root = write(tmp_path / "released", files)
    import_features(root, "toys", tmp_path / "made", **CHOSEN)
    with refused("target-exists", "target"):
        import_features(root, "toys", tmp_path / "made", **CHOSEN)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    root = write(tmp_path / "released", files)
    (root / "aggregator" / TEXTS_FILE).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/mark'\ntR.".encode())
    with refused("not-plain", "pickle"):
        import_features(root, "toys", tmp_path / "made", **CHOSEN)
    assert not (tmp_path / "mark").exists()


def test_the_command_imports_and_the_result_is_evaluated(run: Run, tmp_path: Path, files: dict[str, Any]) -> None:
    root, target = write(tmp_path / "released", files), tmp_path / "made"
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    said = run("import-features", root, "toys", target, "--classes", tmp_path / "classes.txt")
    assert said.code == 0
    assert "40 rows; 6 queries (name, description), up to 3 images each" in said.out
    assert "1 classes of the queries' files are no query: unused" in said.out
    said = run("evaluate", target / "gallery", target / "queries", tmp_path / "report", "--address", "none")
    assert said.code == 0
    said = run("suite", target, "--report", tmp_path / "suite", "--address", "none")
    assert said.code == 0
    assert "features:clip" in (tmp_path / "suite/tables.md").read_text()
