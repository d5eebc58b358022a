"""The protocol of front ends and engine processes: frames on a socket, images in shared memory.

Each front end has a connection per model and device, with its own memory, so that models come and
go while others serve. A frame is a header, with the length of the body in bytes and its kind, and
the body: records of that kind, or JSON. Times are `time.perf_counter`, one clock per host.

    front end → engine    HELLO      JSON {"model", "shape"}, with the region's file descriptor
                          SUBMIT     Submit records
                          WITHDRAW   numbers of cancelled jobs
    engine → front end    STATE      JSON {"ready", "reason", "card"}
                          RESULT     JobResult records
                          REFUSAL    JSON [job, refusal]

Every submitted job gets exactly one RESULT or REFUSAL, withdrawn or not. Until then its slot
belongs to the engine, afterwards to the front end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from service.inference.tasks import CLASSIFY, Classify, Embed, Explain, Task
from service.workers.shared_memory import Content

HEADER = struct.Struct("<IB")
SUBMIT = struct.Struct("<QIddiBBIHH")
WITHDRAW = struct.Struct("<Q")
RESULT = struct.Struct("<QddIf")


class Kind(IntEnum):
    HELLO, SUBMIT, WITHDRAW, STATE, RESULT, REFUSAL = range(6)


class Submit(NamedTuple):
    """A job whose image is in its slot; the last four fields are the slot's `Content`."""

    job: int
    slot: int
    admitted: float
    deadline: float
    task: int
    priority: int
    form: int
    length: int
    width: int
    height: int

    @property
    def content(self) -> Content:
        return Content(self.form, self.length, self.width, self.height)


class JobResult(NamedTuple):
    """A job whose ranking is in its slot, unless it was withdrawn in time (`batch_size` 0).

    `slowdown`: the engine's; see `service.inference.pace.Pace`.
    """

    job: int
    started: float
    finished: float
    batch_size: int
    slowdown: float


def frame(kind: Kind, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind) + body


def message(kind: Kind, content: Any) -> bytes:
    """A frame with JSON."""
    return frame(kind, json.dumps(content).encode())


def content(body: bytes) -> Any:
    """The JSON of a frame's body."""
    return json.loads(body)


# Numbers of tasks; 0 and above: explain that class.
CLASSIFYING, EMBEDDING, EXPLAINING = -3, -2, -1


def number_of(task: Task) -> int:
    if isinstance(task, Classify):
        return CLASSIFYING
    if isinstance(task, Embed):
        return EMBEDDING
    return EXPLAINING if task.class_id is None else task.class_id


def task_of(number: int) -> Task:
    """The inverse of `number_of`."""
    if number == CLASSIFYING:
        return CLASSIFY
    if number == EMBEDDING:
        return Embed()
    return Explain(None if number == EXPLAINING else number)


def submits(body: bytes) -> Iterator[Submit]:
    return map(Submit._make, SUBMIT.iter_unpack(body))


def withdrawals(body: bytes) -> Iterator[int]:
    return (job for (job,) in WITHDRAW.iter_unpack(body))


def results(body: bytes) -> Iterator[JobResult]:
    return map(JobResult._make, RESULT.iter_unpack(body))


class Frames:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yields the complete frames."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Kind(kind), body
