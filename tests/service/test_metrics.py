from __future__ import annotations

import platform
from importlib.metadata import version

import pytest
import torch
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from service.metric_families import SECONDS
from service.metrics import GONE_SECONDS, PHASES, REASONS, Metrics, Objectives

FAMILIES = Counter | Gauge | Histogram


def test_two_services_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.images.labels("a").inc()
    assert b'resnet_serve_images_total{model="a"} 1.0' in first.render()
    assert b'model="a"' not in second.render()


def test_a_model_has_its_series_before_its_first_request() -> None:
    metrics = Metrics()
    metrics.watch_model("a", ["cpu"], limit=7, depth=lambda: 3, ready=lambda: False)
    text = metrics.render().decode()
    found = {f.name: f.samples for f in text_string_to_metric_families(text)}
    assert found["resnet_serve_queue_depth"][0].value == 3
    assert found["resnet_serve_queue_limit"][0].value == 7
    assert found["resnet_serve_model_ready"][0].value == 0
    assert {s.labels["reason"] for s in found["resnet_serve_refusals"]} == set(REASONS)
    for name in ("engine_errors", "device_images"):
        assert found[f"resnet_serve_{name}"][0].labels == {"model": "a", "device": "cpu"}
    phases = {s.labels["phase"] for s in found["resnet_serve_phase_seconds"]}
    assert phases == {"accept", "decode", "queue", "inference", "total"}


def test_the_buckets_rise_from_a_quarter_millisecond_to_ten_seconds() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (0.00025, 10.0)
    assert list(SECONDS) == sorted(SECONDS)


def test_the_objectives_are_exposed_and_images_slower_than_the_goal_are_counted() -> None:
    metrics = Metrics(Objectives(0.1, 0.9, 0.95, (0.05, 0.1, 7.0)))
    for seconds in (0.1, 0.1001, 5):
        metrics.classified("a", dict.fromkeys(PHASES, 0.0) | {"total": seconds})
    text = metrics.render().decode()
    assert 'resnet_serve_slow_images_total{model="a"} 2.0' in text
    assert "resnet_serve_slo_latency_seconds 0.1\n" in text
    assert "resnet_serve_slo_latency_ratio 0.9\n" in text
    assert "resnet_serve_slo_availability_ratio 0.95\n" in text
    total = 'resnet_serve_phase_seconds_bucket{le="%s",model="a",phase="total"} %s'
    for bound, count in (("0.05", "0.0"), ("0.1", "1.0"), ("7.0", "3.0"), ("+Inf", "3.0")):
        assert total % (bound, count) in text
    assert text.count('phase="total"} ') == 6, "four buckets, sum and count"


def test_batches_are_counted_by_their_size_and_time() -> None:
    metrics = Metrics()
    for size in (1, 3, 4, 5):
        metrics.computed("a", "cpu", size, 0.25)
    metrics.images.labels("b").inc()
    counted = metrics.counted()
    assert set(counted) == {"a", "b"}
    found = counted["a"]
    sizes = {name: value for name, value in found.items() if "batches_total/" in name}
    assert sizes == {
        "resnet_serve_batches_total/1": 1,
        "resnet_serve_batches_total/4": 2,
        "resnet_serve_batches_total/8": 1,
    }
    assert found["resnet_serve_batch_seconds_total/4"] == 0.5
    assert found["resnet_serve_batch_size_sum"] == 13
    assert found["resnet_serve_last_batch_timestamp_seconds"] > 1.6e9
    assert found["resnet_serve_device_images_total/cpu"] == 13


def test_the_versions_of_what_runs_are_shown() -> None:
    (family,) = Metrics().build_info.collect()
    (sample,) = family.samples
    assert sample.value == 1
    assert sample.labels == {
        "version": version("resnet-serve"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def test_files_memory_and_certificate_have_values_from_the_start() -> None:
    text = Metrics().render().decode()
    found = {f.name: f.samples[0].value for f in text_string_to_metric_families(text) if f.samples}
    assert 0 < found["resnet_serve_open_files_ratio"] < 1
    assert found["resnet_serve_memory_limit_bytes"] > 2**20
    assert found["resnet_serve_certificate_expiry_timestamp_seconds"] == 0


def test_predictions_are_counted_by_class_and_confidence() -> None:
    metrics = Metrics()
    for class_id, label, confidence in ((0, "cat", 0.999), (0, "cat", 0.4), (7, "dog", 0.15)):
        metrics.predicted("a", class_id, label, confidence)
    metrics.predicted("a", None, "rare", 0.2)
    metrics.predicted("a", None, "rarer", 0.25)
    counted = metrics.counted()["a"]
    classes = {name: n for name, n in counted.items() if "predictions_total" in name}
    assert classes == {
        "resnet_serve_predictions_total/0/cat": 2,
        "resnet_serve_predictions_total/7/dog": 1,
        "resnet_serve_predictions_total/other/other": 2,
    }
    assert counted["resnet_serve_confidence_ratio_sum"] == pytest.approx(1.999)
    assert counted["resnet_serve_confidence_ratio_bucket/0.2"] == 2
    assert counted["resnet_serve_confidence_ratio_bucket/0.99"] == 4
    assert counted["resnet_serve_confidence_ratio_bucket/1.0"] == 5


def named(metrics: Metrics) -> set[str]:
    """The models that have any series."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {s.labels["model"] for f in families for s in f.samples if "model" in s.labels}


def serve(metrics: Metrics, name: str) -> None:
    metrics.watch_model(name, ["cpu"], limit=7, depth=lambda: 0, ready=lambda: True)
    metrics.classified(name, dict.fromkeys(PHASES, 0.01))
    metrics.predicted(name, 3, "cat", 0.5)
    metrics.refused(name, "queue_full")
    metrics.computed(name, "cpu", 3, 0.01)
    metrics.engine_failed(name, "cpu")


def test_the_series_of_models_that_are_gone_end(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = Metrics(), 1000.0
    monkeypatch.setattr("service.metrics.time.monotonic", lambda: now)
    metrics.refused("", "unauthorized")
    serve(metrics, "stays")
    before = len(metrics.render())
    for number in range(100):
        serve(metrics, f"version-{number}")
        metrics.unwatch_model(f"version-{number}")
    now += GONE_SECONDS - 1
    assert len(named(metrics)) == 102  # Prometheus still needs their last values.
    now += 2
    assert named(metrics) == {"", "stays"}
    assert len(metrics.render()) == pytest.approx(before, rel=0.02)
    # A request that the model had accepted ends late.
    metrics.classified("version-1", dict.fromkeys(PHASES, 0.01))
    metrics.refused("version-1", "deadline_exceeded")
    assert named(metrics) == {"", "stays", "version-1"}
    now += GONE_SECONDS + 1
    assert named(metrics) == {"", "stays"}
    metrics.render()
    assert not metrics._gone


def test_the_model_is_the_first_label_of_each_metric_that_has_it() -> None:
    families = [each for each in vars(Metrics()).values() if isinstance(each, FAMILIES)]
    labels = [family._labelnames for family in families]
    assert {names.index("model") for names in labels if "model" in names} == {0}


def test_without_a_scrape_they_end_when_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = Metrics(), 1000.0
    monkeypatch.setattr("service.metrics.time.monotonic", lambda: now)
    for number in range(100):
        serve(metrics, f"version-{number}")
        metrics.unwatch_model(f"version-{number}")
        now += GONE_SECONDS / 4
    assert len(metrics.images._metrics) < 10


def test_a_name_that_serves_again_keeps_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = Metrics(), 1000.0
    monkeypatch.setattr("service.metrics.time.monotonic", lambda: now)
    serve(metrics, "a")
    metrics.unwatch_model("a")
    now += GONE_SECONDS / 2
    serve(metrics, "a")
    now += GONE_SECONDS * 2
    assert metrics.counted()["a"]["resnet_serve_images_total"] == 2
    metrics.unwatch_model("a")
    now += GONE_SECONDS + 1
    assert "a" not in metrics.counted()
    serve(metrics, "a")  # From zero, as `rate()` expects.
    assert metrics.counted()["a"]["resnet_serve_images_total"] == 1
    assert metrics.counted()["a"]["resnet_serve_predictions_total/3/cat"] == 1
