"""Measures the cost of requests before the service starts.

`service.config.plan` launches `main` with settings as JSON on stdin and reads the plan as JSON from
stdout. The engines that it starts leave their compiled code and measurements
in the cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from http.client import HTTPConnection
from typing import Any

import numpy as np

from models.preprocess import CIFAR, InputSpec
from service.config.plan import Plan
from service.config.settings import ModelSettings, Settings
from service.engines.decode_cost import decode_seconds, typical_file
from service.engines.devices import devices_of, engines_for
from service.engines.start import blueprint_of, start_first
from service.http.app import create_app
from service.http.listener import Listeners
from service.http.routers.classify import CLASSIFY
from service.http.server import Server
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
from service.repository import catalog

log = logging.getLogger(__name__)
CONNECTIONS = 8
ROUNDS, WARM_UP_ROUNDS = 40, 10
PATIENCE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Instant:
    """A model whose engine responds immediately; see `service.inference.interfaces.Model`."""

    name = "trial"
    settings = ModelSettings(spec="random:resnet20")
    limits = settings.limits(["cpu"])
    input: InputSpec = CIFAR
    labels = tuple(map(str, range(10)))
    outputs = "exclusive"
    channels, map_sides, explains, batch_share = 64, (8, 8), True, 1
    ready, reason = True, ""

    def __init__(self) -> None:
        self.users = RefCount()
        self.entering = 0
        self.batcher: Batcher[ImageInput, Row] = Batcher(max_jobs=CONNECTIONS, max_bytes=2**20)
        self._decoder = Decoder(1, CIFAR.height * CIFAR.width)
        self._row = Row(np.arange(10, dtype=np.int32), np.full(10, 0.1, np.float32))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def check(self, load: Load) -> None:
        self.batcher.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        return await decode_and_queue(self, self._decoder, self.batcher, image, job, deadline)

    def answer(self) -> None:
        """Runs in its own thread."""
        while self.batcher.wait(CONNECTIONS):
            jobs = self.batcher.take(lambda waiting: waiting)
            self.batcher.finish(jobs, [self._row] * len(jobs))


class InstantModels:
    """See `service.inference.interfaces.Repository`."""

    def __init__(self) -> None:
        self._model = Instant()
        self.models = {self._model.name: self._model}

    def start(self) -> None:
        threading.Thread(target=self._model.answer, daemon=True).start()

    async def put(self, settings: ModelSettings) -> bool:
        raise NotImplementedError

    async def delete(self, name: str) -> None:
        raise NotImplementedError

    def dead(self) -> dict[str, str]:
        return {}

    def close(self, timeout: float) -> bool:
        return True


def request_seconds() -> float:
    """The event loop's CPU time for one request, excluding decoding."""
    settings = Settings(port=0, workers=1, decode_threads=1)
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as listener:
        metrics = Metrics()
        metrics.watch_model(Instant.name, ["cpu"], CONNECTIONS, depth=lambda: 0, ready=lambda: True)
        app = create_app(settings, metrics, InstantModels())
        serve = Server(app, settings, Listeners((listener,))).run
        server = threading.Thread(target=serve, args=([],), daemon=True)
        server.start()
        port = listener.getsockname()[1]
        connections = [
            HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS) for _ in range(CONNECTIONS)
        ]
        image = typical_file(CIFAR)
        for _ in range(WARM_UP_ROUNDS):
            _ask(connections, image)
        assert server.ident is not None
        clock = time.pthread_getcpuclockid(server.ident)
        before = time.clock_gettime(clock)
        for _ in range(ROUNDS):
            _ask(connections, image)
        spent = time.clock_gettime(clock) - before
    return max(spent / (ROUNDS * CONNECTIONS) - decode_seconds(CIFAR), sys.float_info.epsilon)


def _ask(connections: Sequence[HTTPConnection], image: bytes) -> None:
    """Sends a request on each connection concurrently."""
    for connection in connections:
        connection.request("POST", CLASSIFY, image, {"Content-Type": "image/png"})
    for connection in connections:
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"the trial's request got status {response.status}: {body!r}")


def measured(settings: Settings) -> Plan:
    """The plan, after starting every engine once, which fills the cache."""
    # First, since wrong settings make these fail.
    devices = [devices_of(model) for model in settings.models]
    bundles = [
        catalog.load(model.spec, model.architecture, settings.cache_dir, settings.allow_code).bundle
        for model in settings.models
    ]
    request = request_seconds()
    models = []
    for model, bundle, on in zip(settings.models, bundles, devices, strict=True):
        for device in on:
            if device != "cpu":
                continue
            blueprint = blueprint_of(bundle, model, device, settings, request_seconds=request)
            kinds = engines_for(model, device)[:1]
            warm = start_first(kinds, blueprint, model.parity_tolerance)
            if warm.engine.tuning is not None and warm.engine.tuning.costs is not None:
                models.append(warm.engine.tuning.costs)
    return Plan(request, models)


def main() -> None:
    with contextlib.suppress(AttributeError, OSError):  # Where it is not Linux.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    settings = Settings.model_validate_json(sys.stdin.read())
    if settings.log_level != "debug":
        logging.disable(logging.CRITICAL)  # The start logs the same about its engines.
    status = 0
    try:
        print(json.dumps(asdict(measured(settings))), flush=True)
    # The start runs into the same error and reports it properly.
    except Exception as error:
        log.debug("the trial failed: %s", error, exc_info=True)
        status = 1
    logging.shutdown()
    os._exit(status)  # Its threads are idle and need no orderly end.
