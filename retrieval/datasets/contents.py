"""What a folder has of a data set: its images with their classes, as one of the recipe's layouts or as Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retrieval.datasets.classes import Vocabulary, known_vocabulary, vocabulary
from retrieval.datasets.disk import Disk
from retrieval.datasets.findings import Finding
from retrieval.datasets.on_disk import OnDisk, find_images, folder_images, listed_images
from retrieval.datasets.parquet_files import ParquetFiles
from retrieval.datasets.pickled import PickledImages
from retrieval.datasets.recipe import Folders, HuggingFace, Layout, Pickled, Recipe
from retrieval.errors import UserError


class Labelled(NamedTuple):
    """An image and the class that it is of; of a row of Parquet, the label as it is written there."""

    path: str
    key: str
    label: str


@dataclass(frozen=True)
class Contents:
    """What a folder has of a data set.

    Attributes:
        layout: in words, how it lies there.
        root: the folder that the paths are relative to.
        classes: of the data set.
        images: with their classes; those without one are findings.
        listed: images of each class that the set's own files list, None where they list none.
        findings: what is not as expected, but for the counts.
        packed: the files that have the images; None where they are files of their own.
    """

    layout: str
    root: Path
    classes: Vocabulary
    images: list[Labelled]
    listed: Counter[str] | None
    findings: list[Finding]
    packed: ParquetFiles | PickledImages | None = None


def read_contents(recipe: Recipe, root: str | Path) -> Contents:
    """Find out how a data set lies in a folder, and list its images. No image is read.

    Args:
        recipe: of the data set.
        root: the folder; or one Parquet file with the columns image and label.

    Raises:
        UserError: there is nothing there (``missing``), nothing of this data set (``no-layout``), or a file that the
            recipe needs is not what it says.
    """
    place = Path(root).expanduser().resolve()
    if not place.exists():
        raise UserError(f"there is nothing at {place}; give the folder of the download", code="missing", field="root")
    if place.is_file():
        if place.suffix != ".parquet":
            message = f"{place} is a file; give the folder of the unpacked download, or a Parquet file"
            raise UserError(message, code="no-layout", field="root")
        return _from_parquet(recipe, place.parent, [place])
    for inside in recipe.inside:
        disk = Disk(place / inside if inside else place)
        for layout in recipe.layouts:
            if _is_there(disk, layout, recipe):
                return _from_disk(recipe, disk, layout)
    hub = recipe.huggingface
    if files := (sorted(place.glob(hub.files)) if hub else []) or sorted(place.glob("*.parquet")):
        return _from_parquet(recipe, place, files)
    message = f"{place} has nothing of {recipe.title} that is known; expected one of these:\n" + "\n".join(
        f"  {each}" for each in expected_places(recipe)
    )
    raise UserError(message, code="no-layout", field="root")


def expected_places(recipe: Recipe) -> list[str]:
    """Return in words how a data set may lie in its folder."""
    places = [_in_words(layout) for layout in recipe.layouts]
    if hub := recipe.huggingface:
        places.append(f"{hub.files} of {hub.name} from the Hugging Face hub")
    return [*places, "Parquet with the columns image (bytes) and label (text)"]


def _in_words(layout: Layout) -> str:
    if isinstance(layout, Folders):
        return f"a folder for each class in {layout.images or 'it'}"
    if isinstance(layout, Pickled):
        return f"the pickles {', '.join(layout.files)} and {layout.names.file}"
    return f"{' and '.join(table.file for table in layout.tables)}, with images as {layout.image}"


def _is_there(disk: Disk, layout: Layout, recipe: Recipe) -> bool:
    if isinstance(layout, Pickled):
        return any(map(disk.has, layout.files))
    if not isinstance(layout, Folders):
        return disk.has(layout.tables[0].file)
    folders = disk.folders(layout.images)
    known = known_vocabulary(recipe.classes) if folders else None
    return bool(folders) and (known is None or any(known.match(folder).key for folder in folders))


def _from_disk(recipe: Recipe, disk: Disk, layout: Layout) -> Contents:
    findings: list[Finding] = []
    if isinstance(layout, Pickled):
        pickled = PickledImages(disk, layout, findings)
        classes = vocabulary(disk, recipe.classes, pickled.names, findings)
        return _from_rows(f"pickles in {disk.root}", disk.root, pickled, classes, findings)
    if isinstance(layout, Folders):
        images = folder_images(disk, layout, findings)
        classes = vocabulary(disk, recipe.classes, {image.label for image in images}, findings)
        labelled = _labelled([(image, image) for image in images], classes, findings)
        where = f"a folder for each class in {disk.root / layout.images}"
        return Contents(where, disk.root, classes, labelled, None, findings)
    images = listed_images(disk, layout, findings)
    classes = vocabulary(disk, recipe.classes, {image.label for image in images}, findings)
    labelled = _labelled(list(zip(images, find_images(disk, images, findings), strict=True)), classes, findings)
    listed = Counter(key for image in images if (key := classes.match(image.label).key))
    where = f"images listed in {disk.root / layout.tables[0].file}"
    return Contents(where, disk.root, classes, labelled, listed, findings)


def _labelled(
    images: Sequence[tuple[OnDisk, OnDisk | None]], classes: Vocabulary, findings: list[Finding]
) -> list[Labelled]:
    """Return the images that are there and of a class; findings say once of each label that is none, or not exact."""
    labels = Counter(image.label for image, _ in images)
    keys = {label: _key(label, count, classes, findings) for label, count in labels.items()}
    return [
        Labelled(found.path, key, image.label)
        for image, found in images
        if found is not None and (key := keys[image.label]) is not None
    ]


def _key(label: str, count: int, classes: Vocabulary, findings: list[Finding]) -> str | None:
    match = classes.match(label)
    if match.key is None:
        findings.append(Finding("class-extra", label, f"{count:,} images, which are left out"))
    elif not match.exact:
        findings.append(Finding("class-case", label, f"{count:,} images; the set's class is called {match.key}"))
    return match.key


def _from_parquet(recipe: Recipe, root: Path, files: list[Path]) -> Contents:
    hub = recipe.huggingface or HuggingFace(name="", files="")
    findings: list[Finding] = []
    known = known_vocabulary(recipe.classes)
    parquet = ParquetFiles(files, hub.image, hub.label, list(known.names) if known and hub.ordered else None)
    keys = parquet.names or sorted({label for _, label in parquet.rows() if label})
    classes = known or Vocabulary({key: recipe.classes.name_of(key) for key in keys})
    names = files[0].name if len(files) == 1 else f"{len(files)} files"
    return _from_rows(f"Parquet, {names} in {files[0].parent}", root, parquet, classes, findings)


def _from_rows(
    where: str, root: Path, packed: ParquetFiles | PickledImages, classes: Vocabulary, findings: list[Finding]
) -> Contents:
    rows = [OnDisk(path, label or "") for path, label in packed.rows()]
    findings += [Finding("image-unlabelled", row.path, "the row has no label") for row in rows if not row.label]
    labelled = _labelled([(row, row) for row in rows if row.label], classes, findings)
    return Contents(where, root, classes, labelled, None, findings, packed)
