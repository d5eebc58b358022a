"""The CPU cost of a refusal, measured while nearly every request is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.process import cpu_seconds, started
from benchmarks.common.progress import say
from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target

CONNECTIONS = 64
MOSTLY = 0.95  # of all responses, so that what they cost is the cost of a refusal
# Slow, and with a queue that one image fills.
CONFIGURATION = """
models:
  - spec: random:resnet50
    engine: eager
    max_queue: 1
"""


def cost(
    images: Sequence[bytes], workers: int, seconds: float, folder: Path
) -> dict[str, float | None]:
    """Microseconds of CPU per refusal, and how many refusals a second there were; no cost if fewer
    than MOSTLY of the responses were refusals.

    Only the processes' main threads count: others compute the few images that are accepted.
    """
    say("refusals")
    configuration = folder / "refusals.yaml"
    configuration.write_text(CONFIGURATION, "utf-8")
    arguments = ["--config", str(configuration), "--workers", str(workers)]
    with started(arguments, images[0], folder) as service:
        target = Target.of(service.url, images)
        before = cpu_seconds(service.pid, main_threads=True)
        report = run_load(target, Run(CONNECTIONS, seconds, warm_up=0.0))
        after = cpu_seconds(service.pid, main_threads=True)
    total, refused = report.sent, report.answers.get(429, 0)
    user, system = (1e6 * (end - start) for end, start in zip(after, before, strict=True))
    figures: dict[str, float | None] = {
        "share": round(refused / total, 3),
        "per_second": round(refused / seconds),
        "service_user_us": None,
        "service_system_us": None,
        "generator_us": report.generator_us,
    }
    if refused >= MOSTLY * total:
        figures["service_user_us"] = round(user / total, 1)
        figures["service_system_us"] = round(system / total, 1)
    return figures


def line(figures: dict[str, Any]) -> str:
    """The figures of `cost` as a sentence."""
    if figures["service_user_us"] is None:
        return f"Only {figures['share']:.0%} of the responses were refusals: their cost is unknown."
    return (
        f"A refusal costs the service {figures['service_user_us']:g} µs of CPU, and "
        f"{figures['service_system_us']:g} µs in the kernel ({figures['per_second']:,.0f}/s, "
        f"{figures['share']:.1%} of the responses)."
    )
