from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from service.engines.buckets import Buckets
from service.engines.engine import Warm
from service.engines.parity import Parity
from service.metrics import GpuUse, Metrics
from service.repository import model
from service.repository.model_info import ModelInfo


@dataclass
class Engine:
    device: str
    name = "fused"
    precision = "bf16"
    in_flight = 2
    tuning = None
    graphs = 18

    def prepare(self, size: int) -> None:
        raise NotImplementedError

    def launch(self, *arguments: Any) -> Any:
        raise NotImplementedError


@dataclass
class Meter:
    device: str

    def read(self) -> GpuUse:
        return GpuUse(temperature=50.0 + int(self.device[-1]))


def test_an_engine_that_becomes_ready_on_a_gpu_shows_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "meter_of", Meter)
    metrics = Metrics()
    info = ModelInfo(metrics, "a", "resnet50", "")
    info.show()
    for device in ("cpu", "cuda:1"):
        warm = Warm(Engine(device), Buckets({1: 0.1}), Parity(0, 1.0, 0.0), probe=lambda: None)
        model._announce(info, metrics, warm)
    text = metrics.render().decode()
    shown = [line for line in text.splitlines() if line.startswith("resnet_serve_gpu_")]
    assert shown == [
        'resnet_serve_gpu_graphs{device="cuda:1",model="a"} 18.0',
        'resnet_serve_gpu_temperature_celsius{device="cuda:1"} 51.0',
    ]
