"""JSON with large strings, such as files in base64.

Parsing it as it is would take several times its memory, and hold the GIL all the while. So the long
strings are cut out first, which looks at little more than the quotes; what is left is small.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidInput, TooLarge

# Longer strings are cut out. Line breaks within them are no JSON, but base64 has them.
LONG = 64
# Of what is left: bytes; strings, and lists and objects, which also bound the depth. Each is for
# all of it, and for each image.
MAX_BYTES = 2**14, 2**9
MAX_STRINGS = 128, 16
MAX_LISTS = 64, 8
MAX_BACKSLASHES = 64  # in a row
MAX_NAME = 1000  # characters
PIECE = 2**18  # characters of a string that are unescaped at a time
# In the place of a string: none that is left can begin so.
MARK = "\0"
MARK_OF = b"\\u0000%d"


@dataclass(frozen=True, slots=True)
class LongText:
    """A string of `body`, from `start` to `end`, with its escapes."""

    body: bytes
    start: int
    end: int

    def unescaped(self) -> memoryview:
        """The string in UTF-8, in the body's own memory if nothing in it is escaped."""
        body, at, end = self.body, self.start, self.end
        if body.find(b"\\", at, end) < 0:
            return memoryview(body)[at:end]
        parts: list[bytes] = []
        while at < end:
            stop = min(at + PIECE, end)
            # An escape has up to six characters, and must not be cut.
            if stop < end and (slash := body.rfind(b"\\", stop - 6, stop)) >= 0:
                stop = at + len(body[at:slash].rstrip(b"\\"))
            try:
                piece: str = json.loads(b'"%b"' % body[at:stop], strict=False)
            except ValueError:
                raise InvalidInput("a string of the JSON has an invalid escape") from None
            parts.append(piece.encode("utf-8", "replace"))
            if stop == at:
                raise InvalidInput("a string of the JSON has too many backslashes in a row")
            at = stop
        return memoryview(b"".join(parts))  # Which releases the GIL.

    def name(self) -> str:
        """The string, where it is a name.

        Raises:
            InvalidInput: it is too long.
        """
        if self.end - self.start > MAX_NAME:
            raise InvalidInput(f"a name has more than {MAX_NAME} characters")
        return bytes(self.unescaped()).decode("utf-8", "replace")


def parse(body: bytes, images: int) -> Any:
    """The value of a JSON text that holds up to `images` images; its long strings are `LongText`.

    Raises:
        InvalidInput: it is malformed, or a name is there twice in an object.
        TooLarge: it has more than images need.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    quotes = sum(body.count(b'"', at, at + PIECE) for at in range(0, len(body), PIECE))
    _check("strings", quotes // 2, MAX_STRINGS, images)
    parts: list[bytes] = []
    cuts: list[LongText] = []
    size = at = 0
    while True:
        begin = body.find(b'"', at)
        size += (len(body) if begin < 0 else begin) - at
        _check("bytes beside its strings", size, MAX_BYTES, images)
        if begin < 0:
            parts.append(body[at:])
            break
        end = _end_of_string(body, begin + 1)
        parts.append(body[at:begin])
        if end - begin - 1 > LONG:
            parts.append(b'"%b"' % (MARK_OF % len(cuts)))
            cuts.append(LongText(body, begin + 1, end))
        else:
            string = body[begin : end + 1]
            if b"\\u0000" in string or b"\0" in string:
                raise InvalidInput("a string of the JSON has a null character; leave it out")
            parts.append(string)
        at = end + 1
    rest = b"".join(parts)
    _check("lists and objects", rest.count(b"[") + rest.count(b"{"), MAX_LISTS, images)

    def restored(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(MARK):
            return cuts[int(value[1:])]
        return [restored(each) for each in value] if isinstance(value, list) else value

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name.startswith(MARK):
                raise InvalidInput(f"the JSON has a name of more than {LONG} characters")
            if name in found:
                raise InvalidInput(f"the JSON has {name!r} twice in one object; send it once")
            found[name] = restored(value)
        return found

    return restored(_loads(rest, object_of, cuts))


def _loads(text: bytes, object_of: Callable[..., Any], cuts: list[LongText]) -> Any:
    def refuse(constant: str) -> Any:
        raise InvalidInput(f"the JSON has {constant}, which is not JSON")

    try:
        return json.loads(
            text.decode(), strict=False, object_pairs_hook=object_of, parse_constant=refuse
        )
    except json.JSONDecodeError as error:
        place, why = _place(error.pos, cuts), error.msg.lower()
        if why == "extra data":
            why = "it goes on after its end"
        raise InvalidInput(f"the JSON is malformed at byte {place}: {why}") from None
    except UnicodeDecodeError:
        raise InvalidInput("the JSON is not in UTF-8") from None
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply") from None
    except ValueError:  # A number of thousands of digits.
        raise InvalidInput("the JSON has a number that is too large") from None


def _place(place: int, cuts: list[LongText]) -> int:
    """Where in the body a place of the text without its long strings is."""
    for index, cut in enumerate(cuts):
        if place <= cut.start:  # So far, `place` is the body's, as all strings before are back.
            break
        place += cut.end - cut.start - len(MARK_OF % index)
    return place


def _end_of_string(body: bytes, start: int) -> int:
    """Where the quote is that ends the string."""
    end = start
    while True:
        end = body.find(b'"', end)
        if end < 0:
            raise InvalidInput("the JSON is malformed: its last string does not end")
        window = body[max(start, end - MAX_BACKSLASHES) : end]
        backslashes = len(window) - len(window.rstrip(b"\\"))
        if backslashes == MAX_BACKSLASHES:
            raise InvalidInput(f"the JSON has {MAX_BACKSLASHES} backslashes in a row")
        if backslashes % 2 == 0:
            return end
        end += 1


def _check(what: str, count: int, limits: tuple[int, int], images: int) -> None:
    most = limits[0] + limits[1] * images
    if count > most:
        raise TooLarge(f"the JSON has {count} {what}; the limit is {most}")
