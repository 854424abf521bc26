"""The one graph of deployments that the tests of serving share, in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_graph import local_service
from tiny_artifacts import Collection

from serving.ingress import Service


@pytest.fixture(scope="session")
def service(collection: Collection, profile_file: Path) -> Service:
    """The deployments of the tiny models and of the collection's index, two shards. It is left as it was found."""
    return local_service(target=str(collection.folder), profile=str(profile_file), store="memory:")
