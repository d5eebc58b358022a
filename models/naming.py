"""The names of models."""

from __future__ import annotations

import re

# Names end the path of `GET /v1/models/NAME`, where these characters mean something else.
LONGEST_NAME = 100
RESERVED = frozenset("/\\?#% ")
# Lone surrogates: Python's stand-ins for such bytes.
NOT_UTF8 = re.compile(r"[\ud800-\udfff]")


def in_utf8(text: str) -> str:
    """The text, with bytes of a file's name that are not UTF-8 replaced."""
    return NOT_UTF8.sub("\N{REPLACEMENT CHARACTER}", text)


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
