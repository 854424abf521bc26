"""``mindseye demo``: the main job on a rendered gallery."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import Cluster, Profile, listed, out, quoted, say_made, say_next, with_profile
from commands.results import results_table

if TYPE_CHECKING:  # --help need not wait for PyTorch and Ray
    from demo.run import DemoResult
    from serving.protocol import SearchAnswer


def demo(folder: Path = Path("demo-out"), *, profile: Profile = "tiny", address: Cluster = None) -> None:
    """Run the main job on a rendered gallery: embed, index, imagine, train, evaluate, serve.

    Parameters
    ----------
    folder
        Where everything goes. A folder that an earlier demo filled is emptied first.
    """
    from cluster.profile import load_profile
    from cluster.session import check_ray, session
    from demo.run import run_demo

    check_ray(address, "the service that the demo ends with")
    settings = load_profile(profile)
    with session(address):
        result = run_demo(folder, settings, _log)
        _log("serving: one query over HTTP")
        answer = _ask_a_service(result.example, folder, profile, address)
    _print_answer(answer)
    _print_result(result)
    say_next(
        with_profile(f"mindseye serve {quoted(folder)} --warm {quoted(folder, 'queries')}", profile),
        with_profile(f"mindseye search {shlex.quote(result.example)} {quoted(folder)} --sheet found.png", profile),
    )


def _log(line: str) -> None:
    out.print(f"== {line}", style="bold")


def _ask_a_service(query: str, folder: Path, profile: str, address: str | None) -> SearchAnswer:
    from cluster.ports import free_port
    from cluster.session import cluster_address
    from serving.client import search
    from serving.launch import prepare, running

    everywhere = bool(cluster_address(address))
    store = "memory:" if everywhere else f"sqlite:{folder.absolute() / 'remembered.sqlite'}"
    given = {"target": str(folder), "profile": profile, "store": store}
    service = prepare(given, port=free_port(), address=address)
    with running(service, everywhere=everywhere) as url:
        return search(url, query, k=5)


def _print_answer(answer: SearchAnswer) -> None:
    out.print(f"{answer.query!r} over HTTP: ranked by {answer.stage}, λ = {answer.weight:.2f}, {answer.timings_ms} ms")
    for found in answer.results:
        out.print(f"  {found.score:.4f}  {found.path}")
    out.print()


def _print_result(result: DemoResult) -> None:
    out.print(results_table(result.evaluation, f"{result.gallery.manifest.rows:,} images of unseen categories"))
    recall = result.index.manifest.recall["10"]
    out.print(f"recall@10 of the index against exact search, by λ: {listed(recall)}")
    say_made(*result.made, result.index.uri)
