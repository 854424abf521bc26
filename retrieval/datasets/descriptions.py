"""Descriptions of the classes of a data set, from a file: CSV with the columns class and description, or JSON."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from retrieval.datasets.classes import Vocabulary
from retrieval.datasets.description_file import Description, read_csv
from retrieval.datasets.findings import Finding
from retrieval.datasets.wording import names, spelled
from retrieval.errors import UserError
from retrieval.folder import Folder, given_text
from retrieval.given import json_value


def read_descriptions(file: str | Path, classes: Vocabulary) -> tuple[dict[str, list[str]], list[Finding]]:
    """Read the descriptions of each class. Those that were rejected are left out.

    Args:
        file: CSV (``description_file``), or a JSON object of classes and descriptions; a class is given by its key or
            its name. A path or a URI.
        classes: of the data set.

    Returns:
        The descriptions by the classes' keys, for each class that has any; and what is missing, of no class, of several
        classes, names what it describes, or was read by nobody.

    Raises:
        UserError: the file is missing, or neither CSV nor JSON of this form.
    """
    given: defaultdict[str, list[Description]] = defaultdict(list)
    findings = []
    for each in _given(file):
        key = classes.match(each.label).key
        if key is None:
            findings.append(Finding("description-extra", each.label, "is no class of the data set"))
        elif each.is_used and each.text in [other.text for other in given[key] if other.is_used]:
            findings.append(Finding("description-extra", each.label, "has the same description twice"))
        else:
            given[key].append(each)
    used = {key: [each for each in given[key] if each.is_used] for key in classes.names}
    of_words: defaultdict[str, list[str]] = defaultdict(list)
    for key, name in classes.names.items():
        if not used[key]:
            rejected = " but rejected ones" if given[key] else ""
            findings.append(Finding("description-missing", key, f"({name}) has no description{rejected}"))
        if any(names(each.text, name) for each in used[key]):
            findings.append(Finding("description-names", key, f"the description has {name!r} in it"))
        if unread := sum(each.status == "made" for each in used[key]):
            findings.append(Finding("description-unreviewed", key, f"{unread} of {len(used[key])} are not reviewed"))
        for each in used[key]:
            of_words[spelled(each.text)].append(key)
    for keys in of_words.values():
        if len(keys) > 1:
            findings.append(Finding("description-same", keys[0], f"has the description of {', '.join(keys[1:])}"))
    return {key: [each.text for each in those] for key, those in used.items() if those}, findings


def _given(file: str | Path) -> list[Description]:
    if Folder(file).name.endswith(".csv"):
        return read_csv(file)
    text = given_text(file, "are no descriptions", field="descriptions")
    try:
        content: Any = json_value(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}", code="malformed", field="descriptions") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        message = f"{file} must be an object of classes and their descriptions"
        raise UserError(message, code="malformed", field="descriptions")
    return [Description(label, text.strip()) for label, text in content.items()]
