"""Protobuf by hand, for messages that no library would make."""

from __future__ import annotations


def varint(value: int) -> bytes:
    text = b""
    while value > 0x7F:
        text += bytes([value & 0x7F | 0x80])
        value >>= 7
    return text + bytes([value])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, a message, or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content
