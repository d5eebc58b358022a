"""From when to when a certificate is valid."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

VERSION = 0xA0  # The tag [0] of DER, which holds a certificate's version.


def expiry(path: Path) -> float:
    """The Unix time in seconds after which clients refuse the first certificate of a PEM file.

    Raises:
        OSError, ValueError: as for `validity`.
    """
    return validity(path)[1].timestamp()


def validity(path: Path) -> tuple[datetime, datetime]:
    """From when to when, in UTC, the first certificate of a PEM file is valid.

    Raises:
        OSError: the file cannot be read.
        ValueError: it begins with no certificate.
    """
    _, begin, rest = path.read_text("latin-1").partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    try:
        return _times(ssl.PEM_cert_to_DER_cert(begin + body + end))
    except (LookupError, ValueError) as error:
        raise ValueError(f"{path} contains no readable certificate") from error


def _times(certificate: bytes) -> tuple[datetime, datetime]:
    # RFC 5280, 4.1: what is signed comes first, and begins with an optional version, a serial
    # number, the algorithm, the issuer, and the validity, which is a pair of times.
    (_, whole), *_ = _elements(certificate)
    (_, signed), *_ = _elements(whole)
    fields = [content for tag, content in _elements(signed) if tag != VERSION]
    (_, begin), (_, end) = _elements(fields[3])
    return _time(begin.decode("ascii")), _time(end.decode("ascii"))


def _time(text: str) -> datetime:
    """Of UTCTime, whose years have two digits, or GeneralizedTime."""
    if len(text) == len("YYMMDDHHMMSSZ"):
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each element, one after the other."""
    while der:
        tag, size, start = der[0], der[1], 2
        if size & 0x80:  # It is the length of the length.
            start += size & 0x7F
            size = int.from_bytes(der[2:start], "big")
        yield tag, der[start : start + size]
        der = der[start + size :]
