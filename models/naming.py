"""What a model may be called, so that a URL's path can end in it: `GET /v1/models/NAME`."""

from __future__ import annotations

LONGEST = 100
RESERVED = frozenset("/\\?#% ")


def check(name: str) -> str:
    """`name`, if it is one.

    Raises:
        ValueError: it is not 1 to 100 printable characters, or one of them is a space or means
            something else in a URL; one line says so.
    """
    if not 1 <= len(name) <= LONGEST:
        raise ValueError(f"name must have 1 to {LONGEST} characters, not {len(name)}")
    if name in (".", "..") or not all(map(_stands_for_itself, name)):
        raise ValueError(
            f"name must be printable characters other than spaces and / \\ ? # %, not {name!r}"
        )
    return name


def made_of(text: str) -> str:
    """A name as near to `text`, for instance a file's, as one can be."""
    kept = "".join(each if _stands_for_itself(each) else " " for each in text)
    name = "-".join(kept.split())[:LONGEST]
    return "model" if name in ("", ".", "..") else name


def _stands_for_itself(character: str) -> bool:
    return character.isprintable() and character not in RESERVED
