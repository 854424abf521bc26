"""Query texts: the three kinds of query, the prompt templates, and what may be handed to a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

Kind = Literal["name", "description", "name+description"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Ten times what a CLIP context of 77 tokens holds. CLIP's tokenizer takes time quadratic in a word's length.
MAX_CHARACTERS = 4_000

TEMPLATE_SETS = ("imagenet", "simple", "none")


def query_text(kind: Kind, name: str | None = None, description: str | None = None) -> str:
    """The text of a query of that kind; the third kind is `name, description`.

    Raises:
        ValueError: the kind is unknown, or a part that it needs is missing or blank.
    """
    if kind not in KINDS:
        raise ValueError(f"query kind {kind!r} is not known; use one of {', '.join(KINDS)}")
    given = {"name": name, "description": description}
    parts = []
    for part in kind.split("+"):
        text = (given[part] or "").strip()
        if not text:
            raise ValueError(f"a query of kind {kind!r} needs a {part}, and got {given[part]!r}")
        parts.append(text)
    return ", ".join(parts)


@cache
def templates(name: str) -> tuple[str, ...]:
    """A named set of prompt templates, each a string with one `{}` for the query's text.

    `imagenet`: the 80 that CLIP's authors used for ImageNet (Radford et al. 2021); `simple`: the 7 of them
    that they found to do as well; both as open_clip has them. `none`: the text alone.

    Raises:
        ValueError: there is no set of that name.
    """
    if name == "none":
        return ("{}",)
    if name not in TEMPLATE_SETS:
        raise ValueError(f"template set {name!r} is not known; use one of {', '.join(TEMPLATE_SETS)}")
    import open_clip  # here, because it brings in torch, which a command line's --help should not wait for

    sets = {
        "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    return tuple(template("{}") for template in sets[name])


def fill(templates: Sequence[str], text: str) -> list[str]:
    """The text in each template. Braces in the text itself stay as they are.

    Raises:
        ValueError: there is no template, or one does not have exactly one `{}`.
    """
    if not templates:
        raise ValueError('there is no prompt template; use ("{}",) for the text alone')
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} must contain exactly one {{}}")
    return [template.replace("{}", text) for template in templates]


def usable(text: str) -> str:
    """The text, fit for any tokenizer: half a surrogate pair, which none can encode, becomes a question mark.

    Raises:
        ValueError: the text is empty, nothing but spaces, or longer than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted")
    if not text.strip():
        raise ValueError(f"the text is blank ({text!r}); give at least one word")
    return text.encode("utf-8", errors="replace").decode("utf-8")
