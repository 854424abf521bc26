"""Models of photographs, trained for two steps on made-up pictures in the place of the data sets' files: the script
from its files to an evaluation by the product's own jobs.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from benchmarks import photos as benchmark
from cluster.loading import load_generator
from cluster.profile import load_profile
from demo.photos.collection import CALTECH, CIFAR, TINY, collect, training_set
from demo.photos.train import RECIPES, Training, caption, prompt, sentences
from pipelines.gallery import build_gallery
from pipelines.queries import build_queries
from pipelines.report import measure
from pipelines.vocabulary import read_vocabulary
from retrieval.artifacts import TrainedAggregator

LABELS = {CIFAR: ("cat", "airplane"), TINY: ("lion", "wok", "pizza", "nail"), CALTECH: ("airplane", "ewer", "pizza")}
PER_LABEL = 10
SMALL = {name: replace(recipe, steps=2, batch=4) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the files that the script reads: pictures of several sizes and modes, a colour a label."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for file, labels in LABELS.items():
        size = {CIFAR: (32, 32), TINY: (64, 64), CALTECH: (61, 44)}[file]
        rows = []
        for label in labels:
            for i in range(PER_LABEL):
                noise = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
                encoded = BytesIO()
                Image.fromarray(noise).convert("L" if i == 0 else "RGB").save(encoded, "JPEG")
                rows.append({"image": encoded.getvalue(), "label": label, "path": f"{label}/{i}.jpg"})
        pq.write_table(pa.Table.from_pylist(rows), folder / file)
    return folder


def test_no_photo_is_both_learned_from_and_measured_on(data: Path) -> None:
    photos = collect(data)
    sets = [{image.tobytes() for image in part.images_NHWC} for part in photos]
    assert [len(each) for each in sets] == [len(part.labels) for part in photos]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert set(photos.models.labels) == {label for labels in LABELS.values() for label in labels}
    assert [photos.models.labels.count(label) for label in ("cat", "airplane", "lion", "ewer")] == [10, 18, 7, 8]
    # Half of Tiny ImageNet's labels, of 3 photos each; of no set are such labels fitted on, nor those of CIFAR-10.
    assert [photos.unseen.labels.count(label) for label in set(photos.unseen.labels)] == [3, 3]
    assert not set(photos.fitting.labels) & {*photos.unseen.labels, *LABELS[CIFAR]}
    assert collect(data).unseen.labels == photos.unseen.labels


def test_mirrored_photos_keep_their_labels(data: Path) -> None:
    photos = collect(data).models
    plain, both = training_set(photos), training_set(photos, mirrored=True)
    assert len(both.images_NHWC) == 2 * len(plain.images_NHWC)
    assert (both.images_NHWC[-1] == plain.images_NHWC[-1, :, ::-1]).all()
    assert [both.categories[c] for c in both.category_N] == photos.labels * 2


def test_texts_name_the_label() -> None:
    rng = np.random.default_rng(0)
    captions = {caption("wok", rng) for _ in range(300)}
    assert len(captions) == len(set(sentences())) > 20
    assert all("wok" in each for each in captions)
    assert 120 < sum(prompt("wok", rng) == "wok" for _ in range(200)) < 160


def shorten(file: Path) -> None:
    """Let a profile do what takes long once or twice."""
    content = yaml.safe_load(file.read_text())
    content["models"]["generator"] |= {"steps": 2}
    content["queries"] |= {"images": 2, "templates": "none"}
    content["train"] |= {"steps": 2, "validate_every": 1}
    file.write_text(yaml.safe_dump(content))


@pytest.mark.slow
def test_what_the_script_makes_is_what_every_command_reads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(data, tmp_path / "out", SMALL)
    photos = training.prepare()
    shorten(training.target / "profile.yaml")
    training.vlm(photos)
    training.vision(photos)
    training.generator(photos)
    weight = training.aggregator("none")
    assert 0 < weight < 1

    out = training.target
    for name, parts in {"vlm": ["vlm"], "vision": ["vision"], "generator": ["vae", "unet", "unet_on"]}.items():
        records = json.loads((out / f"{name}.json").read_text())
        assert list(records) == parts
        assert all(record["losses"][-1]["step"] == 2 and record["cpu_minutes"] > 0 for record in records.values())

    profile = load_profile(out / "profile.yaml")
    [imagined] = load_generator(profile).imagine(["wok"], 2)
    assert [image.shape for image in imagined.pixels_KHWC] == [(32, 32, 3)] * len(imagined.pixels_KHWC)

    learned = TrainedAggregator.open(out / "aggregator").learned_labels
    assert set(learned) == set(photos.fitting.labels)
    build_gallery(str(out / "unseen/photos.parquet"), str(out / "unseen/gallery"), profile)
    build_queries(read_vocabulary(out / "unseen/names.txt"), out / "unseen/queries", profile)
    measured = measure(
        str(out / "unseen/gallery"),
        str(out / "unseen/queries"),
        str(out / "report"),
        aggregator=str(out / "aggregator"),
        weight=weight,
        profile=profile,
        address="none",
    )
    assert len(measured.evaluation.systems) == 4
    assert measured.evaluation.gallery_rows == len(photos.unseen.labels)

    monkeypatch.setattr("benchmarks.photos.DRAWS", 10)
    monkeypatch.setattr("sys.argv", ["photos", str(out), "unseen", str(data)])
    benchmark.main()
    printed = capsys.readouterr().out
    for system, row in {"text": "text", "visual": "image mean", "trained": "aggregator"}.items():
        assert re.search(rf"\| {row}[^|]*\| {measured.evaluation.mean(system, 'name').mean:.3f} ", printed)
    assert "real photos, mean: " in printed
