"""The server under load: its address, and the requests as bytes, prepared in advance."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from service.errors import ConfigError

OCTETS = "application/octet-stream"
BOUNDARY = "resnet-serve-bench-7d1f0c9b4e2a"
CONNECT_SECONDS = 5.0
CLOSE = b"\r\nConnection: close\r\n"


@dataclass(frozen=True, slots=True)
class Target:
    """A socket's `family` and `address`, and the `requests` to send there in turn."""

    url: str
    family: int
    address: Any
    requests: tuple[bytes, ...]

    @property
    def last_requests(self) -> tuple[bytes, ...]:
        """The requests, each of which asks that its connection be closed afterwards."""
        return tuple(each.replace(b"\r\n", CLOSE, 1) for each in self.requests)

    @classmethod
    def of(
        cls,
        url: str,
        images: Sequence[bytes],
        *,
        form: str | None = None,
        content_type: str = OCTETS,
        headers: Sequence[str] = (),
    ) -> Target:
        """Requests that POST each of `images` to `url`.

        `form` names the field of a multipart body for the image; without it the image is the body.
        `content_type` is the image's; `headers` are further headers, as in "Name: value".

        Raises:
            ConfigError: not an http:// URL, nothing listens there, or an invalid header.
        """
        for header in headers:
            name, colon, _ = header.partition(":")
            if not colon or not name.strip() or not header.isprintable():
                raise ConfigError(f"{header!r} is not a header; write it as 'Name: value'")
        if not images:
            raise ConfigError("no image to send")
        host, port, start = _parts(url)
        family, address = _listening(url, host, port)
        lines = [*start, *headers]
        requests = tuple(_request(lines, image, form, content_type) for image in images)
        return cls(url, family, address, requests)


def _parts(url: str) -> tuple[str, int, list[str]]:
    """Host, port and the first lines of each request."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from None
    if parts.scheme == "https":
        raise ConfigError(
            f"{url}: the generator does not support TLS; load the server behind it over http://"
        )
    if parts.scheme != "http" or not host or not url.isascii() or " " in url:
        raise ConfigError(f"{url}: must be an http:// URL, such as http://127.0.0.1:8000/path")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, port, [f"POST {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]


def _listening(url: str, host: str, port: int) -> tuple[int, Any]:
    """The first of the host's addresses that accepts a connection."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as probe:
            return probe.family, probe.getpeername()
    except OSError as error:
        raise ConfigError(f"{url}: {error.strerror or error}; is the server running?") from None


def _request(lines: Sequence[str], image: bytes, form: str | None, content_type: str) -> bytes:
    if form is not None:
        disposition = f'Content-Disposition: form-data; name="{form}"; filename="image"'
        part = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: {content_type}\r\n\r\n"
        image = part.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
    own = (f"Content-Type: {content_type}", f"Content-Length: {len(image)}")
    return "\r\n".join((*lines, *own, "", "")).encode() + image
