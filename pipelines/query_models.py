"""The models of a query: loaded once in a process, and described to a driver that does not load them."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache, cached

from cluster.loading import generator_settings, load_query_encoder, prompt_templates, record_of
from cluster.profile import Profile
from pipelines.encoders import models_key
from pipelines.running import current_executor
from retrieval.artifacts import ModelRecord, Role

if TYPE_CHECKING:  # takes seconds to import, which a driver should not
    from retrieval.query import QueryEncoder

_ROLES: tuple[Role, ...] = ("vlm", "vision", "generator")


def _key(profile: Profile) -> tuple[Any, ...]:
    models, generator = profile.models, generator_settings(profile)
    settings = (generator.model_dump_json(), *prompt_templates(profile))
    return *settings, *models_key(profile, models.vlm, models.vision, generator.uri)


@cached(LRUCache(1), _key, Lock())
def query_models(profile: Profile) -> QueryEncoder:
    """Return the models of a query, loaded, the same ones for the next job in this process."""
    return load_query_encoder(profile)


class Described(NamedTuple):
    """The models of a query, and the name of the hardware that they run on."""

    records: dict[Role, ModelRecord]
    device: str


@cached(LRUCache(8), _key, Lock())
def describe_query_models(profile: Profile) -> Described:
    """Load the models where the stage ``imagine`` runs, and say which they are.

    Raises:
        UserError: a model cannot be loaded.
    """
    return current_executor().run(_described, profile, place=profile.imagine).get()


def _described(profile: Profile) -> Described:
    from retrieval.models.devices import device_name

    encoder = query_models(profile)
    return Described({role: record_of(getattr(encoder, role)) for role in _ROLES}, device_name(encoder.vlm.device))
