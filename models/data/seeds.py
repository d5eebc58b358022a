"""Seeds for everything random in training, so that equal runs draw equally in any order."""

from __future__ import annotations

import hashlib


def mix(*parts: int | str) -> int:
    """64 bits that depend on every part and on their order.

    Sums would collide: run 1 in epoch 2 would draw the same as run 2 in epoch 1.
    """
    text = "/".join(map(repr, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
