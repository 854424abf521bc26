"""Query texts: the three kinds of query, the prompt templates, and what may be handed to a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

from retrieval.errors import UserError

Kind = Literal["name", "description", "name+description"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Ten times what a CLIP context of 77 tokens holds. CLIP's tokenizer takes time quadratic in a word's length.
MAX_CHARACTERS = 4_000

TEMPLATE_SETS = ("imagenet", "simple", "none")


def query_text(kind: Kind, name: str | None = None, description: str | None = None) -> str:
    """Return the text of a query of that kind; the third kind is ``name, description``.

    Raises:
        UserError: the kind is unknown (code ``unknown``, field ``kind``), or a part that it needs is missing or blank
            (``missing``, field ``name`` or ``description``).
    """
    if kind not in KINDS:
        message = f"query kind {kind!r} is not known; use one of {', '.join(KINDS)}"
        raise UserError(message, code="unknown", field="kind")
    given = {"name": name, "description": description}
    parts = []
    for part in kind.split("+"):
        text = (given[part] or "").strip()
        if not text:
            message = f"a query of kind {kind!r} needs a {part}, and got {given[part]!r}"
            raise UserError(message, code="missing", field=part)
        parts.append(text)
    return ", ".join(parts)


@cache
def templates(name: str) -> tuple[str, ...]:
    """Return a named set of prompt templates, each a string with one ``{}`` for the query's text.

    ``imagenet``: the 80 that CLIP's authors used for ImageNet (Radford et al. 2021); ``simple``: the 7 of them that
    they found to do as well; both as open_clip has them. ``none``: the text alone.

    Raises:
        UserError: there is no set of that name (code ``unknown``, field ``templates``).
    """
    if name == "none":
        return ("{}",)
    if name not in TEMPLATE_SETS:
        message = f"template set {name!r} is not known; use one of {', '.join(TEMPLATE_SETS)}"
        raise UserError(message, code="unknown", field="templates")
    import open_clip  # lazily, because it loads torch, which a command line's --help should not wait for

    sets = {
        "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    return tuple(template("{}") for template in sets[name])


def fill(templates: Sequence[str], text: str) -> list[str]:
    """Return the text in each template. Braces in the text itself stay as they are.

    Raises:
        UserError: there is no template, or one does not have exactly one ``{}`` (code ``template``, field
            ``templates``).
    """
    if not templates:
        message = 'there is no prompt template; use ("{}",) for the text alone'
        raise UserError(message, code="template", field="templates")
    for template in templates:
        if template.count("{}") != 1:
            message = f"prompt template {template!r} must contain exactly one {{}}"
            raise UserError(message, code="template", field="templates")
    return [template.replace("{}", text) for template in templates]


def usable(text: str) -> str:
    """Return the text, fit for any tokenizer: half a surrogate pair, which none can encode, becomes a question mark.

    Raises:
        UserError: the text is empty or nothing but spaces (code ``blank``), or longer than MAX_CHARACTERS
            (``too-long``). The field is ``text``.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted"
        raise UserError(message, code="too-long", field="text")
    if not text.strip():
        raise UserError(f"the text is blank ({text!r}); give at least one word", code="blank", field="text")
    return text.encode("utf-8", errors="replace").decode("utf-8")
