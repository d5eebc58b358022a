"""An inference of the Open Inference Protocol, whatever carried the request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from service.http.access import Headers
from service.http.admission import Admission
from service.http.record import RequestRecord
from service.inference.queue_share import QueueShare
from service.inference.ranking import Row
from service.oip import metadata
from service.oip.codec import ParsedRequest
from service.oip.computing import check_outputs, compute_all

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdmittedInference:
    """An admitted request. `arrived`: when its first byte did, in the event loop's time; `chosen`:
    the client set a deadline besides the parameter `timeout`."""

    admission: Admission
    record: RequestRecord
    headers: Headers
    arrived: float
    chosen: bool

    def begin(self, parsed: ParsedRequest) -> tuple[ParsedRequest, Coroutine[Any, Any, list[Row]]]:
        """The request with the model's default output, and what computes its images.

        Raises:
            InvalidInput: an output is unknown or requested twice, or the model lacks it.
        """
        services, serving = self.admission.services, self.admission.model
        parsed = replace(parsed, default=next(iter(metadata.outputs(serving))))
        check_outputs(parsed, serving)
        received = self.record.received if len(parsed.images) == 1 else 0.0
        deadline = self._deadline(parsed.timeout)
        share = QueueShare(services.pipeline, serving, deadline, received)
        priority = services.keys.permitted(self.headers, parsed.priority)
        return parsed, compute_all(share, parsed, priority)

    def _deadline(self, timeout: float | None) -> float:
        """The request's deadline; `timeout`: the parameter, in seconds, if it is given."""
        deadline = self.admission.deadline
        if timeout is None:
            return deadline
        wanted = self.arrived + timeout
        deadline = min(deadline, wanted) if self.chosen else wanted
        default = self.arrived + self.admission.services.settings.request_timeout_ms / 1000
        self.record.short_deadline = deadline < default
        return deadline

    async def format(
        self,
        parsed: ParsedRequest,
        rows: Sequence[Row],
        encode: Callable[[str, Sequence[str], ParsedRequest, Sequence[Row]], T],
    ) -> T:
        """The response that `encode` makes of a model's name, its labels, the request and rows."""
        serving = self.admission.model
        lengths = metadata.outputs(serving)
        return await self.admission.services.format(
            len(rows) * sum(lengths[output.name] for output in parsed.outputs),
            partial(encode, serving.name, serving.labels, parsed, rows),
        )
