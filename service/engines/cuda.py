"""Engines on a CUDA device: copies and kernels overlap, with two batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from service.engines.blueprint import Blueprint
from service.engines.jpeg import Image
from service.inference.ranking import Ranking
from service.inference.tasks import Classify, Task


class CudaEngine:
    """See `service.engines.engine.Engine`.

    `classify`: pixels [N, H, W, 3] to probabilities [N, K] and maps [N, C, h, w]. With `graphs`,
    each batch size is captured once as a CUDA graph and then replayed: a ResNet's hundreds of
    kernel launches become one.
    """

    in_flight = 2
    tuning = None

    def __init__(
        self,
        name: str,
        blueprint: Blueprint,
        classify: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        graphs: bool = False,
    ) -> None:
        self.name = name
        self.device = blueprint.device
        self.precision = blueprint.precision
        self._device = torch.device(blueprint.device)
        self._copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._lanes = [_Lane(blueprint, self._device) for _ in range(self.in_flight)]
        self._next = 0
        self._head = blueprint.head()
        self._classify = classify
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] | None = (
            {} if graphs else None
        )

    @property
    def graphs(self) -> int:
        return len(self._graphs or ())

    def prepare(self, size: int) -> None:
        pass

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        # The engine thread collects a lane's batch before it launches the next one there.
        maps = any(not isinstance(task, Classify) for task in tasks)
        index, self._next = self._next, (self._next + 1) % self.in_flight
        lane, count = self._lanes[index], len(images)
        whole = all(image.dtype in (np.uint8, torch.uint8) for image in images)
        buffer = lane.whole if whole else lane.fractional()
        staging = buffer.staging.numpy()
        decoded = {row: image for row, image in enumerate(images) if isinstance(image, Tensor)}
        for row, image in enumerate(images):
            if row not in decoded:
                staging[row] = image
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                buffer.images[:size].copy_(buffer.staging[:size], non_blocking=True)
                for row, image in decoded.items():
                    buffer.images[row].copy_(image)
                lane.copied.record(self._copying)
            with torch.cuda.stream(self._computing):
                self._computing.wait_event(lane.copied)
                self._compute(index, size, whole=whole)
                host_maps = lane.fetch_maps(count) if maps else None
                lane.host_classes[:count].copy_(lane.classes[:count], non_blocking=True)
                lane.host_probabilities[:count].copy_(lane.probabilities[:count], non_blocking=True)
                lane.computed.record(self._computing)

        def collect() -> Ranking:
            lane.computed.synchronize()
            # Copies: the lane's memory is the next batch's.
            ranking = Ranking(
                lane.host_classes[:count].numpy().copy(),
                lane.host_probabilities[:count].numpy().copy(),
            )
            if host_maps is not None:
                found = zip(tasks, host_maps.numpy(), ranking.classes, strict=True)
                details = [self._head.detail(task, each, int(top[0])) for task, each, top in found]
                ranking = ranking._replace(details=details)
            return ranking

        return collect

    def _compute(self, index: int, size: int, *, whole: bool) -> None:
        lane = self._lanes[index]
        images = (lane.whole if whole else lane.fractional()).images[:size]
        if self._graphs is None:
            self._forward(lane, images)
            return
        graph = self._graphs.get((index, size, whole))
        if graph is None:
            graph = self._graphs[index, size, whole] = self._capture(lane, images)
        graph.replay()

    def _forward(self, lane: _Lane, images: Tensor) -> None:
        size = len(images)
        probabilities, maps = self._classify(images)
        # Stable: equal probabilities stay in the order of their classes.
        ordered, classes = probabilities.sort(dim=1, descending=True, stable=True)
        lane.probabilities[:size].copy_(ordered)
        lane.classes[:size].copy_(classes)
        lane.keep_maps(maps)

    def _capture(self, lane: _Lane, images: Tensor) -> torch.cuda.CUDAGraph:
        # Plain runs choose algorithms and allocate memory: neither can be captured.
        for _ in range(3):
            self._forward(lane, images)
        self._computing.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool(), stream=self._computing):
            self._forward(lane, images)
        return graph

    def _pool(self) -> Any:
        """The memory of earlier graphs, which all share: they run one after another."""
        assert self._graphs is not None
        return next(iter(self._graphs.values())).pool() if self._graphs else None


class _PixelBuffer(NamedTuple):
    """Memory for the pixels of a batch: `staging` pinned on the host, `images` on the device."""

    staging: Tensor
    images: Tensor

    @staticmethod
    def allocate(blueprint: Blueprint, device: torch.device, dtype: torch.dtype) -> _PixelBuffer:
        side = blueprint.bundle.input.size
        shape = (blueprint.max_batch, side, side, 3)
        pinned = torch.zeros(shape, dtype=dtype, pin_memory=True)
        return _PixelBuffer(pinned, torch.zeros(shape, dtype=dtype, device=device))


class _Lane:
    """Memory for one batch in flight: pinned on the host, and on the device."""

    def __init__(self, blueprint: Blueprint, device: torch.device) -> None:
        self.whole = _PixelBuffer.allocate(blueprint, device, torch.uint8)
        # Few clients send anything but whole numbers.
        self.fractional = cache(partial(_PixelBuffer.allocate, blueprint, device, torch.float32))
        ranks = (blueprint.max_batch, blueprint.bundle.architecture.num_classes)
        self.host_classes = torch.empty(ranks, dtype=torch.int32, pin_memory=True)
        self.host_probabilities = torch.empty(ranks, dtype=torch.float32, pin_memory=True)
        self.classes = torch.empty(ranks, dtype=torch.int32, device=device)
        self.probabilities = torch.empty(ranks, dtype=torch.float32, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._max_batch = blueprint.max_batch
        self._maps: Tensor | None = None
        self._host_maps: Tensor | None = None

    def keep_maps(self, maps: Tensor) -> None:
        """Copies a batch's maps [N, C, h, w] out of memory that the next forward overwrites."""
        if self._maps is None:
            self._maps = maps.new_empty((self._max_batch, *maps.shape[1:]), dtype=torch.float32)
        self._maps[: len(maps)].copy_(maps)

    def fetch_maps(self, count: int) -> Tensor:
        """The host memory that holds the first `count` images' maps once the batch is computed."""
        assert self._maps is not None
        if self._host_maps is None:
            self._host_maps = torch.empty(self._maps.shape, pin_memory=True)
        self._host_maps[:count].copy_(self._maps[:count], non_blocking=True)
        return self._host_maps[:count]
