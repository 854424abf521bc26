"""python -m demo.assistant: a small server of the OpenAI-compatible protocol that answers from the demo's grammar.

For trying ``models.assistant`` of a profile without a language model and without a network: docs/assistant.md. It
listens on this machine alone, understands mindseye's own requests and no others, and needs no key.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import time
from typing import Any

from aiohttp import web

from demo.assistant_answers import GrammarAnswers, opened
from retrieval.assistant.endpoint import MAX_REQUEST_BYTES

MODEL = "mindseye-demo-grammar"
_JPEG = "data:image/jpeg;base64,"
_SURE = 1e-4
"""The least probability of yes and of no."""


def application(answers: GrammarAnswers) -> web.Application:
    """Return the server, whose one path is /v1/chat/completions."""

    async def complete(request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            texts, pictures = _parts(asked["messages"][-1]["content"])
            data = json.loads(texts[0])
            choice = await asyncio.to_thread(_choice, answers, asked, data, pictures)
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            message = f"this server knows mindseye's own requests alone ({type(error).__name__})"
            return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)
        given = sum(len(str(message["content"])) for message in asked["messages"][:-1]) + sum(map(len, texts))
        taken = len(choice["message"]["content"])
        usage = {"prompt_tokens": given // 4 + 85 * len(pictures), "completion_tokens": taken // 4 + 1}  # about
        return web.json_response(
            {
                "id": "demo",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            }
        )

    app = web.Application(client_max_size=2 * MAX_REQUEST_BYTES)
    app.router.add_post("/v1/chat/completions", complete)
    return app


def _parts(content: list[dict[str, Any]]) -> tuple[list[str], list[bytes]]:
    texts = [part["text"] for part in content if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    if not all(url.startswith(_JPEG) for url in urls):
        raise ValueError("pictures are data URLs of JPEG files")
    return texts, [base64.b64decode(url.removeprefix(_JPEG), validate=True) for url in urls]


def _choice(
    answers: GrammarAnswers, asked: dict[str, Any], data: dict[str, Any], pictures: list[bytes]
) -> dict[str, Any]:
    task = data["task"]
    if task == "judge":
        probability = min(1 - _SURE, max(_SURE, answers.judge(data, opened(pictures[0]))))
        if not asked.get("logprobs"):
            return _said(json.dumps({"probability": round(probability, 4)}))
        words = ("yes", "no") if probability >= 0.5 else ("no", "yes")
        shares = {"yes": probability, "no": 1 - probability}
        both = [{"token": word, "logprob": math.log(shares[word])} for word in words]
        return {**_said(words[0]), "logprobs": {"content": [{**both[0], "top_logprobs": both}]}}
    if task == "list":
        return _said(json.dumps(answers.order(data, opened(pictures[0]))))
    answer = {"rewrite": answers.rewrite, "ask": answers.ask, "describe": answers.describe}[task](data)
    return _said(json.dumps(answer, ensure_ascii=False))


def _said(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m demo.assistant", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=8100)
    port = parser.parse_args().port
    from cluster.loading import load_vlm
    from cluster.profile import load_profile

    answers = GrammarAnswers(load_vlm(load_profile("tiny")))
    print(f"models.assistant: {{url: http://127.0.0.1:{port}/v1, model: {MODEL}}}", flush=True)
    web.run_app(application(answers), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
