"""Who may ask what: API keys for all of the API, admin keys for what changes the service.

Everything needs a key but what orchestrators, Prometheus and browsers ask before they could have
one. Where no keys are configured, everybody may use the API and nobody may change the service.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config.settings import Settings
from service.errors import Forbidden, ServiceError, Unauthorized
from service.http.problems import refused

OPEN = frozenset({"/", "/docs", "/openapi.json", "/metrics"})
OPEN_FOLDERS = ("/health/", "/v2/health/", "/web/")
ADMIN_METHODS = frozenset({"PUT", "DELETE"})
ADMIN_FOLDER = "/v1/models/"
ADMIN_ACTIONS = "/v2/repository/models/"
HOW = "send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`"


def digest(key: bytes) -> bytes:
    """Of one length, so that comparing tells nothing of the key's."""
    return hashlib.sha256(key).digest()


class Keys:
    """The keys in force, as digests."""

    def __init__(self, settings: Settings) -> None:
        self.update(settings)

    def update(self, settings: Settings) -> None:
        def digests(keys: Iterable[SecretStr]) -> list[bytes]:
            return [digest(key.get_secret_value().encode()) for key in keys]

        self._required = bool(settings.api_keys)
        self._admin = digests(settings.admin_keys)
        self._all = digests(settings.api_keys) + self._admin

    def check(self, scope: Scope) -> None:
        """Refuses a request whose caller may not make it.

        Raises:
            Unauthorized: it has no key, or an unknown one.
            Forbidden: only an administrator may, or nobody.
        """
        path: str = scope["path"]
        admin = path.startswith(ADMIN_ACTIONS) or (
            scope["method"] in ADMIN_METHODS and path.startswith(ADMIN_FOLDER)
        )
        if not admin and not self._required:
            return
        if admin and not self._admin:
            raise Forbidden(
                "models cannot be changed over HTTP: no admin key is configured; "
                "set admin_keys or admin_keys_file"
            )
        if not admin and (path in OPEN or path.startswith(OPEN_FOLDERS)):
            return
        given = sent(scope)
        if given is None:
            raise Unauthorized(f"a key is required; {HOW}")
        if not among(given, self._all):
            raise Unauthorized(f"unknown key; {HOW}")
        if admin and not among(given, self._admin):
            raise Forbidden("this needs an admin key, and the key is not one")


def sent(scope: Scope) -> bytes | None:
    """The key that came with a request."""
    key = None
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
        if name == b"x-api-key":
            key = bytes(value).strip()
    return key


def among(key: bytes, digests: Iterable[bytes]) -> bool:
    """Whether the key is one of these, after the same time whichever it is."""
    wanted = digest(key)
    found = False
    for each in digests:
        found |= hmac.compare_digest(wanted, each)
    return found


class Access:
    """Pure ASGI, around every way to an endpoint."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._keys.check(scope)
            except ServiceError as error:
                await refused(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
