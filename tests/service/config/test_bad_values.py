"""Whatever value a setting is given, it is refused in our words, or taken."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Any

import pytest

from service.config.loading import Reading, read
from service.config.settings import ModelSettings, Settings
from service.config.sources import FLAGS, SECRETS
from service.config.variables import PREFIX

# Words of pydantic, PyYAML, regular expressions and Python that no reader of a message should need.
LIBRARY = re.compile(
    r"validation|pydantic|input |should|regex|pattern|must match|NoneType|<class|object at 0x"
    r"|[A-Z][a-z]+(Error|Exception)|Traceback|unable to|parse|instance of|datetime|\bNone\b"
    r"|\bTrue\b|\bFalse\b|\^\[|\\[dwsSZ]|\(\?|str_|int_|_type\b|Literal|Decimal|not permitted"
    r"|a valid"
)
LONGEST = 700  # A list of all settings is among the texts.
ANY: tuple[Any, ...] = (
    None,
    "",
    " ",
    "nonsense",
    "x" * 5000,
    "line\nbreak",
    -1,
    0,
    1.5,
    10**30,
    math.nan,
    math.inf,
    True,
    datetime.date(2026, 1, 1),
    b"bytes",
    [],
    [1, None],
    ["nonsense"] * 300,
    {},
    {"a": 1},
    {3: 4},
    {"set"},
)
FIELDS = [
    *((name,) for name in Settings.model_fields),
    *(("models", name) for name in ModelSettings.model_fields),
]


def assert_in_our_words(reading: Reading, name: str, value: Any) -> None:
    for problem in reading.problems:
        assert not LIBRARY.search(problem.replace(str(value)[:50], "")), problem[:LONGEST]
        if not name.endswith("_file"):  # It names the file.
            assert len(problem) < LONGEST
        assert "\n" not in problem
        # Its place and its name come first; a flag's or a variable's is both.
        flag = FLAGS.get(name, f"--{name}".replace("_", "-"))
        names = rf"({name}|{name.upper()}|{flag})"
        assert re.match(rf"(environment variable |\S+: )?\S*{names}(?!\w)", problem)
        assert not re.match(rf"\S*({name.upper()}|{flag}): (models\[0\]\.)?{name}: ", problem)
        if name in SECRETS:
            assert "nonsense" not in problem


@pytest.mark.parametrize("place", FIELDS, ids=".".join)
def test_a_wrong_value_in_a_file_is_refused_in_our_words(place: tuple[str, ...]) -> None:
    name = place[-1]
    for value in ANY:
        content: dict[str, Any] = {name: value}
        if len(place) > 1:
            content = {"models": [{"spec": "random:resnet20"} | content]}
        reading = read(config=content, environ={})
        assert_in_our_words(reading, name, value)
        assert reading.sound is not None  # So that all else can be looked at.


@pytest.mark.parametrize("place", FIELDS, ids=".".join)
def test_a_wrong_value_of_a_variable_or_a_flag_is_refused_in_our_words(
    place: tuple[str, ...],
) -> None:
    name = place[-1]
    for value in ("", " ", "nonsense", "x" * 5000, "-1", "1e400", "nan", "1,2,,3", "{}", "\x00"):
        reading = read(environ={f"{PREFIX}{name.upper()}": value})
        words = PREFIX + name.upper() if name == "architecture" else name
        assert_in_our_words(reading, words, value)
        if name not in ("architecture", "spec", "name"):
            assert_in_our_words(read({name: value}, environ={}), name, value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("port: 1\n host: a", "a colon where none fits; check the indentation"),
        ("models:\n - spec: a\n  name: b", "the indentation does not fit the lines above"),
        ("port: 1\n\thost: a", "a tab; indent with spaces"),
        ("host: `a`", "a value that begins with a special character; quote it"),
        ("port 1\nhost: a", "a colon where none fits; check the indentation and the line before"),
        ("host: 'a", "a quote is not closed"),
        ('host: "a\\q"', "an unknown escape; use single quotes"),
        ("api_keys: *secret-secret-secret", "a value that begins with * or &; quote it"),
        ("api_keys: !secret-secret a", "a value that begins with ! or %; quote it"),
        ("host: [a", "a bracket or brace is not closed"),
        ("host: a\n---\nport: 1", "several documents; keep one, without ---"),
        ("{a: 1", "a bracket or brace is not closed"),
        ("port: 2026-13-45", "a value that is not of its type; quote it"),
    ],
)
def test_the_reason_why_a_file_is_not_yaml_is_told_and_nothing_of_it(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    (problem,) = read(config=str(path), environ={}).problems
    assert reason in problem
    assert re.match(rf"{re.escape(str(path))}(:\d+)?: not YAML: ", problem)
    assert not LIBRARY.search(problem)
    assert "secret" not in problem
