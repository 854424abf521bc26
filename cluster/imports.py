"""Our packages have short names (``cluster``, ``training``, …), and so may a folder of the person who starts a job.

Ray puts two folders of the driver at the front of each worker's ``sys.path``: the current directory and that of the
script. A worker would import a ``cluster`` that it finds there in place of ours. Where there is one, workers import our
packages before anything else, with those folders off the path; what is imported once stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PACKAGES = ("cluster", "commands", "demo", "pipelines", "retrieval", "serving", "training")
_HOME = Path(__file__).parents[1]


def ours_first() -> dict[str, Any] | None:
    """Return the ``runtime_env`` with which workers import our packages; None where nothing hides them.

    Workers of a job with a runtime environment start anew, so there is one only where it is needed.
    """
    script = Path(os.path.realpath(sys.argv[0])).parent
    hiding = sorted({str(path.parent) for path in shadows((Path.cwd(), script))})
    return {"worker_process_setup_hook": _importer(PACKAGES, hiding)} if hiding else None


def shadows(folders: Iterable[Path]) -> list[Path]:
    """Return what in these folders has the name of one of our packages, and is not ours."""
    names = [name for package in PACKAGES for name in (package, f"{package}.py")]
    return [
        folder / name
        for folder in dict.fromkeys(folders)
        if folder.resolve() != _HOME.resolve()
        for name in names
        if (folder / name).exists()
    ]


def _importer(packages: tuple[str, ...], hiding: list[str]) -> Callable[[], None]:
    def import_ours() -> None:
        import importlib
        import sys

        kept = list(sys.path)
        sys.path[:] = [entry for entry in kept if entry not in hiding]
        for package in packages:
            importlib.import_module(package)
        sys.path[:] = kept

    # A nested function is sent whole. One of this module would be sent by its name, which a worker cannot import yet.
    return import_ours
