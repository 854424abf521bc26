"""What shards are filled from: trained once, on the GPUs that are given, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from errors import refused
from plain_shard import D1, D2, joint

import retrieval.index.train
from retrieval.index.train import load_trained, save_trained, train, training_rows


def test_a_trained_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trained.faiss"
    save_trained(train(joint(700), "IVF8,SQ8"), path)
    assert load_trained(path, "IVF8,SQ8", D1 + D2).is_trained
    with refused("damaged", path.name) as error:
        load_trained(path, "IVF16,SQ8", D1 + D2)
    assert "8 lists, 21 bytes a code" in str(error.value)
    with refused("damaged", path.name) as error:
        load_trained(path, "IVF8,Flat", D1 + D2)
    assert "b'IwSq'" in str(error.value)
    with refused("damaged", path.name) as error:
        load_trained(path, "IVF8,SQ8", D1 + D2 + 1)
    assert "0 rows of 20 dimensions, recorded were 0 of 21" in str(error.value)
    for length in (0, 20, path.stat().st_size // 2):
        cut = tmp_path / "cut.faiss"
        cut.write_bytes(path.read_bytes()[:length])
        with refused("damaged", cut.name):
            load_trained(cut, "IVF8,SQ8", D1 + D2)
    faiss.write_index(faiss.index_factory(D1 + D2, "IVF8,SQ8", faiss.METRIC_INNER_PRODUCT), str(path))
    with refused("damaged", path.name) as error:
        load_trained(path, "IVF8,SQ8", D1 + D2)
    assert "is not trained" in str(error.value)


@pytest.mark.parametrize(("gpus", "used"), [(0, None), (2, [0, 1]), (9, [0, 1, 2, 3])])
def test_training_uses_the_gpus_it_was_given_and_no_others_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, used: list[int] | None
) -> None:
    asked = []

    def on_gpus(index: faiss.Index, gpus: list[int] | None = None) -> faiss.Index:
        asked.append(gpus)
        return index

    monkeypatch.setattr(retrieval.index.train.faiss, "get_num_gpus", lambda: 4)
    monkeypatch.setattr(retrieval.index.train.faiss, "index_cpu_to_all_gpus", on_gpus, raising=False)
    monkeypatch.setattr(retrieval.index.train.faiss, "index_cpu_to_gpus_list", on_gpus, raising=False)
    index = train(joint(700), "IVF8,SQ8", gpus=gpus)
    assert asked == ([used] if used else [])
    assert index.is_trained
    assert index.clustering_index is None


@pytest.mark.parametrize(
    ("factory", "rows"),
    [("Flat", 0), ("HNSW32", 0), ("SQfp16", 0), ("SQ8", 50_000), ("IVF4000,SQ8", 256_000), ("IVF16,Flat", 50_000)],
)
def test_training_rows(factory: str, rows: int) -> None:
    assert training_rows(factory) == rows


def test_rounds_that_gain_next_to_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are as good as after all rounds, and not the same."""
    sample = joint(3000).astype(np.float32)

    def centroids() -> np.ndarray:
        index = train(sample, "IVF8,SQ8")  # its quantizer ends with it
        return index.quantizer.reconstruct_n(0, 8)

    stopped = centroids()
    monkeypatch.setattr(retrieval.index.train, "_LEAST_GAIN", 0.0)
    whole = centroids()
    assert not np.array_equal(stopped, whole)
    of_stopped, of_whole = ((sample @ found.T).max(axis=1).mean() for found in (stopped, whole))
    assert of_stopped == pytest.approx(of_whole, rel=0.01)


def test_rounds_end_early_where_faiss_can_do_that() -> None:
    class Older:
        """The settings of k-means in FAISS 1.13."""

    known, older = faiss.ClusteringParameters(), Older()
    for kmeans in (known, older):
        retrieval.index.train._set_rounds(kmeans, 3)
    assert known.early_stop_threshold == pytest.approx(1e-3)
    assert vars(older).keys() == {"seed", "niter", "max_points_per_centroid"}
