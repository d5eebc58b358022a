"""One request from bytes to predictions: here the stages meet."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from models.preprocess import InputSpec
from service.config.settings import ModelSettings, Settings
from service.errors import (
    BadParameter,
    DeadlineExceeded,
    NotReady,
    UnknownModel,
)
from service.inference.batcher import Job
from service.inference.decoding import Decoded, Decoder
from service.inference.postprocess import Prediction, top_k
from service.inference.ranking import Row
from service.inference.refcount import Lease
from service.inference.tasks import CLASSIFY, Pixels
from service.inference.waiting import NORMAL
from service.metrics import PHASES, Metrics

RETRY_SECONDS = 1.0
# What float32 pixels may be: beyond 0 to 255 by as much again, as noise and extrapolation are.
# Much larger ones overflow in half precision, and an engine that gives NaN is taken for broken.
LEAST, MOST = -255.0, 510.0


@dataclass(frozen=True, slots=True)
class Computed:
    """What one image became; times in seconds.

    `model` is what computed it, whose labels are the row's; `queue` is all waiting: for a thread to
    decode in, and for the engine.
    """

    model: Model
    row: Row
    decoded: Decoded
    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Answer:
    model: str
    predictions: list[Prediction]
    computed: Computed


class Gate(Protocol):
    """Whether a model takes more images, as `service.inference.batcher.Batcher` describes it."""

    def check(self, cost: int = 0, within: float = math.inf) -> None: ...


class Queue(Gate, Protocol):
    """Where a model's images wait on this host."""

    def admit(self, cost: int, task: int = ..., priority: int = ...) -> Job[Pixels, Row]: ...
    def submit(self, job: Job[Pixels, Row], payload: Pixels, cost: int) -> None: ...


class Model(Protocol):
    """What answers to a name, whether its engines run in this process or in another.

    `channels` is how wide the head's input is, `map_side` how high and wide the maps are that it
    is the mean of; `batch_share` how many places in the queue one request with many images takes
    at a time;
    `lease` is held while a request uses the model, which may be replaced meanwhile; `reason` says
    why the model is not ready; `row` is how it was asked for, maybe without a name of its own;
    `describe` gives its entry in `GET /v1/models`.
    """

    @property
    def name(self) -> str: ...
    @property
    def row(self) -> ModelSettings: ...
    @property
    def spec(self) -> InputSpec: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def channels(self) -> int: ...
    @property
    def map_side(self) -> int: ...
    @property
    def batch_share(self) -> int: ...
    @property
    def batcher(self) -> Gate: ...
    @property
    def lease(self) -> Lease: ...
    @property
    def ready(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    def describe(self) -> dict[str, Any]: ...


class Fleet(Protocol):
    """All models, by name; the first is the default one.

    `put` and `delete` change which, as `service.repository.registry` describes it: a change gives
    new `models`, and who has found a model in the old ones is still served by it.
    """

    @property
    def models(self) -> Mapping[str, Model]: ...
    async def put(self, row: ModelSettings) -> bool: ...
    async def delete(self, name: str) -> None: ...
    def start(self) -> None:
        """Called by the running event loop."""

    def dead(self) -> dict[str, str]:
        """Why only another process can serve again, by model; empty if this one can."""

    def close(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for what computes; whether it ended."""


# Told of every image that had a place, and of what went wrong; gives its times' exemplar.
Follow = Callable[[Model, Job[Pixels, Row], BaseException | None], dict[str, str] | None]


class Pipeline:
    """All models behind one decoder.

    `draining`: a shutdown has begun, readiness says so, requests are still served.
    `refusing`: the grace is over, only what was accepted is still served.
    `follow`: see `service.http.tracing`; None: there is no tracing.
    """

    def __init__(self, settings: Settings, metrics: Metrics, fleet: Fleet) -> None:
        self.metrics = metrics
        self.draining = self.refusing = False
        self.follow: Follow | None = None
        self.fleet = fleet
        self._decoder = Decoder(settings.decode_threads, settings.max_pixels)

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that serve now."""
        return self.fleet.models

    def start(self) -> None:
        """Starts the models' engines, which load in the background."""
        self.fleet.start()

    def close(self, timeout: float) -> bool:
        """Lets the engines finish what waits, for at most `timeout` seconds; whether they did."""
        ended = self.fleet.close(timeout)
        self._decoder.close()
        return ended

    def unready(self) -> dict[str, str]:
        """Why the service is not ready: a reason for each model that is not; empty if it is."""
        if self.draining:
            return dict.fromkeys(self.models, "draining: the service is shutting down")
        return {name: model.reason for name, model in self.models.items() if not model.ready}

    def dead(self) -> dict[str, str]:
        """Why this process cannot serve any more and another must: a reason for each model."""
        return self.fleet.dead()

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

        `within`: seconds that the caller waits for the answer.

        Raises:
            BadParameter: `k` is not between 1 and the number of classes.
            NotReady: the model is loading, its engine down.
            QueueFull: its queue has no place, or would not come to it in time.
        """
        if self.refusing:
            raise NotReady("the service is shutting down; ask another replica", RETRY_SECONDS)
        classes = len(model.labels)
        if k is not None and not 1 <= k <= classes:
            raise BadParameter(f"top_k must be from 1 to {classes}, not {k}")
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        model.batcher.check(within=within)
        return min(5, classes) if k is None else k

    async def classify(self, model: Model, data: bytes, k: int, deadline: float) -> Answer:
        """The `k` likeliest classes of one encoded image; raises as `compute` does."""
        computed = await self.compute(model, data, deadline)
        return Answer(model.name, top_k(computed.row, computed.model.labels, k), computed)

    async def compute(
        self,
        model: Model,
        image: bytes | Pixels,
        deadline: float,
        task: int = CLASSIFY,
        priority: int = NORMAL,
    ) -> Computed:
        """What the network makes of one image: a file, or pixels [H, W, 3] of the model's size.

        `deadline` is a time of the event loop's clock; see `tasks` and `waiting` for `task` and
        `priority`. Cancelling the call, as when the caller leaves, gives the
        image's place in the queue back.

        Raises:
            UndecodableImage, TooLarge: see `service.inference.decoding.decode`.
            BadParameter: the pixels are not of the model's size, or not such numbers.
            QueueFull: the queue has no place.
            EngineFailed: the engine failed while computing it.
            DeadlineExceeded: the deadline passed first.
        """
        started = time.perf_counter()
        cost = len(image) if isinstance(image, bytes) else _checked(image, model.spec).nbytes
        queue = cast("Queue", model.batcher)
        job = queue.admit(cost, task, priority)
        try:
            async with asyncio.timeout_at(deadline):
                decoded = await self._decoded(image, model.spec)
                job.decoding, job.decoded = decoded.began, decoded.ended
                queue.submit(job, decoded.pixels, decoded.pixels.nbytes)
                row = await job.future
        except TimeoutError:
            raise DeadlineExceeded.passed() from None
        finally:
            job.future.cancel()  # A no-op when it is done; else it frees the place.
            exemplar = self.follow and self.follow(model, job, sys.exception())
        decode = job.decoded - job.decoding
        computed = Computed(
            model=model,
            row=row,
            decoded=decoded,
            decode=decode,
            queue=max(0.0, job.started - job.admitted - decode),
            inference=job.finished - job.started,
            total=time.perf_counter() - started,
            batch_size=job.batch_size,
        )
        seconds = {phase: getattr(computed, phase) for phase in PHASES}
        self.metrics.classified(model.name, seconds, exemplar)
        return computed

    async def _decoded(self, image: bytes | Pixels, spec: InputSpec) -> Decoded:
        if isinstance(image, bytes):
            return await self._decoder.decode(image, spec)
        now = time.perf_counter()
        return Decoded(image, now, now, (spec.size, spec.size))


def _checked(pixels: Pixels, spec: InputSpec) -> Pixels:
    expected = (spec.size, spec.size, 3)
    if pixels.shape != expected:
        raise BadParameter(f"the pixels must be {list(expected)}, not {list(pixels.shape)}")
    # Written so that NaN is refused.
    if pixels.dtype != np.uint8 and not (pixels.min() >= LEAST and pixels.max() <= MOST):
        raise BadParameter(
            f"pixels must be numbers from {LEAST:g} to {MOST:g}, where 0 is black and 255 white"
        )
    return pixels
