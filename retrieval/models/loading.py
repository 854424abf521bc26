"""What loading a model needs whatever its library: the files it must have, random weights, and errors.

Pickled weights are not read from a local folder; where a hub repository or a tag has no safetensors, open_clip and timm
unpickle with ``weights_only=True``, and diffusers refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from retrieval.errors import UserError

RANDOM_SEED = 0


@contextmanager
def loading(role: str, what: str, forms: str) -> Iterator[None]:
    """Turn whatever a library says of a model that it cannot load into an error that says how it may be named.

    No log handler is added that was not there.

    Args:
        role: vlm, vision or generator.
        what: of that role was asked for, from where.
        forms: of URI there are.

    Raises:
        UserError: it cannot be loaded (code ``not-loadable``, field the role).
    """
    # open_clip logs through the root logger, which else sets up a handler of its own for the whole process.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        message = f"cannot load the {what}: {error}\nIt can be named as {forms}."
        raise UserError(message, code="not-loadable", field=role) from error
    finally:
        logging.getLogger().removeHandler(handler)


def require_files(folder: Path, *names: str) -> None:
    """Raise FileNotFoundError for a file that is missing: the libraries would fall back to pickled weights or none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()}")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no file {name} in {folder.absolute()} (pickled weights are not read)")


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Make random weights the same in every process, and leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        yield
