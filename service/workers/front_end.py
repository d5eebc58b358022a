"""A process that accepts connections, decodes images and submits them to engine processes.

The supervisor launches `main` with numbers of inherited file descriptors, and with the folder that
all processes share. It never imports torch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Sequence

from service import runtime
from service.config.objectives import objectives_of
from service.config.settings import Settings
from service.errors import ConfigError
from service.grpc.attached import grpc_server
from service.http.app import create_app
from service.http.listener import Listeners
from service.http.server import Server
from service.inference.decoding import Decoder
from service.workers.control import ControlChannel, Message
from service.workers.heartbeat import FRONT_ENDS, Heartbeats, patience
from service.workers.occupancy import Occupancy
from service.workers.remote import RemoteRepository
from service.workers.remote_model import FrontEndResources
from service.workers.shared_metrics import SharedMetrics, front_end_role


class FrontEnd(Server):
    """A server that drains when the supervisor says so.

    The front ends share their listeners: the first whose grace period is over keeps new connections
    away from all. Each accepts pending connections until it closes its own end.
    """

    def __init__(
        self,
        settings: Settings,
        repository: RemoteRepository,
        metrics: SharedMetrics,
        channel: ControlChannel,
        listeners: Listeners,
        shared: FrontEndResources,
        grpc_addresses: Sequence[str] = (),
    ) -> None:
        app = create_app(settings, metrics, repository)
        attached = grpc_server(app.state.services, grpc_addresses)
        super().__init__(app, settings, listeners, grpc_server=attached)
        self._repository = repository
        self._metrics = metrics
        self._channel = channel
        self._occupancy = shared.occupancy
        self._heartbeats = shared.heartbeats
        self._index = shared.index

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # The supervisor forwards them.

    def announce(self) -> None:
        beating = self._heartbeats.beat(FRONT_ENDS + self._index)
        self._essential = [
            runtime.essential(self._metrics.keep_fresh(), "refreshing the metrics"),
            runtime.essential(beating, "the heartbeat"),
        ]

        def handle(message: Message) -> None:
            if "signal" in message:
                self.handle_exit(message["signal"], None)
            elif "apply" in message:
                self.apply(Settings.model_validate(message["apply"]))
            else:
                self._repository.on_message(message)

        self._channel.send(up=True)
        self._channel.follow(handle)

    def announce_stop(self, name: str) -> None:
        """Nothing: the supervisor has said so."""

    def lead(self, pending: int) -> int:
        connections = len(self.server_state.connections) + pending
        return self._occupancy.lead(self._index, connections, self._limits.max_connections)

    async def on_tick(self, counter: int) -> bool:
        ended = await super().on_tick(counter)
        if self._pipeline.refusing:
            self._occupancy.leave(self._index)
        else:
            self.lead(self._acceptor.pending)  # Reports closed connections to the other front ends.
        return ended


def main(channel_fd: str, listener_fds: str, folder: str) -> None:
    channel = ControlChannel(int(channel_fd), folder)
    start = channel.receive()
    settings = Settings.model_validate(start["settings"])
    index = start["index"]
    metrics = SharedMetrics(folder, front_end_role(index), objectives_of(settings))
    resources = FrontEndResources(
        index,
        folder,
        Occupancy(start["occupancy"], settings.workers),
        Heartbeats(start["heartbeats"], settings.workers),
        patience(settings.engine_timeout_s),
        Decoder(settings.decode_threads, settings.max_pixels),
    )
    repository = RemoteRepository(start["models"], resources, metrics, channel.send)
    repository.on_message({"broken": start["broken"]})
    listeners = Listeners.inherited(map(int, listener_fds.split(",")), start["listeners"])
    try:
        server = FrontEnd(
            settings, repository, metrics, channel, listeners, resources, start["grpc"]
        )
        server.run(sockets=[])
    except ConfigError as error:  # The supervisor says so.
        channel.send(error=str(error))
        sys.exit(1)
    sys.exit(1 if server.cut_off else 0)
