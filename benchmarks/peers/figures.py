"""Medians over rounds, ratios of this project to each peer, and a table of both."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

OURS = "resnet-serve"
LATENCIES = ("p50", "p95", "p99")


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each peer, variant and number of connections, in the order of `runs`.

    `images_per_second`, `latency_ms` and `peak_rss_mib` are medians over the rounds that worked,
    `rounds` of them; `ours_over_peer` is this project's images/s divided by the row's, and
    `latency_ours_over_peer` the same of each latency. Failures are `failures_of`'s.
    """
    worked = [run for run in runs if "failed" not in run]
    keys = dict.fromkeys((run["peer"], run["variant"], run["connections"]) for run in worked)
    rows = []
    for peer, variant, connections in keys:
        of_key = [
            run
            for run in worked
            if (run["peer"], run["variant"], run["connections"]) == (peer, variant, connections)
        ]
        rows.append(
            {
                "peer": peer,
                "variant": variant,
                "connections": connections,
                "rounds": len(of_key),
                "images_per_second": round(median(run["images_per_second"] for run in of_key), 1),
                "latency_ms": {
                    name: round(median(run["latency_ms"][name] for run in of_key), 2)
                    for name in LATENCIES
                },
                "peak_rss_mib": round(median(run["peak_rss_mib"] for run in of_key)),
                "other_answers": sum(run["other_answers"] for run in of_key),
            }
        )
    for row in rows:
        ours = next(
            (
                each
                for each in rows
                if each["peer"] == OURS and each["connections"] == row["connections"]
            ),
            None,
        )
        if ours is None or row is ours:
            continue
        row["ours_over_peer"] = _ratio(ours["images_per_second"], row["images_per_second"])
        row["latency_ours_over_peer"] = {
            name: _ratio(ours["latency_ms"][name], row["latency_ms"][name]) for name in LATENCIES
        }
    return rows


def failures_of(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What failed, once for each peer, variant and reason."""
    found = {
        (run["peer"], run["variant"], run["failed"]): {
            name: run[name] for name in ("peer", "variant", "failed")
        }
        for run in runs
        if "failed" in run
    }
    return list(found.values())


def table(rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| peer | variant | connections | images/s | p50 ms | p95 ms | p99 ms | peak RSS MiB "
        "| ours ÷ peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row.get("ours_over_peer")
        cells = [
            row["peer"],
            row["variant"],
            row["connections"],
            row["images_per_second"],
            *(row["latency_ms"][name] for name in LATENCIES),
            row["peak_rss_mib"],
            "" if ratio is None else f"{ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [f"\n{each['peer']} {each['variant']} failed: {each['failed']}" for each in failures]
    return "\n".join(lines)


def _ratio(ours: float, theirs: float) -> float | None:
    return round(ours / theirs, 3) if theirs else None
