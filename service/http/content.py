"""What a request's body is: its bytes decide, and its content type where they do not.

Clients send images with whatever type their library chooses; the decoder looks at the bytes anyway.
"""

from __future__ import annotations

import enum
import re

from starlette.requests import Request

from service.errors import QUOTED, UnsupportedMediaType
from service.inference.file_kinds import kind_of

MULTIPART = "multipart/form-data"
WAYS = (
    "send an image's bytes, as image/* or application/octet-stream, a form as "
    f'{MULTIPART} with one file, or JSON like {{"image": "<base64>"}}'
)


class ContentKind(enum.Enum):
    """What a content type says. `BYTES`: nothing; `TEXT`: little, as JSON may come with it."""

    IMAGE = enum.auto()
    BYTES = enum.auto()
    URLENCODED = enum.auto()
    TEXT = enum.auto()
    JSON = enum.auto()
    FORM = enum.auto()
    OTHER = enum.auto()


IMAGE, BYTES, URLENCODED, TEXT, JSON, FORM, OTHER = ContentKind  # Faster than attributes.
# `application/x-www-form-urlencoded` is also what curl says of any bytes.
TYPES = {
    "": BYTES,
    "*/*": BYTES,
    "application/octet-stream": BYTES,
    "binary/octet-stream": BYTES,
    "application/binary": BYTES,
    "application/x-binary": BYTES,
    "application/x-image": BYTES,
    "application/x-www-form-urlencoded": URLENCODED,
    "text/plain": TEXT,
    "application/json": JSON,
    "text/json": JSON,
    MULTIPART: FORM,
}
# As most clients write them, so that nothing has to be taken apart.
USUAL = {name.encode(): kind for name, kind in TYPES.items()} | dict.fromkeys(
    (b"image/jpeg", b"image/png", b"image/webp", b"image/*"), IMAGE
)
# What JSON begins with: perhaps white space, or a byte order mark.
BEFORE_JSON = frozenset(b"{ \t\r\n\xef")
URLENCODED_FIELD = re.compile(rb"[\w.%\[\]-]{1,64}=")


def media_type(request: Request) -> str:
    """The content type without its parameters; empty if there is none."""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            return _bare(value)
    return ""


def declared_kind(request: Request) -> tuple[ContentKind, bool]:
    """What the headers say of a body, and whether it may be compressed."""
    declared, coded = None, False
    for name, value in request.scope["headers"]:
        if name == b"content-type" and declared is None:
            declared = USUAL.get(value) or kind_of_type(_bare(value))
        elif name == b"content-encoding":
            coded = True
    return declared or BYTES, coded


def kind_of_type(media_type: str) -> ContentKind:
    if media_type.startswith("image/"):
        return IMAGE
    return TYPES.get(media_type) or (JSON if media_type.endswith("+json") else OTHER)


def text_limit(max_bytes: int) -> int:
    """The most bytes of a text that stands for `max_bytes`: base64 in lines, escaped, and names."""
    return max_bytes * 3 // 2 + 2**12


def body_kind(request: Request, declared: ContentKind, data: bytes) -> ContentKind:
    """What a body `data` is that is no form with files: IMAGE, JSON or URLENCODED.

    Raises:
        UnsupportedMediaType: its type says something else, and it is not an image.
    """
    if declared is IMAGE or not data or (declared is BYTES and data[0] not in BEFORE_JSON):
        return IMAGE
    is_object = data[:QUOTED].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    if is_object and declared is not OTHER:  # No image begins so.
        return JSON
    if declared is BYTES:
        return IMAGE
    kind = kind_of(data)
    if kind is not None and kind.is_image:
        return IMAGE
    if declared is JSON:
        return JSON
    if declared is URLENCODED:
        return URLENCODED if URLENCODED_FIELD.match(data) else IMAGE
    seen = f"is {kind.name}" if kind is not None else "is no image"
    raise UnsupportedMediaType(
        f"unsupported content type {media_type(request)[:QUOTED]!r}, and the body {seen}; {WAYS}"
    )


def _bare(content_type: bytes) -> str:
    return content_type.decode("latin-1").partition(";")[0].strip().lower()
