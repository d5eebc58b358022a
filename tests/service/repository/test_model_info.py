from __future__ import annotations

from service.metrics import Metrics
from service.repository.model_info import ModelInfo


def graphs(metrics: Metrics) -> dict[str, float]:
    (family,) = metrics.gpu_graphs.collect()
    return {sample.labels["device"]: sample.value for sample in family.samples}


def engines(metrics: Metrics) -> set[tuple[str, str]]:
    (family,) = metrics.model_info.collect()
    return {(sample.labels["device"], sample.labels["engine"]) for sample in family.samples}


def test_a_model_shows_what_serves_on_each_device_and_its_graphs() -> None:
    metrics = Metrics()
    info = ModelInfo(metrics, "a", "resnet50", "0" * 64)
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
