"""Opening what queries need: the models of a profile, the index of a target, and the finder that has both."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.profile import Generator as GeneratorSettings
from cluster.profile import Profile, load_profile
from retrieval.artifacts import MANIFEST, Index, ModelRecord, QuerySet, TrainedAggregator, TrainedComposer
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.prompts import templates

if TYPE_CHECKING:
    from retrieval.assistant.describe import Describer
    from retrieval.assistant.endpoint import Assistant, Call
    from retrieval.finder import Finder
    from retrieval.models.generator import Generator
    from retrieval.models.vision import VisionEncoder
    from retrieval.models.vlm import VLM
    from retrieval.query import QueryEncoder

GALLERY, INDEX = "gallery", "index"
"""Folders of a target: what the jobs of an index make."""
WORDS = "words"
"""Folder of a target: the query set that is its dictionary, if it has one."""

# The libraries behind the models take seconds to import, so each function imports what it needs.


def open_finder(
    target: str | Path | Index,
    profile: str | Path | Profile = "tiny",
    *,
    aggregator: str | Path | None = None,
    words: str | Path | None = None,
    assistant: Assistant | None = None,
    composer: str | Path | None = None,
) -> Finder:
    """Open an index together with the models that its queries need.

    Args:
        target: a folder that has an index in it, an index itself or one version of it, or an open one.
        profile: of the models that made the index.
        aggregator: a trained aggregator; by default the profile's. Without one, the images are averaged.
        words: a query set that is the dictionary; by default the one that the folder has in it, if any.
        assistant: of ``load_assistant``, for searches that ask it; none by default, whatever the profile says, so that
            nothing is sent anywhere without the caller's word.
        composer: a trained composer, for searches with ``bridge="composer"``; by default the profile's.

    Raises:
        UserError: a model, the index, the aggregator or the composer is not there, or is of other models.
    """
    from retrieval.finder import Finder

    settings = load_profile(profile)
    index = target if isinstance(target, Index) else open_index(target)
    dictionary = QuerySet.open(words) if words else None if isinstance(target, Index) else find_words(target)
    trained = load_aggregator(settings, aggregator)
    composing = load_composer(settings, composer)
    return Finder(load_query_encoder(settings), index, trained, dictionary, assistant=assistant, composer=composing)


def find_words(target: str | Path) -> QuerySet | None:
    """Open the dictionary that the folder ``target`` has in it; None if it has none."""
    place = Folder(target) / WORDS
    return QuerySet.open(place) if place.exists(MANIFEST) else None


def open_index(target: str | Path) -> Index:
    """Open the index that the folder ``target`` has in it, or the one at ``target`` itself.

    Raises:
        UserError: there is none.
    """
    return Index.open(index_folder(target))


def index_folder(target: str | Path) -> Folder:
    """Return the folder of the index that ``target`` has in it, else ``target`` itself."""
    place = Folder(target)
    return place / INDEX if place.exists(INDEX) else place


def load_vlm(profile: Profile) -> VLM:
    """Load the vision-and-language model."""
    from retrieval.models.vlm import VLM

    models = profile.models
    return VLM.load(models.vlm, device=models.device, dtype=models.dtype)


def load_vision(profile: Profile) -> VisionEncoder:
    """Load the vision encoder."""
    from retrieval.models.vision import VisionEncoder

    models = profile.models
    return VisionEncoder.load(models.vision, device=models.device, dtype=models.dtype)


def generator_settings(profile: Profile) -> GeneratorSettings:
    """Return which generator a profile has.

    Raises:
        UserError: it has none (code ``missing``, field ``models.generator``).
    """
    if profile.models.generator is None:
        message = f"the profile {profile.name} has no generator to imagine with: name one in models.generator"
        raise UserError(message, code="missing", field="models.generator")
    return profile.models.generator


def load_generator(profile: Profile) -> Generator:
    """Load the diffusion model; errors as of ``generator_settings``."""
    from retrieval.models.generator import Generator

    models, generator = profile.models, generator_settings(profile)
    return Generator.load(
        generator.uri,
        steps=generator.steps,
        guidance=generator.guidance,
        size=generator.size,
        device=models.device,
        dtype=models.dtype,
    )


def load_query_encoder(profile: str | Path | Profile = "tiny") -> QueryEncoder:
    """Load all three models, as queries need them; two, if the profile has no generator."""
    from retrieval.query import QueryEncoder

    profile = load_profile(profile)
    return QueryEncoder(
        load_vlm(profile),
        load_vision(profile),
        load_generator(profile) if profile.models.generator else None,
        templates=prompt_templates(profile),
        batch=profile.models.generator.batch if profile.models.generator else 1,
    )


def load_aggregator(profile: Profile, uri: str | Path | None = None) -> TrainedAggregator | None:
    """Open the aggregator at ``uri``, by default the profile's; None if neither names one."""
    uri = uri or profile.models.aggregator
    return TrainedAggregator.open(uri) if uri else None


def load_composer(profile: Profile, uri: str | Path | None = None) -> TrainedComposer | None:
    """Open the composer at ``uri``, by default the profile's; None if neither names one."""
    uri = uri or profile.models.composer
    return TrainedComposer.open(uri) if uri else None


def load_assistant(profile: Profile, *, told: Callable[[Call], None] | None = None) -> Assistant | None:
    """Return the assistant that a profile names, not asked yet; None if it names none.

    Args:
        told: is told of every call.

    Raises:
        UserError: the environment variable of its key is not set here, or holds what is no key (code ``missing-key``,
            field ``models.assistant.key_variable``).
    """
    settings = profile.models.assistant
    if settings is None:
        return None
    from retrieval.assistant.endpoint import Assistant

    key = None
    if variable := settings.key_variable:
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UserError(
                f"the assistant's key is to be in the environment variable {variable}, which holds none here",
                code="missing-key",
                field="models.assistant.key_variable",
            )
    return Assistant(
        settings.url,
        settings.model,
        key=key,
        seconds=settings.seconds,
        depth=settings.depth,
        at_once=settings.at_once,
        told=told,
    )


def load_describer(profile: Profile) -> Describer:
    """Return what describes classes: the profile's describer, loaded, or else its assistant.

    Raises:
        UserError: it names neither (code ``missing``, field ``models.describer``); as ``TextModel.load`` and
            ``load_assistant``.
    """
    models = profile.models
    if models.describer:
        from retrieval.models.text_model import TextModel

        return TextModel.load(models.describer, device=models.device, dtype=models.dtype)
    if assistant := load_assistant(profile):
        return assistant
    raise UserError(
        f"the profile {profile.name} names nothing that could describe classes: name a chat model of an endpoint as"
        " models.assistant, or one of this machine as models.describer",
        code="missing",
        field="models.describer",
    )


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
