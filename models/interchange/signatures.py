"""How files begin that hold no weights by themselves."""

from __future__ import annotations

import os
from typing import BinaryIO

GZIP = b"\x1f\x8b"
COMPRESSED = {
    GZIP: "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
}
ZIP = b"PK\x03\x04"
HDF5 = b"\x89HDF\r\n\x1a\n"
LFS = b"version https://git-lfs"
NO_ONNX = "not an ONNX file, or a damaged one"
# The names of archives that may hold an ONNX file.
ARCHIVES = (".tar.gz", ".tgz", ".tar")
# Protobuf's tags of the fields of ONNX's `ModelProto` after the first.
ONNX_KEYS = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")


def begins_as_onnx(start: bytes) -> bool:
    """Whether a file may be ONNX: it begins with its IR version, followed by another field."""
    return (
        start[:1] == b"\x08"
        and start[1:2] < b"\x20"
        and start[2:3] in ONNX_KEYS
        and start[8:9] != b"{"
    )


def is_whole_protobuf(file: BinaryIO) -> bool:
    """Whether the fields' lengths add up to the size of the file: else it was cut off, or is not
    ONNX. The contents of the fields are not read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    while file.tell() < size:
        key = _varint(file)
        if key is None or not key >> 3:
            return False
        match key & 7:
            case 0:
                length = 0 if _varint(file) is not None else None
            case 1:
                length = 8
            case 2:
                length = _varint(file)
            case 5:
                length = 4
            case _:
                length = None
        if length is None or length > size - file.tell():
            return False
        file.seek(length, os.SEEK_CUR)
    return size > 0


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
