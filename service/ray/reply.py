"""What a replica tells the ingress."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from service.inference.ranking import Row
from service.inference.tasks import Pixels

# What the row of an answer is read by: it must be that of the replica that computed it.
VERSIONED = ("input", "labels", "channels", "map_side")


class Reply(NamedTuple):
    """What one image became; times in seconds.

    `facts` are the model's (see `facts_of`), where the caller has those of
    another version, as while a new model takes over; `pixels` what the network was given, for tasks
    that draw on them; `pace` the seconds of the engine's time for an image, as measured lately.
    """

    version: str
    facts: dict[str, Any] | None
    row: Row
    pixels: Pixels | None
    size: tuple[int, int]
    decode: float
    queue: float
    inference: float
    batch_size: int
    pace: float


class Refused(NamedTuple):
    """Why an image became nothing, as `service.errors.refusal_of` has it, and which replica
    says so: not an exception, which Ray would log and send as a traceback."""

    refusal: list[Any]
    replica: str


def version_of(facts: dict[str, Any]) -> str:
    """Differs where rows of one model mean something else than rows of the other."""
    told = json.dumps([facts[name] for name in VERSIONED])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
