"""What an engine is built from."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from models import hardware
from models.bundle import Bundle


@dataclass(frozen=True)
class Blueprint:
    """One network, where and how it shall run.

    `device`: cpu or cuda:N; `precision`: fp32, bf16, fp16 or int8; `threads`: of a CPU engine,
    None: chosen by measuring; `request_seconds`: CPU time of a request's HTTP, which the CPUs
    have to do beside the engine, 0: there is none; `cache`: a writable folder for what is worth
    keeping, or None; `fresh`: what was measured at an earlier start is measured again.
    """

    bundle: Bundle
    device: str
    precision: str
    max_batch: int
    threads: int | None
    request_seconds: float
    cache: Path | None
    fresh: bool = False

    def cached(self, kind: str, suffix: str, *details: object) -> Path | None:
        """Where a thing made of this blueprint lies between starts, in a folder that exists.

        Its name holds all that it depends on: weights, precision, hardware, versions, `details`.
        """
        if self.cache is None:
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
