"""What the engine process tells the supervisor of the models that it loads."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service import runtime
from service.config.settings import ModelSettings
from service.errors import LoadFailed
from service.repository.loader import Loader
from service.repository.model import LocalModel
from service.workers.engine_process import CommandHandler, exit_when_lost, tell_ready
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
    assert sent == [{"done": 3, "refusal": refusal}]
    assert ("loading random:resnet20 failed" in caplog.text) is logged


def test_a_process_whose_device_a_new_model_found_lost_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No model of its own would ever notice: it has none."""
    sent: list[dict[str, Any]] = []

    def exits(status: int) -> None:
        sent.append({"exits": status})

    monkeypatch.setattr(runtime, "exit_at_once", exits)
    loader = cast("Loader", SimpleNamespace(poisoned="an illegal memory access"))
    asyncio.run(exit_when_lost(loader, EngineServer(), lambda **message: sent.append(message)))
    assert sent == [
        {"error": "a new model: an illegal memory access"},
        {"exits": runtime.FAILED_STATUS},
    ]


class SlowLoader:
    """Stands for a loader that loads until it is stopped, and knows one device."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def resolve(self, settings: ModelSettings) -> list[str]:
        if settings.device == "cuda:7":
            raise LoadFailed("device: cuda:7 is not available")
        return ["cuda:0"]

    async def load(self, settings: ModelSettings) -> None:
        await asyncio.Event().wait()

    def show(self, models: list[Any]) -> None:
        self.shown = models


def test_it_says_which_devices_a_new_model_needs() -> None:
    sent: list[dict[str, Any]] = []

    async def test() -> None:
        loader = cast("Loader", SlowLoader())
        handler = CommandHandler(loader, EngineServer(), lambda **message: sent.append(message))
        for number, device in ((1, "auto"), (2, "cuda:7")):
            handler.handle({"resolve": number, "settings": {"spec": "x", "device": device}})
        await asyncio.gather(*handler._loading.values())
        assert handler._loading == {}

    asyncio.run(test())
    assert sent == [
        {"done": 1, "result": ["cuda:0"]},
        {"done": 2, "refusal": ["load_failed", "device: cuda:7 is not available", None]},
    ]


class Served:
    """Stands for a model."""

    ready = False

    def __init__(self) -> None:
        self.closed = False

    def describe(self) -> dict[str, Any]:
        return {}

    reason = "the engine is warming up"

    def close(self) -> None:
        self.closed = True


def test_models_that_load_are_kept_and_all_others_end() -> None:
    async def test() -> None:
        loader, server = SlowLoader(), EngineServer()
        models = {number: Served() for number in (1, 2, 3)}
        for number, model in models.items():
            server.add(number, cast("LocalModel", model))
        handler = CommandHandler(cast("Loader", loader), server, lambda **message: None)
        for number in (4, 5):
            handler.handle({"load": number, "settings": {"spec": "x"}})
        await asyncio.sleep(0)
        stopped, kept = handler._loading[4], handler._loading[5]
        handler.handle({"serve": [1], "keep": [2, 5]})
        assert loader.shown == [models[1]]
        assert set(server.models) == {1, 2}
        assert models[3].closed
        await asyncio.wait([stopped])
        assert stopped.cancelled()
        assert list(handler._loading.values()) == [kept]
        kept.cancel()

    asyncio.run(test())


def test_it_is_ready_with_its_first_model_or_without_any() -> None:
    sent: list[dict[str, Any]] = []

    async def test() -> None:
        server, model = EngineServer(), Served()
        await tell_ready(server, lambda **message: sent.append(message))
        assert sent == [{"ready": True}]
        server.add(1, cast("LocalModel", model))
        server.add(2, cast("LocalModel", Served()))
        telling = asyncio.create_task(tell_ready(server, lambda **message: sent.append(message)))
        await asyncio.sleep(0.15)
        assert len(sent) == 1
        model.ready = True
        await telling
        assert len(sent) == 2

    asyncio.run(test())
