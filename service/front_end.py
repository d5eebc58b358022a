"""A process that accepts, decodes and answers for the engine process.

`python -m service.front_end LINE LISTENER FOLDER`, started by `service.supervisor`: numbers of
inherited file descriptors, and the folder that all processes share. It never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Generator
from typing import Any

from service.app import create_app
from service.control import Line, engine_socket, log_to_stderr
from service.ledger import Ledger
from service.remote import RemoteFleet
from service.server import Server
from service.settings import Settings
from service.shared_metrics import SharedMetrics


class FrontEnd(Server):
    """Drains as one process does, when the supervisor says so.

    The front ends share one listener. Each keeps new connections away from it when its grace is
    over, which keeps them away from all, and accepts what waits until it closes its own end.
    """

    def __init__(
        self, settings: Settings, fleet: RemoteFleet, metrics: SharedMetrics, line: Line
    ) -> None:
        super().__init__(create_app(settings, metrics, fleet), settings)
        self._line = line
        self._metrics = metrics

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # They come over the line.

    def announce(self) -> None:
        loop = asyncio.get_running_loop()

        def act(message: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self.handle_exit, message["signal"], None)

        self._refreshing = loop.create_task(self._metrics.keep_fresh())
        self._line.send(up=True)
        self._line.follow(act)


def main(line_fd: int, listener_fd: int, folder: str) -> None:
    line = Line(line_fd, folder)
    start = line.receive()
    settings = Settings.model_validate(start["settings"])
    log_to_stderr(settings.log_level)
    metrics = SharedMetrics(folder)
    ledger = Ledger(start["ledger"], settings.workers, len(settings.models))
    path = engine_socket(folder)
    fleet = RemoteFleet(settings, start["models"], start["index"], path, ledger, metrics)
    listener = socket.socket(fileno=listener_fd)
    FrontEnd(settings, fleet, metrics, line).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
