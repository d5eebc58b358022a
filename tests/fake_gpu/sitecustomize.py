"""Fake CUDA devices in every process that finds this file on its PYTHONPATH and imports torch.

Python imports it before anything else. `FAKE_GPUS` is how many devices there are. `FAKE_GPUS_LOST`
may name a file that lists, by their numbers, those that fail every call, as long as it says so.
With `FAULTS`, the engines fail on command as well: see `tests/faults/sitecustomize.py`.

What is launched is not judged: that takes a debugger's time. See `tests/support/fake_cuda.py`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

COUNT = int(os.environ["FAKE_GPUS"])
LOST = os.environ.get("FAKE_GPUS_LOST")
# For the rest of the process.
forever = ExitStack()


def begin() -> None:
    from tests.support.fake_cuda import fake_cuda

    fake = forever.enter_context(fake_cuda(COUNT, judge=False))
    if LOST is not None:
        listed = Path(LOST)

        def is_lost(device: int) -> bool:
            try:
                return str(device) in listed.read_text().split()
            except FileNotFoundError:
                return False

        fake.is_lost = is_lost


class Loader(importlib.abc.Loader):
    """Loads torch, and then its devices."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        begin()


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = Loader(spec.loader)
        return spec


sys.path.insert(0, str(Path(__file__).parents[2]))
sys.meta_path.insert(0, Finder())
if "FAULTS" in os.environ:
    import tests.faults.sitecustomize  # noqa: F401
