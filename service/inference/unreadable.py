"""What a client is told of bytes that no decoder accepts: what they are, and what to send."""

from __future__ import annotations

import re

from models import image_files
from service.inference.file_kinds import kind_of
from service.inference.rare_kinds import rare_jpeg, rare_tiff

# Fewer bytes than any image has.
LEAST_BYTES = 20
# An image behind something else: a line break of a form, or a byte order mark.
BEHIND = re.compile(rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n")
SEARCHED = 256  # bytes
HINTS = {
    "an HTML page": "perhaps it is an error page instead of the image",
    "an XML document": "perhaps it is an error message instead of the image",
    "an HTTP response with its header": "send its body only",
    "a URL": "send the image itself",
    "base64 text": 'send the bytes that it stands for, or JSON {"image": "..."}',
    "a data URL": 'send the bytes that it stands for, or JSON {"image": "..."}',
    "JSON": "send it as application/json",
    "a form": "send it as multipart/form-data, with its boundary",
    "gzip-compressed data": "send it with Content-Encoding: gzip",
    "a file that was read as text": "open it in binary mode",
    "PNG whose line breaks were changed": "copy it in binary mode",
    "a pointer of Git LFS": "run `git lfs pull`",
    "a video": "send one frame of it",
    "BigTIFF": "save it as classic TIFF",
}

RARE = {"JPEG": rare_jpeg, "TIFF": rare_tiff}
USUAL = {
    "JPEG": "as baseline or progressive JPEG with 8 bits a sample",
    "TIFF": "with 8 bits a sample in grey or RGB, without compression or with LZW or Deflate",
}


def advice() -> str:
    return f"send a whole {image_files.in_words()} image"


def why_unreadable(data: bytes) -> str:
    """Of `data` that Pillow does not identify."""
    if len(data) < LEAST_BYTES:
        return f"the image has only {len(data)} bytes; {advice()}"
    kind = kind_of(data)
    if kind is None:
        behind = BEHIND.search(data, 0, SEARCHED)
        if behind is None:
            return f"not a readable image; {advice()}"
        return f"not a readable image: {behind.start()} other bytes precede it; send its bytes only"
    if kind.name in decoded_names():
        return _why_begun(data, kind.name)
    if kind.name in HINTS:
        return f"this is {kind.name}; {HINTS[kind.name]}; {advice()}"
    lacks = " without the extra `images`" if kind.name == image_files.NAMES["HEIF"] else ""
    return f"this is {kind.name}, which this service does not decode{lacks}; {advice()}"


def _why_begun(data: bytes, name: str) -> str:
    """Of `data` that begins as a format that is decoded."""
    rare = RARE[name](data) if name in RARE else None
    if rare is not None:
        return f"this is {rare}, which this service does not decode; save it {USUAL[name]}"
    return (
        f"not a readable image: it begins as {name}, but is damaged, truncated or of a rare kind; "
        f"{advice()}"
    )


def decoded_names() -> set[str]:
    """Names of `kind_of` of the formats that are decoded."""
    return {image_files.NAMES[name] for name in image_files.formats()}
