"""The models of a profile, loaded, and what manifests say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.profile import Profile
from retrieval.artifacts import ModelRecord, TrainedAggregator
from retrieval.prompts import templates

if TYPE_CHECKING:
    from retrieval.models.generator import Generator
    from retrieval.models.vision import VisionEncoder
    from retrieval.models.vlm import VLM
    from retrieval.query import QueryEncoder

# The libraries behind the models take seconds to import, so each function imports what it loads by.


def load_vlm(profile: Profile) -> VLM:
    from retrieval.models.vlm import VLM

    models = profile.models
    return VLM.load(models.vlm, device=models.device, dtype=models.dtype)


def load_vision(profile: Profile) -> VisionEncoder:
    from retrieval.models.vision import VisionEncoder

    models = profile.models
    return VisionEncoder.load(models.vision, device=models.device, dtype=models.dtype)


def load_generator(profile: Profile) -> Generator:
    from retrieval.models.generator import Generator

    models, generator = profile.models, profile.models.generator
    return Generator.load(
        generator.uri,
        steps=generator.steps,
        guidance=generator.guidance,
        size=generator.size,
        device=models.device,
        dtype=models.dtype,
    )


def load_query_encoder(profile: Profile) -> QueryEncoder:
    """Load all three models, as queries need them."""
    from retrieval.query import QueryEncoder

    return QueryEncoder(
        load_vlm(profile),
        load_vision(profile),
        load_generator(profile),
        templates=prompt_templates(profile),
        batch=profile.models.generator.batch,
    )


def load_aggregator(profile: Profile, uri: str | None = None) -> TrainedAggregator | None:
    """Open the aggregator at ``uri``, by default the profile's; None if neither names one."""
    uri = uri or profile.models.aggregator
    return TrainedAggregator.open(uri) if uri else None


def prompt_templates(profile: Profile) -> list[str]:
    """Return the templates of the text vector that a profile names or lists."""
    given = profile.queries.templates
    return list(templates(given)) if isinstance(given, str) else list(given)


def record_of(model: Any) -> ModelRecord:
    """Return what a manifest says of a loaded model."""
    settings: dict[str, Any] = (
        {"preprocess": model.preprocess.describe()}
        if hasattr(model, "preprocess")
        else {"steps": model.steps, "guidance": model.guidance, "size": model.size}
    )
    return ModelRecord(uri=model.uri, fingerprint=model.fingerprint, dim=getattr(model, "dim", None), settings=settings)
