"""The URL to load, of a service's base URL."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from urllib.parse import quote, urlsplit, urlunsplit

from service.cli.connecting import connect
from service.client.address import CLASSIFY, Address, address_of
from service.errors import ConfigError

PROBE_SECONDS = 3.0


def classifier_url(url: str) -> tuple[str, bool]:
    """The URL that images are sent to, and whether it is /v1/classify of this service.

    A base URL, as the client takes it, becomes that of /v1/classify; it may have a path, if the
    service answers below it. Any other URL stays as it is: that of another server's classifier.

    Raises:
        ConfigError: it is no URL of these kinds.
    """
    try:
        address = address_of(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not address.is_classify and address.path and not _answers_below(address):
        return url, False
    parts = urlsplit(url)
    path = address.path + CLASSIFY
    if address.socket:
        host = quote(address.socket, safe="")
        return urlunsplit(("http+unix", host, path, parts.query, "")), True
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), True


def _answers_below(address: Address) -> bool:
    """Whether the URL's path is the prefix of this service, which then has its health there."""
    with closing(_Connection(address)) as connection:
        try:
            connection.request("GET", f"{address.path}/health/live")
            report = json.loads(connection.getresponse().read(65_536))
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return False
    return isinstance(report, dict) and {"status", "reasons"} <= report.keys()


class _Connection(http.client.HTTPConnection):
    """Over TCP, or over a Unix socket."""

    def __init__(self, address: Address) -> None:
        parts = urlsplit(address.base)
        super().__init__(address.host, parts.port or 80, timeout=PROBE_SECONDS)
        self._unix = address.socket

    def connect(self) -> None:
        if self._unix:
            self.sock = connect(socket.AF_UNIX, self._unix, PROBE_SECONDS)
        else:
            super().connect()
