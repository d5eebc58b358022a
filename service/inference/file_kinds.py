"""What a file is, by its first bytes, so that a refusal can name it."""

from __future__ import annotations

import re
from typing import NamedTuple

from models import image_files


class FileKind(NamedTuple):
    """`name`: as in "this is HEIC". `is_image`: whether it is an image of any format, decodable
    here or not."""

    name: str
    is_image: bool


# Those of the formats that Pillow decodes, by its names.
FORMATS = {name: FileKind(shown, True) for name, shown in image_files.NAMES.items()}
# Those that callers tell apart from others.
PNG_AS_TEXT = FileKind("PNG whose line breaks were changed", False)
READ_AS_TEXT = FileKind("a file that was read as text", False)
VIDEO = FileKind("a video", False)
HTTP_RESPONSE = FileKind("an HTTP response with its header", False)
GZIP = FileKind("gzip-compressed data", False)
BIG_TIFF = FileKind("BigTIFF", True)
HTML = FileKind("an HTML page", False)
XML = FileKind("an XML document", False)
DATA_URL = FileKind("a data URL", False)
BASE64 = FileKind("base64 text", False)
JSON = FileKind("JSON", False)
URL = FileKind("a URL", False)
FORM = FileKind("a form", False)
LFS_POINTER = FileKind("a pointer of Git LFS", False)
SIGNATURES: tuple[tuple[bytes, FileKind], ...] = (
    (b"\xff\xd8\xff", FORMATS["JPEG"]),
    (b"\x89PNG\r\n\x1a\n", FORMATS["PNG"]),
    (b"GIF8", FORMATS["GIF"]),
    (b"BM", FORMATS["BMP"]),
    (b"II*\0\x10\0\0\0CR", FileKind("Canon's raw format CR2", True)),
    (b"II\xbc\x01", FileKind("JPEG XR", True)),
    (b"II*\0", FORMATS["TIFF"]),
    (b"MM\0*", FORMATS["TIFF"]),
    (b"II+\0", BIG_TIFF),
    (b"MM\0+", BIG_TIFF),
    (b"\0\0\0\x0cJXL \r\n\x87\n", FileKind("JPEG XL", True)),
    (b"\xff\x0a", FileKind("JPEG XL", True)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", FileKind("JPEG 2000", True)),
    (b"\xff\x4f\xff\x51", FileKind("JPEG 2000", True)),
    (b"\0\0\x01\0", FileKind("ICO", True)),
    (b"8BPS", FileKind("a Photoshop file", True)),
    (b"\x76\x2f\x31\x01", FileKind("OpenEXR", True)),
    (b"#?RADIANCE", FileKind("Radiance HDR", True)),
    (b"DDS ", FileKind("DDS", True)),
    (b"\0\0\x02\0\x01\0", FileKind("a cursor", True)),
    (b"icns", FileKind("ICNS", True)),
    (b"/* XPM */", FileKind("XPM", True)),
    (b"SDPX", FileKind("DPX", True)),
    (b"XPDS", FileKind("DPX", True)),
    (b"qoif", FileKind("QOI", True)),
    (b"\x8aMNG", FileKind("MNG", True)),
    (b"gimp xcf", FileKind("a GIMP file", True)),
    (b"SIMPLE  =", FileKind("FITS", True)),
    (b"AT&TFORM", FileKind("DjVu", True)),
    (b"%!PS", FileKind("PostScript", True)),
    (b"\xd7\xcd\xc6\x9a", FileKind("a Windows metafile", True)),
    (b"FUJIFILMCCD-RAW", FileKind("Fujifilm's raw format RAF", True)),
    (b"IIU\0", FileKind("Panasonic's raw format RW2", True)),
    (b"IIRO", FileKind("Olympus's raw format ORF", True)),
    (b"\x89PNG", PNG_AS_TEXT),
    # What remains of the first bytes when a file is decoded or encoded as text.
    (b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", READ_AS_TEXT),
    (b"\xef\xbf\xbdPNG", READ_AS_TEXT),
    (b"\xc3\xbf\xc3\x98\xc3\xbf", READ_AS_TEXT),
    (b"\xc2\x89PNG", READ_AS_TEXT),
    (b"\x1a\x45\xdf\xa3", VIDEO),
    (b"FLV\x01", VIDEO),
    (b"\0\0\x01\xba", VIDEO),
    (b"OggS", FileKind("a sound or video", False)),
    (b"ID3", FileKind("a sound", False)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", False)),
    (b"Rar!\x1a\x07", FileKind("a RAR archive", False)),
    (b"BZh", FileKind("bzip2-compressed data", False)),
    (b"\xfd7zXZ\0", FileKind("xz-compressed data", False)),
    (b"\x89HDF\r\n\x1a\n", FileKind("HDF5", False)),
    (b"PAR1", FileKind("a parquet file", False)),
    (b"\x80\x04\x95", FileKind("a Python pickle", False)),
    (b"\x80\x05\x95", FileKind("a Python pickle", False)),
    (b"HTTP/1.", HTTP_RESPONSE),
    (b"HTTP/2 ", HTTP_RESPONSE),
    (b"%PDF", FileKind("a PDF document", False)),
    (b"PK\x03\x04", FileKind("a zip archive", False)),
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", FileKind("zstd-compressed data", False)),
    (b"\x93NUMPY", FileKind("a NumPy array", False)),
    (b"\x7fELF", FileKind("a program", False)),
)
# The brands of files in ISO's base media format (ISO/IEC 14496-12), which begin with `ftyp`.
BRANDS = {
    b"avif": FORMATS["AVIF"],
    b"avis": FORMATS["AVIF"],
    b"crx ": FileKind("Canon's raw format CR3", True),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        FORMATS["HEIF"],
    ),
}
RIFF = {b"WEBP": FORMATS["WEBP"], b"WAVE": FileKind("a sound", False), b"AVI ": VIDEO}
# Texts, after white space and a byte order mark. The first that matches counts.
TEXTS: tuple[tuple[re.Pattern[bytes], FileKind], ...] = (
    (re.compile(rb"P[1-7fF][\s#]"), FileKind("a portable pixmap (PNM)", True)),
    (re.compile(rb"<!doctype html|<html|<head|<body", re.IGNORECASE), HTML),
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg[\s>]",
                re.IGNORECASE | re.DOTALL), FileKind("SVG", True)),
    (re.compile(rb"<\?xml"), XML),
    (re.compile(rb"data:image/"), DATA_URL),
    (re.compile(rb"/9j/|iVBORw0KGgo|R0lGOD|UklGR"), BASE64),
    (re.compile(rb"[{\[]"), JSON),
    (re.compile(rb"https?://\S+\s*$"), URL),
    (re.compile(rb"--[^\r\n]{1,200}\r?\nContent-Disposition:", re.IGNORECASE), FORM),
    (re.compile(rb"version https://git-lfs"), LFS_POINTER),
)  # fmt: skip
LOOKED_AT = 512  # bytes
DICOM_AT = 128
TGA_END = b"TRUEVISION-XFILE.\0"


def kind_of(data: bytes) -> FileKind | None:
    """The kind of a file that begins with `data`; None: it is not one of those known here."""
    start = bytes(data[:LOOKED_AT])
    if start[4:8] == b"ftyp":
        return _by_brand(start)
    if start.startswith(b"RIFF"):
        return RIFF.get(start[8:12])
    for signature, kind in SIGNATURES:
        if start.startswith(signature):
            return kind
    if start[DICOM_AT : DICOM_AT + 4] == b"DICM":
        return FileKind("DICOM", True)
    if data.endswith(TGA_END):
        return FileKind("TGA", True)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for pattern, kind in TEXTS if pattern.match(text)), None)


def _by_brand(start: bytes) -> FileKind:
    """By the major brand, or where that is general, by the first compatible one that is known."""
    size = int.from_bytes(start[:4], "big")
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, min(size, len(start)), 4))]
    if b"avif" in brands:  # Its major brand may be mif1, as HEIC's.
        return BRANDS[b"avif"]
    return next((BRANDS[brand] for brand in brands if brand in BRANDS), VIDEO)
