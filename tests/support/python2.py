"""Pickles as Python 2 and its NumPy wrote CIFAR's, which nothing of today writes."""

from __future__ import annotations

import struct

import numpy as np

DTYPE = (
    b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def pickled(value: object) -> bytes:
    """Protocol 2, with texts of bytes."""
    return b"\x80\x02" + _value(value) + b"."


def _value(value: object) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_value(k) + _value(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_value, value)) + b"e"
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    raw = value.tobytes("A")
    shape = b"(" + b"".join(map(_value, value.shape)) + b"t"
    fortran = b"\x88" if np.isfortran(value) else b"\x89"
    content = b"T" + struct.pack("<i", len(raw)) + raw
    return ARRAY + b"(K\x01" + shape + DTYPE + fortran + content + b"tb"
