"""``mindseye doctor``: what this machine has and lacks."""

from __future__ import annotations

import sys

from commands.console import Profile, out, say_next


def doctor(*, profile: Profile = "tiny") -> None:
    """Check this machine and the models of a profile; say what is missing and what to do."""
    from cluster.doctor import examine

    ok = True
    for check in examine(profile):
        line = f"{'ok  ' if check.ok else 'FAIL'} {check.what}: {check.found}"
        out.print(line, style="" if check.ok else "red", soft_wrap=True)
        if not check.ok:
            ok = False
            out.print(f"     {check.remedy}", soft_wrap=True)
    if not ok:
        sys.exit(1)
    say_next("mindseye demo")
