"""``mindseye demo``: the main job on a rendered gallery."""

from __future__ import annotations

import shlex
from pathlib import Path

from commands.console import Cluster, Profile, listed, out, say_made, say_next, with_profile


def demo(folder: Path = Path("demo-out"), *, profile: Profile = "tiny", address: Cluster = None) -> None:
    """Run the main job on a rendered gallery: embed, index, imagine, train, evaluate, serve.

    Parameters
    ----------
    folder
        Where everything goes. A folder that an earlier demo filled is emptied first.
    """
    from cluster.ports import free_port
    from cluster.profile import load_profile
    from cluster.session import cluster_address, session
    from commands.results import results_table
    from demo.run import run_demo
    from serving.client import search as ask
    from serving.launch import prepare, running

    settings = load_profile(profile)

    def say(line: str) -> None:
        out.print(f"== {line}", style="bold")

    with session(address):
        result = run_demo(folder, settings, say)
        say("serving: one query over HTTP")
        port = free_port()
        store = f"sqlite:{folder.absolute() / 'remembered.sqlite'}"
        arguments = {"target": str(folder), "profile": profile, "store": store}
        with running(prepare(arguments, port=port), everywhere=bool(cluster_address(address))) as url:
            answer = ask(url, result.example, k=5)
    out.print(f"{answer.query!r} over HTTP: ranked by {answer.stage}, λ = {answer.weight:.2f}, {answer.timings_ms} ms")
    for found in answer.results:
        out.print(f"  {found.score:.4f}  {found.path}")
    out.print()
    out.print(results_table(result.evaluation, f"{result.gallery.manifest.rows:,} images of unseen categories"))
    recall = result.index.manifest.recall["10"]
    out.print(f"recall@10 of the index against exact search, by λ: {listed(recall)}")
    say_made(*result.made, result.index.uri)
    say_next(
        with_profile(f"mindseye serve {folder} --warm {folder}/queries", profile),
        with_profile(f"mindseye search {shlex.quote(result.example)} {folder} --sheet found.png", profile),
    )
