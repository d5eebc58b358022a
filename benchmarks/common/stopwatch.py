"""Times a training loop from inside, without its first steps."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SAMPLE_MS = 100


class Enough(Exception):
    """Ends a loop that has been measured."""


class Stopwatch:
    """Times the steps of a loop that counts.

    `lap` is called after any step, every one or not, and raises `Enough` after the last.
    """

    def __init__(self, *, warm_up: int, steps: int, batch_size: int, device: str) -> None:
        self.warm_up, self.steps, self.batch_size = warm_up, steps, batch_size
        self.device = device
        self.busy: list[float] = []
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._sampling = _sampled(device, self.busy)

    def lap(self, step: int) -> None:
        """`step`: the number of steps that are done."""
        if self._first is None:
            if step >= self.warm_up:
                self._first = step, self._now()
                self._sampling.__enter__()
        elif step >= self._first[0] + self.steps:
            self._last = step, self._now()
            self._sampling.__exit__(None, None, None)
            raise Enough

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def figures(self) -> dict[str, Any]:
        """Steps, seconds, images/s, and a GPU's mean busy share where it could be had."""
        assert self._first is not None
        assert self._last is not None
        steps, seconds = (last - first for first, last in zip(self._first, self._last, strict=True))
        found = {
            "steps": steps,
            "seconds": round(seconds, 3),
            "images_per_second": round(steps * self.batch_size / seconds, 1),
        }
        return found | ({"busy": round(statistics.fmean(self.busy), 3)} if self.busy else {})


@contextmanager
def _sampled(device: str, shares: list[float]) -> Iterator[None]:
    """Adds a GPU's busy shares, as its driver samples them, until the end; of no CPU."""
    program = shutil.which("nvidia-smi")
    if program is None or not device.startswith("cuda"):
        yield
        return
    gpu = torch.cuda.get_device_properties(device).uuid
    query = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
    command = [program, *query, f"--id=GPU-{gpu}", f"--loop-ms={SAMPLE_MS}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield
        finally:
            sampler.terminate()
            said, _ = sampler.communicate()
    shares += [int(line) / 100 for line in said.splitlines() if line.strip().isdigit()]
