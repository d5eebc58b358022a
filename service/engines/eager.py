"""Plain PyTorch: autocast, channels-last, batches padded to a few sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.classifier import Classifier

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def buckets(max_batch: int) -> list[int]:
    """The batch sizes that are computed: powers of two, and `max_batch`."""
    sizes = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch]
    return [*sizes, max_batch]


class EagerEngine:
    """See `service.engines.Engine`."""

    name = "eager"

    def __init__(self, bundle: Bundle, device: str, precision: str, max_batch: int) -> None:
        self.device = device
        self.precision = precision
        self.buckets = buckets(max_batch)
        self._device = torch.device(device)
        classifier = Classifier(bundle.network(), bundle.input).eval()
        # With several devices, each takes a copy; on one CPU they share the bundle's memory.
        self._classifier = classifier.to(self._device)
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        side = bundle.input.size
        # Pinned memory lets the copy to a CUDA device run without a detour.
        self._staging = torch.zeros(
            (max_batch, side, side, 3),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        self._slab: NDArray[np.uint8] = self._staging.numpy()

    def warm_up(self) -> None:
        blank = np.zeros(self._slab.shape[1:], dtype=np.uint8)
        for size in self.buckets:
            probabilities = self.infer([blank] * size)
            if not np.isfinite(probabilities).all():
                raise RuntimeError(f"the network gives NaN in {self.precision} on {self.device}")

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        count = len(images)
        bucket = next(size for size in self.buckets if size >= count)
        np.stack(images, out=self._slab[:count])
        dtype = DTYPES[self.precision]
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32),
        ):
            batch = self._staging[:bucket].to(self._device, non_blocking=True)
            probabilities: NDArray[np.float32] = self._classifier(batch)[:count].cpu().numpy()
            return probabilities
