"""The classes of a data set: their keys, what images' labels say of them, what queries call them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from retrieval.datasets.disk import Disk
from retrieval.datasets.findings import Finding
from retrieval.datasets.recipe import Classes
from retrieval.datasets.tables import joined_rows


class Vocabulary:
    """The classes of a data set, in order.

    Attributes:
        names: what each is called, by key.
        ids: the keys by what the images' labels say.
    """

    def __init__(self, names: Mapping[str, str], ids: Mapping[str, str] | None = None) -> None:
        self.names = dict(names)
        self.ids = dict(ids or {key: key for key in names})
        self._loose = {_loose(name): key for key, name in names.items()} | {_loose(key): key for key in names}
        several = {name for name, count in Counter(names.values()).items() if count > 1}
        self._by_name = {name: key for key, name in names.items() if name not in several}

    def match(self, label: str) -> Match:
        """Return the class that a label stands for: by what labels say, by name, or written otherwise."""
        if label in self.ids:
            return Match(self.ids[label], exact=True)
        if label in self.names:
            return Match(label, exact=True)
        if label in self._by_name:
            return Match(self._by_name[label], exact=True)
        return Match(self._loose.get(_loose(label)), exact=False)


class Match(NamedTuple):
    """Which class a label stands for, None if for none; and whether it is written so."""

    key: str | None
    exact: bool


def _loose(label: str) -> str:
    return re.sub(r"[\W_]+", "", label).casefold()


def vocabulary(disk: Disk, classes: Classes, labels: Iterable[str], findings: list[Finding]) -> Vocabulary:
    """Return the classes of a data set.

    Args:
        disk: where its files lie.
        classes: where its classes are listed.
        labels: of its images, which are the classes if nothing else lists them.
        findings: what cannot be read is added.

    Raises:
        UserError: a file that lists the classes is missing or not what the recipe says.
    """
    if classes.tables:
        rows = joined_rows(disk, classes, findings)
        ids = {row.get("id", row["key"]): row["key"] for row in rows}
        return Vocabulary({row["key"]: row.get("name") or classes.name_of(row["key"]) for row in rows}, ids)
    return known_vocabulary(classes) or Vocabulary({key: classes.name_of(key) for key in sorted(set(labels))})


def known_vocabulary(classes: Classes) -> Vocabulary | None:
    """Return the classes of a data set if its files are not needed to know them, else None."""
    if classes.listed:
        listed = classes.listed
        return Vocabulary(listed if isinstance(listed, dict) else {key: classes.name_of(key) for key in listed})
    if classes.library == "imagenet":
        import open_clip  # lazily, with the next: they load torch
        from timm.data import ImageNetInfo

        return Vocabulary(dict(zip(ImageNetInfo().label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True)))
    if classes.library == "flowers102":
        from torchvision.datasets import Flowers102

        return Vocabulary({name: name for name in Flowers102.classes}, _numbered(Flowers102.classes))
    return None


def _numbered(keys: Iterable[str]) -> dict[str, str]:
    return {str(number): key for number, key in enumerate(keys, 1)}
