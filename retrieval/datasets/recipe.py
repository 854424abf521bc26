"""Recipes: one YAML file says what a data set consists of, where its labels stand, and how many images it should have.

A recipe is data: it names files, columns and counts, and how lines of text are read. What a class is called comes from
a library, from the set's own files, or is listed where a set is nothing but folders.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from retrieval.errors import UserError
from retrieval.prompts import KINDS, TEMPLATE_SETS, Kind, fill, templates

RECIPES = Path(__file__).parent / "recipes"
_CHOICE = re.compile(r"\[([^\]]*)\]")


class Settings(BaseModel):
    """Base of what a recipe says: unknown fields and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextTable(Settings):
    """Rows of a text file, one a line."""

    file: str
    """Relative to the data set's folder."""
    pattern: str
    """A regular expression of a whole line; its named groups are the columns."""
    header: bool = False
    """Whether the first line names the columns, and is no row."""

    @field_validator("pattern")
    @classmethod
    def _has_groups(cls, given: str) -> str:
        if not re.compile(given).groupindex:
            raise ValueError("the pattern needs named groups, such as (?P<label>.+)")
        return given


class MatTable(Settings):
    """Rows of a variable in a MATLAB file: the elements of a vector (columns ``number``, from 1, and ``value``) or of
    an array of structs, whose fields are columns."""

    file: str
    """Relative to the data set's folder."""
    variable: str
    columns: dict[str, str]
    """What is read, and what it is called here: ``{fname: file}``."""


Table = TextTable | MatTable


class Joined(Settings):
    """Tables, put together by a column that all of them have."""

    tables: list[Table] = Field(min_length=1)
    by: str | None = None
    """The column that they have in common; needed where there is more than one."""
    where: dict[str, str] = {}
    """Rows that are kept: those with these values."""

    @model_validator(mode="after")
    def _can_be_joined(self) -> Self:
        if len(self.tables) > 1 and not self.by:
            raise ValueError("several tables need `by`, the column that they have in common")
        return self


class Classes(Joined):
    """The classes of a data set: where they are listed. Exactly one of ``listed``, ``library``, ``tables``, ``images``.

    Of a table, the column ``key`` is the class, ``id`` what the images' labels say (the key if there is none), ``name``
    what a query calls it (made from the key if there is none).
    """

    tables: list[Table] = []
    listed: list[str] | dict[str, str] = []
    """Keys, or keys and their names."""
    library: Literal["imagenet", "flowers102"] | None = None
    """``imagenet``: WordNet ids of timm, names of open_clip; ``flowers102``: names of torchvision."""
    images: bool = False
    """The labels of the images are the classes: the set has no other list of them."""
    drop: str = ""
    """A regular expression of what a key has and its name has not."""
    apart: str = "_"
    """What stands between the words of a key, beside spaces: some characters."""
    camel: bool = False
    """Whether keys are words written together, such as ApplyEyeMakeup."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [bool(self.listed), self.library is not None, bool(self.tables), self.images]
        if sum(given) != 1:
            raise ValueError("give exactly one of listed, library, tables, images")
        return self

    def name_of(self, key: str) -> str:
        """Return what a query calls a class of which only the key is known."""
        name = re.sub(self.drop, "", key) if self.drop else key
        if self.camel:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        return " ".join(re.split(rf"[\s{re.escape(self.apart)}]+", name)).strip()


class Folders(Settings):
    """A folder for each class, in which its images lie."""

    kind: Literal["folders"]
    images: str
    """The folder of the folders."""
    leave_out: list[str] = []
    """Folders that are no class."""


class Listed(Joined):
    """Images that the set's own files list, with their labels."""

    kind: Literal["listed"]
    image: str
    """Where an image lies, with columns of the tables in braces: ``images/{label}/{id}.jpg``."""
    label: str = "{label}"
    """What its label is."""


class PickledNames(Settings):
    """Where pickles say what the numbers of classes stand for."""

    file: str
    key: str
    """Of the list of names in its dict."""


class Pickled(Settings):
    """Pickles with arrays of pixels, which are read as data alone (``retrieval.unpickle``)."""

    kind: Literal["pickled"]
    files: list[str] = Field(min_length=1)
    label: str
    """The key of the list of labels in the dict of each file."""
    names: PickledNames
    side: int = Field(ge=1)
    """Of an image, in pixels."""


class HuggingFace(Settings):
    """The set as Parquet on the Hugging Face hub: ``hf download NAME --repo-type dataset --local-dir ROOT``."""

    name: str
    """Of the data set on the hub."""
    files: str
    """The Parquet files of the split, as a pattern of ``pathlib``."""
    image: str = "image"
    label: str = "label"
    ordered: bool = False
    """Whether numbers are places in the recipe's list of classes. Else the files must name what they stand for."""


class Expected(Settings):
    """How much there should be."""

    classes: int = Field(ge=1)
    images: int | None = Field(default=None, ge=1)
    """In all; None where the set shrinks with the years, as videos of the web do."""
    per_class: int | tuple[int, int] | None = None
    """Of each class: so many, or from so many to so many. Where the set's own files list images, they say it."""


Layout = Annotated[Folders | Listed | Pickled, Field(discriminator="kind")]


class Recipe(Settings):
    """What a data set consists of."""

    name: str
    """By default that of its file."""
    title: str
    source: str
    """Where all of this is documented."""
    licence: str
    """In a sentence; the set's own terms hold."""
    split: str
    """Which part of the set is evaluated on."""
    note: str = ""
    """What a user should know."""
    expected: Expected
    classes: Classes
    templates: str | list[str]
    """A set of ``retrieval.prompts``, or sentences with one ``{}``; of ``[a|the]`` each alternative is a sentence."""
    query_kinds: list[Kind] = list(KINDS)
    inside: list[str] = [""]
    """Folders of the given one in which the set may lie, as archives and libraries unpack it."""
    layouts: list[Layout] = []
    """How the set may lie on disk; the first whose files are there is read."""
    huggingface: HuggingFace | None = None

    @field_validator("templates")
    @classmethod
    def _usable_templates(cls, given: str | list[str]) -> str | list[str]:
        if isinstance(given, list):
            fill([sentence for each in given for sentence in _alternatives(each)], "")
        elif given not in TEMPLATE_SETS:
            raise ValueError(f"there is no such set; give one of {', '.join(TEMPLATE_SETS)}, or a list of sentences")
        return given

    def sentences(self) -> list[str]:
        """Return the prompt templates, each with one ``{}``."""
        if isinstance(self.templates, str):
            return list(templates(self.templates))
        return [sentence for each in self.templates for sentence in _alternatives(each)]


def _alternatives(sentence: str) -> list[str]:
    parts = _CHOICE.split(sentence)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with mindseye, sorted."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def load_recipe(name: str | Path | Recipe) -> Recipe:
    """Load a recipe that ships with mindseye, by name, or your own, by the path of its YAML file.

    Raises:
        UserError: there is none of that name (``missing``), or it says something wrong (``wrong-setting``).
    """
    if isinstance(name, Recipe):
        return name
    file = RECIPES / f"{name}.yaml" if str(name) in recipe_names() else Path(name)
    if file.suffix not in (".yaml", ".yml") or not file.is_file():
        message = f"there is no data set {str(name)!r}; give one of {', '.join(recipe_names())}, or a YAML file"
        raise UserError(message, code="missing", field="name")
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid YAML: {error}", code="malformed", field="name") from error
    try:
        return Recipe.model_validate({"name": file.stem, **(content if isinstance(content, dict) else {})})
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])) or "(file)", each["msg"]) for each in error.errors()]
        problems = "\n".join(f"  {setting}: {problem}" for setting, problem in wrong)
        message = f"{file} says {len(wrong)} thing(s) wrong:\n{problems}"
        raise UserError(message, code="wrong-setting", field=wrong[0][0]) from error
