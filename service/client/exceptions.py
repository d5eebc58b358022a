"""What can go wrong with a call, as exceptions whose message says what to do.

ClientError
├── RequestRefused        the service answered that it will not
│   ├── ImageRefused      no image, a broken one, one too large; another may do
│   ├── UnknownModel      no model of that name is served
│   ├── KeyRefused        no key, or not one that may do this
│   ├── Busy              not now; `retry_after` seconds later it may
│   └── DeadlinePassed    the service had the request for too long
├── TimedOut              the call's time was over before there was an answer
├── Unreachable           no connection, or it broke
├── UnreadableAnswer      not what the service answers
└── UnreadableImage       it could not be read here, before it was sent
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

PROBLEM = "urn:resnet-serve:problem:"
QUOTED = 200  # characters of an answer that is not the service's own


class ClientError(Exception):
    pass


class RequestRefused(ClientError):
    """`status` is HTTP's; `reason` a word to decide by, such as queue_full; `detail` a sentence to
    show; `request_id` finds the request in the service's log; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[RequestRefused], tuple[object, ...]]:
        told = (self.status, self.reason, self.detail, self.request_id, self.retry_after)
        return type(self), told


class ImageRefused(RequestRefused):
    pass


class UnknownModel(RequestRefused):
    pass


class KeyRefused(RequestRefused):
    pass


class Busy(RequestRefused):
    pass


class DeadlinePassed(RequestRefused):
    pass


class TimedOut(ClientError):
    pass


class Unreachable(ClientError):
    pass


class UnreadableAnswer(ClientError):
    pass


class UnreadableImage(ClientError):
    pass


KINDS: dict[str, type[RequestRefused]] = {
    "undecodable_image": ImageRefused,
    "too_large": ImageRefused,
    "unsupported_media_type": ImageRefused,
    "unknown_model": UnknownModel,
    "unauthorized": KeyRefused,
    "forbidden": KeyRefused,
    "deadline_exceeded": DeadlinePassed,
}
# Of proxies too, which have no such words. 502: a proxy found the service gone.
STATUSES: dict[int, type[RequestRefused]] = {
    401: KeyRefused,
    403: KeyRefused,
    413: ImageRefused,
    429: Busy,
    502: Busy,
    503: Busy,
    504: DeadlinePassed,
}


def refusal(
    status: int, body: bytes, headers: Mapping[str, str], retry_after: float | None
) -> RequestRefused:
    """The exception for an answer other than 200, the service's own or a proxy's."""
    reason, detail = _words(status, body, headers)
    kind = KINDS.get(reason) or STATUSES.get(status, RequestRefused)
    return kind(status, reason, detail, headers.get("x-request-id", ""), retry_after)


def _words(status: int, body: bytes, headers: Mapping[str, str]) -> tuple[str, str]:
    try:
        document = json.loads(body)
        kind, detail = document["type"], document["detail"]
        if isinstance(kind, str) and isinstance(detail, str):
            return kind.removeprefix(PROBLEM), detail
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown Status"
    detail = f"{status} {phrase}"
    if location := headers.get("location"):
        detail += f" to {location[:QUOTED]}: give the address that it leads to"
    elif text := " ".join(body[:QUOTED].decode("utf-8", "replace").split()):
        detail += f": {text}"
    return phrase.lower().replace(" ", "_"), detail
