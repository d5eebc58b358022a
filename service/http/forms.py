"""Forms with images: the files of `multipart/form-data` (RFC 7578), fields with base64, and
`application/x-www-form-urlencoded`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import QUOTED, BadParameter, TooLarge, UndecodableImage, UnsupportedMediaType
from service.http import encoding
from service.http.body import Body
from service.http.content import JSON, MULTIPART, kind_of_type
from service.http.json_images import NAMES
from service.http.upload import ONE_IMAGE, Upload, decoded, refuse_parameter
from service.inference import file_kinds
from service.inference.file_kinds import BASE64, DATA_URL, kind_of

MAX_TYPE_CHARACTERS = 1000  # of a content type; a boundary has up to 70
PARSED_BYTES = 2**14  # of a form at a time: the worst take 100 ns a byte
MAX_FIELDS = 16  # beside the images
MAX_IGNORED = 2**16  # bytes of a field that is no image
MAX_TEXT = 100  # characters of a text that cannot be an image, so that it is shown
# Parameters of Content-Disposition; quotes in values are escaped by some clients.
PARAMETER = re.compile(rb';\s*([\w!#$&+.^`|~*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
ESCAPED = re.compile(rb'\\(["\\])')
EXTENDED = re.compile(rb"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE)  # RFC 8187


@dataclass(slots=True)
class Part:
    """A part of a form, with its headers; `filename` None: it has none."""

    name: str = ""
    filename: str | None = None
    media_type: bytes = b""
    transfer: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def is_file(self) -> bool:
        """Whether its headers say that it is a file; else its bytes decide."""
        if self.filename is not None:
            return self.filename != ""
        return not (self.is_json or self.media_type == b"" or self.media_type.startswith(b"text/"))

    @property
    def is_json(self) -> bool:
        """Whether its type says JSON, which clients add as metadata of a file."""
        return kind_of_type(self.media_type.decode("latin-1")) is JSON


class Parts:
    """Takes a form apart as it arrives; `ended`: its last boundary was there.

    Raises:
        UndecodableImage: the form is malformed, or has too many fields.
        BadParameter, TooLarge: it has more than `max_images` files, or one of more than
            `max_bytes`.
    """

    def __init__(self, boundary: bytes, max_images: int, max_bytes: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_images, self._max_bytes = max_images, max_bytes
        self._headers: list[tuple[bytes, bytes]] = []
        self._header = [b"", b""]
        self._files = 0
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": partial(self._header_data, 0),
            "on_header_value": partial(self._header_data, 1),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        self._parser = _well_formed(MultipartParser, boundary, callbacks)

    def write(self, data: bytes) -> None:
        _well_formed(self._parser.write, data)

    def _begin(self) -> None:
        self.parts.append(Part())
        self._headers = []
        if len(self.parts) > self._max_images + MAX_FIELDS:
            raise _malformed(f"it has more than {self._max_images + MAX_FIELDS} fields")

    def _header_data(self, which: int, data: bytes, start: int, end: int) -> None:
        self._header[which] += data[start:end]

    def _header_end(self) -> None:
        self._headers.append((self._header[0].lower(), self._header[1]))
        self._header = [b"", b""]

    def _headers_finished(self) -> None:
        part = self.parts[-1]
        for name, value in self._headers:
            if name == b"content-disposition":
                part.name, part.filename = field_and_file_name(value)
            elif name == b"content-type":
                part.media_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-transfer-encoding":
                part.transfer = value.strip().lower()
        self._files += bool(part.filename)
        if self._files > self._max_images:
            raise too_many(self._max_images)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.size += end - start
        if part.size > self._max_bytes and part.is_file and part.transfer != b"base64":
            raise TooLarge(f"the file in {part.name!r} has more than {self._max_bytes} bytes")
        part.chunks.append(data[start:end])

    def _end(self) -> None:
        self.ended = True


async def read(body: Body, max_images: int) -> bytes | list[Part]:
    """The parts of a multipart request; if it is an image in spite of its type, that.

    Raises:
        UnsupportedMediaType: it has a charset other than UTF-8, or another compression than gzip.
        UndecodableImage: it is malformed.
        BadParameter: it has several files, and one is wanted.
        TooLarge, UploadsFull, ClientDeadline, RequestTooSlow, ClientLeft: as `Body` does.
    """
    content_type = body.request.headers["content-type"]
    if len(content_type) > MAX_TYPE_CHARACTERS:  # Parsing it would block the event loop.
        raise _malformed(
            f"its content type has {len(content_type)} characters; the limit is "
            f"{MAX_TYPE_CHARACTERS}"
        )
    _, parameters = parse_options_header(content_type)
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        # Python's codecs include more than charsets: some take minutes, some return no text.
        raise UnsupportedMediaType(f"send {MULTIPART} without a charset, or with utf-8")
    parts: Parts | None = None
    pieces = _pieces(body)
    async for piece in pieces:
        if parts is None:
            kind = kind_of(piece)
            if kind is not None and kind.is_image:
                return b"".join([piece, *[piece async for piece in pieces]])
            if not parameters.get(b"boundary"):
                raise _malformed(
                    "its content type has no boundary; let your client set the header, or send "
                    "the image alone with its own type"
                )
            # In a batch, the images have no limit but that on all of them.
            most = body.max_bytes if max_images == 1 else body.max_received
            parts = Parts(parameters[b"boundary"], max_images, most)
        parts.write(piece)
    if parts is None:
        raise _malformed("it is empty")
    if not parts.ended:
        raise _malformed("it ends before its last boundary; is it truncated?")
    return parts.parts


async def _pieces(body: Body) -> AsyncGenerator[bytes, None]:
    """The body in pieces that the parser of forms is done with in a millisecond or two."""
    if encoding.encoding_of(body.request) is not None:
        async for piece in _cut(await encoding.read(body)):
            yield piece
        return
    async with body.in_time():
        async for chunk in body.chunks():
            async for piece in _cut(chunk):
                yield piece


async def _cut(chunk: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(chunk), PARSED_BYTES):
        if start:
            await asyncio.sleep(0)
        yield chunk[start : start + PARSED_BYTES]


def uploads_of(parts: Sequence[Part], max_images: int, places: Mapping[str, str]) -> list[Upload]:
    """The images in a form's parts, in order: its files, whatever their fields are called, and
    fields with base64. `places`: where parameters belong. Other fields are ignored if small.

    Raises:
        BadParameter: there is no image, or there are more than wanted, or a field is a parameter.
        TooLarge: more than `max_images`.
        UndecodableImage: a field is large and no image.
        UnsupportedMediaType: a part has another Content-Transfer-Encoding than base64.
    """
    uploads: list[Upload] = []
    for part in parts:
        data = b"".join(part.chunks)
        upload = _upload_of(part, data)
        if upload is not None:
            uploads.append(upload)
            continue
        if not part.name:
            raise _malformed("a part has no name and is not an image")
        refuse_parameter(part.name, places)
        if len(data) > MAX_IGNORED:
            raise _malformed(
                f"the field {part.name[:QUOTED]!r} has {len(data)} bytes, which are not an image"
            )
    if not uploads:
        names = ", ".join(map(repr, dict.fromkeys(part.name for part in parts)))[:QUOTED]
        raise BadParameter(
            f"the form has no file; its fields: {names or 'none'}; with curl, write -F image=@FILE"
        )
    if len(uploads) > max_images:
        raise too_many(max_images)
    return uploads


def urlencoded(body: bytes) -> list[Part]:
    """The fields of an urlencoded form.

    Raises:
        UndecodableImage: there are too many.
    """
    if body.count(b"&") >= MAX_FIELDS:
        raise _malformed(f"it has more than {MAX_FIELDS} fields")
    parts = []
    for pair in body.split(b"&"):
        name, _, value = pair.partition(b"=")
        # A plus means a space, unless its value is base64 that was not escaped.
        kind = kind_of(unquote_to_bytes(value[:PARSED_BYTES].replace(b"+", b" ")))
        spaces = kind is not None and kind.is_image
        text = unquote(name[:QUOTED].decode("latin-1").replace("+", " "), errors="replace")
        parts.append(Part(text, chunks=list(_unquoted(value, spaces=spaces))))
    return parts


def field_and_file_name(disposition: bytes) -> tuple[str, str | None]:
    """The names of a part's field and of its file, None if it has none, by Content-Disposition."""
    found: dict[bytes, bytes] = {}
    for name, value in PARAMETER.findall(disposition):
        bare = value.strip()
        if bare[:1] == b'"' and bare[-1:] == b'"' and len(bare) > 1:
            bare = ESCAPED.sub(rb"\1", bare[1:-1])
        found.setdefault(name.lower(), bare)
    filename = found.get(b"filename")
    named = None if filename is None else _text(filename)
    if extended := EXTENDED.fullmatch(found.get(b"filename*", b"")):
        named = unquote(
            extended[2].decode("latin-1"), extended[1].decode().lower(), errors="replace"
        )
    return _text(found.get(b"name", b"")), named


def too_many(max_images: int) -> BadParameter | TooLarge:
    if max_images == 1:
        return BadParameter(f"the form has several files; {ONE_IMAGE}")
    return TooLarge(f"more than {max_images} images in one request")


def _upload_of(part: Part, data: bytes) -> Upload | None:
    """The image in a part; None: it is another field."""
    filename = part.filename or ""
    if part.transfer == b"base64":
        return decoded(filename, data)
    if part.transfer not in (b"", b"7bit", b"8bit", b"binary"):
        raise UnsupportedMediaType(
            f"the field {part.name[:QUOTED]!r} has the Content-Transfer-Encoding "
            f"{part.transfer[:QUOTED].decode('latin-1')!r}; send its bytes as they are"
        )
    kind = kind_of(data)
    empty = part.filename == "" and not data  # A browser's input without a file.
    if part.is_file or (part.filename == "" and data) or (kind is not None and kind.is_image):
        return Upload(filename, data)
    is_base64 = kind in (BASE64, DATA_URL)
    is_json = part.is_json or kind == file_kinds.JSON
    if empty or not (is_base64 or (part.name in NAMES and not is_json)):
        return None
    return _of_text(part.name, data) if data.isascii() else Upload(filename, data)


def _of_text(name: str, text: bytes) -> Upload:
    upload = decoded("", text)
    if len(text) < MAX_TEXT and upload.error is not None:
        raise BadParameter(
            f"the field {name!r} has the text {text.decode()!r} and no file; with curl, write "
            f"-F {name}=@FILE"
        )
    return upload


def _unquoted(value: bytes, *, spaces: bool) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        stop = at + PARSED_BYTES
        # An escape, which has three characters, must not be cut.
        percent = value.rfind(b"%", stop - 2, stop)
        stop = percent if percent > at else stop
        piece = value[at:stop].replace(b"+", b" ") if spaces else value[at:stop]
        yield unquote_to_bytes(piece)
        at = stop


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _well_formed(work: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except FormParserError as error:
        reason = str(error).rstrip(".")
        if "boundary character" in reason:
            reason = "it does not begin with the boundary that its content type names"
        elif reason.startswith("Maximum header"):
            reason = "the headers of a part are too long, or too many"
        elif reason.startswith("Boundary length"):
            reason = "the boundary that its content type names is too long"
        elif " CR" in reason or " LF" in reason:
            reason = f"its lines must end with CR LF ({reason[:1].lower()}{reason[1:]})"
        raise _malformed(reason) from None


def _malformed(reason: str) -> UndecodableImage:
    return UndecodableImage(f"the form is malformed: {reason}")
