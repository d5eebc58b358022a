"""JSON with large strings, such as files in base64.

Parsing it as it is would take several times its memory, and hold the GIL all the while. So the long
strings are cut out first, which looks at little more than the quotes; what is left is small.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.errors import QUOTED, InvalidInput, TooLarge

# Longer strings are cut out. Line breaks within them are no JSON, but base64 has them.
LONG = 64
MAX_BACKSLASHES = 64  # in a row
MAX_NAME = 1000  # characters
PIECE = 2**18  # characters of a string that are unescaped at a time
# In the place of a string: none that is left can begin so.
MARK = "\0"
MARK_OF = b"\\u0000%d"


class JsonLimits(NamedTuple):
    """Of what is left, each for all of it, and for each image: bytes beside strings; strings; lists
    and objects, which also bound the depth; and commas, which separate values. `hint`: what to do
    about more."""

    size: tuple[int, int]
    strings: tuple[int, int]
    lists: tuple[int, int]
    values: tuple[int, int]
    hint: str = ""

    def check(self, what: str, count: int, images: int) -> None:
        """Raises `TooLarge`."""
        of_all, of_each = getattr(self, what)
        most = of_all + of_each * images
        if count > most:
            hint = f"; {self.hint}" if self.hint else ""
            raise TooLarge(f"the JSON has {count} {NAMES[what]}; the limit is {most}{hint}")


NAMES = {
    "size": "bytes beside its strings",
    "strings": "strings",
    "lists": "lists and objects",
    "values": "values",
}
OF_FILES = JsonLimits((2**14, 2**9), (128, 16), (64, 8), (2**12, 2**7))


@dataclass(frozen=True, slots=True, repr=False)
class LongText:
    """A string of `body`, from `start` to `end`, with its escapes."""

    body: bytes
    start: int
    end: int

    def __repr__(self) -> str:
        """Its beginning, for refusals that quote it."""
        return self.body[self.start : min(self.start + QUOTED, self.end)].decode("utf-8", "replace")

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


def parse(body: bytes, images: int, limits: JsonLimits = OF_FILES) -> Any:
    """The value of a JSON text that holds up to `images` images; its long strings are `LongText`.

    At `OF_FILES` it holds the GIL for less than a millisecond; each number takes 60 ns more.

    Raises:
        InvalidInput: it is malformed, or a name is there twice in an object.
        TooLarge: it has more than images need.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in body[:4]:  # UTF-16 and UTF-32 (RFC 4627, section 3).
        raise InvalidInput("the JSON is not in UTF-8")
    quotes = sum(body.count(b'"', at, at + PIECE) for at in range(0, len(body), PIECE))
    limits.check("strings", quotes // 2, images)
    parts: list[bytes] = []
    cuts: list[LongText] = []
    size = at = 0
    while True:
        begin = body.find(b'"', at)
        size += (len(body) if begin < 0 else begin) - at
        limits.check("size", size, images)
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
    limits.check("lists", rest.count(b"[") + rest.count(b"{"), images)
    limits.check("values", rest.count(b","), images)

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
            found[name] = restored(value) if cuts else value
        return found

    try:
        return restored(_loads(rest, object_of, cuts))
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply") from None


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
