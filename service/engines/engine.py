"""An engine: one network on one device, from pixels to ranked probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engines.buckets import Buckets
from service.engines.comparison import PROBABILITIES, Comparison
from service.engines.jpeg import Image, JpegDecoder
from service.engines.parity import Parity
from service.engines.tuning import Tuning
from service.errors import RequestError
from service.inference.ranking import Ranking
from service.inference.tasks import ImageInput, JpegFile, Task


class Engine(Protocol):
    """What an engine thread drives; no other thread calls it.

    `name`: the kind; `device`: where it runs; `precision`: fp32, bf16, fp16 or int8;
    `in_flight`: how many batches may be launched before the first is collected; `tuning`: of an
    engine on the CPU, how many threads it has, and why; `graphs`: CUDA graphs that it captured.
    """

    name: str
    device: str
    precision: str
    in_flight: int

    @property
    def tuning(self) -> Tuning | None: ...
    @property
    def graphs(self) -> int: ...

    def prepare(self, size: int) -> None:
        """Allocates and captures all that batches padded to `size` need, before the first."""

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        """Starts to compute N images [H, W, C], padded to `size`.

        Those on the device are ready for any stream, and stay until the batch is collected.

        `tasks`: one for each image; empty: all are to be classified. Calling the result waits for
        the ranking. Batches are collected in the order in which they were launched.
        """


@dataclass(frozen=True)
class Warm:
    """An engine that has run every batch size and has been compared with fp32, by `comparison`.

    `probe` is one real forward, which raises if it fails or gives NaN. `decoder` decodes the files
    among its inputs; None: there are none.
    """

    engine: Engine
    buckets: Buckets
    parity: Parity
    probe: Callable[[], None]
    decoder: JpegDecoder | None = None
    comparison: Comparison = PROBABILITIES

    @property
    def decodes_on_device(self) -> bool:
        return self.decoder is not None and self.decoder.on_device

    def decode(self, inputs: Sequence[ImageInput]) -> list[Image | RequestError]:
        """The inputs as images for `launch`: pixels as they are, and of each file its image, or why
        it cannot be decoded.

        Raises:
            RuntimeError: no call to the device can succeed any more.
        """
        files = [each for each in inputs if isinstance(each, JpegFile)]
        decoded = iter(self.decoder.decode(files) if files and self.decoder else [])
        return [next(decoded) if isinstance(each, JpegFile) else each for each in inputs]

    def launch(self, images: Sequence[Image], tasks: Sequence[Task] = ()) -> Callable[[], Ranking]:
        """As the engine's, for at most `buckets.largest` images."""
        return self.engine.launch(images, self.buckets.fit(len(images)), tasks)

    def up_to(self, largest: int) -> Warm:
        """The same engine, with no larger batches than `largest` images are padded to."""
        return replace(self, buckets=self.buckets.up_to(self.buckets.fit(largest)))

    def expected(self, count: int) -> float:
        """Seconds that a batch of `count` images was measured to take."""
        return self.buckets.seconds[self.buckets.fit(count)]

    def infer(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Probabilities [N, K] of any number of images, in the order of the classes; or the
        features [N, F] of a network without classes."""
        step = self.buckets.largest
        pieces = [images[start : start + step] for start in range(0, len(images), step)]
        task, values = self.comparison.task, self.comparison.values
        return np.concatenate([values(self.launch(each, [task] * len(each))()) for each in pieces])

    def describe(self) -> dict[str, Any]:
        tuning = self.engine.tuning
        return {
            **({} if tuning is None else tuning.describe()),
            "batch_ms": {n: round(s * 1000, 3) for n, s in self.buckets.seconds.items()},
            "parity": asdict(self.parity),
        }


@dataclass(frozen=True)
class EngineEvents:
    """What is told of an engine: it serves; a batch of so many images took so many seconds; it
    failed; a batch did not fit into memory."""

    ready: Callable[[Warm], None]
    batch: Callable[[int, float], None]
    error: Callable[[], None]
    out_of_memory: Callable[[], None]
