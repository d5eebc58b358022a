"""Images in JSON: base64 text, alone or in the objects that clients wrap it in."""

from __future__ import annotations

from typing import Any

from service.errors import QUOTED, InvalidInput
from service.inference.base64_text import decode_base64

# TensorFlow Serving's and Vertex AI's name first, then those that examples of other servers use.
NAMES = ("b64", "image", "image_bytes", "bytes", "data", "body", "content", "input")
FORM = '{"b64": "<base64>"}'


def image_of(value: Any) -> bytes:
    """The image file in a JSON value: base64 text or a data URL, or an object with it, such as
    `{"b64": TEXT}` or `{"image_bytes": {"b64": TEXT}}`.

    Raises:
        InvalidInput: it holds no base64 text, or one that is wrong.
    """
    for _ in range(3):
        if not isinstance(value, dict):
            break
        found = [name for name in NAMES if name in value]
        if len(found) != 1:
            names = ", ".join(map(repr, value))[:QUOTED] or "none"
            raise InvalidInput(f"an image must be like {FORM}; its fields are: {names}")
        value = value[found[0]]
    if not isinstance(value, str):
        raise InvalidInput(f"an image must be base64 text or an object like {FORM}")
    return decode_base64(value)
