"""The vision-and-language model through open_clip: texts and images to one space. B batch, T tokens, D1 dimension."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import open_clip
import torch
from torchvision import transforms

from retrieval.errors import UserError
from retrieval.models.devices import pick_device, pick_dtype
from retrieval.models.fingerprint import of_tensors
from retrieval.models.image_encoder import ImageEncoder
from retrieval.models.loading import fixed_seed, loading, require_files
from retrieval.models.text_tower import text_tower_of
from retrieval.models.transforms import preprocess_of
from retrieval.prompts import usable

VLM_URIS = (
    "local-dir:FOLDER (open_clip_config.json and open_clip_model.safetensors), hf-hub:ORG/NAME, "
    "ARCHITECTURE/TAG such as ViT-L-14/openai, or random:ARCHITECTURE (untrained, to measure speed)"
)
# A hundred queries in eighty templates are 8,000 texts: more than should be in memory at once.
TEXT_BATCH = 256
# Its token ids stand for the tokenizer in a VLM's fingerprint.
_TOKENIZER_PROBE = "A photo of 12 red-striped stars; isn't it?"


class VLM(ImageEncoder):
    """A text tower and an image tower with one space of ``dim`` dimensions (D1) for both.

    Attributes:
        context_length: tokens that the text tower sees, with start and end; a longer text is cut there. The others are
            those of every ImageEncoder.
    """

    def __init__(self, uri: str, model: Any, tokenizer: Any, **common: Any) -> None:
        super().__init__(uri, model, model.encode_image, **common)
        self.context_length: int = tokenizer.context_length
        self._text_tower = text_tower_of(model)
        self._tokenizer = tokenizer
        # The Rust tokenizers keep truncation as state, and refuse to be called from two threads at once.
        self._tokenizing = threading.Lock()

    @classmethod
    def load(cls, uri: str, *, device: str = "auto", dtype: str = "auto") -> Self:
        """Load a model that open_clip can load.

        Args:
            uri: as VLM_URIS says; FOLDER may be relative to the current directory.
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 where the device is fast at it, else float32) or a key of devices.DTYPES.

        Raises:
            UserError: it cannot be loaded: what was tried, the library's reason, the forms of URI there are (code
                ``not-loadable``, field ``vlm``). Or there is no such device or dtype.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        with loading("vlm", f"VLM {uri!r} with open_clip {open_clip.__version__}", VLM_URIS):
            name, model, transform = _create(uri)
            tokenizer = open_clip.get_tokenizer(name)
            preprocess = preprocess_of(transform)
            tokens = tokenizer([_TOKENIZER_PROBE])[0].tolist()
            return cls(
                uri,
                model,
                tokenizer,
                dim=open_clip.get_model_config(name)["embed_dim"],
                preprocess=preprocess,
                fingerprint=of_tensors(model.state_dict(), {**preprocess.describe(), "tokens": tokens}),
                device=where,
                dtype=precision,
            )

    def token_count(self, text: str) -> int:
        """Count the tokens of the whole text, with start and end: above ``context_length`` the text will be cut.

        Raises:
            UserError: as ``prompts.usable``.
        """
        text = usable(text)
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            return len(self._tokenizer.encode(text)) + 2
        with self._tokenizing:
            return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text), verbose=False).input_ids)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embed any number of texts, TEXT_BATCH at a time; one of too many tokens is cut at ``context_length``.

        Returns:
            Unit vectors, float32 (B, D1).

        Raises:
            UserError: ``texts`` is one string (code ``wrong-type``, field ``texts``), or as ``prompts.usable``.
            DamagedError: a vector is not finite.
        """
        if isinstance(texts, str):
            raise UserError("texts must be a list of strings, and is one string", code="wrong-type", field="texts")
        return self._unit_rows(self._embed_texts, [usable(text) for text in texts], TEXT_BATCH)

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        with self._tokenizing:
            tokens_BT = self._tokenizer(list(texts))
        return self._text_tower(tokens_BT.to(self.device))


def _create(uri: str) -> tuple[str, Any, transforms.Compose]:
    """The name that open_clip knows the model by, the model, and its inference transform."""
    scheme, _, rest = uri.partition(":")
    if scheme == "random":
        _require_architecture(rest)
        with fixed_seed():
            model, _, transform = open_clip.create_model_and_transforms(rest, pretrained_text=False)
        return rest, model, transform
    if scheme == "local-dir":
        require_files(Path(rest), "open_clip_config.json", "open_clip_model.safetensors")
    if scheme in ("local-dir", "hf-hub"):
        return uri, *open_clip.create_model_from_pretrained(uri)
    name, _, tag = uri.partition("/")
    _require_architecture(name)
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise LookupError(f"there are no weights {tag!r} for {name}; it has {tags}")
    # open_clip only warns when weights were trained with QuickGELU and the architecture's name lacks it.
    quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return name, *open_clip.create_model_from_pretrained(name, tag, force_quick_gelu=quick_gelu)


def _require_architecture(name: str) -> None:
    if name not in open_clip.list_models():
        alike = ", ".join(difflib.get_close_matches(name, open_clip.list_models()))
        hint = f"did you mean {alike}?" if alike else "open_clip.list_models() names them"
        raise LookupError(f"there is no architecture {name!r}; {hint}")
