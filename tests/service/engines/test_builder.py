"""Which engines are built, and how long the weights are held for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from models.extras import install
from service.config.settings import ModelSettings, Settings
from service.engines import builder, devices
from service.engines.builder import EngineBuilder


@dataclass(eq=False)
class Weights:
    """Stands in for a bundle, and for the blueprint and the engines that are made of it."""

    progress: Callable[[str], object] = str


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that are built, in order."""
    built: list[str] = []
    monkeypatch.setattr(builder, "blueprint_of", lambda bundle, **_: bundle)
    monkeypatch.setattr(builder, "start_first", lambda kinds, *_: built.extend(kinds))
    monkeypatch.setattr(builder, "start_engine", lambda kind, *_: built.append(kind))
    monkeypatch.setattr(devices, "has_openvino", lambda: False)
    return built


def made(device: str, read: Any = None, **settings: Any) -> tuple[EngineBuilder, Any]:
    """A builder, and a reference to its weights, which only it holds."""
    weights: Any = Weights()
    row = ModelSettings(spec="random:resnet20", **settings)
    engines = EngineBuilder(weights, read, row, Settings(models=[row]), device, 0.0, nullcontext)
    return engines, weakref.ref(weights)


def test_weights_are_free_when_no_better_engine_needs_them(kinds: list[str]) -> None:
    engines, weights = made("cpu", engine="eager")
    assert weights() is not None
    assert not engines.better_kinds
    engines.first(str)
    assert weights() is None
    assert kinds == ["eager"]


def test_weights_are_held_until_better_engines_are_built(kinds: list[str]) -> None:
    engines, weights = made("cpu")
    engines.first(str)
    assert engines.better_kinds == ["compile"]
    for build in engines.better():
        assert weights() is not None
        build()
    del build
    assert weights() is None
    assert kinds == ["eager", "compile"]


def test_a_cpu_without_openvino_is_told_once_what_to_install(
    kinds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    devices.advise_openvino.cache_clear()
    for device, engine in (("cuda:0", "auto"), ("cpu", "eager"), ("cpu", "auto"), ("cpu", "auto")):
        made(device, engine=engine)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith(install("cpu"))


def test_another_engine_is_of_the_kind_that_failed_and_its_weights_are_read(
    kinds: list[str],
) -> None:
    read: list[Weights] = []
    engines, _ = made("cpu", lambda: read.append(Weights()))
    engines.rebuild("compile")
    engines.rebuild(None)  # The first engine never started.
    assert len(read) == 2
    assert kinds == ["compile", "eager"]
