"""Names in messages: suggestions for mistyped ones, and long lists."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

# A longer list does not help in a one-line message.
LISTED = 12
SHOWN = 5


def first_few(names: Sequence[str]) -> str:
    """The names separated by commas; of many, the first `SHOWN` and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def nearest(name: str, known: Collection[str], count: int = 1) -> list[str]:
    """Up to `count` names of `known` with a spelling close to `name`; case does not matter."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=count)
    return [by_lower[match] for match in matches]


def hint(name: str, known: Collection[str], otherwise: str = "") -> str:
    """Advice on a mistyped name: the nearest of `known`; else `otherwise`, if the list is long;
    else all of `known`."""
    if near := nearest(name, known):
        return f"did you mean {near[0]}?"
    if otherwise and len(known) > LISTED:
        return otherwise
    return f"use {'one of ' if len(known) > 1 else ''}{', '.join(known)}"
