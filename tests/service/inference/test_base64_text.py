"""The dialects of base64, and what is said of other texts."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable

import pytest

from service.errors import InvalidInput
from service.inference.base64_text import decode_base64

DATA = bytes(range(256)) * 3 + b"\xfb\xff\xfe"  # it has + and / in base64
PLAIN = base64.b64encode(DATA).decode()


@pytest.mark.parametrize("extra", [b"", b"a", b"ab"], ids=["whole", "two =", "one ="])
@pytest.mark.parametrize(
    "dialect",
    [
        lambda text: text,
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
        lambda text: "\n".join(textwrap.wrap(text, 76)),
        lambda text: "\r\n".join(textwrap.wrap(text, 64)) + "\r\n",
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"data:;base64,{text}",
        lambda text: f"DATA:image/jpeg;name=a.jpg;BASE64,{text.rstrip('=')}",
    ],
    ids=["plain", "unpadded", "url-safe", "url-safe unpadded", "lines of 76", "lines of 64",
         "data URL", "data URL without type", "data URL with parameters"],
)  # fmt: skip
def test_every_dialect_is_decoded(dialect: Callable[[str], str], extra: bytes) -> None:
    data = DATA + extra
    assert decode_base64(dialect(base64.b64encode(data).decode())) == data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN + "-", "mixes two alphabets"),
        ("abc!", "'!' at character 3"),
        ("abcdé", "'é' at character 4"),
        ("abcde", "truncated"),
        ("ab==cd", "goes on after its end"),
        ("abc====", "more than two ="),
        ("ab%2Bc", "% escapes"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64", "must begin like"),
    ],
)
def test_a_refusal_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        decode_base64(text)


def test_an_empty_text_is_empty() -> None:
    assert decode_base64("") == b""
