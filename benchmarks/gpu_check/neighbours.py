"""Two models on one device at once: each computes its own, and they share its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import NEAR, blueprint_for, pictures
from benchmarks.gpu_check.served import Served
from benchmarks.gpu_check.stage import Figures, Options
from service.engines.device_share import DeviceShares
from service.inference.tasks import Pixels

OTHER = "builtin:resnet20-cifar10"
MAX_BATCH = 32
CLIENTS = 3  # that each wait for a whole batch


class Client:
    """Asks one model for the same images again and again."""

    def __init__(self, served: Served, images: Sequence[Pixels]) -> None:
        self.served, self.images = served, images
        self.done, self.wrong = 0, 0
        self._first: NDArray[np.float32] = np.empty(0, np.float32)

    async def load(self, seconds: float) -> float:
        """Images a second."""
        if not self.done:
            self._first = await self.served.ask(self.images)
        done, began = self.done, time.perf_counter()
        await asyncio.gather(*(self._ask(began + seconds) for _ in range(CLIENTS)))
        return round((self.done - done) / (time.perf_counter() - began), 1)

    async def _ask(self, until: float) -> None:
        while time.perf_counter() < until:
            found = await self.served.ask(self.images)
            self.done += len(found)
            self.wrong += not np.allclose(found, self._first, rtol=0, atol=NEAR)


def neighbours(options: Options) -> Iterator[Figures]:
    """Images a second of each alone and of both, and how many batches were not as before."""
    device, clients = DeviceShares()[options.device], {}
    for spec in (options.model, OTHER):
        own = replace(options, model=spec, max_batch=MAX_BATCH)
        images = pictures(blueprint_for(own).bundle.input, MAX_BATCH)
        clients[spec] = Client(Served(own, options.kind, device), images)
    engines = {spec: client.served.running.engine.name for spec, client in clients.items()}

    async def measured() -> tuple[list[float], list[float]]:
        alone = [await client.load(options.seconds) for client in clients.values()]
        return alone, await asyncio.gather(
            *(client.load(options.seconds) for client in clients.values())
        )

    alone, together = asyncio.run(measured())
    for client in clients.values():
        client.served.close()
    yield {
        "engines": engines,
        "alone_images_s": alone,
        "together_images_s": together,
        "wrong": sum(client.wrong for client in clients.values()),
        "errors": sum(client.served.events.errors for client in clients.values()),
    }
