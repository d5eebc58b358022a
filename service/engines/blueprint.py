"""What an engine is built from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models import hardware
from models.bundle import Bundle
from service.engines.comparison import Comparison, comparison_of
from service.engines.network_head import Head, Linear


@dataclass(frozen=True)
class Blueprint:
    """One network, and where and how it runs.

    `device`: cpu or cuda:N; `precision`: fp32, bf16, fp16 or int8; `threads`: of a CPU engine,
    None: chosen by measuring; `request_seconds`: CPU time that HTTP takes for a request beside the
    engine, 0: there is no HTTP; `cache`: a writable folder, or None; `fresh`: measures again what
    an earlier start measured; `turn`: a context in which nothing else uses the device; `decode`:
    "device" if it is to decode JPEGs, else "host"; `progress` is told what a start does now.
    """

    bundle: Bundle
    device: str
    precision: str
    max_batch: int
    threads: int | None
    request_seconds: float
    cache: Path | None
    fresh: bool = False
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    decode: str = "host"
    progress: Callable[[str], object] = lambda _: None

    def head(self) -> Head:
        """The network's head; one of its own has no layers that are known here."""
        names = () if self.bundle.head else self.bundle.architecture.head_names
        return Head(
            tuple(Linear(*map(self._copy, (f"{name}.weight", f"{name}.bias"))) for name in names)
        )

    def _copy(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self.bundle.tensors[name].float().numpy().copy()
        return array

    @property
    def comparison(self) -> Comparison:
        """What the engine is timed and compared by."""
        return comparison_of(self.bundle.architecture.num_classes)

    def cached(self, kind: str, suffix: str, *details: object) -> Path | None:
        """The path of a cached file, in a folder that exists; None: nothing is kept.

        Its name depends on all that the file does: weights, precision, hardware, versions and
        `details`. Code of one's own may change without them, so nothing made of it is kept.
        """
        if self.cache is None or self.bundle.own_code:
            return None
        facts = (
            self.bundle.fingerprint(),
            self.precision,
            self.max_batch,
            hardware.describe(self.device),
            platform.python_version(),
            torch.__version__,
            *details,
        )
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
        return self.cache / f"{kind}-{digest}{suffix}"
