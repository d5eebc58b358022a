"""The figures of `benchmarks.serving.overload` as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.serving import refusal, shutdown

SUSTAINED = 0.95  # of a load below the capacity; arrivals vary by chance


def table(figures: dict[str, Any]) -> str:
    """Of one model; pairs of latencies are p50 / p99."""
    head = (
        f"{figures['model']}: {figures['capacity']:g} images/s, "
        f"clients wait {figures['patience_ms']:g} ms"
    )
    closed = {each["connections"]: each for each in figures["many_connections"]}
    fewest = min(closed)
    rows = [
        [f"{load['factor']:g}x", f"{load['goodput_share']:.0%}", *_cells(load)]
        for load in figures["loads"]
    ]
    of_fewest = max(1e-9, closed[fewest]["images_per_second"])
    rows += [
        [
            f"{count} connections, closed",
            f"{load['images_per_second'] / of_fewest:.0%} of {fewest}'s",
            *_cells(load),
        ]
        for count, load in closed.items()
    ]
    columns = [
        "load", "goodput", "accepted, ms", "accepted late", "429", "429, ms", "503", "504",
        "no response", "no connection", "generator too busy", "live, ms p99 / max (failed)",
        "ready, ms p99 / max (failed)", "p99 of the service, of clients, ms",
        "CPU µs a request: generator (CPUs), service user + system", "queue", "peak MiB",
    ]  # fmt: skip
    lines = [columns, ["---"] * len(columns), *rows]
    normal = figures["loads"][0]
    accepted = sum(_service_us(normal))
    kept_up = normal["goodput_share"] >= SUSTAINED * normal["factor"]
    return "\n".join(
        [
            head,
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *([] if kept_up else [f"{normal['factor']:g}x was not kept up: ignore all of this."]),
            f"An accepted request costs the service {accepted:.0f} µs of CPU in all, the engine's "
            f"included. {refusal.line(figures['refusal'])}",
            shutdown.line(figures["seconds_to_end"]),
        ]
    )


def _cells(load: dict[str, Any]) -> list[str]:
    answers = load["answers"]
    return [
        _pair(load["latency_ms"]),
        f"{load['late']:,}",
        f"{answers.get('429', 0):,}",
        _pair(load["refused_ms"].get("429")),
        f"{answers.get('503', 0):,}",
        f"{answers.get('504', 0):,}",
        f"{load['unanswered']:,}",
        f"{load['no_connection']:,}",
        f"{load['generator_late']:,}",
        _probe(load["probes"]["live"]),
        _probe(load["probes"]["ready"]),
        _both_clocks(load),
        _cpu(load),
        f"{load['deepest_queue']:g}",
        f"{load['peak_memory_mib']:g}",
    ]


def _pair(ms: dict[str, float] | None) -> str:
    return f"{ms['p50']:.0f} / {ms['p99']:.0f}" if ms else "-"


def _probe(probe: dict[str, float]) -> str:
    return f"{probe['p99']:.0f} / {probe['max']:.0f} ({probe['failed']})"


def _both_clocks(load: dict[str, Any]) -> str:
    total = load["phases_ms"].get("total")
    if not total:
        return "-"
    service, clients = total["p99"], load["latency_ms"]["p99"]
    return f"{service:.0f}, {clients:.0f} ({clients / service:.1f}x)"


def _cpu(load: dict[str, Any]) -> str:
    user, system = _service_us(load)
    generator = f"{load['generator_us']:.0f} ({load['generator_cpu']:.2f})"
    return f"{generator}, {user:.0f} + {system:.0f}"


def _service_us(load: dict[str, Any]) -> tuple[float, float]:
    """CPU time per request, user and system, in microseconds."""
    per_request = 1e6 / max(1, load["sent"])
    seconds = load["cpu_seconds"]
    return per_request * seconds["service_user"], per_request * seconds["service_system"]
