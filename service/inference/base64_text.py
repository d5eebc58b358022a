"""Base64 in the dialects that clients send: RFC 4648's two alphabets, with or without padding,
in lines (RFC 2045), and as a data URL (RFC 2397)."""

from __future__ import annotations

import binascii
import re

from service.errors import QUOTED, InvalidInput

DATA_URL = re.compile(rb"data:(?P<type>[^,]{0,200}?)(?P<base64>;\s*base64)?,", re.IGNORECASE)
WHITE_SPACE = b" \t\r\n\f\v"
PLAIN = bytes.maketrans(b"-_", b"+/")
WRONG = re.compile(rb"[^A-Za-z0-9+/\-_ \t\r\n\f\v]")
# Characters decoded at a time: other threads wait for the GIL meanwhile, half a millisecond.
PIECE = 2**18


def decode_base64(text: str | bytes | memoryview) -> bytes:
    """The bytes that `text` stands for.

    It takes 3 ns a character, and holds the GIL for no more than `PIECE` characters at a time.

    Raises:
        InvalidInput: it says which character is wrong, or that the end is missing.
    """
    if isinstance(text, str):
        try:
            text = text.encode("ascii")
        except UnicodeEncodeError as error:
            raise InvalidInput(_wrong(error.object[error.start], error.start)) from None
    view = memoryview(text)
    start, end = _start_of(view), _end_of(view)
    padding = sum(bytes(view[at : at + PIECE]).count(b"=") for at in range(end, len(view), PIECE))
    if padding > 2:
        raise InvalidInput("the base64 text ends with more than two =")
    parts: list[bytes] = []
    rest = b""
    plain = url_safe = False
    for at in range(start, end, PIECE):
        piece = bytes(view[at : min(at + PIECE, end)])
        plain = plain or b"+" in piece or b"/" in piece
        url_safe = url_safe or b"-" in piece or b"_" in piece
        digits = rest + piece.translate(PLAIN, WHITE_SPACE)
        whole = len(digits) & ~3
        digits, rest = digits[:whole], digits[whole:]
        # An = would end the digits for `a2b_base64`, too, but only for this piece.
        if b"=" in piece or (decoded := _decoded(digits)) is None:
            raise InvalidInput(_what_is_wrong(view, start, end))
        parts.append(decoded)
    if plain and url_safe:
        raise InvalidInput(
            "the base64 text mixes two alphabets: it has + or /, and - or _; use one of them"
        )
    if rest:
        decoded = _decoded(rest + b"=" * (4 - len(rest))) if len(rest) > 1 else None
        if decoded is None:
            raise InvalidInput(_what_is_wrong(view, start, end))
        parts.append(decoded)
    return b"".join(parts)


def _start_of(text: memoryview) -> int:
    """Where the digits begin."""
    beginning = bytes(text[: 2 * QUOTED])
    url = DATA_URL.match(beginning)
    if url is None:
        if beginning[:5].lower() == b"data:":
            raise InvalidInput("a data URL must begin like data:image/jpeg;base64,")
        return 0
    if url["base64"] is None:
        shown = url[0][:QUOTED].decode("latin-1")
        raise InvalidInput(f"the data URL {shown!r} is not base64; it must end with ;base64,")
    return url.end()


def _end_of(text: memoryview) -> int:
    """Where the digits end, before padding and white space."""
    end = len(text)
    while end > 0:
        piece = bytes(text[max(0, end - PIECE) : end])
        bare = piece.rstrip(b"=" + WHITE_SPACE)
        end -= len(piece) - len(bare)
        if bare:
            break
    return end


def _decoded(digits: bytes) -> bytes | None:
    """The bytes of whole groups of four; None: a character is wrong."""
    try:
        return binascii.a2b_base64(digits, strict_mode=True) if digits else b""
    except binascii.Error:
        return None


def _what_is_wrong(text: memoryview, start: int, end: int) -> str:
    for at in range(start, end, PIECE):
        if found := WRONG.search(bytes(text[at : min(at + PIECE, end)])):
            return _wrong(found[0].decode("latin-1"), at + found.start())
    return "the base64 text is truncated: its last character is alone"


def _wrong(character: str, place: int) -> str:
    if character == "=":
        return f"the base64 text goes on after its end, a = at character {place}"
    if character == "%":
        return "the base64 text has % escapes; decode them, or send it as JSON"
    return f"the base64 text has {character!r} at character {place}, which is not base64"
