"""The interfaces of models and their repository, wherever the engines run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.preprocess import InputSpec
from service.config.settings import Limits, ModelSettings
from service.inference.decoding import DecodedImage
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import ImageInput, Pixels
from service.metrics import PHASES


def batch_share(limits: Limits) -> int:
    """Slots of a model's queue that one request with many images may take at a time."""
    return max(1, min(limits.max_batch, limits.max_queue // 2))


@dataclass(frozen=True, slots=True)
class Computed:
    """A model's result for one image; times in seconds.

    `model` computed it, and its labels are those of the row; `accept` is the time from the arrival
    of the request until the service began with it; `queue` is all waiting time: for a decoding
    thread and for the engine; `total` is from the arrival on.
    """

    model: Model
    row: Row
    decoded: DecodedImage
    accept: float
    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, for the metrics."""
        return {phase: getattr(self, phase) for phase in PHASES}


class Model(Protocol):
    """A served model, whether its engines run in this process or in another.

    `settings`: those it was loaded with; `limits`: those in force on its devices; `input`: its
    input specification; `labels`: of its classes, none if the network has no head; `outputs`:
    whether the classes are "exclusive" or "independent"; `channels`: the width of the head's input;
    `map_sides`: height and width of the maps whose mean it is; `explains`: whether it has class
    activation maps, which take a head of one layer and maps of more than one position;
    `batch_share`: see the function; `users`: the requests that use the model, which may be replaced
    meanwhile; `entering`: requests that were let in and have no slot in the queue yet; `reason`:
    why it is not ready.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> ModelSettings: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def input(self) -> InputSpec: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def map_sides(self) -> tuple[int, int]: ...
    @property
    def explains(self) -> bool: ...
    @property
    def batch_share(self) -> int: ...
    @property
    def users(self) -> RefCount: ...

    entering: int

    @property
    def ready(self) -> bool: ...
    @property
    def reason(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """The model's entry in `GET /v1/models`."""

    def check(self, load: Load) -> None:
        """Checks that the queue has room.

        Raises:
            QueueFull: no slot is free, or an image would not be computed in time.
        """

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        """Runs the network on one image: a file, or pixels [H, W, C] of the input's size.

        `job` holds the task and records the times; `deadline` is a time of the event loop's clock.
        Cancelling the call, as when the client disconnects, frees the image's slot.

        Raises:
            UndecodableImage, TooLarge: see `service.inference.decoding.decode_image`.
            BadParameter: the pixels have the wrong shape or are out of range.
            QueueFull: no slot is free.
            NotReady, EngineFailed: no engine could compute it.
            DeadlineExceeded: the deadline passed first.
        """


class Repository(Protocol):
    """All models by name; the first is the default one.

    `put` and `delete` change them (see `service.repository.registry`). Each change makes a new
    mapping; the requests that found a model in the old one are still served by it.
    """

    @property
    def models(self) -> Mapping[str, Model]: ...
    async def put(self, settings: ModelSettings) -> bool: ...
    async def delete(self, name: str) -> None: ...
    def start(self) -> None:
        """Starts the models; called on the running event loop."""

    def dead(self) -> dict[str, str]:
        """By model, why this process cannot recover; empty if it can."""

    def close(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for batches being computed; whether all finished."""
