"""A change to a module when a process imports it, for the `sitecustomize` files of tests."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Collection, Sequence
from types import ModuleType

Change = Callable[[ModuleType], object]


def change_on_import(names: Collection[str], change: Change) -> None:
    """Has `change` called with each module of `names` as soon as it has been loaded."""
    sys.meta_path.insert(0, Finder(names, change))


class Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, change: Change) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, names: Collection[str], change: Change) -> None:
        self._names = names
        self._change = change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = Loader(spec.loader, self._change)
        return spec
