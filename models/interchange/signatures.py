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
