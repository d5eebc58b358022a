"""Authentication: API keys for the whole API, admin keys for changes to the service.

Only the paths that orchestrators, Prometheus and browsers request without credentials need no key.
If no keys are configured, the API is open and changes are disabled.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config.settings import Settings
from service.errors import Forbidden, ServiceError, Unauthorized
from service.http.platforms import health_paths
from service.http.problems import refuse
from service.inference.jobs import Priority

OPEN = frozenset({"/", "/docs", "/openapi.json", "/metrics"})
OPEN_FOLDERS = ("/health/", "/v2/health/", "/web/")
ADMIN_METHODS = frozenset({"PUT", "DELETE"})
ADMIN_FOLDER = "/v1/models/"
ADMIN_ACTIONS = "/v2/repository/models/"
# Of KServe V1, which accepts no method that changes something.
VERB = re.compile(r"/v1/models/[^/]+:[^/]+")
Headers = Iterable[tuple[bytes, bytes]]
HOW = "send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`"


def is_open(path: str) -> bool:
    """Whether requests for the path need no key, whatever is configured."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def is_admin(path: str, method: str) -> bool:
    """Whether the request changes the service, and needs an admin key."""
    return path.startswith(ADMIN_ACTIONS) or (
        method in ADMIN_METHODS and path.startswith(ADMIN_FOLDER) and not VERB.fullmatch(path)
    )


def digest(key: bytes) -> bytes:
    """Of fixed length, so that comparing reveals nothing of the key's."""
    return hashlib.sha256(key).digest()


class Keys:
    """The valid keys, as digests; `required`: predictions need one."""

    def __init__(self, settings: Settings) -> None:
        self.update(settings)

    def update(self, settings: Settings) -> None:
        def digests(keys: Iterable[SecretStr]) -> list[bytes]:
            return [digest(key.get_secret_value().encode()) for key in keys]

        self.required = bool(settings.api_keys)
        self._admin = digests(settings.admin_keys)
        self._all = digests(settings.api_keys) + self._admin
        self._raise_priority = settings.raise_priority
        # Its method matters, as the platform may have chosen one of our paths.
        self._health = health_paths(settings)

    def check(self, scope: Scope) -> None:
        """Authorizes a request.

        Raises:
            Unauthorized: it has no key, or an unknown one.
            Forbidden: it needs an admin key, or no admin key is configured.
        """
        path: str = scope["path"]
        admin = is_admin(path, scope["method"])
        if not admin and not self.required:
            return
        if not admin and is_open(path):
            return
        if not admin and path in self._health and scope["method"] == "GET":
            return
        self.authorize(scope["headers"], admin=admin)

    def authorize(self, headers: Headers, *, admin: bool = False) -> None:
        """Authorizes whatever is not open to all, by its headers; raises as `check` does."""
        if not admin and not self.required:
            return
        if admin and not self._admin:
            raise Forbidden(
                "models cannot be changed by requests: no admin key is configured; "
                "set admin_keys or admin_keys_file"
            )
        key = key_of(headers)
        if key is None:
            raise Unauthorized(f"a key is required; {HOW}")
        if not matches(key, self._all):
            raise Unauthorized(f"unknown key; {HOW}")
        if admin and not matches(key, self._admin):
            raise Forbidden("this request needs an admin key, and the key is not one")

    def known(self, headers: Headers) -> bool:
        """Whether the headers have a valid key."""
        key = key_of(headers)
        return key is not None and matches(key, self._all)

    def permitted(self, headers: Headers, priority: Priority) -> Priority:
        """The priority of a request with these headers that asks for `priority`."""
        if priority >= Priority.NORMAL or self._raise_priority == "anyone":
            return priority
        key = key_of(headers)
        allowed = self._all if self._raise_priority == "key" else self._admin
        return priority if key is not None and matches(key, allowed) else Priority.NORMAL


def key_of(headers: Headers) -> bytes | None:
    """The key in a request's headers."""
    key = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
        if name == b"x-api-key":
            key = bytes(value).strip()
    return key


def matches(key: bytes, digests: Iterable[bytes]) -> bool:
    """Whether the key is one of these, in constant time."""
    key_digest = digest(key)
    matched = False
    for known in digests:
        matched |= hmac.compare_digest(key_digest, known)
    return matched


class ApiKeyMiddleware:
    """Pure ASGI, so that it guards plain routes as well as FastAPI's."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._keys.check(scope)
            except ServiceError as error:
                await refuse(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
