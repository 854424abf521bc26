"""An assistant: a chat model behind an OpenAI-compatible URL, asked within bounds of time, of size and of trust.

Every fault of it is an ``AssistantFault`` with a word and a sentence, so that whoever asks goes on without it. The
``openai`` package would do the same calls, but follows redirects, repeats them, reads variables of its own and bounds
no answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from retrieval.assistant.address import check_address

Task = Literal["rewrite", "ask", "judge", "list", "describe"]
Reason = Literal["down", "busy", "late", "refused", "rejected", "malformed"]
Outcome = Reason | Literal["answered", "cancelled"]

MAX_REQUEST_BYTES = 8 * 2**20
MAX_ANSWER_BYTES = 2**20
_CHUNK = 2**16
_TOKENS = 10_000_000


class AssistantFault(Exception):
    """The assistant gave no answer that can be used.

    Args:
        reason: ``down`` (not reached, or HTTP 5xx), ``busy`` (429), ``late``, ``refused`` (the model declined),
            ``rejected`` (another status of HTTP: a key, a name, a redirect), ``malformed`` (an answer that is no answer
            to what was asked).
        sentence: for people. Nothing that the assistant sent is in it but a status.
        status: of HTTP, if that is what it is about.
    """

    def __init__(self, reason: Reason, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason
        self.status = status


class Call(NamedTuple):
    """One call, for whoever counts them. Tokens are those that the endpoint states, 0 if it states none."""

    task: Task
    outcome: Outcome
    seconds: float
    tokens_in: int
    tokens_out: int


class Token(BaseModel):
    """A token that could have come next, with the logarithm of its probability."""

    token: str
    logprob: float = Field(le=1e-3)  # of rounding
    top_logprobs: list[Token] = []


class _Tokens(BaseModel):
    content: list[Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """An answer."""

    message: _Message
    finish_reason: str | None = None
    logprobs: _Tokens | None = None

    @property
    def text(self) -> str:
        return self.message.content or ""

    @property
    def first(self) -> list[Token]:
        """What could have been the first token; empty where the endpoint does not say."""
        tokens = self.logprobs.content if self.logprobs else None
        return (tokens[0].top_logprobs or tokens[:1]) if tokens else []


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0, le=_TOKENS)
    completion_tokens: int = Field(default=0, ge=0, le=_TOKENS)


class _Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass
class Spent:
    """What one search has asked of an assistant so far."""

    calls: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, call: Call) -> None:
        self.calls += 1
        self.failed += call.outcome != "answered"
        self.tokens_in += call.tokens_in
        self.tokens_out += call.tokens_out

    def __add__(self, other: Spent) -> Spent:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Spent(*(mine + theirs for mine, theirs in pairs))


class Assistant:
    """A chat model at one URL. For one event loop at a time; ``close`` before another one uses it.

    Args:
        url: its base, such as https://models.example.com/v1 (``check_address``). Nothing else is ever asked: redirects
            are not followed, and no proxy or other setting is taken from the environment.
        model: the name under which the endpoint knows it.
        key: sent as a bearer token. It is in no message, log line or ``repr``.
        seconds: that all calls for one search may take together.
        depth: pictures that one search may show it, at most.
        at_once: calls of one search under way at a time.
        told: is told of every call.

    Attributes:
        spent: calls and tokens so far, of all searches.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        seconds: float = 20,
        depth: int = 16,
        at_once: int = 8,
        told: Callable[[Call], None] | None = None,
    ) -> None:
        check_address(url)
        self.model = model
        self.seconds = seconds
        self.depth = depth
        self.at_once = at_once
        self.told = told
        self.spent = Spent()
        self.states_logprobs = True
        """Whether to ask for the probabilities of tokens; false once the endpoint turned out to have none."""
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._session: aiohttp.ClientSession | None = None

    def talk(self, seconds: float | None = None) -> Talk:
        """Begin what one search has to ask, within so many seconds at most."""
        return Talk(self, self.seconds if seconds is None else min(seconds, self.seconds))

    async def close(self) -> None:
        """Close its connections. It may be asked again."""
        session, self._session = self._session, None
        if session:
            await session.close()

    async def complete(self, body: Mapping[str, Any]) -> _Completion:
        """Return what the endpoint answers; for ``Talk``, which bounds the time."""
        if not self._session:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=4 * self.at_once),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,  # a small answer could become a large one
            )
        asked = {"model": self.model, **body}
        try:
            async with self._session.post(self._url, json=asked, allow_redirects=False) as answer:
                _check_status(answer.status)
                data = await _bounded(answer.content)
        except (aiohttp.ClientError, OSError) as error:
            raise AssistantFault("down", f"the assistant cannot be reached ({type(error).__name__})") from None
        try:
            return _Completion.model_validate_json(data)
        except ValidationError:
            raise AssistantFault("malformed", "the assistant's answer is not one of this protocol") from None


class Talks(Protocol):
    """What can be asked: a ``Talk``, or a model of this machine."""

    async def complete(
        self, task: Task, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **options: Any
    ) -> Choice:
        """Return the model's answer, as ``Talk.complete``."""


class Talk:
    """What one search asks of an assistant: until one moment, and all of it counted.

    Attributes:
        spent: calls and tokens so far.
    """

    def __init__(self, assistant: Assistant, seconds: float) -> None:
        self.assistant = assistant
        self.spent = Spent()
        self._due = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until it is over."""
        return max(0.0, self._due - time.monotonic())

    async def complete(
        self, task: Task, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **options: Any
    ) -> Choice:
        """Return the model's answer to messages.

        Args:
            task: for the counts.
            messages: of the protocol.
            max_tokens: of the answer. The name is that of the older protocol, which more endpoints know.
            options: further fields of the request.

        Raises:
            AssistantFault: there is none.
        """
        started, usage = time.monotonic(), _Usage()
        outcome: Outcome = "answered"
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **options}
        try:
            async with asyncio.timeout(self.left):
                completion = await self.assistant.complete(body)
            usage = completion.usage or usage
            choice = completion.choices[0]
            if choice.message.refusal or choice.finish_reason == "content_filter":
                raise AssistantFault("refused", "the assistant declined to answer")
            return choice
        except AssistantFault as fault:
            outcome = fault.reason
            raise
        except TimeoutError:
            outcome = "late"
            raise AssistantFault("late", "the assistant did not answer in time") from None
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            call = Call(task, outcome, time.monotonic() - started, usage.prompt_tokens, usage.completion_tokens)
            self.spent.add(call)
            self.assistant.spent.add(call)
            if self.assistant.told:
                self.assistant.told(call)


def _check_status(status: int) -> None:
    """What the body of an error says is not shown: some endpoints repeat the key in it."""
    if status == 200:
        return
    if status == 429:
        raise AssistantFault("busy", "the assistant has too many requests", status)
    if status >= 500:
        raise AssistantFault("down", f"the assistant fails (HTTP {status})", status)
    if 300 <= status < 400:
        sentence = f"the assistant redirects elsewhere (HTTP {status}), which is not followed"
        raise AssistantFault("rejected", sentence, status)
    raise AssistantFault("rejected", f"the assistant rejects the request (HTTP {status})", status)


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    data = bytearray()
    async for chunk in content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise AssistantFault("malformed", f"the assistant's answer has more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(data)
