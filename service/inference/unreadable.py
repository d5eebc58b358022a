"""What a client is told of bytes that no decoder accepts: what they are, and what to send."""

from __future__ import annotations

import re

from models import image_files
from service.inference import file_kinds
from service.inference.file_kinds import FORMATS, FileKind, kind_of
from service.inference.rare_kinds import rare_jpeg, rare_tiff

# Fewer bytes than any image has.
LEAST_BYTES = 20
# An image behind something else: a line break of a form, or a byte order mark.
BEHIND = re.compile(rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n")
SEARCHED = 256  # bytes
REMEDIES = {
    file_kinds.HTML: "perhaps it is an error page instead of the image",
    file_kinds.XML: "perhaps it is an error message instead of the image",
    file_kinds.HTTP_RESPONSE: "send its body only",
    file_kinds.URL: "send the image itself",
    file_kinds.BASE64: 'send the bytes that it stands for, or JSON {"image": "..."}',
    file_kinds.DATA_URL: 'send the bytes that it stands for, or JSON {"image": "..."}',
    file_kinds.JSON: "send it as the body, as application/json",
    file_kinds.FORM: "send it as the body, as multipart/form-data with its boundary",
    file_kinds.GZIP: "send it with Content-Encoding: gzip",
    file_kinds.READ_AS_TEXT: "open it in binary mode",
    file_kinds.PNG_AS_TEXT: "copy it in binary mode",
    file_kinds.LFS_POINTER: "run `git lfs pull`",
    file_kinds.VIDEO: "send one frame of it",
    file_kinds.BIG_TIFF: "save it as classic TIFF",
}

JPEG, TIFF, HEIC = (FORMATS[name] for name in ("JPEG", "TIFF", "HEIF"))
RARE = {JPEG: rare_jpeg, TIFF: rare_tiff}
USUAL = {
    JPEG: "as baseline or progressive JPEG with 8 bits a sample",
    TIFF: "with 8 bits a sample in grey or RGB, without compression or with LZW or Deflate",
}


def advice() -> str:
    return f"send a whole {image_files.listed()} image"


def why_unreadable(data: bytes) -> str:
    """Of `data` that Pillow does not identify."""
    if len(data) < LEAST_BYTES:
        return f"the image has only {_counted(len(data), 'byte')}; {advice()}"
    kind = kind_of(data)
    if kind is None:
        behind = BEHIND.search(data, 0, SEARCHED)
        if behind is None:
            return f"not a readable image; {advice()}"
        verb = "precedes" if behind.start() == 1 else "precede"
        others = _counted(behind.start(), "other byte")
        return f"not a readable image: {others} {verb} it; send its bytes only"
    if kind in decoded_kinds():
        return _why_begun(data, kind)
    if kind in REMEDIES:
        return f"this is {kind.name}; {REMEDIES[kind]}"
    lacks = " without the extra `images`" if kind == HEIC else ""
    return f"this is {kind.name}, which this service does not decode{lacks}; {advice()}"


def _why_begun(data: bytes, kind: FileKind) -> str:
    """Of `data` that begins as a format that is decoded."""
    rare = RARE[kind](data) if kind in RARE else None
    if rare is not None:
        return f"this is {rare}, which this service does not decode; save it {USUAL[kind]}"
    return (
        f"not a readable image: it begins as {kind.name}, but is damaged, truncated or of a rare "
        f"kind; {advice()}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def decoded_kinds() -> set[FileKind]:
    return {FORMATS[name] for name in image_files.formats()}
