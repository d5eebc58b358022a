"""Which way requests take: directly to this host and to Unix sockets, else as the environment says.

A service on this host is behind no proxy, whatever HTTP_PROXY says.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from service.client.address import Address

KEPT_CONNECTIONS = 64


def proxy_of(address: Address) -> str | None:
    """The proxy for `address` that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY name, unless NO_PROXY
    excludes it; None: there is none."""
    if address.is_local:
        return None
    parts, proxies = urlsplit(address.base), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def shown(proxy: str) -> str:
    """Without its password."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """httpx and its libraries wrap the system's error several times."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        else:
            cause = cause.__cause__ or cause.__context__


def tls_problem(error: httpx.TransportError) -> str:
    """Why TLS fails, now and at the next attempt; "" if it is something else."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS; write http://"
    return ""


def reason_of(error: httpx.TransportError) -> str:
    """Why there is no connection, in the system's words where it has some."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            # asyncio adds the address, which the message names already.
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return str(error) or type(error).__name__


def transport_to(
    address: Address, proxy: str | None, verify: ssl.SSLContext | bool
) -> httpx.AsyncHTTPTransport:
    """A transport that keeps connections; SSL_CERT_FILE and SSL_CERT_DIR count for each.

    Raises:
        ValueError: the environment's proxy cannot be used.
    """
    limits = httpx.Limits(max_keepalive_connections=KEPT_CONNECTIONS, max_connections=None)
    try:
        return httpx.AsyncHTTPTransport(
            verify=verify, proxy=proxy, uds=address.socket or None, limits=limits
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        if proxy is None:
            raise
        raise ValueError(
            f"the proxy {shown(proxy)} in the environment cannot be used ({error}); "
            f"set NO_PROXY={address.host} to reach {address.shown} directly"
        ) from None
