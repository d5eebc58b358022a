"""What a GPU is expected to show, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Records = Sequence[dict[str, Any]]
Value = float | bool


@dataclass(frozen=True, slots=True)
class Goal:
    """`value` of the records, None if it was not measured, is at least `least` and at most `most`.

    `check`: it is about what must never happen, so that a stage that failed missed it.
    """

    name: str
    stage: str
    value: Callable[[Records], Value | None]
    least: float | None = None
    most: float | None = None
    check: bool = False

    def judged(self, records: Records) -> dict[str, Any]:
        value = self.value(records)
        ends = [row["ended"] for row in records if row["stage"] == self.stage and "ended" in row]
        met: bool | None = None
        if value is not None:
            met = (self.least is None or value >= self.least) and (
                self.most is None or value <= self.most
            )
        if self.check and ends and ends[-1] not in ("ok", "skipped"):
            met = False
        wanted: Any = True
        if not self.check:
            wanted = (
                f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
            )
        return {"goal": self.name, "value": value, "wanted": wanted, "met": met}


def summary(records: Records) -> list[dict[str, Any]]:
    """All goals; `met` is null for those that were not measured."""
    return [goal.judged(records) for goal in GOALS]


def best_batch(records: Records) -> int | None:
    """The batch size with the highest rate, of the engine that serves if it ran."""
    for stage in ("fused", "eager"):
        rates = {row["size"]: row["images_s"] for row in records if _measured(row, stage)}
        if rates:
            return int(max(rates, key=lambda size: rates[size]))
    return None


def _measured(row: dict[str, Any], stage: str) -> bool:
    return row["stage"] == stage and "images_s" in row


def _all(records: Records, stage: str, figure: str) -> list[Any]:
    return [row[figure] for row in records if row["stage"] == stage and figure in row]


def _highest(stage: str) -> Callable[[Records], Value | None]:
    return lambda records: max(_all(records, stage, "images_s"), default=None)


def _over_compile(records: Records) -> Value | None:
    ours, theirs = (_highest(stage)(records) for stage in ("fused", "compile"))
    return None if ours is None or theirs is None else round(ours / theirs, 2)


def _latency(records: Records) -> Value | None:
    rows = [row for row in records if _measured(row, "fused") and row["size"] == 1]
    return rows[-1]["alone_ms"] if rows else None


def _agreement(records: Records) -> Value | None:
    fused, eager = (_all(records, stage, "agreement") for stage in ("fused", "eager"))
    return round(fused[-1] - eager[-1], 4) if fused and eager else None


def _trained_agreement(records: Records) -> Value | None:
    rows = [row for row in records if row["stage"] == "trained" and "agreement" in row]
    by_kind: dict[str, float] = {row["kind"]: row["agreement"] for row in rows}
    if not {"fused", "eager"} <= set(by_kind):
        return None
    return round(by_kind["fused"] - by_kind["eager"], 4)


def _device_memory(records: Records) -> Value | None:
    found = _all(records, "fused", "device_MiB")
    return round(found[-1] * 2**20 / 1e9, 2) if found else None


def _http_rate(records: Records) -> Value | None:
    return max((row["images_s"] for row in _on_device(records, "connections")), default=None)


def _http_p99(records: Records) -> Value | None:
    found = [row["latency_ms"].get("p99") for row in _on_device(records, "rate")]
    return found[-1] if found else None


def _on_device(records: Records, load: str) -> list[dict[str, Any]]:
    """Of loads of the service that decodes on the device."""
    rows = [row for row in records if row["stage"] == "http" and row.get("decode") == "device"]
    return [row for row in rows if load in row]


def _serves_without_allocating(records: Records) -> Value | None:
    found = _all(records, "fused", "grown_by_serving_MiB")
    return max(found) <= 0 if found else None


def _tests(records: Records) -> Value | None:
    rows = [row for row in records if row["stage"] == "tests" and "failed" in row]
    ran = rows and rows[-1]["passed"] + rows[-1]["failed"] > 0
    return rows[-1]["failed"] == 0 if ran else None


def _capture(records: Records) -> Value | None:
    rows = [row for row in records if row["stage"] == "capture" and "served" in row]
    return (
        all(
            row["served"] > 0
            and row["faults"] == row["wrong"] == 0
            and set(row["starts"]) == {"ok"}
            and row["empty_cache"] == "ok"
            for row in rows
        )
        if rows
        else None
    )


def _memory(records: Records) -> Value | None:
    found = _all(records, "memory", "smaller")
    return all(found) if len(found) == 2 else None


def _poison(records: Records) -> Value | None:
    recognised = _all(records, "poison", "recognised")
    states = _all(records, "poison", "state_after")
    return recognised[-1] and states[-1] == "lost" if recognised and states else None


def _neighbours(records: Records) -> Value | None:
    rows = [row for row in records if row["stage"] == "neighbours" and "wrong" in row]
    return rows[-1]["wrong"] == rows[-1]["errors"] == 0 if rows else None


def _races(records: Records) -> Value | None:
    found = _all(records, "sanitizer", "races")
    return sum(found) == 0 if found else None


GOALS = (
    Goal("images/s of the engine alone", "fused", _highest("fused"), least=20_000),
    Goal("times torch.compile's max-autotune", "compile", _over_compile, least=1.5),
    Goal("ms of one image alone", "fused", _latency, most=1.5),
    Goal("agreement with fp32, above eager's", "fused", _agreement, least=-0.05),
    Goal("the same, of the trained network", "trained", _trained_agreement, least=-0.05),
    Goal("images/s over HTTP, decoded on the device", "http", _http_rate, least=5_000),
    Goal("p99 in ms at 80 % of that", "http", _http_p99, most=25),
    Goal("GB of the device", "fused", _device_memory, most=3),
    Goal("serving allocates nothing", "fused", _serves_without_allocating, least=1, check=True),
    Goal("the CUDA tests pass", "tests", _tests, least=1, check=True),
    Goal("no races between streams", "sanitizer", _races, least=1, check=True),
    Goal("a start beside a serving engine", "capture", _capture, least=1, check=True),
    Goal("too little memory: smaller batches", "memory", _memory, least=1, check=True),
    Goal("a failed assertion is known for good", "poison", _poison, least=1, check=True),
    Goal("two models at once", "neighbours", _neighbours, least=1, check=True),
)
