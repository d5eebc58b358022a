"""Triton's statistics of a model, from what the metrics count of its images.

Every image is an inference of its own, whichever endpoint it came through. Preparing the input is
decoding; the output's part is what remains of the total. Copying to the device and back is part of
computing a batch, so that a batch's own input and output are never counted. How long failed images
took is not measured, and their `ns` is 0. Sizes of batches are rounded up to powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.http.v2.codec import VERSION

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
    """One entry of `model_stats`; `counted` as `service.metrics.Metrics.counted` gives it."""
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
