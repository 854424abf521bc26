"""CIFAR as its authors distribute it for Python: pickles of Python 2, read as torchvision reads them."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Run
from errors import refused
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from pipelines.vocabulary import read_vocabulary
from retrieval.datasets.check import check_counts, unreadable
from retrieval.datasets.contents import read_contents
from retrieval.datasets.prepare import prepare
from retrieval.datasets.recipe import load_recipe

CLASSES = {name: list(load_recipe(name).classes.listed) for name in ("cifar10", "cifar100")}
SETS = {
    "cifar10": ("cifar-10-batches-py", "test_batch", "labels", "batches.meta", "label_names"),
    "cifar100": ("cifar-100-python", "test", "fine_labels", "meta", "fine_label_names"),
}


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 wrote its strings: as bytes that are no ``bytes``."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = _string


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)


def written(root: Path, name: str, count: int = 4, **changes: Any) -> Path:
    """Write a set of ``count`` images of the classes 0, 1, 2, …; ``changes`` are of the dict of its test batch."""
    folder, batch, label, meta, key = SETS[name]
    labels = [number % len(CLASSES[name]) for number in range(count)]
    content = {
        "batch_label": "testing batch 1 of 1",
        label: labels,
        "data": pixels(count),
        "filenames": [f"image_s_{number:06d}.png" for number in range(count)],
        **changes,
    }
    (root / folder).mkdir(parents=True)
    (root / folder / batch).write_bytes(pickled(content))
    (root / folder / meta).write_bytes(pickled({key: CLASSES[name], "num_vis": 3072}))
    return root


@pytest.mark.parametrize("name", SETS)
def test_images_and_classes_are_those_that_torchvision_reads(name: str, tmp_path: Path) -> None:
    root = written(tmp_path / "root", name)
    assert b"numpy.core.multiarray" in (root / SETS[name][0] / SETS[name][1]).read_bytes()
    peer = type("Peer", ({"cifar10": CIFAR10, "cifar100": CIFAR100}[name],), {})
    peer.train_list, peer.test_list, peer.meta = [], [[SETS[name][1], None]], {**peer.meta, "md5": None}
    expected = [(np.asarray(image), number) for image, number in peer(root, train=False)]
    made = prepare(load_recipe(name), root, tmp_path / "prepared", partial=True)
    rows = pq.read_table(tmp_path / "prepared/images").to_pylist()
    assert [row["path"] for row in rows] == [f"{SETS[name][1]}/{number:05d}.png" for number in range(4)]
    for row, (image, number) in zip(rows, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), image)
        assert row["label"] == CLASSES[name][number]
    assert {entry.label for entry in read_vocabulary(made.queries)} == set(CLASSES[name][:4])


def test_a_whole_set_has_no_findings_and_the_folder_of_the_pickles_will_do(tmp_path: Path, run: Run) -> None:
    recipe = load_recipe("cifar10")
    expected = recipe.expected.model_copy(update={"images": 20, "per_class": 2})
    recipe = recipe.model_copy(update={"expected": expected})
    root = written(tmp_path, "cifar10", 20) / "cifar-10-batches-py"
    checked = check_counts(recipe, root)
    assert checked.is_whole
    assert unreadable(checked.contents, 2, lambda _: None) == []
    said = run("dataset", "check", "cifar10", "--root", root)
    assert said.code == 1
    assert "airplane: 2 images, expected 1,000" in said.out


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"data": pixels(4).astype(np.int16)}, "data must be an array of uint8"),
        ({"data": pixels(4)[:, :768]}, "data must be an array of uint8 with rows of 3,072"),
        ({"data": [1, 2]}, "data must be an array"),
        ({"labels": [0, 1, 2]}, "it has 4 images and 3 labels"),
        ({"labels": ["0", "1", "2", "3"]}, "labels must be a list of numbers"),
        ({"labels": None}, "labels must be a list of numbers"),
    ],
)
def test_a_batch_of_another_form_is_named(tmp_path: Path, changes: dict[str, Any], fact: str) -> None:
    contents = read_contents(load_recipe("cifar10"), written(tmp_path, "cifar10", **changes))
    [finding] = contents.findings
    assert (finding.kind, finding.name, contents.images) == ("unreadable", "test_batch", [])
    assert fact in finding.detail


def test_what_is_missing_cut_or_not_named_is_said(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10")
    [_, layout] = recipe.layouts
    several = layout.model_copy(update={"files": [*(f"data_batch_{number}" for number in (1, 2)), "test_batch"]})
    root = written(tmp_path, "cifar10", labels=[0, 1, 10, -1]) / "cifar-10-batches-py"
    (root / "data_batch_2").write_bytes((root / "test_batch").read_bytes()[:2000])
    contents = read_contents(recipe.model_copy(update={"layouts": [several]}), root)
    assert [(each.kind, each.name) for each in contents.findings] == [
        ("image-missing", "data_batch_1"),
        ("unreadable", "data_batch_2"),
        ("image-unlabelled", "test_batch/00002.png"),
        ("image-unlabelled", "test_batch/00003.png"),
    ]
    assert [image.key for image in contents.images] == ["airplane", "automobile"]
    (root / "batches.meta").write_bytes(pickled({"label_names": [1, 2]}))
    with refused("malformed", "root"):
        read_contents(recipe, root)
    (root / "batches.meta").unlink()
    with refused("missing", "root") as error:
        read_contents(recipe, root)
    assert "batches.meta" in str(error.value)


def test_a_pickle_that_calls_something_is_not_run(tmp_path: Path) -> None:
    root = written(tmp_path, "cifar10") / "cifar-10-batches-py"
    mark = tmp_path / "mark"
    (root / "test_batch").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    [finding] = read_contents(load_recipe("cifar10"), root).findings
    assert finding.kind == "unreadable"
    assert "only plain data is read" in finding.detail
    assert not mark.exists()


def test_keys_that_python_3_wrote_as_bytes_are_read(tmp_path: Path) -> None:
    root = written(tmp_path, "cifar10") / "cifar-10-batches-py"
    for file in ("test_batch", "batches.meta"):
        content = pickle.loads((root / file).read_bytes(), encoding="bytes")
        (root / file).write_bytes(pickle.dumps(content))
    contents = read_contents(load_recipe("cifar10"), root)
    assert [image.key for image in contents.images] == CLASSES["cifar10"][:4]
