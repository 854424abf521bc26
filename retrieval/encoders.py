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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from timm.models import resolve_model_input_args
from torch import nn
from torch.nn import functional
from torchvision import transforms

from retrieval.devices import map_batches, pick_device, pick_dtype
from retrieval.fingerprint import of_tensors
from retrieval.images import Reduced
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

# Up to this aspect ratio pixels are the library's own. It enlarges until the short side fits, and crops after
# that: an image of 1 x 20,000 pixels would become one of 224 x 4,480,000.
MAX_ASPECT = 32
# Those that look at every pixel of what they shrink; after the nearest one a reduced image would look quite different.
_SMOOTH_FILTERS = (transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class Preprocess:
    """What a model wants done to an image: geometry on the CPU, then mean and std on the model's device.

    Small and picklable: send it to the workers that decode, and keep the weights where the device is.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, transform: transforms.Compose) -> Preprocess:
        """Take a library's inference transform apart: geometry, to tensor, normalise.

        Raises:
            ValueError: the transform is not of that form.
        """
        # open_clip's conversion to RGB does nothing to an image that is RGB already.
        steps = [step for step in transform.transforms if type(step).__name__ != "MaybeConvertMode"]
        match steps:
            case [*geometry, transforms.ToTensor(), transforms.Normalize(mean=mean, std=std)]:
                return cls(tuple(geometry), _float32(mean), _float32(std))
        raise ValueError(f"preprocessing must be geometry, to tensor, normalise, and is {transform}")

    @property
    def geometry(self) -> tuple[str, ...]:
        """The steps of `pixels` in words. Two models with equal geometry can share one call of it."""
        return tuple(_in_words(step) for step in self.steps)

    def describe(self) -> dict[str, list[Any]]:
        """All of it as JSON, for manifests and fingerprints."""
        return {"geometry": list(self.geometry), "mean": list(self.mean), "std": list(self.std)}

    @property
    def side(self) -> int | None:
        """The `side` for `decode_reduced`: what the first step resizes to. None where it does not simply resize."""
        match self.steps:
            case [transforms.Resize(size=size, interpolation=filter, max_size=None), *_] if filter in _SMOOTH_FILTERS:
                return size if isinstance(size, int) else max(size)
        return None

    def pixels(self, image: Image.Image | Reduced) -> np.ndarray:
        """The RGB image, resized and cropped as the library does it: (H, W, 3) uint8.

        Of an image longer than MAX_ASPECT times its short side, only that much of its middle is used. A reduced image
        gives what the whole one would have given, but for what was lost in reducing it.

        Raises:
            ValueError: the image is not RGB, or was reduced although `side` is None.
        """
        whole = image if isinstance(image, Image.Image) else image.image
        if whole.mode != "RGB":
            raise ValueError(f"the image has mode {whole.mode}; convert it to RGB first")
        steps = self.steps
        if isinstance(image, Reduced) and not image.is_whole:
            whole, steps = self._resized(image), steps[1:]
        elif (middle := _middle(*whole.size)) != (0, 0, *whole.size):
            whole = whole.crop(middle)
        for step in steps:
            whole = step(whole)
        return np.asarray(whole)

    def _resized(self, reduced: Reduced) -> Image.Image:
        """The first step of `pixels`, to the very size and from the very region that it has for the whole image."""
        if self.side is None:
            raise ValueError(f"the image was reduced, but {self.geometry[0]} needs it whole; decode it with side None")
        resize: Any = self.steps[0]
        middle = _middle(reduced.width, reduced.height)
        width, height = middle[2] - middle[0], middle[3] - middle[1]
        if isinstance(resize.size, int) or len(resize.size) == 1:
            # As torchvision's Resize: the long side is rounded down.
            scaled = [int(self.side * edge / min(width, height)) for edge in (width, height)]
        else:
            scaled = [resize.size[1], resize.size[0]]
        left, top, right, bottom = reduced.box
        x, y = (right - left) / reduced.width, (bottom - top) / reduced.height
        box = (left + middle[0] * x, top + middle[1] * y, left + middle[2] * x, top + middle[3] * y)
        filter = transforms.functional.pil_modes_mapping[resize.interpolation]
        return reduced.image.resize((scaled[0], scaled[1]), filter, box)

    def blank(self) -> np.ndarray:
        """Black pixels of the shape that `pixels` gives, to stand for an image that is missing."""
        return np.zeros_like(self.pixels(Image.new("RGB", (8, 8))))

    def normalise(self, pixels_BHWC: np.ndarray, device: torch.device) -> torch.Tensor:
        """float32 (B, 3, H, W), channels last in memory; on a CPU, to the bit what the library itself makes.

        Args:
            pixels_BHWC: uint8, from `pixels`; may be read-only, as Ray hands them out.
        """
        images_BHWC = torch.tensor(pixels_BHWC, device=device).to(torch.float32).div_(255)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)
        std = torch.tensor(self.std, dtype=torch.float32, device=device)
        return images_BHWC.sub_(mean).div_(std).permute(0, 3, 1, 2)


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
        return self._image_tower(self.preprocess.normalise(pixels_BHWC, self.device).to(self.dtype))

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
            preprocess = Preprocess.of(transform)
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
            preprocess = Preprocess.of(transform)
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


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is used of an image of that size: all, or its middle MAX_ASPECT long."""
    longest = MAX_ASPECT * min(width, height)
    used_width, used_height = min(width, longest), min(height, longest)
    left, top = (width - used_width) // 2, (height - used_height) // 2
    return left, top, left + used_width, top + used_height


def _in_words(step: Callable[[Image.Image], Image.Image]) -> str:
    match step:
        case transforms.Resize(size=size, interpolation=interpolation):
            return f"resize {size} {interpolation.value}"
        case transforms.CenterCrop(size=size):
            return f"crop {tuple(size)}"
    return f"{step} fill={getattr(step, 'fill', None)}"


def _float32(values: Any) -> tuple[float, ...]:
    """The shortest decimals that are these float32 numbers: from a tensor of it, 0.485 again."""
    return tuple(float(str(value)) for value in np.asarray(values, dtype=np.float32))
