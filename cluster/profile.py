"""Profiles: one YAML file names the models and says what each stage may use, from a laptop to a cluster of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.labels import check_selector
from retrieval.assistant.address import check_address
from retrieval.errors import UserError
from retrieval.prompts import MAX_CHARACTERS, TEMPLATE_SETS, fill

PROFILES = Path(__file__).parent / "profiles"
SHARD = "{shard}"
_LOCAL = "local-dir:"


class Settings(BaseModel):
    """Base of all settings: unknown fields and values of another type are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Generator(Settings):
    """The diffusion model."""

    uri: str
    """A diffusers folder or hub id."""
    steps: int = Field(ge=1)
    """Denoising steps of an image."""
    guidance: float = Field(ge=0)
    """Scale of classifier-free guidance; 0 for models that are distilled to do without."""
    size: int | None = Field(default=None, ge=8)
    """Side of the generated images in pixels; the model's own if none is given."""
    batch: int = Field(ge=1)
    """Images generated at once."""


class AssistantSettings(Settings):
    """A chat model behind an OpenAI-compatible URL: docs/assistant.md says what is sent there."""

    url: str
    """Its base, such as https://models.example.com/v1: of HTTPS, or of this machine."""
    model: str = Field(min_length=1)
    """The name under which the endpoint knows the model."""
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the API key, where one is needed: on the machines that ask."""
    seconds: float = Field(default=20, gt=0)
    """Seconds that all calls for one search may take together."""
    depth: int = Field(default=16, ge=2, le=64)
    """Results of one search that it may be shown, at most."""
    at_once: int = Field(default=8, ge=1, le=64)
    """Calls of one search under way at a time."""

    @field_validator("url")
    @classmethod
    def _may_be_asked(cls, given: str) -> str:
        check_address(given)
        return given


class Models(Settings):
    """Which models; each URI is that of the model's own ecosystem (open_clip, timm, diffusers)."""

    vlm: str
    """The vision-and-language model: open_clip's ``local-dir:…``, ``hf-hub:…`` or ``MODEL/TAG``."""
    vision: str
    """The vision encoder: timm's ``local-dir:…`` or ``hf-hub:…``."""
    generator: Generator | None
    """The diffusion model. ``null`` for none: texts are searched with real images of the gallery in the place of
    imagined ones."""
    aggregator: str | None = None
    """Folder or URI of an aggregator that was trained with these models; without one, images are averaged."""
    composer: str | None = None
    """Folder or URI of a composer that was trained with these models, for searches that ask for it."""
    assistant: AssistantSettings | None = None
    """A chat model that rewords, asks back and judges what was found, for searches that ask for it; none by default."""
    describer: str | None = None
    """A language model of this machine that describes classes, in the place of the assistant: transformers'
    ``local-dir:…`` or a hub id."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where all models run; ``auto`` takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of all weights; ``auto`` takes bfloat16 where the device is fast with it, else float32."""


class Placement(Settings):
    """What each actor of a stage takes, and of which nodes: docs/placement.md."""

    cpus: float = Field(default=1, ge=0)
    """CPUs of each actor."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of each actor."""
    labels: dict[str, str] = {}
    """Which nodes, by their labels; Ray's ``label_selector``: ``value``, ``!value``, ``in(a,b)`` or ``!in(a,b)``."""
    fallback: list[dict[str, str]] = [{}]
    """Which nodes else, where none fits ``labels``, in this order; Ray's ``fallback_strategy``. ``{}`` is any node, and
    with ``[]`` there are no others."""

    number: ClassVar[str | None] = None
    """What ``{shard}`` stands for where this is checked; nothing but in ``serve.shards``."""

    @field_validator("labels", "fallback")
    @classmethod
    def _selects(cls, given: Any) -> Any:
        for selector in given if isinstance(given, list) else [given]:
            check_selector(numbered(selector, cls.number))
        return given

    def selectors(self, shard: int | None = None) -> list[dict[str, str]]:
        """Return which nodes the stage may have, the preferred ones first; of a shard, by its number."""
        return [numbered(selector, shard) for selector in (self.labels, *self.fallback)] if self.labels else [{}]

    def resized(self, cpus: float, gpus: float = 0) -> Placement:
        """Return what takes so much of the same nodes."""
        return Placement(cpus=cpus, gpus=gpus, labels=self.labels, fallback=self.fallback)

    def options(self, shard: int | None = None) -> dict[str, Any]:
        """Return the same as options of Ray's tasks and actors."""
        first, *others = self.selectors(shard)
        selected: dict[str, Any] = {"label_selector": first} if first else {}
        if others:
            selected["fallback_strategy"] = [{"label_selector": each} for each in others]
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **selected}


def numbered(selector: Mapping[str, str], shard: int | str | None) -> dict[str, str]:
    """Return a selector with the number of a shard in the place of ``{shard}``, if there is one."""
    return {key: value if shard is None else value.replace(SHARD, str(shard)) for key, value in selector.items()}


class Stage(Placement):
    """What the actors of one stage may use. Ray schedules by these numbers and adds actors up to ``max_actors`` as work
    allows.
    """

    min_actors: int = Field(default=1, ge=1)
    """Actors that the stage has at least."""
    max_actors: int = Field(ge=1)
    """Actors that the stage has at most."""
    batch: int = Field(ge=1)
    """Rows an actor is given at once."""

    @model_validator(mode="after")
    def _actors_in_order(self) -> Self:
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is below min_actors ({self.min_actors})")
        return self


class Queries(Settings):
    """How queries are imagined."""

    images: int = Field(ge=1)
    """K, images per query."""
    seed: int = 0
    """Of the images; the same seed and text give the same images."""
    templates: str | list[str]
    """Prompt templates of the text vector: the name of a set in ``retrieval.prompts``, or sentences with one ``{}``."""

    @field_validator("templates")
    @classmethod
    def _usable_templates(cls, given: str | list[str]) -> str | list[str]:
        if isinstance(given, list):
            fill(given, "")
        elif given not in TEMPLATE_SETS:
            raise ValueError(f"there is no such set; give one of {', '.join(TEMPLATE_SETS)}, or a list of sentences")
        return given


class IndexSettings(Placement):
    """How an index is cut and built, and where: on the nodes that these labels select, all that reads shards runs."""

    rows_per_shard: int = Field(ge=1)
    """Images in one shard, at most."""
    factory: str = "auto"
    """A FAISS factory string, or ``auto`` to choose by size."""
    cpus: float = Field(default=1, ge=0)
    """CPUs that a shard is built with at least; more where there are fewer shards than CPUs."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that an index is trained on; FAISS must have been built for them."""
    memory_per_shard: int | None = Field(default=None, ge=1)
    """Bytes of memory that the compressed index of a shard may take; ``auto`` chooses a kind that fits."""
    recall_floor: float = Field(default=0.95, ge=0, le=1)
    """Recall@10 and @100 against exact search, at every λ, below which a version is not published."""


class Replicas(Placement):
    """How many replicas of one deployment there are, what each may use, and how many requests each accepts.

    Ray Serve adds replicas up to ``max_replicas`` while more than half of ``ongoing`` requests are under way on each;
    of ``vlm`` and ``ranker``, which are asked for many searches in one call, while more than 1.5 calls are.
    """

    cpus: float = Field(default=0.2, ge=0)
    """CPUs of each replica."""
    min_replicas: int = Field(default=1, ge=0)
    """Replicas at least; 0 starts the first when it is asked for."""
    max_replicas: int = Field(default=1, ge=0)
    """0 leaves the deployment out; only a service of remembered queries can do so, without its generator."""
    surge: bool = True
    """Whether a service that is deployed anew starts its new replicas before it ends the old ones, which needs room for
    both: where there is none, the old ones serve on, and the new ones wait for it."""
    upscale_s: float = Field(default=5, ge=0)
    """Seconds that the load is too high before a replica is added."""
    downscale_s: float = Field(default=120, ge=0)
    """Seconds that the load is low before a replica is taken away; it first ends what is under way on it."""
    ongoing: int = Field(default=16, ge=1)
    """Requests under way on one replica."""
    queued: int = Field(default=64, ge=1)
    """Requests that may wait for a replica; more are rejected at once."""
    batch: int = Field(default=8, ge=1)
    """Requests that go through a model at once."""
    batch_wait_ms: float = Field(default=0, ge=0)
    """Milliseconds that a batch waits to fill; 0 takes what has arrived while the one before was under way."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        if self.ongoing < self.batch:
            raise ValueError(f"ongoing ({self.ongoing}) is below batch ({self.batch}), which then never fills")
        return self


class Shards(Replicas):
    """The replicas of each shard; in the values of its labels ``{shard}`` is the shard's number."""

    number: ClassVar[str | None] = "0"
    """As that of every shard."""


class Limits(Settings):
    """What one request may ask for, and how often."""

    query_characters: int = Field(default=1_000, ge=1, le=MAX_CHARACTERS)
    """Characters of a query, at most."""
    k: int = Field(default=1_000, ge=1)
    """Results of a query, at most."""
    images: int = Field(default=64, ge=1)
    """Images imagined for a query, at most."""
    body_bytes: int = Field(default=10 * 2**20, ge=1)
    """Bytes of a request's body, at most."""
    body_seconds: float = Field(default=15, gt=0)
    """Seconds that a client may take to send a body."""
    requests_per_minute: int = Field(default=600, ge=1)
    """Of one key, or of one address where there are no keys; pictures do not count."""
    pictures_per_minute: int = Field(default=6_000, ge=1)
    """Pictures of the gallery and imagined ones, of one key or address."""


class ServeSettings(Settings):
    """The service: where it listens, what it remembers, and its deployments."""

    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs ``keys_file``."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Port to listen on."""
    keys_file: str | None = None
    """API keys, one on each line, ``admin`` after those that may switch the index. Without the file the service listens
    on this machine alone."""
    indexes: list[str] = []
    """Folders or URIs of further indexes, or of what holds some, that a running service may be switched to."""
    store: str | None = None
    """Where imagined queries are kept: ``sqlite:FILE``, ``redis://…``, ``memory:``; by default a file of this user."""
    memory_entries: int = Field(default=10_000, ge=1)
    """Imagined queries that are kept; of more, those that were not used for longest are evicted."""
    watch_seconds: float = Field(default=5, gt=0)
    """Seconds between probes for a new version of the index."""
    deadline_ms: int = Field(default=30_000, ge=1)
    """Milliseconds after which an answer is due, and the most that a request may ask for."""
    shard_timeout_ms: int = Field(default=2_000, ge=1)
    """Milliseconds that a shard may take before the answer goes without it."""
    local_index_bytes: int = Field(default=512 * 2**20, ge=0)
    """Bytes of an index up to which each replica of the ranker holds its shards itself, which saves every answer a hop.
    Shards of a larger index, or with ``gpus`` or ``{shard}`` in a label, are deployments of their own."""
    shards_per_deployment: int = Field(default=1, ge=1)
    """Shards that one deployment holds, where they are deployments. Each call costs the ranker, so a large index wants
    several: docs/capacity.md."""
    limits: Limits = Limits()
    """What one request may ask for."""
    ingress: Replicas = Replicas(ongoing=256, queued=256)
    """HTTP: the API and the page. ``ongoing`` and ``queued`` are of searches on one replica; pages and pictures need no
    place."""
    vlm: Replicas = Replicas(ongoing=64, batch=16)
    """Texts to vectors."""
    vision: Replicas = Replicas(ongoing=16, batch=4)
    """Imagined images to vectors."""
    generator: Replicas = Replicas(ongoing=16, queued=32, batch=4)
    """Texts to imagined images."""
    ranker: Replicas = Replicas(ongoing=64, queued=256)
    """Fused queries to rankings: asks the shards and merges."""
    shards: Shards = Shards(ongoing=32, queued=256)
    """Each of the shards of the index, where they are deployments."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        waiting = self.generator.ongoing * self.generator.max_replicas + self.generator.queued
        if waiting >= self.ingress.ongoing:
            raise ValueError(
                f"the generator accepts {waiting} requests (ongoing × max_replicas + queued), and a replica of the"
                f" ingress {self.ingress.ongoing} (ongoing): when all of them wait for images, texts are no longer"
                " answered; lower generator.ongoing or generator.queued, or raise ingress.ongoing"
            )
        return self


class Training(Placement):
    """How the aggregator is trained, and on what. Batches and steps are those of all workers together."""

    min_workers: int = Field(default=1, ge=0)
    """0 trains in the calling process. With fewer than ``max_workers``, Ray Train takes what the cluster has."""
    max_workers: int = Field(default=1, ge=0)
    """Workers at most."""
    max_failures: int = Field(default=3, ge=0)
    """Times that lost workers are replaced before the run gives up."""
    layers: int = Field(default=2, ge=1)
    """Layers of attention."""
    heads: int = Field(default=1, ge=1)
    """Heads of attention in each layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the attention weights that a step drops."""
    init: Literal["reference", "identity"] = "identity"
    """First weights: random, as in the authors' code, or such that the output is near the mean of the images."""
    batch: int = Field(default=128, ge=2)
    """Queries a step."""
    positives: int = Field(default=4, ge=1)
    """Gallery images that a query brings to its batch."""
    rows_per_label: int = Field(default=64, ge=1)
    """Gallery images of a label that are drawn from, a random sample."""
    holdout: float = Field(default=0.25, gt=0, lt=1)
    """Share of the labels that are not trained on but decide when to stop."""
    steps: int = Field(default=400, ge=1)
    """Steps at most."""
    warm_up: int = Field(default=20, ge=1)
    """Steps over which the learning rate rises from zero."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest, after the warm-up; it falls to zero from there."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    temperature: float = Field(default=0.05, gt=0)
    """Of the loss at the start; it is learned."""
    validate_every: int = Field(default=25, ge=1)
    """Steps between validations, each of which writes a checkpoint."""
    patience: int = Field(default=6, ge=1)
    """Validations without a better mAP after which the run ends."""
    seed: int = Field(default=0, ge=0)
    """Of the first weights, the held-out labels and the batches."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers})")
        if self.batch < self.max_workers:
            raise ValueError(f"a batch of {self.batch} queries leaves some of {self.max_workers} workers without one")
        return self


class Profile(Settings):
    """Everything a job needs to know about models and machines."""

    name: str
    """By default that of its file."""
    models: Models
    """Which models."""
    embed: Stage
    """Reads decoded images, writes both vectors of each."""
    imagine: Stage
    """Reads texts, writes text vectors and vectors of generated images."""
    queries: Queries
    """How queries are imagined."""
    index: IndexSettings
    """How an index is cut and built."""
    train: Training = Training()
    """How the aggregator is trained."""
    serve: ServeSettings = ServeSettings()
    """The service."""

    @model_validator(mode="after")
    def _serves_what_there_is(self) -> Self:
        if self.models.generator is None and self.serve.generator.max_replicas:
            raise ValueError("models.generator is null, so serve.generator must be {min_replicas: 0, max_replicas: 0}")
        return self


def load_profile(name: str | Path | Profile) -> Profile:
    """Load a profile that ships with mindseye, by name, or your own, by the path of its YAML file.

    A profile that is loaded already is returned as it is. Relative paths of local models, of the file of API keys and
    of further indexes are relative to the installation for shipped profiles, to the file for your own.

    Raises:
        UserError: there is no such profile, or a setting is unknown, missing or wrong; the message names the file and
            every wrong setting, ``field`` the first.
    """
    if isinstance(name, Profile):
        return name
    shipped = {path.stem: path for path in PROFILES.glob("*.yaml")}
    file = shipped.get(str(name), Path(name))
    if not file.is_file():
        names = ", ".join(sorted(shipped))
        raise UserError(
            f"there is no profile {str(name)!r}: give one of {names}, or the path of a YAML file",
            code="missing",
            field="profile",
        )
    profile = _validated(file, _content(file))
    return _with_absolute_paths(profile, PROFILES.parents[1] if str(name) in shipped else file.absolute().parent)


def relative_paths(file: Path) -> list[str]:
    """Return the settings of a profile's own file that are paths from where it lies: they mean files of that machine.

    Raises:
        UserError: as ``load_profile``.
    """
    given = _validated(file, _content(file))
    found = _with_absolute_paths(given, file.absolute().parent)
    return [name for name, value in _paths(given).items() if value != _paths(found)[name]]


def _paths(profile: Profile) -> dict[str, Any]:
    models, serve = profile.models, profile.serve
    return {
        "models.vlm": models.vlm,
        "models.vision": models.vision,
        "models.generator.uri": models.generator and models.generator.uri,
        "models.aggregator": models.aggregator,
        "models.composer": models.composer,
        "models.describer": models.describer,
        "serve.indexes": serve.indexes,
        "serve.keys_file": serve.keys_file,
    }


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}", code="malformed", field="profile") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}", code="malformed", field="profile") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{file} must hold settings and values, not {kind}", code="malformed", field="profile")
    return content


def _validated(file: Path, content: dict[str, Any]) -> Profile:
    try:
        return Profile.model_validate({"name": file.stem, **content})
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])) or "(file)", each) for each in error.errors()]
        problems = [f"  {setting}: {each['msg']}{_given(setting, each['input'])}" for setting, each in wrong]
        message = f"{file} has {len(problems)} wrong setting(s):\n" + "\n".join(problems)
        raise UserError(message, code="wrong-setting", field=wrong[0][0]) from error


def _given(setting: str, value: Any) -> str:
    """What stands there, but where somebody may have written a key."""
    return "" if setting.startswith("models.assistant") else f" (given: {value!r})"


def _with_absolute_paths(profile: Profile, base: Path) -> Profile:
    models, generator = profile.models, profile.models.generator
    local: dict[str, Any] = {"vlm": _absolute(models.vlm, base), "vision": _absolute(models.vision, base)}
    if generator:
        local["generator"] = generator.model_copy(update={"uri": _absolute_folder(generator.uri, base)})
    trained = {"aggregator": models.aggregator, "composer": models.composer}
    local |= {name: str(base / uri) for name, uri in trained.items() if uri and "://" not in uri}
    if models.describer:
        local["describer"] = _absolute(models.describer, base)
    update: dict[str, Any] = {"models": models.model_copy(update=local)}
    places: dict[str, Any] = {
        "indexes": [uri if "://" in uri else str(base / Path(uri).expanduser()) for uri in profile.serve.indexes]
    }
    if keys := profile.serve.keys_file:
        places["keys_file"] = str(base / Path(keys).expanduser())
    update["serve"] = profile.serve.model_copy(update=places)
    return profile.model_copy(update=update)


def _absolute(uri: str, base: Path) -> str:
    return f"{_LOCAL}{base / uri.removeprefix(_LOCAL)}" if uri.startswith(_LOCAL) else uri


def _absolute_folder(uri: str, base: Path) -> str:
    # A hub id is NAME or ORG/NAME; what cannot be one is a folder, which an error should name whole.
    return str(base / uri) if (base / uri).is_dir() or uri.startswith(".") or uri.count("/") > 1 else uri
