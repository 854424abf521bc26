"""mindseye finds every image of a category from words: the command line, and the names for use from Python.

    import mindseye

    mindseye.index("pictures", "my-gallery")
    for found in mindseye.open_finder("my-gallery").search("yellow dotted fish", k=5):
        print(found.score, found.path)

A name loads what it needs when it is first used: ``import mindseye`` loads neither PyTorch nor Ray.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what _PUBLIC says, for editors and type checkers
    from cluster.loading import load_assistant as load_assistant
    from cluster.loading import load_query_encoder as load_query_encoder
    from cluster.loading import open_finder as open_finder
    from cluster.loading import open_index as open_index
    from cluster.profile import Profile as Profile
    from cluster.profile import load_profile as load_profile
    from cluster.session import session as session
    from pipelines.answer_sheet import answer_sheet as answer_sheet
    from pipelines.authors_features import import_features as import_features
    from pipelines.benchmark import read_benchmark as read_benchmark
    from pipelines.job import add as add
    from pipelines.job import compact as compact
    from pipelines.job import index as index
    from pipelines.job import prune as prune
    from pipelines.job import remove as remove
    from pipelines.queries import imagine as imagine
    from pipelines.report import measure as measure
    from pipelines.vocabulary import VocabularyEntry as VocabularyEntry
    from retrieval.artifacts import Gallery as Gallery
    from retrieval.artifacts import Index as Index
    from retrieval.artifacts import QuerySet as QuerySet
    from retrieval.artifacts import TrainedAggregator as TrainedAggregator
    from retrieval.artifacts import TrainedComposer as TrainedComposer
    from retrieval.errors import UserError as UserError
    from retrieval.evidence import Picture as Picture
    from retrieval.evidence import Row as Row
    from retrieval.evidence import Text as Text
    from retrieval.finder import Answer as Answer
    from retrieval.finder import Finder as Finder
    from retrieval.finder import Found as Found
    from retrieval.fusion import fused_query as fused_query
    from retrieval.fusion import score as score
    from retrieval.query import pool as pool
    from serving import client as client
    from training.composing import train_composer as train_composer
    from training.trainer import train as train

_PUBLIC = {
    "Answer": "retrieval.finder:Answer",
    "Finder": "retrieval.finder:Finder",
    "Found": "retrieval.finder:Found",
    "Gallery": "retrieval.artifacts:Gallery",
    "Index": "retrieval.artifacts:Index",
    "Picture": "retrieval.evidence:Picture",
    "Profile": "cluster.profile:Profile",
    "QuerySet": "retrieval.artifacts:QuerySet",
    "Row": "retrieval.evidence:Row",
    "Text": "retrieval.evidence:Text",
    "TrainedAggregator": "retrieval.artifacts:TrainedAggregator",
    "TrainedComposer": "retrieval.artifacts:TrainedComposer",
    "UserError": "retrieval.errors:UserError",
    "VocabularyEntry": "pipelines.vocabulary:VocabularyEntry",
    "add": "pipelines.job:add",
    "answer_sheet": "pipelines.answer_sheet:answer_sheet",
    "client": "serving.client",
    "compact": "pipelines.job:compact",
    "fused_query": "retrieval.fusion:fused_query",
    "imagine": "pipelines.queries:imagine",
    "import_features": "pipelines.authors_features:import_features",
    "index": "pipelines.job:index",
    "load_assistant": "cluster.loading:load_assistant",
    "load_profile": "cluster.profile:load_profile",
    "load_query_encoder": "cluster.loading:load_query_encoder",
    "measure": "pipelines.report:measure",
    "open_finder": "cluster.loading:open_finder",
    "open_index": "cluster.loading:open_index",
    "pool": "retrieval.query:pool",
    "prune": "pipelines.job:prune",
    "read_benchmark": "pipelines.benchmark:read_benchmark",
    "remove": "pipelines.job:remove",
    "score": "retrieval.fusion:score",
    "session": "cluster.session:session",
    "train": "training.trainer:train",
    "train_composer": "training.composing:train_composer",
}
__all__ = ["main", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = resolve_name(_PUBLIC[name])
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _refuse_namesakes() -> None:
    """Refuse to take somebody else's ``cluster`` or ``training`` for ours."""
    home = Path(__file__).resolve().parent
    for package in ("cluster", "commands", "demo", "pipelines", "retrieval", "serving", "training"):
        found = find_spec(package)
        places = [Path(place) for place in found.submodule_search_locations or [found.origin or ""]] if found else []
        if places and places[0].resolve() != home / package:
            raise ImportError(f"{places[0]} hides mindseye's own package {package}: rename it, or start elsewhere")


_refuse_namesakes()


def main() -> None:
    """Run the command line."""
    from commands.app import run

    run()


if __name__ == "__main__":
    main()
