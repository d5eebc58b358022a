"""Engines on a CUDA device: copies and computation overlap, with two batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engines.blueprint import Blueprint
from service.ranking import Ranking


class CudaEngine:
    """See `service.engines.Engine`. `classify`: uint8 [N, H, W, 3] to probabilities [N, K].

    With `graphs`, each batch size is captured once as a CUDA graph and replayed from then on: a
    ResNet's hundreds of launches become one.
    """

    in_flight = 2

    def __init__(
        self,
        name: str,
        blueprint: Blueprint,
        classify: Callable[[Tensor], Tensor],
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
        self._classify = classify
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] | None = {} if graphs else None

    def launch(self, images: Sequence[NDArray[np.uint8]], size: int) -> Callable[[], Ranking]:
        # The worker collects a lane's batch before it launches the next one there.
        index, self._next = self._next, (self._next + 1) % self.in_flight
        lane, count = self._lanes[index], len(images)
        np.stack(images, out=lane.staging.numpy()[:count])
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                lane.images[:size].copy_(lane.staging[:size], non_blocking=True)
                lane.copied.record(self._copying)
            with torch.cuda.stream(self._computing):
                self._computing.wait_event(lane.copied)
                self._compute(index, size)
                lane.found_classes[:count].copy_(lane.classes[:count], non_blocking=True)
                lane.found[:count].copy_(lane.probabilities[:count], non_blocking=True)
                lane.computed.record(self._computing)

        def collect() -> Ranking:
            lane.computed.synchronize()
            # Copies: the lane's memory is the next batch's.
            return Ranking(
                lane.found_classes[:count].numpy().copy(), lane.found[:count].numpy().copy()
            )

        return collect

    def _compute(self, index: int, size: int) -> None:
        if self._graphs is None:
            self._forward(self._lanes[index], size)
            return
        graph = self._graphs.get((index, size))
        if graph is None:
            graph = self._graphs[index, size] = self._capture(self._lanes[index], size)
        graph.replay()

    def _forward(self, lane: _Lane, size: int) -> None:
        probabilities = self._classify(lane.images[:size])
        # Stable, so that equal probabilities stay in the order of their classes.
        found, classes = probabilities.sort(dim=1, descending=True, stable=True)
        lane.probabilities[:size].copy_(found)
        lane.classes[:size].copy_(classes)

    def _capture(self, lane: _Lane, size: int) -> torch.cuda.CUDAGraph:
        # Algorithms are chosen and memory is taken in plain runs: neither can be captured.
        for _ in range(3):
            self._forward(lane, size)
        self._computing.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool(), stream=self._computing):
            self._forward(lane, size)
        return graph

    def _pool(self) -> Any:
        """The memory of the graphs so far: they run one after another and can share it."""
        assert self._graphs is not None
        return next(iter(self._graphs.values())).pool() if self._graphs else None


class _Lane:
    """Memory for one batch in flight: pinned on the host, and on the device."""

    def __init__(self, blueprint: Blueprint, device: torch.device) -> None:
        side, classes = blueprint.bundle.input.size, blueprint.bundle.architecture.num_classes
        images, ranks = (blueprint.max_batch, side, side, 3), (blueprint.max_batch, classes)
        self.staging = torch.zeros(images, dtype=torch.uint8, pin_memory=True)
        self.found_classes = torch.empty(ranks, dtype=torch.int32, pin_memory=True)
        self.found = torch.empty(ranks, dtype=torch.float32, pin_memory=True)
        self.images = torch.zeros(images, dtype=torch.uint8, device=device)
        self.classes = torch.empty(ranks, dtype=torch.int32, device=device)
        self.probabilities = torch.empty(ranks, dtype=torch.float32, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
