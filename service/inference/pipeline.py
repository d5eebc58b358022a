"""One image's way from bytes to predictions.

event loop        decoding thread        event loop        engine thread        event loop
admit a job ────▶ decode          ─────▶ submit      ────▶ compute a batch ───▶ rank, respond
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.preprocess import InputSpec
from service.errors import RETRY_SECONDS, BadParameter, DeadlineExceeded, NotReady, UnknownModel
from service.inference.batcher import Job, Priority
from service.inference.decoding import Decoded, Decoder
from service.inference.interfaces import Computed, Model, Repository
from service.inference.ranking import Prediction, Row, top_k
from service.inference.tasks import CLASSIFY, Pixels, Task
from service.metrics import Metrics

# What float32 pixels may be: beyond 0 to 255 by as much again, as noise and extrapolation are.
# Much larger ones overflow in half precision, and an engine that gives NaN is taken for broken.
LEAST, MOST = -255.0, 510.0


@dataclass(frozen=True, slots=True)
class Classified:
    """The predictions for one image, and what they were made of."""

    model: str
    predictions: list[Prediction]
    computed: Computed


class Queue(Protocol):
    """Where images wait for an engine on this host; see `service.inference.batcher.Batcher`."""

    def admit(self, job: Job[Pixels, Row], cost: int) -> None: ...
    def submit(self, job: Job[Pixels, Row], payload: Pixels, cost: int) -> None: ...


# Called with every image that had a slot, and with what went wrong; gives its times' exemplar.
Follow = Callable[[Model, Job[Pixels, Row], BaseException | None], dict[str, str] | None]


class Pipeline:
    """The models of this process, and what becomes of a request for one of them.

    `draining`: a shutdown has begun, readiness says so, requests are still served.
    `refusing`: the grace is over, only what was accepted is still served.
    `follow`: see `service.http.tracing`; None: there is no tracing.
    """

    def __init__(self, metrics: Metrics, repository: Repository) -> None:
        self.metrics = metrics
        self.repository = repository
        self.draining = self.refusing = False
        self.follow: Follow | None = None

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that serve now."""
        return self.repository.models

    def unready(self) -> dict[str, str]:
        """Why the service is not ready: a reason for each model that is not; empty if it is."""
        if self.draining:
            return dict.fromkeys(self.models, "draining: the service is shutting down")
        return {name: model.reason for name, model in self.models.items() if not model.ready}

    def find(self, name: str | None) -> Model:
        """The model called `name`, or the first one.

        Raises:
            UnknownModel: there is none; the message offers names.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel.called(name, self.models)
        return self.models[name]

    def check(self, model: Model, k: int | None, within: float) -> int:
        """How many predictions to give; refuses what needs no body to be refused.

        `within`: seconds that the client waits for the response.

        Raises:
            BadParameter: `k` is not between 1 and the number of classes.
            NotReady: the model is loading, or its engine is down.
            QueueFull: its queue has no slot, or would not come to it in time.
        """
        if self.refusing:
            raise NotReady("the service is shutting down; retry on another replica", RETRY_SECONDS)
        classes = len(model.labels)
        if k is not None and not 1 <= k <= classes:
            raise BadParameter(f"top_k must be from 1 to {classes}, not {k}")
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        model.check(within)
        return min(5, classes) if k is None else k

    async def classify(self, model: Model, data: bytes, k: int, deadline: float) -> Classified:
        """The `k` likeliest classes of one encoded image; raises as `compute` does."""
        computed = await self.compute(model, data, deadline)
        return Classified(model.name, top_k(computed.row, computed.model.labels, k), computed)

    async def compute(
        self,
        model: Model,
        image: bytes | Pixels,
        deadline: float,
        task: Task = CLASSIFY,
        priority: Priority = Priority.NORMAL,
    ) -> Computed:
        """`Model.compute`, counted and traced."""
        job: Job[Pixels, Row] = Job(task, priority)
        exemplar = None
        try:
            computed = await model.compute(image, job, deadline)
        finally:
            if self.follow is not None and job.admitted:
                exemplar = self.follow(model, job, sys.exception())
        self.metrics.classified(model.name, computed.phases, exemplar)
        return computed


async def decode_and_queue(
    model: Model,
    decoder: Decoder,
    queue: Queue,
    image: bytes | Pixels,
    job: Job[Pixels, Row],
    deadline: float,
) -> Computed:
    """`Model.compute` where the model's queue is on this host."""
    started = time.perf_counter()
    if not isinstance(image, bytes):
        check_pixels(image, model.input)
    queue.admit(job, len(image) if isinstance(image, bytes) else image.nbytes)
    try:
        async with asyncio.timeout_at(deadline):
            decoded = (
                await decoder.decode(image, model.input)
                if isinstance(image, bytes)
                else as_decoded(image)
            )
            job.decoding, job.decoded = decoded.began, decoded.ended
            queue.submit(job, decoded.pixels, decoded.pixels.nbytes)
            row = await job.future
    except TimeoutError:
        raise DeadlineExceeded.passed() from None
    finally:
        job.future.cancel()  # A no-op when it is done; else it frees the slot.
    decode = job.decoded - job.decoding
    return Computed(
        model=model,
        row=row,
        decoded=decoded,
        decode=decode,
        queue=max(0.0, job.started - job.admitted - decode),
        inference=job.finished - job.started,
        total=time.perf_counter() - started,
        batch_size=job.batch_size,
    )


def as_decoded(pixels: Pixels) -> Decoded:
    """Pixels that need no decoding."""
    now = time.perf_counter()
    return Decoded(pixels, now, now, (pixels.shape[1], pixels.shape[0]))


def check_pixels(pixels: Pixels, input: InputSpec) -> None:
    """Refuses pixels that the model cannot take.

    Raises:
        BadParameter: they are not of the input's size, or out of range.
    """
    expected = (input.size, input.size, 3)
    if pixels.shape != expected:
        raise BadParameter(f"the pixels must be {list(expected)}, not {list(pixels.shape)}")
    # Written so that NaN is refused.
    if pixels.dtype != np.uint8 and not (pixels.min() >= LEAST and pixels.max() <= MOST):
        raise BadParameter(
            f"pixels must be numbers from {LEAST:g} to {MOST:g}, where 0 is black and 255 white"
        )
