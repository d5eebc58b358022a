"""One image of a request, whatever it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import QUOTED, BadParameter, InvalidInput, RequestError
from service.inference.base64_text import decode_base64

ONE_IMAGE = "this endpoint takes one image; send several to /v1/classify/batch"


@dataclass(frozen=True, slots=True)
class Upload:
    """`filename`: its name or number, as the client gave it; `error`: why there is no `data`."""

    filename: str
    data: bytes
    error: RequestError | None = None


def decoded(filename: str, text: str | bytes | memoryview) -> Upload:
    """An image that came as base64."""
    try:
        return Upload(filename, decode_base64(text))
    except InvalidInput as error:
        return Upload(filename, b"", error)


def refuse_parameter(name: str, places: Mapping[str, str]) -> None:
    """Refuses a field of a body that is meant for a parameter, as ignoring it would answer another
    question; `places`: where each belongs, by its name in lower case.

    Raises:
        BadParameter: `name` is one of them, but for case and dashes.
    """
    place = places.get(name.lower().replace("-", "_"))
    if place is not None:
        raise BadParameter(f"{name[:QUOTED]!r} is a parameter; send it {place}")
