"""Seeds for everything that training draws, so that equal runs draw equally in any order."""

from __future__ import annotations

import hashlib


def mix(*parts: int | str) -> int:
    """64 bits that depend on every part and on their order.

    Sums of seeds meet: run 1 in epoch 2 would draw what run 2 draws in epoch 1.
    """
    text = "/".join(map(repr, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
