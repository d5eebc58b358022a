"""How files begin that hold no weights by themselves."""

from __future__ import annotations

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
