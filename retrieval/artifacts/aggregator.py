"""The trained aggregator on disk: its weights as safetensors, and a manifest that says what it learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.compatibility import check_same_models
from retrieval.artifacts.manifests import AggregatorManifest, ModelRecord, Role
from retrieval.errors import UserError
from retrieval.folder import Folder

if TYPE_CHECKING:  # loads PyTorch, which takes seconds, and most processes open artifacts without networks
    from retrieval.aggregator import Aggregator


class TrainedAggregator(Artifact[AggregatorManifest]):
    """An aggregator and its λ: ``weights.safetensors`` and the manifest."""

    kind = "aggregator"
    manifest_type = AggregatorManifest
    WEIGHTS = "weights.safetensors"

    @classmethod
    def save(
        cls, uri: str | Path, network: Aggregator, models: Mapping[Role, ModelRecord], training: dict[str, Any]
    ) -> Self:
        """Write and publish a network.

        Args:
            uri: the folder to write to.
            network: in any mode, on any device.
            models: which made the vectors that it learned from.
            training: a record of its training, JSON-ready, for people and for ``learned_labels``.
        """
        folder = Folder(uri)
        folder.write_bytes(cls.WEIGHTS, network.to_bytes())
        manifest = AggregatorManifest(
            **network.config, weight=network.fusion_weight, models=dict(models), training=training
        )
        return cls.publish(folder, manifest)

    def check_fits(self, other: Artifact[Any]) -> None:
        """Refuse an artifact of other models than those that this aggregator learned from.

        Raises:
            UserError: as ``check_same_models``, for each role that both name, and for the vision encoder always.
        """
        both = self.manifest.models.keys() & other.manifest.models.keys()
        check_same_models(other, self, [role for role in get_args(Role) if role in both | {"vision"}])

    def check_generator(self, uri: str, fingerprint: str) -> None:
        """Refuse a generator whose images this aggregator did not learn from, if it says whose they were.

        Args:
            uri: of the loaded generator, for the message.
            fingerprint: of the loaded generator.

        Raises:
            UserError: it is another (code ``other-model``, field ``generator``); both are named.
        """
        record = self.manifest.models.get("generator")
        if record and record.fingerprint != fingerprint:
            raise UserError(
                f"the aggregator {self.uri} learned from images of {record.uri} ({record.fingerprint},"
                f" {record.settings}), the profile imagines with {uri} ({fingerprint}): other weights,"
                " steps, guidance or size. Use the profile it was trained with, or train one for this profile.",
                code="other-model",
                field="generator",
            )

    @property
    def learned_labels(self) -> list[str]:
        """The labels that it was trained or validated on; none if that is not known."""
        training = self.manifest.training
        return [*training.get("labels", []), *training.get("validation_labels", [])]

    def network(self) -> Aggregator:
        """Load the network, in evaluation mode.

        Raises:
            DamagedError: its weights are missing, cannot be read, or are not those of the manifest.
        """
        from retrieval.aggregator import Aggregator

        config = self.manifest.model_dump(include={"dim", "heads", "layers", "dropout"})
        with self.reading(self.WEIGHTS):
            return Aggregator.from_bytes(self.folder.read_bytes(self.WEIGHTS), config)
