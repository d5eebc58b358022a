"""Where in a JSON value an image is found."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import BadParameter, InvalidInput
from service.http.json_images import image_of, uploads_of


@pytest.mark.parametrize(
    "value",
    ["YWJj", {"b64": "YWJj"}, {"image": {"b64": "YWJj"}}, {"image_bytes": {"b64": "YWJj"}},
     {"key": "1", "data": "data:image/png;base64,YWJj"}],
)  # fmt: skip
def test_base64_text_is_found(value: Any) -> None:
    assert image_of(value) == b"abc"


@pytest.mark.parametrize(
    "value",
    [None, 1, [], {}, {"url": "https://example.org"}, {"b64": 1}, {"b64": "YWJj", "data": "YWJj"},
     {"b64": {"b64": {"b64": {"b64": "YWJj"}}}}],
)  # fmt: skip
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="an image must be"):
        image_of(value)


def test_a_name_can_be_sent_back() -> None:
    body = (
        b'{"images": [{"b64": "YWJj", "filename": "\\ud800"}, {"b64": "YWJj", "name": "\\u00e9"}]}'
    )
    assert [upload.filename for upload in uploads_of(body, 2, {})] == ["?", "\u00e9"]


def test_a_parameter_is_named_with_its_place() -> None:
    for body in (b'{"image": "YWJj", "top-k": 1}', b'{"images": [{"b64": "YWJj", "TOP_K": 1}]}'):
        with pytest.raises(BadParameter, match="is a parameter; send it to the moon"):
            uploads_of(body, 1, {"top_k": "to the moon"})
