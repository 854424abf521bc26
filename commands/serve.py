"""``mindseye serve``: an index on the network."""

from __future__ import annotations

import shlex

from commands.console import Cluster, Profile, out, say_next
from retrieval.errors import UserError


def serve(
    target: str | None = None,
    *,
    index: str | None = None,
    profile: Profile = "tiny",
    aggregator: str | None = None,
    warm: str | None = None,
    host: str | None = None,
    port: int | None = None,
    store: str | None = None,
    name: str = "mindseye",
    address: Cluster = None,
) -> None:
    """Put an index on the network: an HTTP API and a page. Runs until Ctrl-C.

    Parameters
    ----------
    target
        What mindseye index (or mindseye demo) made, or an index itself.
    index
        Switch the service that runs at this host and port to this index, or to one version of it, and end.
    aggregator
        A trained aggregator; by default the profile's. Without one, the images are averaged.
    warm
        A query set (mindseye queries) to remember: its queries are answered without imagining them again. Not with
        the store memory:, of which each replica has its own.
    host
        Address to listen at; by default the profile's, which is this machine alone. Any other needs API keys.
    port
        Port to listen at; by default the profile's.
    store
        Where imagined queries are kept: sqlite:FILE, redis://HOST:PORT/DB or memory:; by default the profile's.
        On a cluster of several nodes it has to be a Redis.
    name
        Of the application of Ray Serve, on a cluster that has others.
    """
    from serving.launch import launch, prepare, switch

    if index:
        url, now = switch(index, profile, host=host, port=port)
        out.print(f"{url} serves version {now.index_version} of {index}: {now.rows:,} images", soft_wrap=True)
        return
    if not target:
        raise UserError(
            "give what to serve: what mindseye index (or mindseye demo) made, or an index",
            code="missing",
            field="target",
        )

    def up(url: str) -> None:
        out.print(f"serving {target} at {url}  (Ctrl-C ends it)", soft_wrap=True)
        question = shlex.quote('{"query": "yellow dotted fish"}')
        say_next(f"curl {url}/v1/search -H 'Content-Type: application/json' -d {question}")

    args = {"target": target, "profile": profile, "aggregator": aggregator, "warm": warm, "store": store}
    launch(prepare(args, host=host, port=port, name=name, address=address), address=address, up=up)
