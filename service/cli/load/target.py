"""The server under load: its address, and the requests as bytes, prepared in advance."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from service.cli.connecting import connect
from service.client.address import Address, address_of
from service.errors import ConfigError

OCTETS = "application/octet-stream"
BOUNDARY = "resnet-serve-bench-7d1f0c9b4e2a"
CONNECT_SECONDS = 5.0
CLOSE = b"\r\nConnection: close\r\n"
# How a server answers where it takes no images.
NO_ROUTE = {404, 405}
RECEIVE = 4_096
STATUS = re.compile(rb"(?:^|\r\n\r\n)HTTP/1\.[01] ([2-5]\d\d) ")


@dataclass(frozen=True, slots=True)
class Target:
    """A socket's `family` and `address`, and the `requests` to send there in turn. `url` is without
    credentials."""

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
        """Requests that POST each of `images` to `url`, which is http:// or http+unix://.

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
        address, path = _parts(url)
        family, peer = _listening(address)
        netloc = urlsplit(address.base).netloc
        lines = [f"POST {path} HTTP/1.1", f"Host: {netloc}", *headers]
        if address.authorization:
            lines.append(f"Authorization: {address.authorization}")
        requests = tuple(_request(lines, image, form, content_type) for image in images)
        shown = f"unix:{address.socket}{path}" if address.socket else f"http://{netloc}{path}"
        return cls(shown, family, peer, requests)


def check_route(target: Target, seconds: float) -> None:
    """Sends one image, so that a wrong URL is noticed before the load.

    Raises:
        ConfigError: the answer within `seconds` says that nothing takes images there. Whatever else
            is wrong, the load reports.
    """
    status, received, end = 0, b"", time.monotonic() + seconds
    with suppress(OSError), connect(target.family, target.address, seconds) as stream:
        stream.sendall(target.last_requests[0])
        while not status and time.monotonic() < end and (data := stream.recv(RECEIVE)):
            received += data
            line = STATUS.search(received)
            status = int(line[1]) if line else 0
    if status in NO_ROUTE:
        raise ConfigError(
            f"{target.url} answers {status}: nothing takes images there; give the URL that images "
            "are posted to, or the base URL of the service"
        )


def _parts(url: str) -> tuple[Address, str]:
    """Where it leads, and its path and query exactly as they are."""
    try:
        address = address_of(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    parts = urlsplit(url)
    if parts.scheme == "https":
        raise ConfigError(
            f"{address.base}: the generator does not support TLS; load the server behind it over "
            "http://"
        )
    if not url.isascii():
        raise ConfigError(f"{address.base}: must be ASCII; escape other characters with %")
    return address, urlunsplit(("", "", parts.path or "/", parts.query, ""))


def _listening(address: Address) -> tuple[int, Any]:
    """The first of the host's addresses that accepts a connection."""
    try:
        if address.socket:
            connect(socket.AF_UNIX, address.socket, CONNECT_SECONDS).close()
            return socket.AF_UNIX, address.socket
        port = urlsplit(address.base).port or 80
        with socket.create_connection((address.host, port), timeout=CONNECT_SECONDS) as probe:
            return probe.family, probe.getpeername()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{address.shown}: {reason}; is the server running?") from None


def _request(lines: Sequence[str], image: bytes, form: str | None, content_type: str) -> bytes:
    if form is not None:
        disposition = f'Content-Disposition: form-data; name="{form}"; filename="image"'
        part = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: {content_type}\r\n\r\n"
        image = part.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
    own = (f"Content-Type: {content_type}", f"Content-Length: {len(image)}")
    return "\r\n".join((*lines, *own, "", "")).encode() + image
