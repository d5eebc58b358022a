"""What is known of one request: the endpoints write it, its log line, metrics and trace read it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

KEY = "resnet_serve.record"


@dataclass(slots=True)
class RequestRecord:
    """`started`: seconds of `time.perf_counter`; `model`: the name of the model that serves it;
    `reason` and `detail` say why it was refused, `failure` what no one foresaw; `trace`: the ids
    that its log line shows."""

    started: float
    model: str = ""
    reason: str = ""
    detail: str = ""
    failure: Exception | None = None
    trace: dict[str, str] = field(default_factory=dict)


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request, which begins with the first call."""
    record: RequestRecord | None = scope.get(KEY)
    if record is None:
        record = scope[KEY] = RequestRecord(time.perf_counter())
    return record
