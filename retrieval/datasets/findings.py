"""What is wrong with a download: findings, each with the name of what it is about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from retrieval.datasets.recipe import Expected

Kind = Literal[
    "class-missing",
    "class-extra",
    "class-case",
    "class-count",
    "image-count",
    "image-missing",
    "image-case",
    "image-unlabelled",
    "not-an-image",
    "unreadable",
    "outside",
    "bad-line",
    "description-missing",
    "description-extra",
    "description-names",
    "description-same",
    "description-unreviewed",
    "same-name",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
TITLES: Final[Mapping[Kind, str]] = {
    "class-missing": "classes that are missing",
    "class-extra": "classes that the set does not have",
    "class-case": "classes that are written otherwise",
    "class-count": "classes with more or fewer images",
    "image-count": "images in all",
    "image-missing": "images that are listed and not there",
    "image-case": "images that are written otherwise",
    "image-unlabelled": "images without a label",
    "not-an-image": "files that are no images",
    "unreadable": "images that cannot be read",
    "outside": "names that lead out of the folder",
    "bad-line": "lines that cannot be read",
    "description-missing": "classes without a description",
    "description-extra": "descriptions of no class, or given twice",
    "description-names": "descriptions that have the class's name in them",
    "description-same": "classes with the description of another one",
    "description-unreviewed": "classes with descriptions that a model made and nobody has reviewed",
    "same-name": "classes of one name",
}
WARNINGS: Final[frozenset[Kind]] = frozenset(
    {"same-name", "description-names", "description-same", "description-unreviewed", "not-an-image"}
)
"""What may be so in a whole download, and is said all the same."""


class Finding(NamedTuple):
    """One thing that is not as expected."""

    kind: Kind
    name: str
    """What it is about: a class, a path, a line of a file."""
    detail: str


class ClassCount(NamedTuple):
    """How many images a class has, and should have (from, to), if that is known."""

    key: str
    name: str
    found: int
    expected: tuple[int, int] | None

    @property
    def is_right(self) -> bool:
        return self.expected is None or self.expected[0] <= self.found <= self.expected[1]


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that are no mere warnings."""
    return [finding for finding in findings if finding.kind not in WARNINGS]


def by_kind(findings: Sequence[Finding]) -> dict[Kind, list[Finding]]:
    """Return findings by kind, in the order of ``KINDS``."""
    sorted_out: defaultdict[Kind, list[Finding]] = defaultdict(list)
    for finding in findings:
        sorted_out[finding.kind].append(finding)
    return {kind: sorted_out[kind] for kind in KINDS if kind in sorted_out}


def counted(
    names: Mapping[str, str], found: Counter[str], listed: Counter[str] | None, expected: Expected
) -> tuple[list[ClassCount], list[Finding]]:
    """Count the images of each class, and say where there are others than expected.

    Args:
        names: of the classes, by key, in order.
        found: images of each class.
        listed: images of each class that the set's own files name, if they do.
        expected: how much there should be.
    """
    counts, findings = [], []
    for key, name in names.items():
        right = _expected_of(key, listed, expected)
        count = ClassCount(key, name, found[key], right)
        counts.append(count)
        if not count.found and (right is None or right[0]):
            findings.append(Finding("class-missing", key, "has no image"))
        elif not count.is_right:
            assert right is not None
            findings.append(Finding("class-count", key, f"{count.found:,} images, expected {span(right)}"))
    if len(names) != expected.classes:
        what = f"{len(names):,} classes are known, expected {expected.classes:,}"
        findings.append(Finding("class-missing" if len(names) < expected.classes else "class-extra", "in all", what))
    total = sum(found.values())
    if expected.images is not None and total != expected.images:
        findings.append(Finding("image-count", "in all", f"{total:,} images, expected {expected.images:,}"))
    findings += [
        Finding("same-name", name, f"is what {', '.join(keys)} are all called")
        for name, keys in _repeated(names).items()
    ]
    return counts, findings


def span(expected: tuple[int, int]) -> str:
    """Return from how many to how many, in words."""
    low, high = expected
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _expected_of(key: str, listed: Counter[str] | None, expected: Expected) -> tuple[int, int] | None:
    if listed is not None and key in listed:
        return listed[key], listed[key]
    each = expected.per_class
    return (each, each) if isinstance(each, int) else each


def _repeated(names: Mapping[str, str]) -> dict[str, list[str]]:
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for key, name in names.items():
        keys[name].append(key)
    return {name: of_name for name, of_name in keys.items() if len(of_name) > 1}
