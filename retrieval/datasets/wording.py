"""What is wrong with the wording of a description, as far as a program can see; the rest is for whoever reads it."""

from __future__ import annotations

import re

LONGEST = 300
"""Characters; a text encoder of 77 tokens reads about as many."""
_REFUSAL = re.compile(
    r"\W*(?:(?:i am|i['’]m)?\s*(?:very |so |truly )?sorry\b"
    r"|i (?:cannot|can not|can['’]t|won['’]t|am unable|am not able)\b"
    r"|(?:unfortunately|apologies)\b|as an? (?:ai|assistant|(?:large )?language model)\b)"
)


def fault_of(text: str, name: str) -> str | None:
    """Return in words why a text cannot be the description of a class; None if nothing is seen to be wrong."""
    if not spelled(text):
        return "has no words" if text else "is empty"
    if _REFUSAL.match(text.casefold()):
        return "is a refusal"
    if names(text, name):
        return f"has the name {name!r} in it"
    if len(text) > LONGEST:
        return f"has {len(text)} characters, and {LONGEST} are the most"
    return None


def names(text: str, name: str) -> bool:
    """Return whether a text has a name in it: as words, in one or with hyphens, in the singular or the plural."""
    *first, last = re.findall(r"\w+", name.casefold()) or [""]
    if not last:
        return False
    words = r"[\W_]*".join(map(re.escape, [*first, ""]))
    return re.search(rf"\b{words}(?:{'|'.join(map(re.escape, _forms(last)))})\b", text.casefold()) is not None


def spelled(text: str) -> str:
    """Return what of a text tells it from others: its words, without capitals and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _forms(word: str) -> list[str]:
    """Return a word in the singular and as its plural could be."""
    forms = [word, f"{word}s", f"{word}es"]
    if word.endswith("y"):
        forms.append(f"{word[:-1]}ies")
    elif word.endswith("f"):
        forms.append(f"{word[:-1]}ves")
    elif word.endswith("fe"):
        forms.append(f"{word[:-2]}ves")
    return forms
