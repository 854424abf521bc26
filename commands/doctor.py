"""``mindseye doctor``: what this machine has and lacks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from commands.console import Profile, out, say_next

if TYPE_CHECKING:
    from cluster.doctor import Check


def doctor(*, profile: Profile = "tiny") -> None:
    """Check this machine and the models of a profile; say what is missing and what to do."""
    from cluster.doctor import examine

    ok = True
    for check in examine(profile):
        _print(check)
        ok = ok and check.ok
    if not ok:
        sys.exit(1)
    say_next("mindseye demo")


def _print(check: Check) -> None:
    word, style = ("ok  ", "") if check.ok else ("FAIL", "red")
    out.print(f"{word} {check.what}: {check.found}", style=style, soft_wrap=True)
    if not check.ok:
        out.print(f"     {check.remedy}", soft_wrap=True)
