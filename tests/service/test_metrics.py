from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import REASONS, SECONDS, Metrics


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
    assert found["resnet_serve_engine_errors"][0].labels == {"model": "a", "device": "cpu"}
    phases = {s.labels["phase"] for s in found["resnet_serve_phase_seconds"]}
    assert phases == {"decode", "queue", "inference", "total"}


def test_the_buckets_rise_from_a_quarter_millisecond_to_ten_seconds() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (0.00025, 10.0)
    assert list(SECONDS) == sorted(SECONDS)


def test_batches_are_counted_by_their_size_and_time() -> None:
    metrics = Metrics()
    for size in (1, 3, 4, 5):
        metrics.computed("a", size, 0.25)
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
