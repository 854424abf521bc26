"""Training the lists and codebooks of an index, which several shards may then be filled from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DamagedError
from retrieval.index.files import check_index_header, read_index
from retrieval.index.kinds import FLAT_UP_TO, inner, new_index

# The types that come with FAISS lack many of its classes, arguments and attributes.
_FAISS: Any = faiss
# Over 64 rows a list, not FAISS's 256: down to a quarter of the time, and the efforts that are measured afterwards make
# up for lists that are placed a little worse. Ten rounds are FAISS's own for lists; for product codes it takes 25.
_ROWS_PER_CENTROID: Final = 64
_ROUNDS: Final = 10
# A round that changes the objective by less than this share of it is the last: on 100,000 rows in clear classes a
# quarter of the time.
_LEAST_GAIN: Final = 1e-3


def training_rows(factory: str) -> int:
    """Return how many rows ``train`` makes use of, 0 where a kind is not trained; more only cost time."""
    if re.fullmatch(r"Flat|SQfp16|HNSW\d+(,Flat)?", factory):
        return 0
    lists = re.search(r"IVF(\d+)", factory)
    return max(_ROWS_PER_CENTROID * int(lists[1]) if lists else 0, FLAT_UP_TO)


def training_sample(vectors_ND: NDArray[np.float16], factory: str, seed: int) -> NDArray[np.float16]:
    """Return the rows of one shard that its own index is trained on."""
    sample = np.random.default_rng(seed).permutation(len(vectors_ND))[: training_rows(factory)]
    return vectors_ND[np.sort(sample)]


def train(
    sample_ND: NDArray[np.float16] | NDArray[np.float32], factory: str, *, seed: int = 0, gpus: int = 0
) -> faiss.Index:
    """Return an empty, trained index of this kind: the same for the same sample and seed.

    Args:
        sample_ND: joint rows [c ; d], ``training_rows`` of them, drawn from all shards that are to be filled from it.
        factory: FAISS factory string.
        seed: of the k-means.
        gpus: how many of the GPUs that this process sees may be used, where FAISS has been built for GPUs. By default
            none: one that is seen may be another's.

    Raises:
        UserError: as ``kinds.new_index``.
    """
    index = new_index(factory, sample_ND.shape[1])
    if index.is_trained:
        return index
    kind = inner(index)
    if isinstance(kind, _FAISS.IndexIVF):
        _set_rounds(kind.cp, seed)
        if usable := list(range(min(gpus, faiss.get_num_gpus()))):
            # FAISS then clusters on the GPUs, which is nearly all of the training time of an inverted file.
            kind.clustering_index = faiss.index_cpu_to_gpus_list(faiss.IndexFlatIP(kind.d), gpus=usable)
    if isinstance(kind, _FAISS.IndexPQ | faiss.IndexIVFPQ | faiss.IndexPQFastScan | faiss.IndexIVFPQFastScan):
        _set_rounds(kind.pq.cp, seed)
    if isinstance(kind, _FAISS.IndexPQ):
        # Most of PQ's training time, for a filter that is not used here.
        kind.do_polysemous_training = False
    index.train(np.ascontiguousarray(sample_ND, dtype=np.float32))
    if isinstance(kind, _FAISS.IndexIVF):
        kind.clustering_index = None
    return index


def save_trained(index: faiss.Index, path: Path) -> None:
    """Write what ``train`` returned."""
    faiss.write_index(index, str(path))


def load_trained(path: Path, factory: str, dim: int) -> faiss.Index:
    """Read what ``save_trained`` wrote.

    Raises:
        DamagedError: the file is cut short, filled, untrained, or of another kind or D.
    """
    check_index_header(path, 0, dim, factory)
    index = read_index(path, factory)
    if not index.is_trained:
        raise DamagedError(f"{path} is not trained", field=path.name)
    asked, found = (_traits(one) for one in (new_index(factory, dim), index))
    if asked != found:
        raise DamagedError(f"{path} holds an index of {found}, {factory} has {asked}", field=path.name)
    return index


def _traits(index: faiss.Index) -> str:
    lists = f"{index.nlist} lists, " if hasattr(index, "nlist") else ""
    return f"{lists}{index.sa_code_size()} bytes a code"


def _set_rounds(kmeans: Any, seed: int) -> None:
    kmeans.seed, kmeans.niter, kmeans.max_points_per_centroid = seed, _ROUNDS, _ROWS_PER_CENTROID
    if hasattr(kmeans, "early_stop_threshold"):  # not in FAISS below 1.14.2, which would take it without a word
        kmeans.early_stop_threshold = _LEAST_GAIN
