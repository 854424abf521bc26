"""Profiles: one YAML file names the models and says what each stage may use, from a laptop to a cluster of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from retrieval.prompts import TEMPLATE_SETS, fill

PROFILES = Path(__file__).parent / "profiles"
_INSTALLED_AT = Path(__file__).parent.parent
_LOCAL = "local-dir:"


class Settings(BaseModel):
    """Base of all settings: unknown fields and values of another type are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Generator(Settings):
    """The diffusion model."""

    uri: str
    """A diffusers folder or hub id."""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    """Scale of classifier-free guidance; 0 for models that are distilled to do without."""
    size: int | None = Field(default=None, ge=8)
    """Side of the generated images in pixels; the model's own if none is given."""
    batch: int = Field(ge=1)
    """Images generated at once."""


class Models(Settings):
    """Which models; each URI is that of the model's own ecosystem (open_clip, timm, diffusers)."""

    vlm: str
    vision: str
    generator: Generator
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class Stage(Settings):
    """What the actors of one stage may use. Ray schedules by these numbers and adds actors up to ``max_actors`` as work
    allows.
    """

    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    min_actors: int = Field(default=1, ge=1)
    max_actors: int = Field(ge=1)
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


class IndexSettings(Settings):
    """How an index is cut and built."""

    rows_per_shard: int = Field(ge=1)
    factory: str = "auto"
    """A FAISS factory string, or ``auto`` to choose by size."""
    cpus: float = Field(default=1, ge=0)
    """CPUs a shard is built with."""


class Profile(Settings):
    """Everything a job needs to know about models and machines."""

    name: str
    models: Models
    embed: Stage
    """Reads decoded images, writes both vectors of each."""
    imagine: Stage
    """Reads texts, writes text vectors and vectors of generated images."""
    queries: Queries
    index: IndexSettings


def load_profile(name: str | Path) -> Profile:
    """Load a profile that ships with mindseye, by name, or your own, by the path of its YAML file.

    Relative paths of local models are relative to the installation for shipped profiles, to the file for your own.

    Raises:
        ValueError: there is no such profile, or a field is unknown, missing or wrong; the message names file and field.
    """
    shipped = {path.stem: path for path in PROFILES.glob("*.yaml")}
    file = shipped.get(str(name), Path(name))
    if not file.is_file():
        names = ", ".join(sorted(shipped))
        raise ValueError(f"there is no profile {str(name)!r}: give one of {names}, or the path of a YAML file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold fields and values, not {type(content).__name__}")
    try:
        profile = Profile.model_validate({"name": file.stem, **content})
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']} (given: {e['input']!r})" for e in error.errors()
        ]
        raise ValueError(f"{file} has {len(problems)} wrong setting(s):\n" + "\n".join(problems)) from error
    base = _INSTALLED_AT if str(name) in shipped else file.absolute().parent
    models = profile.models
    generator = models.generator.model_copy(update={"uri": _absolute_folder(models.generator.uri, base)})
    located = models.model_copy(
        update={"vlm": _absolute(models.vlm, base), "vision": _absolute(models.vision, base), "generator": generator}
    )
    return profile.model_copy(update={"models": located})


def _absolute(uri: str, base: Path) -> str:
    return f"{_LOCAL}{base / uri.removeprefix(_LOCAL)}" if uri.startswith(_LOCAL) else uri


def _absolute_folder(uri: str, base: Path) -> str:
    # A hub id is NAME or ORG/NAME; what can not be one is a folder, which an error should name whole.
    return str(base / uri) if (base / uri).is_dir() or uri.startswith(".") or uri.count("/") > 1 else uri
