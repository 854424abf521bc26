"""A search that would get no place is refused before anything of it is read. ASGI middleware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.deployments.calls import Unavailable
from serving.faults import RETRY_SECONDS
from serving.guards.middleware import HttpMiddleware, caller, listed, refuse


def party(scope: Scope) -> str:
    """Who competes for places with whom: callers, and the page of a caller apart from programs of the same caller.

    Browsers say so by themselves, over HTTPS and on the loopback (W3C Fetch Metadata); a script in a browser cannot.
    """
    asks = caller(scope)
    return f"{asks} page" if Headers(scope=scope).get("sec-fetch-site") == "same-origin" else asks


class Places(HttpMiddleware):
    """Refuses searches while there is no place for them.

    When there is far too much to do, refusing is most of the work, and fetching the body from Serve's proxy would be
    most of that.

    Args:
        coming: ``Admission.coming``.
        paths: those of searches.
    """

    def __init__(
        self, app: ASGIApp, *, coming: Callable[[str], AbstractContextManager[bool]], paths: Sequence[str]
    ) -> None:
        super().__init__(app)
        self.coming = coming
        self.paths = paths

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not listed(scope, self.paths):
            await self.app(scope, receive, send)
            return
        with self.coming(party(scope)) as may:
            if may:
                await self.app(scope, receive, send)
            else:
                sentence = str(Unavailable("the service", "busy"))
                await refuse(scope, receive, send, 503, "busy", sentence, {"Retry-After": str(RETRY_SECONDS)})
