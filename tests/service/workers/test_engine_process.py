"""What the engine process tells the supervisor of the models that it loads."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from service.config.settings import ModelSettings
from service.errors import LoadFailed
from service.repository.loader import Loader
from service.workers.engine_process import CommandHandler
from service.workers.engine_server import EngineServer


class FailingLoader:
    """Stands for a loader, with an error of its own or of a library's."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def load(self, settings: ModelSettings) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "refusal", "logged"),
    [
        (LoadFailed("no such file"), ["load_failed", "no such file", None], False),
        (
            RuntimeError("can't start new thread"),
            ["internal_error", "can't start new thread", None],
            True,
        ),
    ],
)
def test_a_load_that_fails_is_told_whatever_the_reason(
    error: Exception, refusal: list[Any], logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[dict[str, Any]] = []

    async def test() -> None:
        loader = cast("Loader", FailingLoader(error))
        handler = CommandHandler(loader, EngineServer(), lambda **message: sent.append(message))
        handler.handle({"load": 3, "settings": {"spec": "random:resnet20"}})
        await asyncio.gather(*handler._loading.values())

    asyncio.run(test())
    assert sent == [{"loaded": 3, "refusal": refusal}]
    assert ("loading random:resnet20 failed" in caplog.text) is logged
