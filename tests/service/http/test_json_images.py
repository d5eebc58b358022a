"""Where in a JSON value an image is found."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidInput
from service.http.json_images import image_of


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
