"""One image's way from bytes to predictions.

event loop        decoding thread        event loop        engine thread        event loop
admit a job ────▶ decode          ─────▶ submit      ────▶ compute a batch ───▶ rank, respond
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from models.preprocess import InputSpec
from service.errors import (
    RETRY_SECONDS,
    BadParameter,
    DeadlineExceeded,
    NotReady,
    TooLarge,
    UnknownModel,
)
from service.inference.deadline import before
from service.inference.decoding import DecodedImage, Decoder
from service.inference.interfaces import Computed, Model, Repository
from service.inference.jobs import Job, Priority
from service.inference.jpeg_header import of_plain_file
from service.inference.pace import Load
from service.inference.ranking import Row
from service.inference.tasks import CLASSIFY, Explain, ImageInput, JpegFile, Pixels, Task
from service.metrics import Metrics

# The range of float32 pixels: wider than 0 to 255 by as much again, for noise and extrapolation.
# Much larger values overflow in half precision, and an engine that returns NaN counts as broken.
LEAST, MOST = -255.0, 510.0
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class Queue(Protocol):
    """A model's queue on this host; see `service.inference.batcher.Batcher`."""

    def admit(self, job: Job[ImageInput, Row], cost: int) -> None: ...
    def submit(self, job: Job[ImageInput, Row], payload: ImageInput, cost: int) -> None: ...


# Called for each image that had a slot, with its error if any; returns the exemplar of its times.
Follow = Callable[[Model, Job[ImageInput, Row], BaseException | None], dict[str, str] | None]


class Pipeline:
    """The path of a request to the models of this process.

    `draining`: a shutdown has begun and the service is not ready, but requests are still served.
    `refusing`: the grace period is over, and only accepted requests are still served.
    `follow`: see `service.http.tracing`; None: tracing is off. `counted_classes`: of each model,
    how many classes the metrics count one by one; 0: predictions are not counted.
    """

    def __init__(self, metrics: Metrics, repository: Repository, counted_classes: int = 0) -> None:
        self.metrics = metrics
        self._counted_classes = counted_classes
        self.repository = repository
        self.draining = self.refusing = False
        self.follow: Follow | None = None

    @property
    def models(self) -> Mapping[str, Model]:
        """The models being served."""
        return self.repository.models

    def unready(self) -> dict[str, str]:
        """Reasons by model that is not ready; empty if the service is ready."""
        if self.draining:
            return dict.fromkeys(self.models, "the service is shutting down")
        return {name: model.reason for name, model in self.models.items() if not model.ready}

    def find(self, name: str | None) -> Model:
        """The model of that name; None: the default one.

        Raises:
            UnknownModel: no such model; the message suggests names.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel.called(name, self.models)
        return self.models[name]

    def check(self, model: Model, k: int | None, load: Load | None) -> int:
        """The number of predictions to return, 0 of a model without classes; refuses what it can
        before the body arrives.

        `load`: the request's; None: the queue has been checked for it.

        Raises:
            BadParameter: `k` is not between 1 and the number of classes.
            NotReady: the model is loading, or its engine is down.
            QueueFull: its queue is full, or too long to compute an image in time.
        """
        if self.refusing:
            self.check_open()
        classes = len(model.labels)
        if k is not None and not 1 <= k <= classes:
            raise BadParameter(f"top_k must be from 1 to {classes}, not {k}")
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        if load is not None:
            model.check(load)
        return min(5, classes) if k is None else k

    def check_open(self) -> None:
        """Raises `NotReady`: the grace period of a shutdown is over."""
        if self.refusing:
            raise NotReady("the service is shutting down; retry on another replica", RETRY_SECONDS)

    async def compute(
        self,
        model: Model,
        image: bytes | Pixels,
        deadline: float,
        task: Task = CLASSIFY,
        priority: Priority = Priority.NORMAL,
        received: float = 0.0,
    ) -> Computed:
        """`Model.compute`, counted and traced.

        `received`: when the request's last byte arrived, by `time.perf_counter`; 0: now.

        Raises:
            TooLarge: the image alone exceeds the limit on bytes in the model's queue.
        """
        size, most = _bytes_of(image), model.settings.max_queue_bytes
        if size > most:  # However often it is sent again.
            raise TooLarge(f"the image has {size} bytes; the limit of {model.name} is {most}")
        now = time.perf_counter()
        expires = now + deadline - asyncio.get_running_loop().time()
        job: Job[ImageInput, Row] = Job(task, priority, expires, received or now)
        exemplar = None
        try:
            computed = await model.compute(image, job, deadline)
        finally:
            if self.follow is not None and job.admitted:
                exemplar = self.follow(model, job, sys.exception())
        self.metrics.classified(model.name, computed.phases, exemplar)
        if self._counted_classes and computed.model.labels:
            self._count_prediction(model.name, computed)
        return computed

    def _count_prediction(self, name: str, computed: Computed) -> None:
        # The first by number: every process and every replica gives the same classes a series.
        row, labels = computed.row, computed.model.labels
        best = int(row.classes[0])
        counted = best if best < self._counted_classes else None
        self.metrics.predicted(name, counted, labels[best], float(row.probabilities[0]))


async def decode_and_queue(
    model: Model,
    decoder: Decoder,
    queue: Queue,
    image: bytes | Pixels,
    job: Job[ImageInput, Row],
    deadline: float,
    *,
    on_device: bool = False,
) -> Computed:
    """`Model.compute` where the model's queue is on this host; `on_device`: its engines decode
    plain JPEGs."""
    started, exact = time.perf_counter(), model.settings.exact_decode
    if not isinstance(image, bytes):
        check_pixels(image, model.input)
    queue.admit(job, _bytes_of(image))
    # Cheaper than a timeout, which would also have to tell its own cancellation from others.
    expiry = asyncio.get_running_loop().call_at(deadline, _expire, job.future)
    file: JpegFile | None = None
    try:
        if not isinstance(image, bytes):
            decoded = _as_decoded(image)
        elif (tiny := decoder.decode_tiny(image, model.input, exact)) is not None:
            decoded = tiny
        # An explanation is drawn over the pixels, which are needed here.
        elif (
            on_device
            and not isinstance(job.task, Explain)
            and (file := of_plain_file(image, model.input, decoder.max_pixels)) is not None
        ):
            decoded = _as_decoded(NO_PIXELS, (file.width, file.height))
        else:
            async with before(deadline):
                decoded = await decoder.decode(image, model.input, exact)
        job.decoding, job.decoded = decoded.began, decoded.ended
        payload = decoded.pixels if file is None else file
        queue.submit(job, payload, payload.nbytes)
        row = await job.future
    finally:
        expiry.cancel()
        job.future.cancel()  # Frees the slot, unless the job is done.
    if time.perf_counter() > job.deadline:  # The event loop was late.
        raise DeadlineExceeded.passed()
    decode = job.decoded - job.decoding
    return Computed(
        model=model,
        row=row,
        decoded=decoded,
        accept=max(0.0, started - job.received),
        decode=decode,
        queue=max(0.0, job.started - job.admitted - decode),
        inference=job.finished - job.started,
        total=time.perf_counter() - job.received,
        batch_size=job.batch_size,
    )


def _expire(future: asyncio.Future[Row]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded.passed())
        future.exception()  # Else asyncio logs it if decoding ends with another error.


def _bytes_of(image: bytes | Pixels) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


def _as_decoded(pixels: Pixels, size: tuple[int, int] | None = None) -> DecodedImage:
    """Pixels that need no decoding here; `size` None: their own."""
    now = time.perf_counter()
    return DecodedImage(pixels, now, now, size or (pixels.shape[1], pixels.shape[0]))


def check_classes(model: Model) -> None:
    """Raises `BadParameter`: the model has no classes."""
    if not model.labels:
        raise BadParameter(f"the model {model.name} has no classes; use POST /v1/embed")


def check_pixels(pixels: Pixels, input: InputSpec) -> None:
    """Refuses pixels that the model does not accept.

    Raises:
        BadParameter: they have the wrong shape or are out of range.
    """
    if pixels.shape != input.shape:
        raise BadParameter(f"the pixels must be {list(input.shape)}, not {list(pixels.shape)}")
    # In this form, the condition also refuses NaN.
    if pixels.dtype != np.uint8 and not (pixels.min() >= LEAST and pixels.max() <= MOST):
        raise BadParameter(
            f"pixels must be numbers from {LEAST:g} to {MOST:g}, where 0 is black and 255 white"
        )
