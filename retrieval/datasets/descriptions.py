"""Descriptions of the classes of a data set, from a file: CSV with the columns class and description, or JSON."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

from retrieval.datasets.classes import Vocabulary
from retrieval.datasets.findings import Finding
from retrieval.errors import UserError
from retrieval.folder import Folder, given_text


def read_descriptions(file: str | Path, classes: Vocabulary) -> tuple[dict[str, str], list[Finding]]:
    """Read a description of each class.

    Args:
        file: CSV with columns ``class`` and ``description``, or a JSON object of them; a class is given by its key or
            its name. A path or a URI.
        classes: of the data set.

    Returns:
        The descriptions by the classes' keys; and what is missing, of no class, or names what it describes.

    Raises:
        UserError: the file is missing, or neither CSV nor JSON of this form.
    """
    descriptions: dict[str, str] = {}
    findings = []
    for label, description in _pairs(file):
        key = classes.match(label).key
        if key is None:
            findings.append(Finding("description-extra", label, "is no class of the data set"))
        elif key in descriptions:
            findings.append(Finding("description-extra", label, "is described twice; the first is used"))
        elif description.strip():
            descriptions[key] = description.strip()
    for key, name in classes.names.items():
        if key not in descriptions:
            findings.append(Finding("description-missing", key, f"({name}) has no description"))
        elif _names(descriptions[key], name):
            findings.append(Finding("description-names", key, f"the description has {name!r} in it"))
    return descriptions, findings


def _names(description: str, name: str) -> bool:
    """Return whether a description has the name in it, as words, in the singular or with an s."""
    words = r"\W+".join(re.escape(word) for word in re.findall(r"\w+", name.casefold()))
    return re.search(rf"\b{words}(?:e?s)?\b", description.casefold()) is not None


def _pairs(file: str | Path) -> list[tuple[str, str]]:
    place, data = Folder(file), given_text(file, "are no descriptions", field="descriptions")
    if place.name.endswith(".csv"):
        reader = csv.DictReader(StringIO(data, newline=""))
        if not {"class", "description"} <= set(reader.fieldnames or ()):
            shown = ", ".join(reader.fieldnames or ()) or "nothing"
            message = f"{file} needs the columns class and description; it has {shown}"
            raise UserError(message, code="wrong-columns", field="descriptions")
        return [(row["class"] or "", row["description"] or "") for row in reader]
    try:
        content: Any = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}", code="malformed", field="descriptions") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        message = f"{file} must be an object of classes and their descriptions"
        raise UserError(message, code="malformed", field="descriptions")
    return list(content.items())
