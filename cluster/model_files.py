"""Where the weights of a model lie, without loading them: a node may have to download gigabytes, or may not be able to.

Which forms of URI there are, and how each library finds its weights, is said in ``retrieval.models``.
"""

from __future__ import annotations

from pathlib import Path
from urllib.request import Request, urlopen

from retrieval.errors import UserError

ANSWER_SECONDS = 10
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def find_model(role: str, uri: str) -> str:
    """Return in words where this machine finds the weights of a model.

    Args:
        role: vlm, vision or generator.
        uri: as a profile has it.

    Raises:
        UserError: it finds none (``not-loadable``, field the role).
    """
    name = uri.partition("?")[0]
    scheme, _, rest = name.partition(":")
    if scheme == "random":
        return "untrained"
    if scheme == "local-dir" or Path(uri).is_absolute():
        folder = Path(rest if scheme == "local-dir" else uri)
        if any(file.suffix in WEIGHTS for file in folder.rglob("*")):
            return f"in {folder}"
        raise _nowhere(role, f"{folder} is not there, or has no weights in it")
    repository, url = (rest, "") if scheme == "hf-hub" else _published(role, name)
    return _on_the_hub(role, repository) if repository else _on_the_web(role, url)


def _published(role: str, name: str) -> tuple[str, str]:
    """Return the repository of the hub, else the URL, from which a library takes the weights of a name."""
    repository, url = "", ""
    if role == "generator":
        repository = name
    elif role == "vlm":
        import open_clip

        known = open_clip.get_pretrained_cfg(*name.split("/", 1)) if "/" in name else {}
        repository, url = known.get("hf_hub", "").rpartition("/")[0], known.get("url", "")
    else:
        import timm

        if known := timm.get_pretrained_cfg(name, allow_unregistered=True):
            repository, url = known.hf_hub_id or "", known.url or ""
    if not repository and not url:
        raise _nowhere(role, f"no library knows weights of the name {name!r}")
    return repository, url


def _on_the_hub(role: str, repository: str) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if any(file.suffix in WEIGHTS for file in folder.rglob("*")):
            return f"in this machine's cache, {folder}"
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise _nowhere(role, str(error)) from error
    try:
        HfApi().model_info(repository, timeout=ANSWER_SECONDS)
    except Exception as error:  # of the hub's client, of its HTTP library, of the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _nowhere(role, f"not in this machine's cache, and not to be had from the hub: {reason}") from error
    return f"on the hub, from where it will be downloaded ({repository})"


def _on_the_web(role: str, url: str) -> str:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return f"at {url}"
    except OSError as error:
        raise _nowhere(role, f"{url} does not answer: {error}") from error


def _nowhere(role: str, why: str) -> UserError:
    return UserError(why, code="not-loadable", field=role)
