"""The composer: triplets of a labelled gallery, what they teach, and what is published and read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from errors import refused
from synthetic import D1, D2, directions, models, write_gallery, write_queries
from training_world import PUBLISHED, checkpoints, profile_of, step_of

import training.trainer
from cluster.hold import HOLDS
from retrieval.artifacts import Gallery, QuerySet, TrainedComposer
from retrieval.artifacts.manifests import QuerySetManifest
from retrieval.artifacts.queryset import queryset_schema
from retrieval.folder import Folder
from retrieval.fusion import unit
from retrieval.words import Dictionary, Value
from training.composing import TrainedToCompose, load_triplets, train_composer
from training.triplets import Triplets, changes_between, values_of

VALUES = {"colour": ("blue", "green", "red", "pink"), "shape": ("circle", "star", "fish")}
WORDS = [(word, aspect) for aspect, of in VALUES.items() for word in of]
LABELS = [f"{colour} {shape}" for colour in VALUES["colour"] for shape in VALUES["shape"]]
ROWS = 4
SETTINGS = {
    "steps": 36, "validate_every": 12, "batch": 16, "positives": 2, "rows_per_label": ROWS, "learning_rate": 3e-3,
    "dropout": 0.0, "layers": 1,
}  # fmt: skip


class World:
    """Images that are the sum of what they show, and texts that lie elsewhere."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        shown = {dim: directions(len(WORDS), dim, rng) for dim in (D1, D2)}
        words = [word for word, _ in WORDS]
        places = [[words.index(word) for word in label.split()] for label in LABELS]
        of_label = np.repeat(np.arange(len(LABELS)), ROWS)

        def images(dim: int) -> np.ndarray:
            clean = shown[dim][np.array(places)].sum(axis=1)[of_label]
            return unit(clean + 0.1 * rng.standard_normal((len(of_label), dim)))

        labels: list[str | None] = [LABELS[i] for i in of_label]
        labels[0] = "a thing"
        self.gallery = write_gallery(folder / "gallery", images(D1), images(D2), labels=labels)
        vectors = directions(len(WORDS), D1, rng)
        rows = [
            {"id": f"q{n}", "text": word, "aspect": aspect, "value": word, "vlm": t, "vision": [], "seeds": []}
            for n, ((word, aspect), t) in enumerate(zip(WORDS, vectors, strict=True))
        ]
        place = Folder(folder / "words")
        place.write_table("queries/000000.parquet", pa.Table.from_pylist(rows, schema=queryset_schema(D1, D2)))
        manifest = QuerySetManifest(
            queries=len(rows), images=1, seed=0, templates=["{}"], models=models(), aspects=list(VALUES)
        )
        self.words = QuerySet.publish(place, manifest)

    def train(self, target: Path, log: Callable[[str], None] = lambda line: None) -> TrainedToCompose:
        return train_composer(self.gallery, self.words, target, profile_of(**SETTINGS), address="none", log=log)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainedToCompose:
    return world.train(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def triplets(world: World) -> Triplets:
    return load_triplets(world.gallery, world.words, rows_per_label=ROWS, seed=0)[0]


def test_labels_are_read_and_differ_by_one_value() -> None:
    vectors = np.eye(len(WORDS), dtype=np.float32)
    values = [Value(aspect, word, (word,)) for word, aspect in WORDS]
    dictionary = Dictionary(list(VALUES), values, vectors, vectors)
    assert values_of("a Red star", dictionary) == {"colour": "red", "shape": "star"}
    assert values_of("a house", dictionary) is values_of("a red blue star", dictionary) is None
    labels = ["blue star", "red star", "red fish", "red"]
    changes = changes_between(labels, dictionary, {word: n for n, (word, _) in enumerate(WORDS)})
    told = {(labels[one.source], labels[one.target], *(WORDS[text][0] for text in one.texts)) for one in changes}
    assert told == {
        ("blue star", "red star", "red"),
        ("red star", "blue star", "blue"),
        ("red star", "red fish", "fish"),
        ("red fish", "red star", "star"),
    }


def test_a_batch_is_the_same_for_any_number_of_workers(triplets: Triplets) -> None:
    whole = triplets.draw(3, batch=12, positives=2, seed=1)
    shares = [triplets.draw(3, batch=12, positives=2, seed=1, rank=rank, world=3) for rank in range(3)]
    for name in ("rows", "label"):
        assert sum(len(share[name]) for share in shares) == 12
        for rank, share in enumerate(shares):
            np.testing.assert_array_equal(share[name], whole[name][rank::3])
    for share in shares:
        np.testing.assert_array_equal(share["joint"], whole["joint"])
    there = np.isin(whole["label"], whole["row_label"])
    assert there.all()
    assert len(whole["joint"]) == 12 * 2 * 2


def test_it_learns_what_a_text_changes(made: TrainedToCompose, triplets: Triplets) -> None:
    losses = [line["loss"] for line in made.history[1:]]
    assert losses[-1] < 0.3 * losses[0]
    network = made.composer.network()
    learned = triplets.of_labels([LABELS.index(label) for label in made.composer.manifest.training["labels"]])
    pictures, texts, targets = learned.measured()
    with torch.inference_mode():
        joint = network(*map(torch.from_numpy, learned.evidence(pictures, texts).values())).numpy()
    first = (joint @ learned.joint_ND.astype(np.float32).T).argmax(axis=1)
    assert (learned.row_label_N[first] == targets).mean() > 0.5  # one of nine by chance
    assert made.left_out == ["a thing"]
    assert made.labels == len(LABELS)


def test_what_is_published_is_what_was_best(made: TrainedToCompose, triplets: Triplets) -> None:
    target = made.composer.folder.local_path
    assert target is not None
    assert sorted({path.name for path in target.iterdir()} - {HOLDS}) == PUBLISHED
    opened = TrainedComposer.open(target)
    assert opened.manifest.models == made.composer.manifest.models
    assert len(opened.manifest.training["labels"] + opened.manifest.training["validation_labels"]) == len(LABELS)
    network = opened.network()
    near_ND = triplets.joint_ND[:5]
    vlm_D1, vision_D2 = (unit(half) for half in np.split(triplets.joint_ND[0].astype(np.float32), [D1]))
    texts = list(triplets.text_VD1[:2])
    one, other = (network.compose(vlm_D1, vision_D2, near_ND, of) for of in (texts, texts[::-1]))
    for ours, theirs, dim in zip(one, other, (D1, D2), strict=True):
        assert ours.shape == (dim,)
        assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_run_that_was_stopped_resumes_from_its_checkpoint(
    world: World, made: TrainedToCompose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(training.trainer.Tracker):
        def write(self, history: list[dict[str, Any]]) -> None:
            super().write(history)
            if len(history) == 3:
                raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(training.trainer, "Tracker", Stopping)
        with pytest.raises(InterruptedError):
            world.train(tmp_path)
    assert step_of(checkpoints(tmp_path)[-1]) == 12
    logged: list[str] = []
    resumed = world.train(tmp_path, logged.append)
    assert "step 12 " in logged[0]
    assert resumed.history == made.history
    ours, theirs = (of.composer.network().to_bytes() for of in (resumed, made))
    assert ours == theirs


def test_damaged_weights_are_named(made: TrainedToCompose, tmp_path: Path) -> None:
    Folder(tmp_path).write_bytes("weights.safetensors", b"nothing")
    with refused("damaged", str(tmp_path / "weights.safetensors")):
        TrainedComposer(Folder(tmp_path), made.composer.manifest).network()


def test_what_nothing_can_be_learned_from_is_refused(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = write_queries(tmp_path / "plain", directions(2, D1, rng), [directions(1, D2, rng)] * 2, labels=[None] * 2)
    with refused("no-aspects", "words"):
        train_composer(world.gallery, plain, tmp_path / "one", profile_of(), address="none")
    labels = ["blue", "red star", "green fish", "a thing"]
    apart: Gallery = write_gallery(tmp_path / "gallery", directions(4, D1, rng), directions(4, D2, rng), labels=labels)
    with refused("no-triplets", "gallery"):
        train_composer(apart, world.words, tmp_path / "two", profile_of(), address="none")
