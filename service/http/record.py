"""One request's facts: endpoints write them; the log line, metrics and trace read them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:
    from service.http.gate import Entry

KEY = "resnet_serve.record"


@dataclass(slots=True)
class RequestRecord:
    """`started` and `received`: when its first and its last byte arrived, by `time.perf_counter`,
    0 if the last has not; `left`: the client has left, upon which `on_left` is called, if the
    connection is `watched`; `entry`: of a request that was let in at the connection; `model`: the
    serving model's name; `short_deadline`: the client set a shorter one than the service's;
    `reason` and `detail`: why it was refused; `failure`: an unexpected exception; `trace`: the
    trace and span IDs for its log line; `client`: the address that sent it, ADDRESS:PORT, if known.
    """

    started: float
    received: float = 0.0
    watched: bool = False
    left: bool = False
    on_left: Callable[[], None] | None = None
    entry: Entry | None = None
    model: str = ""
    short_deadline: bool = False
    reason: str = ""
    detail: str = ""
    failure: Exception | None = None
    trace: dict[str, str] = field(default_factory=dict)
    client: str = ""


def record_of(scope: Scope) -> RequestRecord:
    """The request's record; the first call creates it."""
    record: RequestRecord | None = scope.get(KEY)
    if record is None:
        record = scope[KEY] = RequestRecord(time.perf_counter())
    return record
