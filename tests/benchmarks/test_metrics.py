from __future__ import annotations

from benchmarks.common import metrics


def test_refusals_are_summed_over_models() -> None:
    text = """# HELP x
resnet_serve_refusals_total{model="a",reason="queue_full"} 2.0
resnet_serve_refusals_total{model="b",reason="queue_full"} 3.0
resnet_serve_queue_depth{model="a"} 4.0
"""
    assert metrics.sums(text) == {"refusals:queue_full": 5, "resnet_serve_queue_depth": 4}
