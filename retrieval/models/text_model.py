"""A chat model on this machine, through transformers: a causal language model, asked as an assistant is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from retrieval.assistant.endpoint import Call, Choice, Spent, Task
from retrieval.models.devices import pick_device, pick_dtype
from retrieval.models.loading import loading, require_files

TEXT_MODEL_URIS = "local-dir:FOLDER (config.json, tokenizer.json, weights as safetensors) or a hub id such as ORG/NAME"
_LOCAL = "local-dir:"


class _Stop(StoppingCriteria):
    """Ends an answer that nobody waits for any more."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **further: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


class TextModel:
    """A loaded language model, which answers one call at a time and always alike: the likeliest word each time.

    Attributes:
        model: its URI.
        spent: calls and tokens so far.
    """

    at_once = 1

    def __init__(self, uri: str, model: Any, tokenizer: Any) -> None:
        self.model = uri
        self.spent = Spent()
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, uri: str, *, device: str = "auto", dtype: str = "auto") -> TextModel:
        """Load a causal language model of transformers. Its weights must be safetensors, and no code of it is run.

        Args:
            uri: as TEXT_MODEL_URIS says; FOLDER may be relative to the current directory.
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 where the device is fast at it, else float32) or a key of devices.DTYPES.

        Raises:
            UserError: it cannot be loaded (code ``not-loadable``, field ``describer``), or there is no such device or
                dtype.
        """
        where = pick_device(device)
        safe = {"trust_remote_code": False}
        with loading("describer", f"describer {uri!r}", TEXT_MODEL_URIS):
            name = uri.removeprefix(_LOCAL)
            if uri.startswith(_LOCAL):
                require_files(Path(name), "config.json", "tokenizer.json")
            tokenizer = AutoTokenizer.from_pretrained(name, **safe)
            model = AutoModelForCausalLM.from_pretrained(
                name, use_safetensors=True, dtype=pick_dtype(dtype, where), **safe
            )
            return cls(uri, model.to(where).eval(), tokenizer)

    def talk(self) -> TextModel:
        """Return what is asked."""
        return self

    async def close(self) -> None:
        """Nothing is held that must be let go of."""

    async def complete(
        self, task: Task, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **options: Any
    ) -> Choice:
        """Return the answer to messages, as ``Talk.complete``; it has no options."""
        del options
        stop = threading.Event()
        try:
            return await asyncio.to_thread(self._complete, task, messages, max_tokens, stop)
        finally:
            stop.set()

    @torch.inference_mode()
    def _complete(
        self, task: Task, messages: Sequence[Mapping[str, Any]], max_tokens: int, stop: threading.Event
    ) -> Choice:
        started = time.monotonic()
        # One message of the user: some chat templates know no other.
        text = "\n\n".join(_text(message["content"]) for message in messages)
        if self._tokenizer.chat_template:
            chat = [{"role": "user", "content": text}]
            given = self._tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            given = self._tokenizer(f"{text}\n", return_tensors="pt")
        ids_BT = given["input_ids"].to(self._model.device)
        answer_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=max_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
            pad_token_id=self._tokenizer.eos_token_id,
        )
        new = answer_BT[0, ids_BT.shape[1] :]
        said = self._tokenizer.decode(new, skip_special_tokens=True)
        self.spent.add(Call(task, "answered", time.monotonic() - started, ids_BT.shape[1], len(new)))
        reason = "length" if len(new) == max_tokens else "stop"
        return Choice.model_validate({"message": {"content": said}, "finish_reason": reason})


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")
