"""Base64 in the dialects that clients send: RFC 4648's two alphabets, with or without padding,
in lines (RFC 2045), and as a data URL (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re

from service.errors import QUOTED, InvalidInput

DATA_URL = re.compile(r"data:(?P<type>[^,]{0,200}?)(?P<base64>;\s*base64)?,", re.IGNORECASE)
WHITE_SPACE = str.maketrans("", "", " \t\r\n\f\v")
URL_SAFE = str.maketrans("-_", "+/")
WRONG = re.compile(r"[^A-Za-z0-9+/]")


def decode_base64(text: str) -> bytes:
    """The bytes that `text` stands for.

    Raises:
        InvalidInput: it says which character is wrong, or that the end is missing.
    """
    start = DATA_URL.match(text)
    if start is None and text[:5].lower() == "data:":
        raise InvalidInput("a data URL must begin like data:image/jpeg;base64,")
    if start is not None:
        if start["base64"] is None:
            raise InvalidInput(
                f"the data URL {start[0][:QUOTED]!r} is not base64; it must end with ;base64,"
            )
        text = text[start.end() :]
    digits = text.translate(WHITE_SPACE)
    if "-" in digits or "_" in digits:
        if "+" in digits or "/" in digits:
            raise InvalidInput(
                "the base64 text mixes two alphabets: it has + or /, and - or _; use one of them"
            )
        digits = digits.translate(URL_SAFE)
    bare = digits.rstrip("=")
    if len(digits) - len(bare) > 2:
        raise InvalidInput("the base64 text ends with more than two =")
    try:
        # Checked for its alphabet first, as `validate` alone does not say what is wrong.
        decoded = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(_what_is_wrong(bare)) from None
    return decoded


def _what_is_wrong(digits: str) -> str:
    wrong = WRONG.search(digits)
    if wrong is None:
        return "the base64 text is truncated: its last character is alone"
    if wrong[0] == "=":
        return f"the base64 text goes on after its end, a = at character {wrong.start()}"
    if wrong[0] == "%":
        return "the base64 text has % escapes; decode them, or send it as JSON"
    return f"the base64 text has {wrong[0]!r} at character {wrong.start()}, which is not base64"
