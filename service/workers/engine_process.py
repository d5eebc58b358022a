"""The process that has all models and devices, and answers what the front ends submit.

`python -m service.workers.engine_process LINE LISTENER FOLDER`, started by the supervisor:
numbers of inherited file descriptors, and the folder that all processes share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvloop

from service import runtime
from service.config.settings import ModelSettings, Settings
from service.errors import LoadFailed, refusal_of
from service.logs import log_to_stderr, set_log_level
from service.repository.loader import FORESEEN, Loader, lost
from service.repository.model import LocalModel, facts_of
from service.workers.control import Line
from service.workers.engine_server import EngineServer
from service.workers.shared_metrics import SharedMetrics

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
LOST_STATUS = 70  # sysexits.h: EX_SOFTWARE


async def leave_when_lost(exchanging: EngineServer) -> None:
    """Ends the process, for another to take its place, when an engine cannot recover in it."""
    while not (reasons := lost(exchanging.models.values())):  # noqa: ASYNC110 - engines are threads
        await asyncio.sleep(WATCH_SECONDS)
    for name, reason in reasons.items():
        log.critical("%s: %s; this process ends", name, reason)
    await asyncio.sleep(WATCH_SECONDS)  # Who waits is told first.
    logging.shutdown()
    # A thread that hangs inside native code would keep it from ending in order.
    os._exit(LOST_STATUS)


class Orders:
    """What the supervisor wants: models loaded beside those that serve, then others served."""

    def __init__(self, loader: Loader, exchanging: EngineServer, send: Callable[..., None]) -> None:
        self._loader = loader
        self._exchange = exchanging
        self._send = send
        self._loading: dict[int, asyncio.Task[None]] = {}

    def obey(self, message: dict[str, Any]) -> None:
        if "load" in message:
            number, row = message["load"], ModelSettings.model_validate(message["settings"])
            self._loading[number] = asyncio.get_running_loop().create_task(self._load(number, row))
        elif "serve" in message:
            self._serve(message["serve"])
        elif "apply" in message:
            apply(Settings.model_validate(message["apply"]))

    async def _load(self, number: int, row: ModelSettings) -> None:
        try:
            model = await self._loader.load(row)
        except LoadFailed as error:
            self._send(loaded=number, refusal=refusal_of(error))
        else:
            self._exchange.add(number, model)
            self._send(loaded=number, facts=facts_of(model))
        finally:
            del self._loading[number]

    def _serve(self, numbers: list[int]) -> None:
        for number, loading in self._loading.items():
            if number not in numbers:
                loading.cancel()
        models = self._exchange.models
        self._loader.show([models[number] for number in numbers])
        for number in models.keys() - set(numbers):
            self._exchange.retire(number)


def apply(settings: Settings) -> None:
    """What can change while the process runs."""
    set_log_level(settings.log_level)


async def serve(
    loader: Loader,
    models: dict[int, LocalModel],
    line: Line,
    listener: socket.socket,
    metrics: SharedMetrics,
) -> None:
    runtime.tune_interpreter()
    loop = asyncio.get_running_loop()
    exchanging = EngineServer()
    for number, model in models.items():
        exchanging.add(number, model)
        loader.start(model)
    orders = Orders(loader, exchanging, line.send)
    line.follow(lambda message: loop.call_soon_threadsafe(orders.obey, message))
    await asyncio.gather(
        exchanging.accept(listener),
        exchanging.watch(),
        metrics.keep_fresh(),
        leave_when_lost(exchanging),
    )


def main(line_fd: int, listener_fd: int, folder: str) -> None:
    line = Line(line_fd, folder)
    start = line.receive()
    settings = Settings.model_validate(start["settings"])
    log_to_stderr(settings.log_level, settings.log_format)
    try:
        metrics = SharedMetrics(folder, with_parent=True)
        loader = Loader(settings, metrics, start["request_seconds"])
        models = loader.open_all()
    except FORESEEN as error:  # What `serve` says in one line.
        line.send(error=str(error))
        return
    loader.show(models)
    line.send(models=[facts_of(model) for model in models])
    numbered = dict(zip(line.receive()["numbers"], models, strict=True))
    uvloop.run(serve(loader, numbered, line, socket.socket(fileno=listener_fd), metrics))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
