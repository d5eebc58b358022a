"""A model behind its queue, driven by its engine's thread as in the service, without HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import model_of, settings_of
from benchmarks.gpu_check.stage import Options
from models.bundle import Bundle
from service.engines.builder import EngineBuilder
from service.engines.device_share import DeviceShare, DeviceShares, Tenant
from service.engines.devices import devices_of
from service.engines.engine import EngineEvents, Warm
from service.engines.engine_thread import EngineThread
from service.inference.batcher import Batcher
from service.inference.jobs import Job
from service.inference.ranking import Row
from service.inference.tasks import ImageInput, Pixels
from service.repository import catalog

MOST_JOBS = 4096
MOST_BYTES = 2**33
START_SECONDS, END_SECONDS = 60.0, 10.0
LOOK_SECONDS = 0.01


@dataclass
class Events:
    """How often the engine failed, and a batch did not fit into memory."""

    errors: int = 0
    out_of_memory: int = 0

    def error(self) -> None:
        self.errors += 1

    def too_large(self) -> None:
        self.out_of_memory += 1


class Served:
    """The model of `options` with an engine of a kind; `close` ends it.

    Images wait up to `max_delay` seconds for a full batch.
    """

    def __init__(
        self,
        options: Options,
        kind: str,
        device: DeviceShare | None = None,
        *,
        max_delay: float = 0.0,
    ) -> None:
        def bundle() -> Bundle:
            return catalog.load(options.model).bundle

        model, service = model_of(options, kind), settings_of(options)
        share, tenant = device or DeviceShares()[options.device], Tenant()
        self.events = Events()
        self.batcher: Batcher[ImageInput, Row] = Batcher(
            max_jobs=MOST_JOBS, max_bytes=MOST_BYTES, max_delay=max_delay
        )
        self.thread = EngineThread(
            options.model,
            self.batcher,
            EngineBuilder(
                bundle(),
                bundle,
                model,
                service,
                devices_of(model)[0],
                request_seconds=0.0,
                turn=partial(share.alone, tenant),
            ),
            EngineEvents(
                ready=lambda warm: None,
                batch=lambda size, seconds: None,
                error=self.events.error,
                out_of_memory=self.events.too_large,
            ),
            device=share,
            tenant=tenant,
            timeout=service.engine_timeout_s,
            serves=lambda: self.thread.state == "ready",
        )
        self.thread.start()

    def settled(self, *states: str, seconds: float = START_SECONDS) -> str:
        """The state, as soon as it is one of `states`, or after so many seconds."""
        until = time.monotonic() + seconds
        while self.thread.state not in states and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        return self.thread.state

    @property
    def running(self) -> Warm:
        """The engine.

        Raises:
            RuntimeError: it does not serve; the message is the reason.
        """
        if self.settled("ready", "failed", "lost") != "ready" or self.thread.running is None:
            raise RuntimeError(self.thread.reason)
        return self.thread.running

    async def ask(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Probabilities [N, K] of N images, which wait in the queue together.

        Raises:
            ServiceError: what the service would respond.
        """
        jobs: list[Job[ImageInput, Row]] = [Job() for _ in images]
        for job, image in zip(jobs, images, strict=True):
            self.batcher.admit(job, image.nbytes)
        for job, image in zip(jobs, images, strict=True):
            self.batcher.submit(job, image, image.nbytes)
        rows = await asyncio.gather(*(job.future for job in jobs))
        found = np.empty((len(rows), len(rows[0].classes)), np.float32)
        for probabilities, row in zip(found, rows, strict=True):
            probabilities[row.classes] = row.probabilities
        return found

    def close(self) -> None:
        self.batcher.close()
        self.thread.stop()
        self.thread.join(END_SECONDS)
