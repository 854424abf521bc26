"""Images that are files of their own, as a layout of a recipe says where they are and of which class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from retrieval.datasets.disk import Disk
from retrieval.datasets.findings import Finding
from retrieval.datasets.recipe import Folders, Listed
from retrieval.datasets.tables import joined_rows
from retrieval.errors import UserError
from retrieval.sources.image_folder import IMAGE_SUFFIXES


class OnDisk(NamedTuple):
    """An image as the set has it: where it is, and its label as it is written there."""

    path: str
    label: str


def listed_images(disk: Disk, layout: Listed, findings: list[Finding]) -> list[OnDisk]:
    """Return the images that the set's own files list, there or not. What cannot be read is added to the findings.

    Raises:
        UserError: as ``joined_rows``.
    """
    rows = joined_rows(disk, layout, findings)
    try:
        images = [
            OnDisk(layout.image.format_map(row).lstrip("/").replace("//", "/"), layout.label.format_map(row))
            for row in rows
        ]
    except KeyError as error:
        message = f"the recipe's image or label needs a column {error}, which none of its tables has"
        raise UserError(message, code="wrong-setting", field="layouts") from error
    return images


def find_images(disk: Disk, images: list[OnDisk], findings: list[Finding]) -> Iterator[OnDisk | None]:
    """Yield each of the listed images under the name that it has on disk, None in the place of one that has none."""
    for image in images:
        place = disk.find(image.path)
        if place.outside:
            findings.append(Finding("outside", image.path, f"is listed, and leads out of {disk.root}"))
        elif place.path is None:
            findings.append(Finding("image-missing", image.path, "is listed, and not there"))
        elif not place.exact:
            findings.append(Finding("image-case", image.path, f"is there as {place.path}"))
        yield None if place.path is None else image._replace(path=place.path)


def folder_images(disk: Disk, layout: Folders, findings: list[Finding]) -> list[OnDisk]:
    """Return the images below folders that are classes. What is no image, or no class's, is added to the findings."""
    top = f"{layout.images}/" if layout.images else ""
    images = []
    for file in disk.files(layout.images):
        label, slash, _ = file.name.partition("/")
        path = top + file.name
        if slash and label in layout.leave_out:
            continue
        if file.reason:
            findings.append(Finding("unreadable", path, file.detail or file.reason))
        elif file.name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
            findings.append(Finding("not-an-image", path, "has not the name of an image, and is left out"))
        elif not slash:
            findings.append(Finding("image-unlabelled", path, "lies in no folder of a class"))
        elif disk.find(path).outside:
            findings.append(Finding("outside", path, f"is a link out of {disk.root}"))
        else:
            images.append(OnDisk(path, label))
    return images
