"""A process that accepts, decodes and answers for the engine process.

`python -m service.workers.front_end LINE LISTENER FOLDER`, started by the supervisor:
numbers of inherited file descriptors, and the folder that all processes share. It never imports
torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Generator
from typing import Any

from service.config.settings import Settings
from service.http.app import create_app
from service.http.listener import BACKLOG
from service.http.server import Server
from service.inference.decoding import Decoder
from service.logs import log_to_stderr
from service.workers.acceptor import Acceptor
from service.workers.control import Line, engine_socket
from service.workers.occupancy import Occupancy
from service.workers.remote import RemoteRepository, Surroundings
from service.workers.shared_metrics import SharedMetrics


class FrontEnd(Server):
    """Drains as one process does, when the supervisor says so.

    The front ends share one listener. Each keeps new connections away from it when its grace is
    over, which keeps them away from all, and accepts what waits until it closes its own end.
    """

    def __init__(
        self,
        settings: Settings,
        repository: RemoteRepository,
        metrics: SharedMetrics,
        line: Line,
        listener: socket.socket,
        ledger: Occupancy,
        index: int,
    ) -> None:
        super().__init__(create_app(settings, metrics, repository), settings)
        self._repository = repository
        self._metrics = metrics
        self._line = line
        self._listener = listener
        self._ledger = ledger
        self._index = index
        self._acceptor: Acceptor

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # They come over the line.

    def announce(self) -> None:
        loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._listener, self.protocol(), self._lead, self._encryption)
        self._acceptor.start(BACKLOG)
        self.servers.append(self._acceptor)  # type: ignore[arg-type]
        self._listeners = [self._listener]
        self._refreshing = loop.create_task(self._metrics.keep_fresh())

        def act(message: dict[str, Any]) -> None:
            if "signal" in message:
                self.handle_exit(message["signal"], None)
            elif "apply" in message:
                self.apply(Settings.model_validate(message["apply"]))
            else:
                self._repository.hear(message)

        self._line.send(up=True)
        self._line.follow(lambda message: loop.call_soon_threadsafe(act, message))

    def _lead(self) -> int:
        callers = len(self.server_state.connections) + self._acceptor.pending
        return self._ledger.lead(self._index, callers)

    async def on_tick(self, counter: int) -> bool:
        ended = await super().on_tick(counter)
        if self._pipeline.refusing:
            self._ledger.leave(self._index)
            self._acceptor.hurry()
        else:
            self._lead()  # The others should know of connections that have closed.
        return ended


def main(line_fd: int, listener_fd: int, folder: str) -> None:
    line = Line(line_fd, folder)
    start = line.receive()
    settings = Settings.model_validate(start["settings"])
    log_to_stderr(settings.log_level, settings.log_format)
    metrics = SharedMetrics(folder)
    index = start["index"]
    ledger = Occupancy(start["ledger"], settings.workers)
    decoder = Decoder(settings.decode_threads, settings.max_pixels)
    shared = Surroundings(index, engine_socket(folder), ledger, decoder)
    repository = RemoteRepository(start["models"], shared, metrics, line.send)
    listener = socket.socket(fileno=listener_fd)
    FrontEnd(settings, repository, metrics, line, listener, ledger, index).run(sockets=[])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
