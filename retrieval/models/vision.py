"""The vision encoder through timm: images alone, without a classifier. D2 dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import timm
from timm.models import resolve_model_input_args
from torchvision import transforms

from retrieval.models.devices import pick_device, pick_dtype
from retrieval.models.fingerprint import of_tensors
from retrieval.models.image_encoder import ImageEncoder
from retrieval.models.loading import fixed_seed, loading, require_files
from retrieval.models.transforms import preprocess_of

VISION_URIS = (
    "local-dir:FOLDER (config.json and model.safetensors), hf-hub:ORG/NAME, a name timm knows such as "
    "vit_base_patch14_dinov2.lvd142m, or random:NAME (untrained, to measure speed); "
    "each may end in ?img_size=PIXELS"
)


class VisionEncoder(ImageEncoder):
    """An image tower trained on images alone; ``dim`` is D2."""

    @classmethod
    def load(cls, uri: str, *, device: str = "auto", dtype: str = "auto") -> Self:
        """Load a model that timm can load, without its classifier.

        Args:
            uri: as VISION_URIS says; FOLDER may be relative to the current directory.
            device: auto (the first there is of cuda, mps, cpu) or a PyTorch device.
            dtype: auto (bfloat16 where the device is fast at it, else float32) or a key of devices.DTYPES.

        Raises:
            UserError: it cannot be loaded: what was tried, the library's reason, the forms of URI there are (code
                ``not-loadable``, field ``vision``). Or there is no such device or dtype.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        with loading("vision", f"vision encoder {uri!r} with timm {timm.__version__}", VISION_URIS):
            model, transform = _create(uri)
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


def _create(uri: str) -> tuple[Any, transforms.Compose]:
    """The model without its classifier, and its inference transform."""
    name, _, option = uri.partition("?")
    key, _, value = option.partition("=")
    if option and (key != "img_size" or not value.isdecimal()):
        raise LookupError(f"?{option} is not understood; the only option is ?img_size=PIXELS")
    size = {"img_size": int(value)} if option else {}
    scheme, _, rest = name.partition(":")
    if scheme == "local-dir":
        require_files(Path(rest), "config.json", "model.safetensors")
    random = scheme == "random"
    with fixed_seed():
        arguments = resolve_model_input_args(rest if random else name, size)
        model = timm.create_model(**arguments, pretrained=not random, num_classes=0)
    data_config = timm.data.resolve_model_data_config(model, size)
    return model, timm.data.create_transform(**data_config, is_training=False)
