"""A bar for people, lines for log files, and one place that decides."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import pytest

from service.cli import progress
from service.cli.progress import ProgressLines

ROOM = Path(progress.__file__).parents[1]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines(desc="photos", unit=" images", total=5000, clock=clock)
    for _ in range(320):
        clock.now += 0.25
        lines.update(10)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "photos: 1,200 of 5,000 images after 0:00:30",
        "photos: 2,400 of 5,000 images after 0:01:00",
    ]


def test_what_is_short_or_hidden_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLines(clock=clock) as short, ProgressLines(hidden=True, clock=clock) as hidden:
        clock.now = 29.0
        short.update(100)
        clock.now = 100.0
        hidden.update(100)
    assert capsys.readouterr().err == ""


def test_a_line_waits_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines(unit=" steps", initial=10, every=60, clock=clock)
    lines.set_postfix_str("loss 2.000", refresh=False)
    clock.now = 59.0
    lines.told()
    clock.now = 118.0
    lines.update()
    assert capsys.readouterr().err == ""
    clock.now = 119.0
    lines.update()
    assert capsys.readouterr().err == "12 steps after 0:01:59, loss 2.000\n"


def test_only_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {"total": 3, "unit": " images", "leave": False}
    assert isinstance(progress.bar(**shown), ProgressLines)
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")  # It cannot go back to the start of a line.
    assert isinstance(progress.bar(**shown), ProgressLines)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.bar(hidden=True, **shown), ProgressLines)
    with progress.bar(**shown) as bar:
        assert not isinstance(bar, ProgressLines)
        bar.update(3)


def test_no_other_module_decides() -> None:
    def draws(path: Path) -> bool:
        imported = ast.walk(ast.parse(path.read_text("utf-8")))
        return any(isinstance(node, ast.ImportFrom) and node.module == "tqdm" for node in imported)

    assert [path.stem for path in ROOM.rglob("*.py") if draws(path)] == ["progress"]
