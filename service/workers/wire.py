"""What a front end and the engine process exchange: frames on a socket, pixels in shared memory.

Each front end has a connection for each model, with memory of its own, so that models come and go
while others serve. A frame is a header, the length of its body in bytes and its kind, and the
body: as many records of that kind as were due at once, or JSON. Times are `time.perf_counter`,
one clock for a host.

    front end → engine    HELLO      JSON {"model", "shape"}, with the region's file descriptor
                          SUBMIT     Submit records
                          WITHDRAW   job numbers: their callers left
    engine → front end    STATE      JSON {"ready", "reason", "card"}
                          ANSWER     Finished records
                          REFUSAL    JSON [job, refusal]

Every submitted job gets exactly one ANSWER or REFUSAL, withdrawn or not: until then its slot is
the engine's, from then on the front end's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from service.inference.tasks import CLASSIFY, Classify, Embed, Explain, Task

HEADER = struct.Struct("<IB")
SUBMIT = struct.Struct("<QIdiB?")
WITHDRAW = struct.Struct("<Q")
ANSWER = struct.Struct("<QddIf")


class Kind(IntEnum):
    HELLO, SUBMIT, WITHDRAW, STATE, ANSWER, REFUSAL = range(6)


class Submit(NamedTuple):
    """A job whose pixels lie in its slot, as uint8 if they are `whole` numbers."""

    job: int
    slot: int
    admitted: float
    task: int
    priority: int
    whole: bool


class Finished(NamedTuple):
    """A job whose ranking lies in its slot, unless it was withdrawn before (`batch_size` 0).

    `seconds_per_job`: of the device's time, as measured lately.
    """

    job: int
    started: float
    finished: float
    batch_size: int
    seconds_per_job: float


def frame(kind: Kind, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind) + body


def message(kind: Kind, content: Any) -> bytes:
    """A frame with JSON."""
    return frame(kind, json.dumps(content).encode())


def content(body: bytes) -> Any:
    """What `message` was made of."""
    return json.loads(body)


# A task's number; those from 0 on are classes to explain.
CLASSIFYING, EMBEDDING, EXPLAINING = -3, -2, -1


def number_of(task: Task) -> int:
    if isinstance(task, Classify):
        return CLASSIFYING
    if isinstance(task, Embed):
        return EMBEDDING
    return EXPLAINING if task.class_id is None else task.class_id


def task_of(number: int) -> Task:
    """What `number_of` was given."""
    if number == CLASSIFYING:
        return CLASSIFY
    if number == EMBEDDING:
        return Embed()
    return Explain(None if number == EXPLAINING else number)


def submits(body: bytes) -> Iterator[Submit]:
    return map(Submit._make, SUBMIT.iter_unpack(body))


def withdrawals(body: bytes) -> Iterator[int]:
    return (job for (job,) in WITHDRAW.iter_unpack(body))


def answers(body: bytes) -> Iterator[Finished]:
    return map(Finished._make, ANSWER.iter_unpack(body))


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that are now complete."""
        self._rest += data
        while len(self._rest) >= HEADER.size:
            length, kind = HEADER.unpack_from(self._rest)
            end = HEADER.size + length
            if len(self._rest) < end:
                return
            body = bytes(self._rest[HEADER.size : end])
            del self._rest[:end]
            yield Kind(kind), body
