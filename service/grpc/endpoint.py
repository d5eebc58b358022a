"""The gRPC server of a process, on its event loop.

Every method is registered as a streaming one, with bytes as messages: on the wire there is no
difference, and so the service decides when it receives a message, and where it parses it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from service.config.settings import Settings
from service.errors import ConfigError
from service.grpc import protocol_table as table
from service.grpc.calls import Calls
from service.grpc.descriptors import Descriptors
from service.grpc.observing import LOOK_SECONDS, REFLECTION_SERVICES, Observers
from service.grpc.receiving import Receiving
from service.grpc.servicing import InferenceMethods
from service.grpc.streaming import InferStreams
from service.grpc.unread import Unread
from service.http.listener import announce_grpc
from service.http.services import Services

# Beside a message's tensors: names, shapes, parameters. Larger messages gRPC refuses itself.
BESIDE_BYTES = 2**20
STREAMS_PER_CONNECTION = 1024
LOOKAHEAD_BYTES = 2**17
# Beyond the limit on calls, those that are told so.
REFUSED_CALLS = 256
# Clients may ping this often, with or without calls; a connection without calls ends, and clients
# open another when they need it. What does not answer our own pings has gone.
PING_MS, IDLE_MS, KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 5_000, 600_000, 60_000, 20_000


class GrpcServer:
    """Serves `addresses`, HOST:PORT with the same port, which other processes may serve as well.

    `close` stops accepting calls, `wait_closed` returns when accepted ones are completed.
    """

    def __init__(self, services: Services, addresses: Sequence[str]) -> None:
        settings = services.settings
        self._addresses = addresses
        self._patience = float(int(settings.shutdown_timeout_s) or 1)  # As uvicorn's.
        self._services = services
        self._settings = settings
        most_bytes = settings.max_batch_body_bytes
        receiving = Receiving(services.budget, services.lane, most_bytes + BESIDE_BYTES)
        self._connections = math.ceil(settings.max_connections / settings.workers)
        protocol = Descriptors()
        ports = {int(address.rpartition(":")[2]) for address in addresses}
        unread = Unread(ports, services.lane)
        self._calls = Calls(services, receiving, unread, self._connections)
        self._inference = InferenceMethods(self._calls, protocol)
        self._streams = InferStreams(self._inference, protocol)
        self._observers = Observers(self._calls, protocol)
        self._server: Any = None
        self._stopping: asyncio.Task[None] | None = None
        self._certificate = certificate(settings)
        self.cut_off = 0  # calls, by a second signal

    async def start(self) -> None:
        """Raises `ConfigError`: an address is not available any more."""
        settings = self._settings
        self._server = grpc.aio.server(
            handlers=self._handlers(),
            options=[
                ("grpc.so_reuseport", 1),
                (
                    "grpc.max_receive_message_length",
                    _c_int(settings.max_batch_body_bytes + BESIDE_BYTES),
                ),
                ("grpc.max_send_message_length", -1),
                # It has no limit; see `service.grpc.receiving.compression_of`.
                ("grpc.per_message_decompression", 0),
                ("grpc.max_metadata_size", _c_int(settings.max_header_bytes)),
                ("grpc.absolute_max_metadata_size", _c_int(settings.max_header_bytes)),
                # What a connection may send that no call has asked for yet.
                ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
                ("grpc.max_allowed_incoming_connections", self._connections),
                ("grpc.server_handshake_timeout_ms", round(settings.header_timeout_s * 1000)),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
            ],
            maximum_concurrent_rpcs=self._connections + REFUSED_CALLS,
        )
        for address in self._addresses:
            try:
                if self._certificate is None:
                    self._server.add_insecure_port(address)
                else:
                    self._server.add_secure_port(
                        address,
                        grpc.dynamic_ssl_server_credentials(
                            self._certificate, lambda: self._certificate
                        ),
                    )
            except RuntimeError:
                raise ConfigError(f"cannot serve gRPC on {address}") from None
        await self._server.start()

    def _handlers(self) -> list[Any]:
        inference, observers = self._inference, self._observers
        methods = {name: one_message(partial(inference.unary, name)) for name in table.METHODS} | {
            table.STREAM: messages(self._streams.serve)
        }
        health = {"Check": one_message(observers.check), "Watch": messages(observers.watch)}
        reflecting = {"ServerReflectionInfo": messages(observers.reflect)}
        return [
            grpc.method_handlers_generic_handler(name, handlers)
            for name, handlers in (
                (f"{table.INFERENCE}.{table.INFERENCE_SERVICE}", methods),
                (f"{table.HEALTH}.{table.HEALTH_SERVICE}", health),
                *((name, reflecting) for name in REFLECTION_SERVICES),
            )
        ]

    def announce(self) -> None:
        announce_grpc(self._addresses)

    def apply(self, settings: Settings) -> None:
        """Uses the settings' certificate for new connections, if there is one.

        Raises:
            ConfigError: it cannot be read.
        """
        if self._certificate is not None:
            self._certificate = certificate(settings) or self._certificate

    def close(self) -> None:
        """Stops accepting calls."""
        if self._server is not None and self._stopping is None:
            self._calls.stopping = True
            self._streams.close()
            self._stopping = asyncio.ensure_future(self._server.stop(self._patience))

    async def wait_closed(self) -> None:
        """Waits for the calls in progress, and ends them after `shutdown_timeout_s`, or once
        patience is over."""
        while self._stopping is not None and not self._stopping.done():
            await asyncio.wait([self._stopping], timeout=LOOK_SECONDS)
            if not self._services.patience:  # A second signal.
                self.cut_off = max(self.cut_off, self._calls.open)
                await self._server.stop(None)


def one_message(answer: Callable[[Any], Awaitable[bytes]]) -> Any:
    """The handler of a method that returns one message."""

    async def handle(_: object, context: Any) -> bytes:
        return await answer(context)

    return grpc.stream_unary_rpc_method_handler(handle)


def messages(answer: Callable[[Any], Awaitable[None]]) -> Any:
    """The handler of a method that writes messages."""

    async def handle(_: object, context: Any) -> None:
        await answer(context)

    return grpc.stream_stream_rpc_method_handler(handle)


def _c_int(limit: int) -> int:
    """gRPC's options hold no more."""
    return min(limit, 2**31 - 1)


def certificate(settings: Settings) -> Any:
    """The certificate in the form of gRPC; None: without encryption. `service.http.tls` has checked
    the files.

    Raises:
        ConfigError: one cannot be read.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
    except OSError as error:
        raise ConfigError(f"tls_certificate: {error.filename}: {error.strerror}") from None
    return grpc.ssl_server_certificate_configuration([pair])
