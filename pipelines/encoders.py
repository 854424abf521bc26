"""The two image encoders of a profile: loaded once in a process, and described to a driver that does not load them."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache, cached

from cluster.loading import load_vision, load_vlm, record_of
from cluster.profile import Profile
from cluster.room import Demand, check_room
from pipelines.running import current_executor
from retrieval.artifacts import ModelRecord

if TYPE_CHECKING:  # takes seconds to import, which a driver should not
    from retrieval.models.preprocess import Preprocess
    from retrieval.models.vision import VisionEncoder
    from retrieval.models.vlm import VLM


class Encoders(NamedTuple):
    """What the driver needs to know of the two encoders without loading them."""

    vlm: ModelRecord
    vision: ModelRecord
    vlm_preprocess: Preprocess
    vision_preprocess: Preprocess


def models_key(profile: Profile, *uris: str) -> tuple[Any, ...]:
    """Return what the loaded models depend on: for local ones their files too, since others may be written under the
    same name.
    """
    files = [
        (str(file), (status := file.stat()).st_size, status.st_mtime_ns)
        for uri in uris
        for file in sorted(Path(uri.removeprefix("local-dir:").partition("?")[0]).rglob("*"))
    ]
    return *uris, profile.models.device, profile.models.dtype, *files


def _key(profile: Profile) -> tuple[Any, ...]:
    return models_key(profile, profile.models.vlm, profile.models.vision)


@cached(LRUCache(1), _key, Lock())
def load_encoders(profile: Profile) -> tuple[VLM, VisionEncoder]:
    """Return both encoders, loaded, the same ones for the next job in this process."""
    return load_vlm(profile), load_vision(profile)


def describe_encoders(profile: Profile) -> Encoders:
    """Load both encoders where the stage runs, and return what is to be known of them. Embedders check that theirs are
    the same.

    Raises:
        UserError: Ray has no room for the stage.
    """
    check_room(Demand("an embedder", "embed", profile.embed))  # not cached: it is of the stage, not of the models
    return _described_once(profile)


@cached(LRUCache(8), _key, Lock())
def _described_once(profile: Profile) -> Encoders:
    return current_executor().run(_described, profile, place=profile.embed).get()


def _described(profile: Profile) -> Encoders:
    vlm, vision = load_encoders(profile)
    return Encoders(record_of(vlm), record_of(vision), vlm.preprocess, vision.preprocess)
