"""The names of models."""

from __future__ import annotations

# Names end the path of `GET /v1/models/NAME`, where these characters mean something else.
LONGEST_NAME = 100
RESERVED = frozenset("/\\?#% ")


def check_name(name: str) -> str:
    """`name`, if it is valid.

    Raises:
        ValueError: it is not 1 to 100 printable characters, or contains a space or a character
            with a meaning in URLs.
    """
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"name must have 1 to {LONGEST_NAME} characters, not {len(name)}")
    if name in (".", "..") or not all(map(_stands_for_itself, name)):
        raise ValueError(
            f"name must be printable characters other than spaces and / \\ ? # %, not {name!r}"
        )
    return name


def name_from(text: str) -> str:
    """The valid name closest to `text`, for instance to a file's name."""
    kept = "".join(character if _stands_for_itself(character) else " " for character in text)
    name = "-".join(kept.split())[:LONGEST_NAME]
    return "model" if name in ("", ".", "..") else name


def _stands_for_itself(character: str) -> bool:
    return character.isprintable() and character not in RESERVED
