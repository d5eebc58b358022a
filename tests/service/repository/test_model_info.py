from __future__ import annotations

import time

from service.metrics import Metrics
from service.repository.model_info import ModelInfo


def graphs(metrics: Metrics) -> dict[str, float]:
    (family,) = metrics.gpu_graphs.collect()
    return {sample.labels["device"]: sample.value for sample in family.samples}


def engines(metrics: Metrics) -> set[tuple[str, str]]:
    (family,) = metrics.model_info.collect()
    return {(sample.labels["device"], sample.labels["engine"]) for sample in family.samples}


def loaded(metrics: Metrics) -> dict[str, float]:
    (family,) = metrics.load_seconds.collect()
    return {sample.labels["device"]: sample.value for sample in family.samples}


def test_the_time_to_load_ends_with_the_first_engine_of_a_device() -> None:
    metrics = Metrics()
    info = ModelInfo(metrics, "a", "resnet50", "", began=time.perf_counter() - 40)
    info.announce("cpu", "fp32", "eager", 0)
    assert loaded(metrics) == {}
    info.show()
    assert 40 <= loaded(metrics)["cpu"] < 80
    first = loaded(metrics)
    info.announce("cpu", "fp32", "openvino", 0)  # Found to be better while the first one serves.
    assert loaded(metrics) == first
    info.hide()
    assert loaded(metrics) == {}


def test_a_model_shows_what_serves_on_each_device_and_its_graphs() -> None:
    metrics = Metrics()
    info = ModelInfo(metrics, "a", "resnet50", "0" * 64, began=0.0)
    info.announce("cuda:0", "bf16", "fused", 18)
    assert graphs(metrics) == {}
    assert engines(metrics) == set()
    info.show()
    info.announce("cuda:1", "bf16", "fused", 18)
    info.announce("cpu", "fp32", "eager", 0)
    assert graphs(metrics) == {"cuda:0": 18, "cuda:1": 18}  # A CPU never has any.
    info.announce("cuda:1", "bf16", "eager", 0)  # It could not be rebuilt.
    assert graphs(metrics) == {"cuda:0": 18, "cuda:1": 0}
    assert engines(metrics) == {("cuda:0", "fused"), ("cuda:1", "eager"), ("cpu", "eager")}
    info.hide()
    assert graphs(metrics) == {}
    assert engines(metrics) == set()
