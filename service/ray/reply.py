"""The replies of a replica to the ingress."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from service.inference.ranking import Row
from service.inference.tasks import Pixels

# The facts needed to interpret a row: they must come from the replica that computed it.
VERSIONED = ("input", "labels", "outputs", "channels", "map_sides", "explains")


class Reply(NamedTuple):
    """The result for one image; times in seconds.

    `facts`: the model's (see `facts_of`) if the caller has those of another version, as during a
    rollout; `pixels`: the network's input, for tasks that draw on it; `pace`: the engine's recently
    measured seconds per image.
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


class Refusal(NamedTuple):
    """A refusal as `service.errors.refusal_of` encodes it, and the replica's ID. Not an exception,
    which Ray would log and send with its traceback."""

    refusal: list[Any]
    replica: str


def version_of(facts: dict[str, Any]) -> str:
    """A hash that differs if rows of two models need different interpretation."""
    text = json.dumps([facts[name] for name in VERSIONED])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
