"""The artifacts that flow between jobs: Gallery, QuerySet, Index, Aggregator, Composer; each a folder with a manifest.

A folder may lie on any filesystem of ``pyarrow.fs``. Its ``manifest.json`` is written last, to a temporary name that
is then moved, so an artifact exists at once or not at all. The manifest names the models that made the artifact, and
``compatibility`` refuses to mix artifacts of different ones. Nothing here loads PyTorch.

Shapes: N rows, Q queries, K images, D1 the VLM's dimension, D2 the vision encoder's.
"""

from retrieval.artifacts.aggregator import TrainedAggregator
from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.composer import TrainedComposer
from retrieval.artifacts.gallery import Gallery
from retrieval.artifacts.index import Index
from retrieval.artifacts.manifests import MANIFEST, ModelRecord, Role
from retrieval.artifacts.queryset import QuerySet

__all__ = [
    "MANIFEST",
    "Artifact",
    "Gallery",
    "Index",
    "ModelRecord",
    "QuerySet",
    "Role",
    "TrainedAggregator",
    "TrainedComposer",
]
