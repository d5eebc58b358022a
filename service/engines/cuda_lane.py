"""Memory for one batch in flight on a CUDA device, all allocated before the first batch."""

from __future__ import annotations

import torch
from torch import Tensor

from service.engines.blueprint import Blueprint

# Images that are not whole numbers pass through a buffer of so many: few clients send any.
FRACTIONAL = 16


class CudaLane:
    """Buffers for batches of up to `max_batch` images B of H x W pixels and C channels, for F
    features, and for K classes, perhaps none.

    On the device: `pixels` uint8 [B, H, W, C] and `images`, the same normalised, [B, H, W, C];
    `maps` [B, F, h, w] and their means `features` float32 [B, F]; `classes` int32 [B, K] and
    `probabilities` float32 [B, K], ranked; `targets` int64 [B], classes to explain, -1: the most
    likely; `activation` float32 [B, h * w + 1], maps of those classes and their biases.
    `images` and `maps` are of the network's dtype.

    Pinned on the host: the same with the prefix `host_`. `filled` is recorded when the images are
    there, `computed` when the results are back. Waiting for the latter sleeps.
    """

    def __init__(
        self, blueprint: Blueprint, dtype: torch.dtype, map_shape: tuple[int, int, int]
    ) -> None:
        batch, image = blueprint.max_batch, blueprint.bundle.input.shape
        classes = blueprint.bundle.architecture.num_classes
        channels, *sides = map_shape
        cells = sides[0] * sides[1]
        device = torch.device(blueprint.device)
        shapes = {
            "pixels": ((batch, *image), torch.uint8),
            "classes": ((batch, classes), torch.int32),
            "probabilities": ((batch, classes), torch.float32),
            "features": ((batch, channels), torch.float32),
            "targets": ((batch,), torch.int64),
            "activation": ((batch, cells + 1), torch.float32),
        }

        def on_host(name: str) -> Tensor:
            shape, kind = shapes[name]
            return torch.empty(shape, dtype=kind, pin_memory=True)

        def on_device(name: str) -> Tensor:
            shape, kind = shapes[name]
            return torch.empty(shape, dtype=kind, device=device)

        self.host_pixels, self.pixels = on_host("pixels"), on_device("pixels")
        # What is read as an index must be one, also in rows of a lane that no image has filled.
        self.host_classes, self.classes = on_host("classes"), on_device("classes").zero_()
        self.host_probabilities = on_host("probabilities")
        self.probabilities = on_device("probabilities")
        self.host_features, self.features = on_host("features"), on_device("features")
        self.host_targets, self.targets = on_host("targets"), on_device("targets").zero_()
        self.host_activation, self.activation = on_host("activation"), on_device("activation")
        self.images = torch.zeros((batch, *image), dtype=dtype, device=device)
        self.maps = torch.zeros((batch, *map_shape), dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        self.filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


class FractionalPixels:
    """A buffer float32 [P, H, W, C] for pixels between whole numbers, which the lanes share.

    `host` is pinned; `copied` is recorded when it may be filled again.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        shape = (min(FRACTIONAL, blueprint.max_batch), *blueprint.bundle.input.shape)
        self.host = torch.empty(shape, pin_memory=True)
        self.device = torch.empty(shape, device=torch.device(blueprint.device))
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
