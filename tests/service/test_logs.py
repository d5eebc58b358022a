from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from service.logs import TEXT, Json, Text, fields, printable

HOSTILE = (
    'a"b\\\r\n2026-01-01 00:00:00,000 INFO service.http.server: forged\x1b[31m\u2028\u202e\x85'
)


def record(message: str, *args: object, **more: Any) -> logging.LogRecord:
    made = {"name": "service.test", "levelname": "INFO", "levelno": logging.INFO}
    return logging.makeLogRecord(made | {"msg": message, "args": args} | more)


def exc_info(message: str) -> Any:
    def fail() -> None:
        raise ValueError(message)

    try:
        fail()
    except ValueError:
        return sys.exc_info()


def test_text_is_one_line_whatever_it_repeats() -> None:
    line = Text(TEXT).format(record("said %s", HOSTILE))
    assert line.isprintable()
    assert line.endswith(
        r"""INFO service.test: said a"b\\r\n2026-01-01 00:00:00,000 INFO service.http.server: """
        r"forged\x1b[31m\u2028\u202e\x85"
    )


def test_a_traceback_in_text_passes_for_no_record() -> None:
    _, *rest = Text(TEXT).format(record("failed", exc_info=exc_info(HOSTILE))).split("\n")
    assert "Traceback" in rest[0]
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_json_is_one_line_of_ascii_with_the_time_in_utc() -> None:
    made = record("said %s", HOSTILE, created=1_700_000_000.0625)
    line = Json().format(made)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "INFO",
        "logger": "service.test",
        "message": f"said {HOSTILE}",
    }


def test_json_has_the_fields_of_a_line_and_its_exception() -> None:
    extra = fields("short", request_id="r1", status=429, reason="", model=None)
    found = json.loads(Json().format(record("long", **extra, exc_info=exc_info("x"))))
    assert (found["message"], found["request_id"], found["status"]) == ("short", "r1", 429)
    assert not {"reason", "model"} & set(found)
    assert found["exception"].endswith("ValueError: x")


@pytest.mark.parametrize("text", ["", "plain", "Zürich 猫"])
def test_what_a_person_can_read_stays(text: str) -> None:
    assert printable(text) == text
