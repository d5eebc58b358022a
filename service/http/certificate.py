"""When a certificate expires."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

# Tags of DER: the [0] that holds a certificate's version, and a time with a year of two digits.
VERSION, UTC_TIME = 0xA0, 0x17


def expiry(path: Path) -> float:
    """The Unix time in seconds after which clients refuse the first certificate of a PEM file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it begins with no certificate.
    """
    _, begin, rest = path.read_text("latin-1").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(begin + body + end))
    except (LookupError, ValueError) as error:
        raise ValueError(f"{path} contains no readable certificate") from error


def _not_after(certificate: bytes) -> float:
    # RFC 5280, 4.1: what is signed comes first, and begins with an optional version, a serial
    # number, the algorithm, the issuer, and the validity, which is a pair of times.
    (_, whole), *_ = _elements(certificate)
    (_, signed), *_ = _elements(whole)
    fields = [content for tag, content in _elements(signed) if tag != VERSION]
    _, (tag, time) = _elements(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(time.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each element, one after the other."""
    while der:
        tag, size, start = der[0], der[1], 2
        if size & 0x80:  # It is the length of the length.
            start += size & 0x7F
            size = int.from_bytes(der[2:start], "big")
        yield tag, der[start : start + size]
        der = der[start + size :]
