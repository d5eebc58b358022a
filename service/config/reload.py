"""SIGHUP: the configuration is read again, and what can change while serving changes."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence

from service.config.settings import ModelSettings, Settings
from service.errors import ConfigError, ServiceError

log = logging.getLogger(__name__)
# All others take effect with the next start.
CHANGEABLE = (
    "models", "log_level", "api_keys", "api_keys_file", "admin_keys", "admin_keys_file",
)  # fmt: skip
TLS = ("tls_certificate", "tls_key")


class Reload:
    """Reads the settings again whenever SIGHUP comes: file, environment and the start's flags.

    Made at the start, before there is anything to change: a signal that comes while models load
    is remembered. Only the main thread may make one.
    """

    def __init__(self, read: Callable[[], Settings]) -> None:
        self._read = read
        self._wanted = False
        self._notice: Callable[[], object] | None = None
        signal.signal(signal.SIGHUP, lambda *_: self._remember())

    def _remember(self) -> None:
        self._wanted = True
        if self._notice is not None:
            self._notice()

    async def attend(
        self,
        settings: Settings,
        change: Callable[[Sequence[ModelSettings]], Awaitable[str]],
        apply: Callable[[Settings], None],
    ) -> None:
        """Reloads for ever. `settings` are those in force; `change` makes others of the models
        and says what it did, `apply` is for the rest of what can change."""
        loop = asyncio.get_running_loop()
        signalled = asyncio.Event()
        self._notice = lambda: loop.call_soon_threadsafe(signalled.set)
        if self._wanted:
            signalled.set()
        try:
            while True:
                await signalled.wait()
                signalled.clear()
                try:
                    found = self._read()
                    changes = await change(found.models)
                except (ConfigError, ServiceError) as error:
                    log.error("SIGHUP changed nothing: %s", error)  # noqa: TRY400
                    continue
                except Exception:
                    log.exception("SIGHUP changed nothing")
                    continue
                settings = _changed(settings, found)
                log.info("the configuration was read again: %s", changes)
                late = [key for key in Settings.model_fields if _differ(key, settings, found)]
                if late:
                    log.warning("changes of %s take effect with the next start", ", ".join(late))
                apply(settings)  # After the lines that a higher level would hide.
        finally:
            self._notice = None


def _changed(settings: Settings, found: Settings) -> Settings:
    """Those in force from now on."""
    keys: tuple[str, ...] = CHANGEABLE
    if settings.tls_certificate and found.tls_certificate:  # HTTP stays HTTP.
        keys += TLS
    return settings.model_copy(update={key: getattr(found, key) for key in keys})


def _differ(key: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, key) != getattr(other, key))
