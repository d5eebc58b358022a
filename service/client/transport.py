"""Which way requests take: directly to this host and to Unix sockets, else as the environment says.

A service on this host is behind no proxy, whatever HTTP_PROXY says.
"""

from __future__ import annotations

import ssl
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
