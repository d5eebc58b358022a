"""One image of a request, whatever it came in."""

from __future__ import annotations

from collections.abc import Collection
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


def in_the_url(name: str, parameters: Collection[str]) -> None:
    """Refuses a field of a body that is meant for a parameter of the query: ignoring it would
    answer another question.

    Raises:
        BadParameter: `name` is one of `parameters`, but for case and dashes.
    """
    plain = name.lower().replace("-", "_")
    if plain in parameters:
        raise BadParameter(f"{name[:QUOTED]!r} is a parameter: send it in the URL, as ?{plain}=...")
