"""The trained composer on disk: its weights as safetensors, and a manifest that says what it learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.manifests import ComposerManifest, ModelRecord, Role
from retrieval.folder import Folder

if TYPE_CHECKING:  # loads PyTorch, which takes seconds, and most processes open artifacts without networks
    from retrieval.composer import Composer


class TrainedComposer(Artifact[ComposerManifest]):
    """A composer: ``weights.safetensors`` and the manifest."""

    kind = "composer"
    manifest_type = ComposerManifest
    WEIGHTS = "weights.safetensors"

    @classmethod
    def save(
        cls, uri: str | Path, network: Composer, models: Mapping[Role, ModelRecord], training: dict[str, Any]
    ) -> Self:
        """Write and publish a network.

        Args:
            uri: the folder to write to.
            network: in any mode, on any device.
            models: which made the vectors that it learned from.
            training: a record of its training, JSON-ready.
        """
        folder = Folder(uri)
        folder.write_bytes(cls.WEIGHTS, network.to_bytes())
        return cls.publish(folder, ComposerManifest(config=network.config, models=dict(models), training=training))

    def network(self) -> Composer:
        """Load the network, in evaluation mode.

        Raises:
            DamagedError: its weights are missing, cannot be read, or are not those of the manifest.
        """
        from retrieval.composer import Composer

        with self.reading(self.WEIGHTS):
            return Composer.from_bytes(self.folder.read_bytes(self.WEIGHTS), self.manifest.config)
