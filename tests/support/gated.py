"""A service in a thread of this process: real sockets, event loop, queue and application, and an
engine that a test controls."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import uvicorn
import uvloop
from uvicorn.server import ServerState

from models.preprocess import CIFAR
from service.config.settings import ModelSettings, Settings
from service.http.acceptor import Acceptor
from service.http.app import create_app
from service.http.connection import ServerConnection
from service.http.gate import Gate
from service.http.limits import ConnectionLimits
from service.inference.batcher import Batcher
from service.inference.decoding import Decoder
from service.inference.interfaces import Computed
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import ImageInput, Pixels
from service.metrics import Metrics
from tests.conftest import PATIENCE, encoded
from tests.support.waiting import until

T = TypeVar("T")
IMAGE = encoded()
LABELS = ("cat", "dog")
RESULT = Row(np.array([1, 0], np.int32), np.array([0.75, 0.25], np.float32))


class HandModel:
    """See `service.inference.interfaces.Model`: its engine computes one image each time that
    `open` is set, in `seconds`."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.settings = ModelSettings(spec="random:resnet20", max_queue=64)
        self.limits = self.settings.limits(["cpu"])
        self.input = CIFAR
        self.labels = LABELS
        self.outputs = "exclusive"
        self.channels, self.map_sides, self.explains, self.batch_share = 64, (8, 8), True, 4
        self.users = RefCount()
        self.entering = 0
        self.ready, self.reason = True, ""
        self.computed = 0
        self.open = threading.Event()
        self.open.set()
        self.batcher: Batcher[ImageInput, Row] = Batcher(max_jobs=64, max_bytes=2**26)
        self.batcher.pace.measured({1: seconds or 0.001})
        self._decoder = Decoder(1, 10**6)
        self._seconds = seconds
        self._engine = threading.Thread(target=self._run)
        self._engine.start()

    def _run(self) -> None:
        while self.batcher.wait(1):
            self.open.wait(PATIENCE)
            batch = self.batcher.take(lambda _: 1)
            if batch:
                time.sleep(self._seconds)
                self.computed += 1
                self.batcher.finish(batch, [RESULT])

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def check(self, load: Load) -> None:
        self.batcher.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        return await decode_and_queue(self, self._decoder, self.batcher, image, job, deadline)

    def close(self) -> None:
        self.open.set()
        self.batcher.close()
        self._engine.join(PATIENCE)
        self._decoder.close()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        return str(json.loads(self.body)["detail"])


class Client:
    """One blocking connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=PATIENCE)
        self._stream = self._socket.makefile("rb")

    def send(self, data: bytes) -> Client:
        self._socket.sendall(data)
        return self

    def answer(self) -> Answer:
        status = self._stream.readline()
        headers = {}
        while (line := self._stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            headers[name.decode().lower()] = value.strip().decode()
        body = self._stream.read(int(headers.get("content-length", "0")))
        return Answer(int(re.split(rb"\s", status)[1]), headers, body)

    def rest(self) -> bytes:
        """All until the service closes the connection."""
        return self._stream.read()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class Gated:
    """A service; `models`, `limits`, `metrics` are its own. `serving()` is on the loop's thread."""

    def __init__(self, models: Mapping[str, HandModel], settings: Settings) -> None:
        self.models = models
        self.model = next(iter(models.values()))
        self.metrics = Metrics()
        self.settings = settings
        self.limits = ConnectionLimits(settings, self.metrics)
        self.loop: asyncio.AbstractEventLoop
        self.gate: Gate
        self.address: tuple[str, int]
        self._stop: asyncio.Event
        self._up = threading.Event()
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))

    @property
    def turns(self) -> Any:
        return self.limits.turns

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        repository: Any = SimpleNamespace(models=self.models, dead=dict)
        app = create_app(self.settings, self.metrics, repository)
        for model in self.models.values():
            self.metrics.watch_model(model.name, (), 64, lambda: 0, lambda: True)
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        state.default_headers = [(b"x-content-type-options", b"nosniff")]
        self.gate = self.limits.gate = Gate(
            app.state.services, self.turns, lambda: state.default_headers, self.limits.refused
        )
        watching = self.loop.create_task(self.turns.watch())
        make = partial(
            ServerConnection,
            limits=self.limits,
            config=config,
            server_state=state,
            app_state={},
            _loop=self.loop,
        )
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.address = listener.getsockname()
            acceptor = Acceptor([listener], make, self)
            acceptor.start(1024)
            self._up.set()
            await self._stop.wait()
            acceptor.close()
            watching.cancel()
            for connection in [*state.connections, *self.limits.uncounted]:
                assert isinstance(connection, ServerConnection)
                connection.transport.abort()
            for task in [*state.tasks]:
                task.cancel()
            await asyncio.gather(*state.tasks, return_exceptions=True)

    def lead(self, pending: int) -> int:
        return 0

    def admits(self, pending: int) -> bool:
        return True

    def accepted(self, waited: float) -> None:
        self.turns.accepted()
        self.metrics.backlog.observe(waited)

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(PATIENCE)

    def end(self) -> None:
        for client in self._clients:
            client.close()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        for model in self.models.values():
            model.close()

    def connect(self) -> Client:
        client = Client(self.address)
        self._clients.append(client)
        return client

    def on_loop(self, function: Callable[[], T]) -> T:
        """Calls `function` in a turn of the loop."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(PATIENCE)

    @contextmanager
    def stalled(self, seconds: float = 0.0) -> Iterator[None]:
        """The loop stands still inside, and for `seconds` more."""
        stands, goes_on = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            goes_on.wait(PATIENCE)
            time.sleep(seconds)

        self.loop.call_soon_threadsafe(stand)
        assert stands.wait(PATIENCE)
        try:
            yield
        finally:
            goes_on.set()

    def until(self, holds: Callable[[], bool]) -> None:
        until(lambda: self.on_loop(holds), pause=0.002)

    def idle(self) -> bool:
        """Whether nothing that was let in is left."""
        entering = sum(model.entering for model in self.models.values())
        return not entering and not self.turns._starting

    def refusals(self, model: str, reason: str) -> float:
        return float(self.metrics.refusals.labels(model, reason)._value.get())


@contextmanager
def gated(seconds: float = 0.0, *more: str, **settings: Any) -> Iterator[Gated]:
    """A service whose model `first`, and `more`, take so many seconds for an image."""
    models = {name: HandModel(name, seconds) for name in ("first", *more)}
    service = Gated(models, Settings(**settings))
    service.start()
    with closing(SimpleNamespace(close=service.end)):
        yield service


def post(
    path: str = "/v1/classify", body: bytes = IMAGE, *headers: str, length: int | None = None
) -> bytes:
    lines = ["Host: a", "Content-Type: image/png", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return f"POST {path} HTTP/1.1\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body
