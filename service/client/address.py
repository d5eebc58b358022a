"""What a URL of the service means, to the client and to the commands alike."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

CLASSIFY = "/v1/classify"
SOCKETS = ("unix", "http+unix")


@dataclass(frozen=True, slots=True)
class Address:
    """`base`: the URL that paths such as /v1/classify are appended to, without credentials. `path`:
    the URL's own, without /v1/classify. `query`: its parameters. `socket`: the path of a Unix
    socket, or "". `authorization`: the header for the URL's user and password, or "".
    `is_classify`: whether the URL ended in /v1/classify."""

    base: str
    host: str
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()
    socket: str = ""
    authorization: str = field(default="", repr=False)
    is_classify: bool = False

    @property
    def shown(self) -> str:
        """The address in messages: never with a password."""
        return f"unix:{self.socket}{self.path}" if self.socket else self.base

    @property
    def is_local(self) -> bool:
        """Whether it is on this host, where no proxy is asked."""
        name = self.host.rstrip(".").lower()
        if self.socket or name == "localhost" or name.endswith(".localhost"):
            return True
        return name in ("::1", "0:0:0:0:0:0:0:1") or (
            name.startswith("127.") and name.replace(".", "").isdigit()
        )


def address_of(url: str) -> Address:
    """Reads a base URL (http://host:8000, https://example.org/prefix), with or without a slash at
    its end, /v1/classify and a query; or a Unix socket (unix:/run/x.sock,
    http+unix://%2Frun%2Fx.sock).

    Raises:
        ValueError: it is none of these; the message shows no password.
    """
    hidden = url if "@" not in url else "a URL of another kind"
    problem = f"url: must look like http://127.0.0.1:8000, not {hidden!r}"
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises if it is no number, or too large.
    except ValueError:
        raise ValueError(problem) from None
    if parts.scheme in SOCKETS:
        return _of_socket(parts)
    if "://" not in url and "@" not in url and url:
        problem += f"; write {'unix:' if url.startswith('/') else 'http://'}{url}"
    blank = any(letter.isspace() or not letter.isprintable() for letter in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or blank:
        raise ValueError(problem)
    path, is_classify = _own_path(parts.path)
    netloc = parts.netloc.rpartition("@")[2]
    return Address(
        base=urlunsplit((parts.scheme, netloc, path, "", "")),
        host=parts.hostname,
        path=path,
        query=tuple(parse_qsl(parts.query, keep_blank_values=True)),
        authorization=_basic(parts),
        is_classify=is_classify,
    )


def _own_path(path: str) -> tuple[str, bool]:
    path = path.rstrip("/")
    return path.removesuffix(CLASSIFY).rstrip("/"), path.endswith(CLASSIFY)


def _of_socket(parts: SplitResult) -> Address:
    """A socket's path is the whole path of unix:, and the host of http+unix:."""
    if parts.scheme == "unix":
        socket, path = unquote(parts.netloc + parts.path), ""
    else:
        socket, path = unquote(parts.netloc), parts.path
    if not socket or socket.endswith("/") or "\0" in socket:
        raise ValueError("url: must name a socket, as in unix:/run/resnet-serve.sock")
    path, is_classify = _own_path(path)
    return Address(
        base=f"http://localhost{path}",
        host="localhost",
        path=path,
        query=tuple(parse_qsl(parts.query, keep_blank_values=True)),
        socket=socket,
        is_classify=is_classify,
    )


def _basic(parts: SplitResult) -> str:
    """RFC 7617."""
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
