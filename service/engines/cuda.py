"""Engines on a CUDA device: copies and kernels overlap, with two batches in flight.

host                      stream `copying`                 stream `computing`
stack the images     ───▶ copy, normalise             ───▶ network, ranking, copy back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.classifier import Normalise, as_probabilities
from models.summary import map_sides
from models.views import averaged
from service.engines.blueprint import Blueprint
from service.engines.cuda_graph import capture, keep_memory_of_measuring
from service.engines.cuda_lane import CudaLane, FractionalPixels
from service.engines.jpeg import Image
from service.inference.ranking import Ranking
from service.inference.tasks import Classify, Embed, Explain, Task

LIKELIEST = -1


class CudaEngine:
    """See `service.engines.engine.Engine`.

    `build` makes the network on the device: a function from normalised images [N, C, H, W] of
    `dtype`, in channels-last memory, to maps [N, F, h, w]. In float32 it computes exactly, not in
    TF32, whose mantissa has 10 bits. With `graphs`, each batch size of each lane is captured as a
    CUDA graph before the first batch: a ResNet's hundreds of kernel launches become one, and
    serving allocates nothing.
    """

    in_flight = 2
    tuning = None

    def __init__(
        self,
        name: str,
        blueprint: Blueprint,
        build: Callable[[], Callable[[Tensor], Tensor]],
        dtype: torch.dtype,
        *,
        graphs: bool,
    ) -> None:
        self.name = name
        self.device = blueprint.device
        self.precision = blueprint.precision
        self._turn = blueprint.turn
        device = torch.device(blueprint.device)
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        torch.backends.cudnn.allow_tf32 = False
        keep_memory_of_measuring()
        bundle = blueprint.bundle
        # What is allocated and filled on the stream that uses it needs no other order, nor when it
        # is freed.
        with torch.inference_mode(), torch.cuda.stream(self._computing):
            self._network = averaged(build(), bundle.views)
            normalise = Normalise(bundle.input)
            self._scale, self._shift = (
                part.to(device) for part in (normalise.scale, normalise.shift)
            )
            head = blueprint.head()
            self._explains = head.explains
            # A head of the network's own, float32 [N, C] to [N, K]; else its layers are known.
            own = bundle.network().head if bundle.head else None
            self._own_head = None if own is None else own.to(device)
            self._layers = [
                tuple(torch.from_numpy(part).to(device) for part in layer) for layer in head.layers
            ]
            self._temperature, self._outputs = bundle.temperature, bundle.outputs
            sides = map_sides(bundle.skeleton(), bundle.input.size)
            shape = (bundle.architecture.out_channels, *sides)
            self._lanes = [CudaLane(blueprint, dtype, shape) for _ in range(self.in_flight)]
            self._fractional = FractionalPixels(blueprint)
        self._computing.synchronize()
        self._next = 0
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if graphs else None

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def prepare(self, size: int) -> None:
        """Captures what batches of `size` need in each lane.

        Raises:
            CaptureFailed: see there.
            RuntimeError: the network cannot be computed, for instance for lack of memory.
        """
        for index, lane in enumerate(self._lanes):
            programs = {(index, size): partial(self._classify, lane, size)}
            if self._explains:
                programs[index, 0] = partial(self._explain, lane)
            for key, run in programs.items():
                if self._pool is not None and key not in self._graphs:
                    with self._turn():
                        self._graphs[key] = capture(run, self._computing, self._pool)

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        # The engine thread collects a lane's batch before it launches the next one there.
        index, self._next = self._next, (self._next + 1) % self.in_flight
        lane, count = self._lanes[index], len(images)
        embeds = any(isinstance(task, Embed) for task in tasks)
        explains = self._explains and any(isinstance(task, Explain) for task in tasks)
        with torch.inference_mode():
            try:
                with torch.cuda.stream(self._copying):
                    self._fill(lane, images)
                    if explains:
                        lane.host_targets[:count].numpy()[...] = [_target(task) for task in tasks]
                        lane.targets[:count].copy_(lane.host_targets[:count], non_blocking=True)
                    lane.filled.record(self._copying)
                with torch.cuda.stream(self._computing):
                    self._computing.wait_event(lane.filled)
                    self._run((index, size), partial(self._classify, lane, size))
                    _fetch(lane.host_classes, lane.classes, count)
                    _fetch(lane.host_probabilities, lane.probabilities, count)
                    if embeds:
                        _fetch(lane.host_features, lane.features, count)
                    if explains:
                        self._run((index, 0), partial(self._explain, lane))
                        _fetch(lane.host_activation, lane.activation, count)
                    lane.computed.record(self._computing)
            except Exception:
                # Nobody collects what has begun, and the lane may be freed, or filled, at once.
                with suppress(Exception):
                    self._copying.synchronize()
                    self._computing.synchronize()
                raise

        def collect() -> Ranking:
            lane.computed.synchronize()
            # Copies: the lane's memory is the next batch's.
            return Ranking(
                lane.host_classes[:count].numpy().copy(),
                lane.host_probabilities[:count].numpy().copy(),
                [self._detail(lane, row, task) for row, task in enumerate(tasks)]
                if embeds or explains
                else (),
            )

        return collect

    def _fill(self, lane: CudaLane, images: Sequence[Image]) -> None:
        """Copies and normalises the images, on the current stream."""
        count = len(images)
        if all(image.dtype in (np.uint8, torch.uint8) for image in images):
            _copy(images, lane.host_pixels, lane.pixels)
            self._normalise(lane.pixels[:count], lane.images[:count])
            return
        buffer = self._fractional
        step = len(buffer.host)
        for start in range(0, count, step):
            part = images[start : start + step]
            buffer.copied.synchronize()
            _copy(part, buffer.host, buffer.device)
            self._normalise(buffer.device[: len(part)], lane.images[start : start + len(part)])
            buffer.copied.record(self._copying)

    def _normalise(self, pixels: Tensor, images: Tensor) -> None:
        # One kernel: computed in float32, rounded once.
        torch.addcmul(self._shift, pixels, self._scale, out=images)

    def _run(self, key: tuple[int, int], run: Callable[[], None]) -> None:
        if self._pool is None:
            run()
        else:
            self._graphs[key].replay()

    def _classify(self, lane: CudaLane, size: int) -> None:
        maps = self._network(lane.images[:size].permute(0, 3, 1, 2))
        lane.maps[:size].copy_(maps)
        # From here on in float32: 16 bits would tie classes in close decisions.
        features = maps.mean((2, 3), dtype=torch.float32)
        lane.features[:size].copy_(features)
        if self._own_head is not None:
            logits = self._own_head(features)
        elif self._layers:
            (weight, bias), *others = self._layers
            logits = F.linear(features, weight, bias)
            for weight, bias in others:
                logits = F.linear(logits.relu_(), weight, bias)
        else:
            return
        if self._temperature != 1.0:
            logits /= self._temperature
        probabilities = as_probabilities(logits, self._outputs)
        # Stable: equal probabilities stay in the order of their classes.
        ordered, classes = probabilities.sort(dim=1, descending=True, stable=True)
        lane.probabilities[:size].copy_(ordered)
        lane.classes[:size].copy_(classes)

    def _explain(self, lane: CudaLane) -> None:
        """The activation maps of the target classes, for the whole lane."""
        classes = torch.where(lane.targets == LIKELIEST, lane.classes[:, 0], lane.targets)
        ((weight, bias),) = self._layers
        weights = weight.index_select(0, classes)
        grids = torch.bmm(weights[:, None], lane.maps.flatten(2).float())
        lane.activation[:, :-1].copy_(grids[:, 0])
        lane.activation[:, -1].copy_(bias.index_select(0, classes))

    def _detail(self, lane: CudaLane, row: int, task: Task) -> NDArray[np.float32] | None:
        """A copy of what the task asks for besides the ranking; as `Head.detail`."""
        if isinstance(task, Classify) or (isinstance(task, Explain) and not self._explains):
            return None
        source = lane.host_features if isinstance(task, Embed) else lane.host_activation
        detail: NDArray[np.float32] = source[row].numpy().copy()
        return detail


def _copy(images: Sequence[Image], host: Tensor, device: Tensor) -> None:
    """Copies images to the first rows of `device`: decoded ones from there, others by `host`."""
    count, rows = len(images), host.numpy()
    decoded = {row: image for row, image in enumerate(images) if isinstance(image, Tensor)}
    for row, image in enumerate(images):
        if row not in decoded:
            rows[row] = image
    if len(decoded) < count:
        device[:count].copy_(host[:count], non_blocking=True)
    for row, image in decoded.items():
        device[row].copy_(image)


def _target(task: Task) -> int:
    return task.class_id if isinstance(task, Explain) and task.class_id is not None else LIKELIEST


def _fetch(host: Tensor, device: Tensor, count: int) -> None:
    host[:count].copy_(device[:count], non_blocking=True)
