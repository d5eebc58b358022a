"""JSON whose long strings are cut out before it is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import InvalidInput, ServiceError, TooLarge
from service.http import json_body
from service.http.json_body import LONG, LongText, parse

AT_LIMIT, OVER = "a" * LONG, "a" * (LONG + 1)


def plain(value: Any) -> Any:
    if isinstance(value, LongText):
        return value.name()
    if isinstance(value, list):
        return [plain(each) for each in value]
    return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "value",
    [
        None, 1.5, "a", OVER, [OVER], [[OVER, {"a": OVER}], AT_LIMIT], {"a": {"b": [OVER, OVER]}},
        {"é": 'é\\"' * 99}, {"a": "\\" * 20 + '"' + "b" * 99}, [{"a": 1}, True, "\u2028"],
    ],
)  # fmt: skip
def test_the_value_is_that_of_any_other_parser(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)):
        assert plain(parse(text.encode(), 1)) == value


def test_only_long_strings_are_cut_out() -> None:
    cut = parse(json.dumps([AT_LIMIT, OVER]).encode(), 1)
    assert [type(each) for each in cut] == [str, LongText]


@pytest.mark.parametrize("filler", ["a", "\\/", "\\u002B", "\\n"])
def test_escapes_are_undone_wherever_the_pieces_end(
    filler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece in range(8, 24):
        monkeypatch.setattr(json_body, "PIECE", piece)
        text = f'"{"b" * (piece % 5)}{filler * 99}c"'
        found = parse(text.encode(), 1)
        assert isinstance(found, LongText)
        assert found.name() == json.loads(text)


def test_an_endless_run_of_backslashes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "PIECE", 64)
    found = LongText(b"\\" * 1000, 0, 1000)
    with pytest.raises(InvalidInput):
        found.unescaped()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "malformed at byte 0"),
        (b'{"a": 1', "malformed at byte 7"),
        (b'{"a": "%b", "b": "%b", }' % (b"x" * 99, b"y" * 999), "malformed at byte 1117"),
        (b'{"a": "b', "does not end"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"%b": 1}' % OVER.encode(), "a name of more than"),
        (b'["\\u00000"]', "null character"),
        (b'["aa\x000"]', "null character"),
        ('{"a": 1}'.encode("utf-16"), "not in UTF-8"),
        ('{"a": 1}'.encode("utf-32-be"), "not in UTF-8"),
        (b'["\xff"]', "not in UTF-8"),
        (b"[NaN]", "NaN, which is not JSON"),
        (b"[" + b"1" * 5000 + b"]", "too large"),
        (b'["' + b"\\\\" * 99 + b'"]', "backslashes in a row"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse(text, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"[" * 73, TooLarge),
        (b"[" * 72 + b"]" * 72, None),
        (b"[" + b'"",' * 143 + b'""]', None),
        (b"[" + b'"",' * 144 + b'""]', TooLarge),
        (b" " * (2**14 + 2**9 - 1) + b"1", None),
        (b" " * (2**14 + 2**9) + b"1", TooLarge),
    ],
)
def test_there_is_no_more_than_images_need(text: bytes, error: type[ServiceError] | None) -> None:
    if error is None:
        parse(text, 1)
    else:
        with pytest.raises(error, match="the limit is"):
            parse(text, 1)
    parse(b"[" + b"{}," * 500 + b"{}]", 64)


def test_a_deep_text_is_refused_where_many_images_are_allowed() -> None:
    with pytest.raises(InvalidInput, match="nested too deeply"):
        parse(b"[" * 5000 + b"]" * 5000, 1000)
