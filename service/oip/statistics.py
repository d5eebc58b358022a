"""Triton's statistics of a model, derived from its metrics.

Every image counts as one inference, whichever endpoint received it. Triton's input phase is
decoding; its output phase is the rest of the total. Copies to the device and back are part of a
batch's compute time, so a batch's input and output phases stay 0. The duration of failed images is
not measured; their `ns` is 0. Batch sizes are rounded up to powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.oip.codec import VERSION

SECONDS, COUNT = "resnet_serve_phase_seconds_sum", "resnet_serve_phase_seconds_count"
IMAGES, BATCHES = "resnet_serve_images_total", "resnet_serve_batch_size_count"
REFUSALS = "resnet_serve_refusals_total/"
SIZES, SIZES_SECONDS = "resnet_serve_batches_total/", "resnet_serve_batch_seconds_total/"
LAST = "resnet_serve_last_batch_timestamp_seconds"
# Triton's name of each phase.
PHASES = {
    "success": "total",
    "queue": "queue",
    "compute_input": "decode",
    "compute_infer": "inference",
}


def statistics(model: str, counted: Mapping[str, float]) -> dict[str, Any]:
    """One entry of `model_stats`; `counted` comes from `service.metrics.Metrics.counted`."""
    spans = {
        name: duration(counted.get(f"{COUNT}/{phase}", 0), counted.get(f"{SECONDS}/{phase}", 0))
        for name, phase in PHASES.items()
    }
    success = spans["success"]
    known = sum(span["ns"] for name, span in spans.items() if name != "success")
    failed = sum(value for name, value in counted.items() if name.startswith(REFUSALS))
    return {
        "name": model,
        "version": VERSION,
        "last_inference": round(counted.get(LAST, 0) * 1000),
        "inference_count": int(counted.get(IMAGES, 0)),
        "execution_count": int(counted.get(BATCHES, 0)),
        "inference_stats": {
            **spans,
            "fail": duration(failed, 0),
            "compute_output": {"count": success["count"], "ns": max(0, success["ns"] - known)},
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": duration(0, 0),
                "compute_infer": duration(
                    counted[f"{SIZES}{size}"], counted.get(f"{SIZES_SECONDS}{size}", 0)
                ),
                "compute_output": duration(0, 0),
            }
            for size in sorted(
                int(name.removeprefix(SIZES)) for name in counted if name.startswith(SIZES)
            )
        ],
    }


def duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": round(seconds * 1e9)}
