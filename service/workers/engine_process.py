"""The process that owns a device and its models, and computes what the front ends submit.

The supervisor launches `main` with numbers of inherited file descriptors, and with the folder that
all processes share. The first one is asked which devices the models need before it gets one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from service import runtime
from service.config.objectives import objectives_of
from service.config.settings import MOST_MODELS, ModelSettings, Settings
from service.errors import ServiceError, refusal_of
from service.logs import set_log_level
from service.repository.loader import FORESEEN, Loader, lost, resolved
from service.repository.model import LocalModel, facts_of
from service.workers.control import ControlChannel, Message
from service.workers.engine_server import EngineServer
from service.workers.heartbeat import ENGINES, Heartbeats
from service.workers.shared_metrics import SharedMetrics, engine_role

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
FILES_BESIDE_CONNECTIONS = 512
Work = Callable[[int, ModelSettings], Awaitable[Any]]  # for a new model


async def tell_ready(server: EngineServer, send: Callable[..., None]) -> None:
    """Tells the supervisor once that this process serves."""
    while server.models and not any(model.ready for model in server.models.values()):  # noqa: ASYNC110
        await asyncio.sleep(WATCH_SECONDS)
    send(ready=True)


async def exit_when_lost(loader: Loader, server: EngineServer, send: Callable[..., None]) -> None:
    """Exits, to be replaced, when an engine cannot recover in this process, or none can start."""
    while not (reasons := lost(server.models.values())):
        if loader.poisoned:  # By a model that does not serve: there may be no other.
            reasons = {"a new model": loader.poisoned}
            break
        await asyncio.sleep(WATCH_SECONDS)
    for name, reason in reasons.items():
        log.critical("%s: %s; exiting", name, reason)
        send(error=f"{name}: {reason}")
    await asyncio.sleep(WATCH_SECONDS)  # For pending responses to reach the front ends.
    runtime.exit_at_once(runtime.FAILED_STATUS)


class CommandHandler:
    """Carries out the supervisor's commands: load models beside those that serve, then switch.

    `_loading`: what is done for new models, by their numbers.
    """

    def __init__(self, loader: Loader, server: EngineServer, send: Callable[..., None]) -> None:
        self._loader = loader
        self._server = server
        self._send = send
        self._loading: dict[int, asyncio.Task[None]] = {}

    def handle(self, message: Message) -> None:
        if "resolve" in message:
            self._begin(message["resolve"], self._resolve, message["settings"])
        elif "load" in message:
            self._begin(message["load"], self._load, message["settings"])
        elif "serve" in message:
            self._serve(message["serve"], message["keep"])
        elif "apply" in message:
            apply(Settings.model_validate(message["apply"]))

    def _begin(self, number: int, work: Work, settings: Any) -> None:
        doing = self._do(number, work, ModelSettings.model_validate(settings))
        self._loading[number] = asyncio.get_running_loop().create_task(doing)

    async def _do(self, number: int, work: Work, settings: ModelSettings) -> None:
        try:
            result = await work(number, settings)
        except Exception as error:
            # The supervisor waits: it gets a response, whatever goes wrong.
            if not isinstance(error, ServiceError):
                log.exception("loading %s failed", settings.spec)
            self._send(done=number, refusal=refusal_of(error))
        else:
            self._send(done=number, result=result)
        finally:
            del self._loading[number]

    async def _resolve(self, number: int, settings: ModelSettings) -> list[str]:
        return self._loader.resolve(settings)

    async def _load(self, number: int, settings: ModelSettings) -> dict[str, Any]:
        model = await self._loader.load(settings)
        self._server.add(number, model)
        return facts_of(model)

    def _serve(self, numbers: list[int], keep: list[int]) -> None:
        kept = {*numbers, *keep}
        for number, loading in self._loading.items():
            if number not in kept:
                loading.cancel()
        models = self._server.models
        self._loader.show([models[number] for number in numbers])
        for number in models.keys() - kept:
            self._server.retire(number)


def apply(settings: Settings) -> None:
    """Applies the settings that can change at runtime."""
    set_log_level(settings.log_level)


async def serve(
    loader: Loader,
    models: dict[int, LocalModel],
    channel: ControlChannel,
    listener: socket.socket,
    metrics: SharedMetrics,
    beating: Coroutine[Any, Any, None],
) -> None:
    runtime.tune_interpreter()
    server = EngineServer()
    for number, model in models.items():
        server.add(number, model)
        loader.start(model)
    commands = CommandHandler(loader, server, channel.send)
    channel.follow(commands.handle)
    await asyncio.gather(
        beating,
        server.accept(listener),
        server.watch(),
        metrics.keep_fresh(),
        tell_ready(server, channel.send),
        exit_when_lost(loader, server, channel.send),
    )


def main(channel_fd: str, listener_fd: str, folder: str) -> None:
    channel = ControlChannel(int(channel_fd), folder)
    start = channel.receive()
    settings = Settings.model_validate(start["settings"])
    index = start["index"]
    try:
        if "device" not in start:
            channel.send(devices=resolved(settings.models))
            start = channel.receive()
            settings = Settings.model_validate(start["settings"])
        metrics = SharedMetrics(
            folder, engine_role(index), objectives_of(settings), with_parent=index == 0
        )
        loader = Loader(settings, metrics, start["request_seconds"], start["device"])
        models = loader.open_all()
    except FORESEEN as error:  # `serve` reports it in one line.
        channel.send(error=str(error))
        return
    loader.show(models)
    channel.send(models=[facts_of(model) for model in models])
    numbered = dict(zip(channel.receive()["numbers"], models, strict=True))
    runtime.allow_files(MOST_MODELS * settings.workers + FILES_BESIDE_CONNECTIONS)
    heartbeats = Heartbeats(start["heartbeats"], settings.workers)
    listener = socket.socket(fileno=int(listener_fd))
    beating = heartbeats.beat(ENGINES + index)
    uvloop.run(serve(loader, numbered, channel, listener, metrics, beating))
