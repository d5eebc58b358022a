"""Engines that fail on command, in every process that finds this file on its PYTHONPATH.

Python imports it before anything else. The commands are in the file that FAULTS names:

    raise       every forward fails, as long as the file says so
    once        one forward fails
    nan         every forward gives NaN for its first image
    oom N       every forward of more than N images finds no memory
    slow S      every forward takes S seconds longer for each of its images
    hang        a forward does not come back, as long as the file says so
    cuda        one forward poisons the process: none succeeds in it from then on

Beside it, a file with the suffix `.forwards` grows by a byte with each forward that is begun.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.import_hook import change_on_import

COMMANDS = Path(os.environ["FAULTS"])
FORWARDS = COMMANDS.with_suffix(".forwards")
POISON = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)


class Faulty:
    """An engine that does as it is told, else as the one it wraps."""

    poisoned = False  # of the process

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def launch(
        self, images: Sequence[Any], size: int, tasks: Sequence[Any] = ()
    ) -> Callable[[], Any]:
        with FORWARDS.open("ab") as forwards:
            forwards.write(b".")
        command, _, number = COMMANDS.read_text().strip().partition(" ")
        if command in ("once", "cuda"):
            COMMANDS.write_text("")
        while COMMANDS.read_text() == "hang":
            time.sleep(0.01)
        if command == "slow":
            time.sleep(float(number) * len(images))
        if command in ("raise", "once"):
            raise RuntimeError("the device does not answer")
        if command == "oom" and size > int(number):
            import torch

            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} GiB.")
        if command == "cuda":
            Faulty.poisoned = True
        if Faulty.poisoned:
            raise RuntimeError(POISON)
        collect = self._engine.launch(images, size, tasks)
        return (lambda: spoiled(collect())) if command == "nan" else collect


def spoiled(ranking: Any) -> Any:
    probabilities = ranking.probabilities.copy()
    probabilities[0] = float("nan")
    return ranking._replace(probabilities=probabilities)


def put_between(module: ModuleType) -> None:
    """Puts itself between the thread and every engine."""

    def faulty(build: Callable[[Any], Any]) -> Callable[[Any], Faulty]:
        return lambda blueprint: Faulty(build(blueprint))

    for kind, build in module.KINDS.items():
        module.KINDS[kind] = faulty(build)


change_on_import(["service.engines.start"], put_between)
