"""Reloading the configuration on SIGHUP, as far as it can change while serving."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence

from service.config.loading import Reading
from service.config.settings import ModelSettings, Settings
from service.errors import ConfigError, ServiceError

log = logging.getLogger(__name__)
# Changes of all others take effect at the next start.
CHANGEABLE = (
    "models", "log_level", "api_keys", "api_keys_file", "admin_keys", "admin_keys_file",
    "raise_priority",
)  # fmt: skip
TLS = ("tls_certificate", "tls_key")


class Reload:
    """Rereads the settings on SIGHUP: the file, the environment and the flags of the start.

    Created at the start, before there is anything to change: a signal that arrives while models
    load is remembered. Only the main thread may create one.

    `read`: returns settings without problems, or raises `ConfigError`.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
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
        """Reloads forever. `settings` are those in force; `change` changes the models and returns
        a summary, `apply` changes the rest."""
        loop = asyncio.get_running_loop()
        signalled = asyncio.Event()
        self._notice = lambda: loop.call_soon_threadsafe(signalled.set)
        if self._wanted:
            signalled.set()
        try:
            while True:
                await signalled.wait()
                signalled.clear()
                explained: Callable[[object], str] = str
                try:
                    reading = self._read()
                    explained, latest = reading.merged.explained, reading.settings
                    assert latest is not None
                    wanted = _changed(settings, latest)
                    late = [key for key in Settings.model_fields if _differ(key, wanted, latest)]
                    if late:  # First: models that need them are refused.
                        log.warning("changes to %s take effect at the next start", ", ".join(late))
                    changes = await change(latest.models)
                except (ConfigError, ServiceError) as error:
                    log.error("SIGHUP changed nothing: %s", explained(error))  # noqa: TRY400
                    continue
                except Exception:
                    log.exception("SIGHUP changed nothing")
                    continue
                settings = wanted
                log.info("reloaded the configuration: %s", changes)
                try:
                    apply(settings)  # Last, since a higher log level would hide the lines above.
                except Exception:  # The next signal must find a reload that still works.
                    log.exception("SIGHUP changed the models and maybe not all else")
        finally:
            self._notice = None


def _changed(settings: Settings, latest: Settings) -> Settings:
    """The settings in force from now on."""
    keys: tuple[str, ...] = CHANGEABLE
    if settings.tls_certificate and latest.tls_certificate:  # HTTP remains HTTP.
        keys += TLS
    return settings.model_copy(update={key: getattr(latest, key) for key in keys})


def _differ(key: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, key) != getattr(other, key))
