"""The process that owns all models and devices, and computes what the front ends submit.

`python -m service.workers.engine_process CHANNEL LISTENER FOLDER`, started by the supervisor:
numbers of inherited file descriptors, and the folder that all processes share.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable

import uvloop

from service import runtime
from service.config.settings import MOST_MODELS, ModelSettings, Settings
from service.errors import LoadFailed, refusal_of
from service.logs import log_to_stderr, set_log_level
from service.repository.loader import FORESEEN, Loader, lost
from service.repository.model import LocalModel, facts_of
from service.workers.control import ControlChannel, Message
from service.workers.engine_server import EngineServer
from service.workers.heartbeat import ENGINE, Heartbeats
from service.workers.shared_metrics import ENGINE_ROLE, SharedMetrics

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
FILES_BESIDE_CONNECTIONS = 512


async def exit_when_lost(server: EngineServer) -> None:
    """Exits, to be replaced, when an engine cannot recover in this process."""
    while not (reasons := lost(server.models.values())):  # noqa: ASYNC110 - engines are threads
        await asyncio.sleep(WATCH_SECONDS)
    for name, reason in reasons.items():
        log.critical("%s: %s; exiting", name, reason)
    await asyncio.sleep(WATCH_SECONDS)  # For pending responses to reach the front ends.
    runtime.exit_at_once(runtime.FAILED_STATUS)


class CommandHandler:
    """Carries out the supervisor's commands: load models beside those that serve, then switch."""

    def __init__(self, loader: Loader, server: EngineServer, send: Callable[..., None]) -> None:
        self._loader = loader
        self._server = server
        self._send = send
        self._loading: dict[int, asyncio.Task[None]] = {}

    def handle(self, message: Message) -> None:
        if "load" in message:
            number, settings = message["load"], ModelSettings.model_validate(message["settings"])
            loading = asyncio.get_running_loop().create_task(self._load(number, settings))
            self._loading[number] = loading
        elif "serve" in message:
            self._serve(message["serve"])
        elif "apply" in message:
            apply(Settings.model_validate(message["apply"]))

    async def _load(self, number: int, settings: ModelSettings) -> None:
        try:
            model = await self._loader.load(settings)
        except Exception as error:
            # The supervisor waits: it gets a response, whatever goes wrong.
            if not isinstance(error, LoadFailed):
                log.exception("loading %s failed", settings.spec)
            self._send(loaded=number, refusal=refusal_of(error))
        else:
            self._server.add(number, model)
            self._send(loaded=number, facts=facts_of(model))
        finally:
            del self._loading[number]

    def _serve(self, numbers: list[int]) -> None:
        for number, loading in self._loading.items():
            if number not in numbers:
                loading.cancel()
        models = self._server.models
        self._loader.show([models[number] for number in numbers])
        for number in models.keys() - set(numbers):
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
    heartbeats: Heartbeats,
) -> None:
    runtime.tune_interpreter()
    server = EngineServer()
    for number, model in models.items():
        server.add(number, model)
        loader.start(model)
    commands = CommandHandler(loader, server, channel.send)
    channel.follow(commands.handle)
    await asyncio.gather(
        heartbeats.beat(ENGINE),
        server.accept(listener),
        server.watch(),
        metrics.keep_fresh(),
        exit_when_lost(server),
    )


def main(channel_fd: int, listener_fd: int, folder: str) -> None:
    channel = ControlChannel(channel_fd, folder)
    start = channel.receive()
    settings = Settings.model_validate(start["settings"])
    log_to_stderr(settings.log_level, settings.log_format)
    try:
        metrics = SharedMetrics(folder, ENGINE_ROLE, with_parent=True)
        loader = Loader(settings, metrics, start["request_seconds"])
        models = loader.open_all()
    except FORESEEN as error:  # `serve` reports it in one line.
        channel.send(error=str(error))
        return
    loader.show(models)
    channel.send(models=[facts_of(model) for model in models])
    numbered = dict(zip(channel.receive()["numbers"], models, strict=True))
    runtime.allow_files(MOST_MODELS * settings.workers + FILES_BESIDE_CONNECTIONS)
    heartbeats = Heartbeats(start["heartbeats"], settings.workers)
    listener = socket.socket(fileno=listener_fd)
    uvloop.run(serve(loader, numbered, channel, listener, metrics, heartbeats))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
