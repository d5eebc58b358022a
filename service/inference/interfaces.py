"""What the endpoints are given, wherever the engines run: models, and the repository of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.preprocess import InputSpec
from service.config.settings import ModelSettings
from service.inference.batcher import Job
from service.inference.decoding import Decoded
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import Pixels
from service.metrics import PHASES


def batch_share(settings: ModelSettings) -> int:
    """How many slots of a model's queue one request with many images takes at a time."""
    return max(1, min(settings.max_batch, settings.max_queue // 2))


@dataclass(frozen=True, slots=True)
class Computed:
    """What a model made of one image; times in seconds.

    `model` is what computed it, whose labels are the row's; `queue` is all waiting: for a decoding
    thread and for the engine.
    """

    model: Model
    row: Row
    decoded: Decoded
    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, as the metrics count them."""
        return {phase: getattr(self, phase) for phase in PHASES}


class Model(Protocol):
    """What serves under a name, whether its engines run in this process or in another.

    `settings` are those that it was loaded with; `input` is its input specification; `channels` is
    how wide the head's input is, `map_side` how high and wide the maps are that it is the mean of;
    `batch_share` is how many slots of the queue one request with many images takes at a time;
    `users` counts the requests that use the model, which may be replaced meanwhile; `reason` says
    why it is not ready.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> ModelSettings: ...
    @property
    def input(self) -> InputSpec: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def channels(self) -> int: ...
    @property
    def map_side(self) -> int: ...
    @property
    def batch_share(self) -> int: ...
    @property
    def users(self) -> RefCount: ...
    @property
    def ready(self) -> bool: ...
    @property
    def reason(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """The model's entry in `GET /v1/models`."""

    def check(self, within: float) -> None:
        """Refuses what the queue could not take now.

        Raises:
            QueueFull: no slot is free, or an image would not be computed `within` seconds.
        """

    async def compute(
        self, image: bytes | Pixels, job: Job[Pixels, Row], deadline: float
    ) -> Computed:
        """What the network makes of one image: a file, or pixels [H, W, 3] of the input's size.

        `job` says what is wanted, and records when it happened; `deadline` is a time of the event
        loop's clock. Cancelling the call, as when the client disconnects, frees the image's slot.

        Raises:
            UndecodableImage, TooLarge: see `service.inference.decoding.decode`.
            BadParameter: the pixels are not of the model's size, or out of range.
            QueueFull: the queue has no slot.
            NotReady, EngineFailed: no engine could compute it.
            DeadlineExceeded: the deadline passed first.
        """


class Repository(Protocol):
    """All models by name; the first is the default one.

    `put` and `delete` change them, as `service.repository.registry` describes: a change makes a new
    mapping, and a request that found its model in the old one is still served by it.
    """

    @property
    def models(self) -> Mapping[str, Model]: ...
    async def put(self, settings: ModelSettings) -> bool: ...
    async def delete(self, name: str) -> None: ...
    def start(self) -> None:
        """Called by the running event loop."""

    def dead(self) -> dict[str, str]:
        """Why only another process can serve again, by model; empty if this one can."""

    def close(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for what computes; whether it ended."""
