"""The graph of deployments, built for Serve: by ``mindseye serve``, by ``serve run serving/config.yaml``, by tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.loading import find_words, index_folder, load_aggregator, load_composer, prompt_templates
from cluster.profile import Profile, Replicas, ServeSettings, load_profile
from cluster.room import Demand, check_room
from cluster.session import node_count
from retrieval.artifacts import Index, QuerySet
from retrieval.errors import UserError
from serving.deployments.encoders import VisionTower, VLMTowers
from serving.deployments.gathering import CALLS_A_REPLICA
from serving.deployments.generator import ImaginingGenerator
from serving.deployments.pointer import Pointer
from serving.deployments.ranker import Ranker
from serving.deployments.shards import IndexShard, deployment_count
from serving.ingress import Ingress, Service
from serving.memory import open_store
from serving.memory.warm import warm
from serving.protocol import SearchRequest
from serving.search import Defaults, Parts

LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)
"""One JSON object a line. Serve's own line for each request costs throughput, and the ingress has metrics."""

ROUTER = RequestRouterConfig(initial_backoff_s=0.025, backoff_multiplier=1, max_backoff_s=0.025)
"""Back-off of a request that found every replica full. In Serve, two tasks for each replica route what waits, in the
order of arrival; their back-off grows to half a second and is not reset when a request of another task gets through, so
that with Serve's own settings a queue drains at four requests a second however fast the replica is."""

BESIDE_SEARCHES = 256
"""Requests under way on one replica of the ingress beside the searches that have places (``serving.admission``): for
pages and pictures, none of which is to be refused; and searches that the ingress is about to refuse. Serve holds all
beyond that in its proxy, in no order and with nobody refused until that is full as well, and refuses without looking at
what is asked for."""

LOAD_SECONDS, LOOK_BACK_SECONDS = 2, 10
"""How often Serve is told of the load that it scales by, and over how long it takes the mean. By default 10 and 30 s
come on top of a profile's delay. (Ray calls the first deprecated, but does not read yet what is to replace it.)"""

POINTER = Replicas(cpus=0, ongoing=1000, queued=1000)
"""Every replica of shards and rankers asks the one that keeps what is served, at its start and then now and then."""

log = logging.getLogger("ray.serve")


class ServeArgs(BaseModel):
    """What a service is made of."""

    model_config = ConfigDict(extra="forbid")
    target: str
    """What ``mindseye index`` or ``mindseye demo`` made, or an index itself."""
    profile: str | Path | Profile = "tiny"
    """A shipped profile, or a YAML file that every node has."""
    aggregator: str | None = None
    """By default the profile's."""
    warm: str | None = None
    """A query set to remember."""
    store: str | None = None
    """Where imagined queries are kept (``serving.memory``); by default the profile's, else a file of this user."""
    keys_file: str | None = None
    """API keys, at the same path on every node; by default the profile's. So a shipped profile can be served as it is
    where keys are mounted."""

    def load_profile(self) -> Profile:
        """Load the profile, with what is given here in the place of its own; errors as ``load_profile``."""
        profile = load_profile(self.profile)
        if self.keys_file is None:
            return profile
        return profile.model_copy(update={"serve": profile.serve.model_copy(update={"keys_file": self.keys_file})})


def build(args: ServeArgs | Mapping[str, Any]) -> Application:
    """Build the application: the ingress in front of everything that it asks.

    Args:
        args: Serve gives the mapping of its config file or command line as it is.

    Raises:
        UserError: an artifact or the profile is missing or does not fit, or the cluster has no room for a deployment;
            the message says which and what to do.
    """
    service = plan(ServeArgs.model_validate(args))
    check_store(service.store, service.profile.serve, node_count())
    check_room(*demands(service.profile.serve, service.shards))
    return front(service)


def front(service: Service) -> Application:
    """Bind the ingress of a planned service."""
    settings = service.profile.serve
    busy = BackpressureConfig(status_code=503, retry_after_s=1)
    room = settings.ingress.ongoing + settings.ingress.queued + BESIDE_SEARCHES
    ingress = _scaled(Ingress, settings.ingress, settings, backpressure_config=busy)
    return ingress.options(
        max_ongoing_requests=room, max_queued_requests=settings.ingress.queued + BESIDE_SEARCHES
    ).bind(service)


def plan(args: ServeArgs) -> Service:
    """Bind every deployment but the ingress, and return what the ingress needs; errors are those of ``build``."""
    profile = args.load_profile()
    index, store = index_folder(args.target).uri, store_uri(args.store, profile)
    count = shard_deployments(Index.open(index), profile.serve)
    fingerprint = None
    aggregator = load_aggregator(profile, args.aggregator)
    composer = load_composer(profile)
    learned, words = aggregator.uri if aggregator else None, find_words(args.target)
    if args.warm:
        _check_outlives(store)
        queries = QuerySet.open(args.warm)
        _warn_of_other_defaults(queries, profile)
        warm(open_store(store), queries)
        fingerprint = queries.manifest.models["generator"].fingerprint
        words = words or (queries if queries.manifest.aspects else None)
    settings = profile.serve
    vision = _scaled(VisionTower, settings.vision, settings).bind(profile)
    vlm = _scaled(VLMTowers, settings.vlm, settings, target=CALLS_A_REPLICA).bind(profile)
    generator = None
    if settings.generator.max_replicas:
        generator = _scaled(ImaginingGenerator, settings.generator, settings).bind(profile, vision, learned)
    pointer = _scaled(Pointer, POINTER, settings).bind(index)
    shards = None
    if count:
        shards = [
            _scaled(IndexShard, settings.shards, settings, shard=i, name=f"Shard{i}").bind(i, count, pointer)
            for i in range(count)
        ]
    encoders = {"vlm": vlm, "vision": vision}
    ranker = _scaled(Ranker, settings.ranker, settings, target=CALLS_A_REPLICA).bind(
        profile,
        pointer,
        learned,
        encoders,
        shards,
        words.uri if words else None,
        composer.uri if composer else None,
    )
    defaults = Defaults(profile.queries.images, fingerprint)
    return Service(profile, Parts(vlm, vision, generator, ranker), store, defaults, learned, count, index)


def demands(settings: ServeSettings, shards: int) -> list[Demand]:
    """Return the replicas that must run at once, with so many shards that are deployments."""
    named = {name: getattr(settings, name) for name in ("ingress", "vlm", "vision", "generator", "ranker")}
    once = [Demand(name, f"serve.{name}", of, of.min_replicas) for name, of in named.items() if of.max_replicas]
    of = settings.shards
    return once + [Demand(f"shard {number}", "serve.shards", of, of.min_replicas, number) for number in range(shards)]


def shard_deployments(index: Index, settings: ServeSettings) -> int:
    """Return how many deployments the shards of an index are: none where the ranker holds them."""
    records = index.manifest.shards
    return deployment_count(len(records), sum(record.bytes for record in records), settings)


def store_uri(given: str | None, profile: Profile) -> str:
    """Return the store that is given, else the profile's, else a file in this user's cache."""
    if uri := given or profile.serve.store:
        scheme, _, path = uri.partition(":")
        # Replicas work in other folders.
        return f"sqlite:{Path(path).expanduser().absolute()}" if scheme == "sqlite" and path else uri
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mindseye"
    cache.mkdir(parents=True, exist_ok=True)
    return f"sqlite:{cache / 'queries.sqlite'}"


def check_store(store: str, settings: ServeSettings, nodes: int) -> None:
    """Check that every replica that remembers queries can use a store.

    Args:
        store: its URI.
        settings: the profile's.
        nodes: of the cluster.

    Raises:
        UserError: the store is one machine's or one process's own, and replicas may run on others.
    """
    scheme = store.partition(":")[0]
    alone = scheme == "memory" and settings.ingress.max_replicas == 1
    if nodes > 1 and scheme in ("sqlite", "unix", "memory") and not alone:
        raise UserError(
            f"the store {store} is not shared by the {nodes} nodes of this cluster: give --store redis://HOST:PORT/DB,"
            " or serve.store in the profile",
            code="store-not-shared",
            field="store",
        )


def _check_outlives(store: str) -> None:
    """Refuse to warm a store that is this process's own: replicas would know nothing of it."""
    if store == "memory:":
        raise UserError(
            "the store memory: is one process's own, so that replicas would not have what --warm puts into it: leave"
            " out --warm, or give --store sqlite:FILE or redis://HOST:PORT/DB",
            code="store-not-shared",
            field="store",
        )


def _warn_of_other_defaults(queries: QuerySet, profile: Profile) -> None:
    """Warn of a query set that requests find only if they ask for other images than they do by default."""
    manifest = queries.manifest
    made = {"images": manifest.images, "seed": manifest.seed, "templates": manifest.templates}
    wanted = {
        "images": profile.queries.images,
        "seed": SearchRequest.model_fields["seed"].default,
        "templates": prompt_templates(profile),
    }
    if other := [name for name in made if made[name] != wanted[name]]:
        log.warning(
            "%s was made with %s, and requests by default ask for %s: only those that ask for the same find its images",
            queries.uri,
            ", ".join(f"{name} {made[name]}" for name in other),
            ", ".join(f"{name} {wanted[name]}" for name in other),
        )


def _scaled(
    deployment: Any,
    replicas: Replicas,
    settings: ServeSettings,
    shard: int | None = None,
    target: float | None = None,
    **further: Any,
) -> Any:
    """The deployment with what the profile says of its replicas.

    Args:
        target: calls under way on a replica above which there are to be more; half of ``ongoing`` by default.
    """
    return deployment.options(
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.min_replicas,
            max_replicas=replicas.max_replicas,
            target_ongoing_requests=target or max(1, replicas.ongoing / 2),
            upscale_delay_s=replicas.upscale_s,
            downscale_delay_s=replicas.downscale_s,
            look_back_period_s=LOOK_BACK_SECONDS,
            metrics_interval_s=LOAD_SECONDS,
        ),
        max_ongoing_requests=replicas.ongoing,
        max_queued_requests=replicas.queued,
        ray_actor_options=replicas.options(shard),
        request_router_config=ROUTER,
        logging_config=LOGGING,
        health_check_period_s=5,
        # A service that is deployed anew answers with the old replicas until the new ones are up.
        max_surge_percent=100 if replicas.surge else 0,
        # As long as a request may take; a replica without one does not wait.
        graceful_shutdown_timeout_s=settings.deadline_ms / 1000,
        **further,
    )
