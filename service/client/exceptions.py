"""Errors of a call, whose messages say what to do.

ClientError
├── RequestRefused        the service refused the request
│   ├── ImageRefused      not an image, damaged, or too large; another image may work
│   ├── UnknownModel      no served model has this name
│   ├── KeyRefused        no key, or one without permission
│   ├── Busy              temporary; retry after `retry_after` seconds
│   └── DeadlinePassed    the request's deadline passed in the service
├── TimedOut              the call's time limit passed without a response
├── Unreachable           no connection, or a broken one
├── UnreadableAnswer      not a response of the service
└── UnreadableImage       the image could not be read locally, before sending it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus

PROBLEM = "urn:resnet-serve:problem:"
QUOTED = 200  # characters of a response that is not from the service


class ClientError(Exception):
    pass


class RequestRefused(ClientError):
    """`status` is HTTP's; `reason` is a word for programs, such as queue_full; `detail` is a
    sentence for people; `request_id` identifies the request in the service's log; `retry_after` is
    in seconds."""

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
        arguments = (self.status, self.reason, self.detail, self.request_id, self.retry_after)
        return type(self), arguments


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
    "unsupported_encoding": ImageRefused,
    "unknown_model": UnknownModel,
    "unauthorized": KeyRefused,
    "forbidden": KeyRefused,
    "deadline_exceeded": DeadlinePassed,
    "client_deadline": DeadlinePassed,
}
# Statuses, for responses of proxies, which give no reason. 502: the service is gone.
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
    """The exception for a response other than 200, of the service or a proxy."""
    reason, detail = _explanation(status, body, headers)
    kind = KINDS.get(reason) or STATUSES.get(status, RequestRefused)
    return kind(status, reason, detail, headers.get("x-request-id", ""), retry_after)


def _explanation(status: int, body: bytes, headers: Mapping[str, str]) -> tuple[str, str]:
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
        detail += f" to {location[:QUOTED]}; use that address"
    elif text := _words(body, detail)[:QUOTED]:
        detail += f": {text}"
    return phrase.lower().replace(" ", "_"), detail


def _words(body: bytes, known: str) -> str:
    """What a text or a page says beside `known`, each piece once."""
    text = body[: 10 * QUOTED].decode("utf-8", "replace")
    pieces = dict.fromkeys(" ".join(piece.split()) for piece in re.split(r"<[^>]*>", text))
    return " ".join(piece for piece in pieces if piece not in ("", known))
