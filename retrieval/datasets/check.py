"""Whether a download of a data set is whole: counts by class, and everything that is not as expected, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from retrieval.datasets.contents import Contents, read_contents
from retrieval.datasets.findings import ClassCount, Finding, counted, faults
from retrieval.datasets.recipe import Recipe
from retrieval.images import MAX_BYTES, ImageRejected, decode

_AT_ONCE = 256


@dataclass(frozen=True)
class Checked:
    """A data set as it lies in a folder, against its recipe.

    Attributes:
        recipe: what it should be.
        contents: what is there.
        counts: of each class, in order.
        findings: what is not as expected.
    """

    recipe: Recipe
    contents: Contents
    counts: list[ClassCount]
    findings: list[Finding]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong; a mere warning is not."""
        return not faults(self.findings)


def check_counts(recipe: Recipe, root: str | Path) -> Checked:
    """Compare the classes and the numbers of images with what the recipe expects. No image is read.

    Raises:
        UserError: as ``read_contents``.
    """
    contents = read_contents(recipe, root)
    found = Counter(image.key for image in contents.images)
    counts, findings = counted(contents.classes.names, found, contents.listed, recipe.expected)
    return Checked(recipe, contents, counts, contents.findings + findings)


def unreadable(contents: Contents, threads: int, done: Callable[[int], None]) -> list[Finding]:
    """Decode every image, within the bounds of ``retrieval.images``; return those that cannot be.

    Args:
        contents: of a data set.
        threads: that decode at once.
        done: is told of so many more images.
    """
    findings = []
    blobs = _blobs(contents)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(blobs, _AT_ONCE)):
            for (path, _), problem in zip(some, pool.map(_problem, some), strict=True):
                if problem:
                    findings.append(Finding("unreadable", path, problem))
            done(len(some))
    return findings


def _blobs(contents: Contents) -> Iterator[tuple[str, Path | bytes | None]]:
    if contents.packed is None:
        for image in contents.images:
            yield image.path, contents.root / image.path
        return
    paths = (path for path, _ in contents.packed.rows())
    blobs = (blob for table in contents.packed.tables() for blob in table["image"].to_pylist())
    yield from zip(paths, blobs, strict=True)


def _problem(image: tuple[str, Path | bytes | None]) -> str | None:
    _, data = image
    try:
        if isinstance(data, Path):
            with data.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        decode(data or b"")
    except ImageRejected as error:
        return f"{error.reason}: {error}"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    return None
