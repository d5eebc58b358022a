"""Images in JSON: base64 text, alone or in the objects that clients wrap it in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from models.suggestions import nearest
from service.errors import QUOTED, BadParameter, InvalidInput, TooLarge
from service.http.json_body import LongText, parse
from service.http.upload import ONE_IMAGE, Upload, decoded, refuse_parameter
from service.inference.base64_text import decode_base64

# TensorFlow Serving's and Vertex AI's name first, then those that examples of other servers use.
NAMES = ("b64", "image", "image_bytes", "bytes", "data", "body", "content", "input")
LISTS = ("images", "instances")
LABELS = ("filename", "name", "key")
FORM = '{"b64": "<base64>"}'
OBJECT = '{"image": "<base64>"}'
OBJECTS = '{"images": ["<base64>", ...]}'


def uploads_of(body: bytes, max_images: int, places: Mapping[str, str]) -> list[Upload]:
    """The images in a JSON object: one, or those in its list. An image whose base64 is wrong has
    that error; `places`: where parameters belong.

    Raises:
        InvalidInput: the JSON is malformed, or of another form.
        BadParameter: it has a parameter, or no image, or several where one is wanted.
        TooLarge: it has more images than that, or too much beside them.
    """
    value = parse(body, max_images)
    if not isinstance(value, dict):
        raise InvalidInput(f"the JSON must be an object like {OBJECT}, or {OBJECTS} for several")
    _check_names(value, (*NAMES, *LISTS, *LABELS), places)
    found = [name for name in (*NAMES, *LISTS) if name in value]
    if len(found) != 1:
        said = f"has both {found[0]!r} and {found[1]!r}" if found else "has no image"
        raise InvalidInput(f"the JSON {said}; send {OBJECT}, or {OBJECTS} for several")
    name = found[0]
    if name not in LISTS:
        return [_upload(value, "0", places)]
    elements = value[name]
    if not isinstance(elements, list):
        raise InvalidInput(f"{name}: it must be a list; send one image as {OBJECT}")
    if not elements:
        raise BadParameter(f"{name}: the list is empty; send at least one image")
    if len(elements) > max_images:
        if max_images == 1:
            raise BadParameter(f"{name}: it has {len(elements)} images; {ONE_IMAGE}")
        raise TooLarge(f"more than {max_images} images in one request")
    uploads = []
    for index, element in enumerate(elements):
        try:
            uploads.append(_upload(element, str(index), places))
        except InvalidInput as error:
            raise InvalidInput(f"{name}[{index}]: {error}") from None
    if max_images == 1 and uploads[0].error is not None:
        raise InvalidInput(f"{name}[0]: {uploads[0].error}")
    return uploads


def image_of(value: Any) -> bytes:
    """The image file in a JSON value: base64 text or a data URL, or an object with it, such as
    `{"b64": TEXT}` or `{"image_bytes": {"b64": TEXT}}`.

    Raises:
        InvalidInput: it holds no base64 text, or one that is wrong.
    """
    return decode_base64(text_of(value))


def text_of(value: Any) -> str | memoryview:
    """The text that `image_of` decodes.

    Raises:
        InvalidInput: there is none.
    """
    for _ in range(3):
        if not isinstance(value, dict):
            break
        found = [name for name in NAMES if name in value]
        if len(found) != 1:
            names = ", ".join(map(repr, value))[:QUOTED] or "none"
            raise InvalidInput(f"an image must be like {FORM}; its fields are: {names}")
        value = value[found[0]]
    if isinstance(value, LongText):
        return value.unescaped()
    if not isinstance(value, str):
        raise InvalidInput(f"an image must be base64 text or an object like {FORM}")
    if value.startswith(("http://", "https://")):
        raise InvalidInput("an image must be base64 text; URLs are not fetched")
    return value


def _upload(value: Any, name: str, places: Mapping[str, str]) -> Upload:
    if isinstance(value, dict):
        _check_names(value, (*NAMES, *LABELS), places)
        labels = [value[label] for label in LABELS if label in value]
        if labels:
            name = labels[0].name() if isinstance(labels[0], LongText) else labels[0]
        if not isinstance(name, str):
            raise InvalidInput("an image's name must be a string")
        # A lone surrogate, which JSON can have, cannot be sent back.
        name = name.encode("utf-8", "replace").decode()
    return decoded(name, text_of(value))


def _check_names(value: dict[str, Any], known: Collection[str], places: Mapping[str, str]) -> None:
    for name in value:
        if name not in known:
            refuse_parameter(name, places)
            near = nearest(name[:QUOTED], known)
            hint = f"did you mean {near[0]!r}?" if near else f"send the image as {OBJECT}"
            raise InvalidInput(f"unknown field {name[:QUOTED]!r}; {hint}")
