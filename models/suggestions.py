"""What a name that was mistyped may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# A longer list is no help in a line that tells of a mistake.
LISTED = 12


def nearest(name: str, known: Collection[str], count: int = 1) -> list[str]:
    """Up to `count` of `known` that are spelled much like `name`, whatever the case."""
    lower = {each.lower(): each for each in known}
    return [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=count)]


def hint(name: str, known: Collection[str], otherwise: str = "") -> str:
    """What to say after naming a mistake: the nearest of `known`, else all, else `otherwise`."""
    if near := nearest(name, known):
        return f"did you mean {near[0]}?"
    if otherwise and len(known) > LISTED:
        return otherwise
    return f"one of {', '.join(known)}"
