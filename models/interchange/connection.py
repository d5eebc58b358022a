"""Requests to servers of weights: proxies, certificates, redirects, and who gets a token."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any
from urllib.parse import urljoin, urlsplit

from models.interchange import variables

TIMEOUT_S = 30
MOST_REDIRECTS = 10
REDIRECTS = {301, 302, 303, 307, 308}
BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class DownloadError(ValueError):
    """A download failed; the message names the URL in one line."""


class Unreachable(DownloadError):
    """The server, or the proxy before it, does not answer: `host` is the server's."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: cannot be downloaded ({why})")
        self.host = urlsplit(url).hostname or url
        self.why = why


class StatusError(DownloadError):
    """The server refused; `code` is the hub's word for the reason, if it has one."""

    def __init__(self, url: str, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{url}: {status} {reason}".rstrip())
        self.status = status
        self.code = headers.get("X-Error-Code") or ""


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Statuses and redirects are for the caller."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def get(
    url: str, headers: Mapping[str, str] | None = None, token: str = ""
) -> http.client.HTTPResponse:
    """The response 200 or 206 to a GET, through as many redirects as need be.

    `token` is sent to the origin of `url` only. Messages name `url`, never where a redirect leads,
    as that may be a signed address.

    Raises:
        Unreachable: nobody answers.
        StatusError: another status.
        DownloadError: a redirect leads nowhere.
    """
    at = url
    for _ in range(MOST_REDIRECTS):
        response = _sent(
            "GET", at, headers or {}, token if _origin(at) == _origin(url) else "", url
        )
        if response.status not in REDIRECTS:
            return _accepted(response, url)
        response.close()
        at = _next(at, response.headers, url)
    raise DownloadError(f"{url}: more than {MOST_REDIRECTS} redirects")


def head(url: str, token: str = "") -> Message:
    """The headers of a response to a HEAD: of the last one from the origin of `url`, even if it
    redirects to another, such as one for large files.

    Raises:
        DownloadError: see `get`.
    """
    at = url
    for _ in range(MOST_REDIRECTS):
        with _sent("HEAD", at, {}, token, url) as response:
            if response.status not in REDIRECTS:
                return _accepted(response, url).headers
            to = _next(at, response.headers, url)
            if _origin(to) != _origin(url):
                return response.headers
            at = to
    raise DownloadError(f"{url}: more than {MOST_REDIRECTS} redirects")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _next(at: str, headers: Message, url: str) -> str:
    to = urljoin(at, headers.get("Location") or "")
    if urlsplit(to).scheme not in ("http", "https") or not headers.get("Location"):
        raise DownloadError(f"{url}: a redirect that leads nowhere")
    return to


def _accepted(response: http.client.HTTPResponse, url: str) -> http.client.HTTPResponse:
    if response.status in (http.client.OK, http.client.PARTIAL_CONTENT):
        return response
    response.close()
    raise StatusError(url, response.status, response.reason or "", dict(response.headers.items()))


def _sent(
    method: str, at: str, headers: Mapping[str, str], token: str, url: str
) -> http.client.HTTPResponse:
    """The response to one request, whatever its status."""
    request = urllib.request.Request(at, method=method)  # noqa: S310
    for name, value in {"User-Agent": "resnet-serve", **headers}.items():
        request.add_header(name, value)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    proxy = variables.proxy_for(at)
    through = f"through the proxy {_shown(proxy)}: " if proxy else ""
    if proxy and not proxy.startswith(("http://", "https://")):
        raise Unreachable(url, f"{through}only http:// proxies are supported")
    scheme = urlsplit(at).scheme
    handlers = [urllib.request.ProxyHandler({scheme: proxy} if proxy else {}), _AnyStatus()]
    if scheme == "https":  # Reading the authorities takes longer than a request on this host.
        handlers.append(urllib.request.HTTPSHandler(context=_context()))
    opener = urllib.request.build_opener(*handlers)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except (*BROKEN, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        why = " ".join((getattr(reason, "strerror", None) or str(reason) or "no response").split())
        if token:
            why = why.replace(token, "***")
        raise Unreachable(url, f"{through}{why}") from None
    return response


def _shown(proxy: str) -> str:
    """Without its password."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}"


def _context() -> ssl.SSLContext:
    """The system's authorities or those of SSL_CERT_FILE, and those of a company."""
    context = ssl.create_default_context()
    for path in variables.certificates():
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise DownloadError(f"{path}: cannot be read as certificates ({error})") from None
    return context
