"""Tells a bundle from other files by its first bytes; without torch."""

from __future__ import annotations

METADATA_KEY = "resnet-serve"
CHECKPOINTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
CHECKPOINT = (
    "a PyTorch checkpoint (pickle), not a bundle; "
    "`resnet-serve convert --from FORMAT SRC DST` makes one from it"
)
NOT_A_BUNDLE = (
    "safetensors, but not a resnet-serve bundle; "
    "`resnet-serve convert --from FORMAT SRC DST` makes one"
)
OTHER = (
    "not a safetensors file, as bundles are; "
    "`resnet-serve convert --from FORMAT SRC DST` makes one of other weights"
)
TRUNCATED = "truncated: the file ends inside its header; copy or download it again"


def refuse_other(start: bytes, size: int) -> None:
    """Refuses a file that is not a bundle, judged by its first bytes and its size.

    Raises:
        ValueError: the message says what to do.
    """
    # The header begins with a brace, after its length, which may look like any magic number.
    if start[8:9] != b"{" and start.startswith(CHECKPOINTS):
        raise ValueError(CHECKPOINT)
    if start[8:9] != b"{":
        raise ValueError(OTHER)
    if 8 + int.from_bytes(start[:8], "little") > size:
        raise ValueError(TRUNCATED)
