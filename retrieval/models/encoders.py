"""The two encoders: a vision-and-language model through open_clip, a vision encoder through timm.

Both are named by the URIs of their own ecosystem (VLM_URIS, VISION_URIS), bring the preprocessing that
travels with their weights, and answer float32 rows of unit norm. Pickled weights are not read from a local
folder; where a hub repository or a tag has no safetensors, both libraries unpickle with `weights_only=True`.

Shape legend: B batch; H, W, C height, width, channels; D1, D2 dimensions of VLM and vision encoder.
"""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from timm.models import resolve_model_input_args
from torch import nn
from torch.nn import functional
from torchvision import transforms

from retrieval.models.devices import map_batches, pick_device, pick_dtype
from retrieval.models.fingerprint import of_tensors
from retrieval.models.preprocess import Preprocess
from retrieval.models.transforms import normalise, preprocess_of
from retrieval.prompts import usable

VLM_URIS = (
    "local-dir:FOLDER (open_clip_config.json and open_clip_model.safetensors), hf-hub:ORG/NAME, "
    "ARCHITECTURE/TAG such as ViT-L-14/openai, or random:ARCHITECTURE (untrained, to measure speed)"
)
VISION_URIS = (
    "local-dir:FOLDER (config.json and model.safetensors), hf-hub:ORG/NAME, a name timm knows such as "
    "vit_base_patch14_dinov2.lvd142m, or random:NAME (untrained, to measure speed); "
    "each may end in ?img_size=PIXELS"
)
RANDOM_SEED = 0
# A hundred queries in eighty templates are 8,000 texts: more than should be in memory at once.
TEXT_BATCH = 256
# Its token ids stand for the tokenizer in a VLM's fingerprint.
TOKENIZER_PROBE = "A photo of 12 red-striped stars; isn't it?"


class ImageEncoder:
    """What both encoders share: the way from an image to a unit vector.

    Attributes:
        uri: as given to `load`.
        dim: length of a vector.
        fingerprint: `sha256:…` of weights and preprocessing, the same on every device and in every dtype.
        preprocess: turns an image into the pixels that `encode_images` takes.
    """

    def __init__(
        self,
        uri: str,
        model: nn.Module,
        image_tower: Callable[[torch.Tensor], torch.Tensor],
        *,
        dim: int,
        preprocess: Preprocess,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.uri = uri
        self.dim = dim
        self.preprocess = preprocess
        self.fingerprint = fingerprint
        self.device = device
        self.dtype = dtype
        self._image_tower = image_tower
        model.eval().requires_grad_(False)
        model.to(device=device, dtype=dtype, memory_format=torch.channels_last)

    def encode_images(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 (B, dim), of images, uint8 (B, H, W, 3) from `preprocess.pixels`; B may be 0.

        They go through in one batch, which is halved only when GPU memory runs out.

        Raises:
            ValueError: wrong shape or dtype, or a vector that is not finite.
        """
        if pixels_BHWC.dtype != np.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[-1] != 3:
            given = f"{pixels_BHWC.dtype} of shape {pixels_BHWC.shape}"
            raise ValueError(f"images must be uint8 of shape (B, H, W, 3), and are {given}")
        return self._unit_rows(self._embed_images, pixels_BHWC, max(1, len(pixels_BHWC)))

    def _embed_images(self, pixels_BHWC: np.ndarray) -> torch.Tensor:
        return self._image_tower(normalise(self.preprocess, pixels_BHWC, self.device).to(self.dtype))

    @torch.inference_mode()
    def _unit_rows(self, embed: Callable[[Any], torch.Tensor], items: Any, batch: int) -> np.ndarray:
        """Embed items, `batch` at a time, and divide lengths out in float32 whatever the model's dtype."""
        parts = [rows.float().cpu() for rows in map_batches(embed, items, batch)]
        rows_BD = torch.cat([torch.empty(0, self.dim), *parts])
        finite = rows_BD.isfinite().all(dim=1)
        if not finite.all():
            row = finite.tolist().index(False)
            raise ValueError(
                f"{self.uri} in {self.dtype} makes a vector that is not finite, row {row} of {len(rows_BD)};"
                " try dtype float32, or look whether its weights are whole"
            )
        return functional.normalize(rows_BD).numpy()


class VLM(ImageEncoder):
    """A text tower and an image tower with one space of `dim` dimensions (D1) for both.

    Attributes, beside those of every ImageEncoder:
        context_length: tokens that the text tower sees, with start and end; a longer text is cut there.
    """

    def __init__(self, uri: str, model: Any, tokenizer: Any, **common: Any) -> None:
        super().__init__(uri, model, model.encode_image, **common)
        self.context_length: int = tokenizer.context_length
        self._text_tower = model.encode_text
        self._tokenizer = tokenizer
        # The Rust tokenizers keep truncation as state, and refuse to be called from two threads at once.
        self._tokenizing = threading.Lock()

    @classmethod
    def load(cls, uri: str, *, device: str = "auto", dtype: str = "auto") -> VLM:
        """Load a model that open_clip can load, named as VLM_URIS says; FOLDER may be relative to the cwd.

        Args:
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 where the device is fast at it, else float32) or a key of devices.DTYPES.

        Raises:
            ValueError: it cannot be loaded: what was tried, the library's reason, the forms of URI there are.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        with _loading(f"VLM {uri!r} with open_clip {open_clip.__version__}", VLM_URIS):
            name, model, transform = _create_open_clip(uri)
            tokenizer = open_clip.get_tokenizer(name)
            preprocess = preprocess_of(transform)
            tokens = tokenizer([TOKENIZER_PROBE])[0].tolist()
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
        """Tokens of the whole text, with start and end: above `context_length` the text will be cut.

        Raises:
            ValueError: the text is blank or longer than prompts.MAX_CHARACTERS.
        """
        text = usable(text)
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            return len(self._tokenizer.encode(text)) + 2
        with self._tokenizing:
            return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text), verbose=False).input_ids)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts, float32 (B, dim); a text of too many tokens is cut at `context_length`.

        Any number of them: they go through TEXT_BATCH at a time.

        Raises:
            ValueError: a text is blank or longer than prompts.MAX_CHARACTERS, or a vector is not finite.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a list of strings, and is one string")
        return self._unit_rows(self._embed_texts, [usable(text) for text in texts], TEXT_BATCH)

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        with self._tokenizing:
            tokens_BT = self._tokenizer(list(texts))
        return self._text_tower(tokens_BT.to(self.device))


class VisionEncoder(ImageEncoder):
    """An image tower trained on images alone; `dim` is D2."""

    @classmethod
    def load(cls, uri: str, *, device: str = "auto", dtype: str = "auto") -> VisionEncoder:
        """Load a model that timm can load, without its classifier, named as VISION_URIS says.

        Args and errors are those of VLM.load.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        with _loading(f"vision encoder {uri!r} with timm {timm.__version__}", VISION_URIS):
            model, transform = _create_timm(uri)
            preprocess = preprocess_of(transform)
            return cls(
                uri,
                model,
                model,
                dim=model.head_hidden_size,
                preprocess=preprocess,
                fingerprint=of_tensors(model.state_dict(), preprocess.describe()),
                device=where,
                dtype=precision,
            )


def _create_open_clip(uri: str) -> tuple[str, Any, transforms.Compose]:
    """The name that open_clip knows the model by, the model, and its inference transform."""
    scheme, _, rest = uri.partition(":")
    if scheme == "random":
        _require_architecture(rest)
        with _fixed_seed():
            model, _, transform = open_clip.create_model_and_transforms(rest, pretrained_text=False)
        return rest, model, transform
    if scheme == "local-dir":
        _require_files(Path(rest), "open_clip_config.json", "open_clip_model.safetensors")
    if scheme in ("local-dir", "hf-hub"):
        return uri, *open_clip.create_model_from_pretrained(uri)
    name, _, tag = uri.partition("/")
    _require_architecture(name)
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"there are no weights {tag!r} for {name}; it has {tags}")
    # open_clip only warns when weights were trained with QuickGELU and the architecture's name lacks it.
    quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return name, *open_clip.create_model_from_pretrained(name, tag, force_quick_gelu=quick_gelu)


def _require_architecture(name: str) -> None:
    if name not in open_clip.list_models():
        alike = ", ".join(difflib.get_close_matches(name, open_clip.list_models()))
        hint = f"did you mean {alike}?" if alike else "open_clip.list_models() names them"
        raise ValueError(f"there is no architecture {name!r}; {hint}")


def _create_timm(uri: str) -> tuple[Any, transforms.Compose]:
    """The model without its classifier, and its inference transform."""
    name, _, option = uri.partition("?")
    key, _, value = option.partition("=")
    if option and (key != "img_size" or not value.isdecimal()):
        raise ValueError(f"?{option} is not understood; the only option is ?img_size=PIXELS")
    size = {"img_size": int(value)} if option else {}
    scheme, _, rest = name.partition(":")
    if scheme == "local-dir":
        _require_files(Path(rest), "config.json", "model.safetensors")
    random = scheme == "random"
    with _fixed_seed():
        arguments = resolve_model_input_args(rest if random else name, size)
        model = timm.create_model(**arguments, pretrained=not random, num_classes=0)
    data_config = timm.data.resolve_model_data_config(model, size)
    return model, timm.data.create_transform(**data_config, is_training=False)


def _require_files(folder: Path, *names: str) -> None:
    """The libraries would go on to pickled weights, or with no weights at all."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()}")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no file {name} in {folder.absolute()} (pickled weights are not read)")


@contextmanager
def _loading(what: str, forms: str) -> Iterator[None]:
    """Say what could not be loaded and how it might be named; add no log handler that was not there."""
    # open_clip logs through the root logger, which else sets up a handler of its own for the whole process.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot load the {what}: {error}\nIt can be named as {forms}.") from error
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Random weights are the same in every process, and leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        yield
