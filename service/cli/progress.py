"""Progress on stderr, decided here alone: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import click
from tqdm import tqdm

from service.config.variables import environment

LINE_SECONDS = 30.0


@dataclass
class ProgressLines:
    """What log files get instead of a bar, whose methods it has: a line each `every` seconds."""

    desc: str = ""
    unit: str = ""
    total: float | None = None
    initial: float = 0
    every: float = LINE_SECONDS
    hidden: bool = False
    clock: Callable[[], float] = time.monotonic
    n: float = field(init=False)

    def __post_init__(self) -> None:
        self.n = self.initial
        self._postfix = ""
        self._started = self._told = self.clock()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """Counts, and prints a line if the last one is `every` seconds old."""
        self.n += count
        now = self.clock()
        if not self.hidden and now - self._told >= self.every:
            self._told = now
            click.echo(self._line(now), err=True)

    def set_description(self, text: str) -> None:
        self.desc = text

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Text at the end of the next line."""
        self._postfix = text

    def told(self) -> None:
        """Something else has just been printed, so that a line can wait."""
        self._told = self.clock()

    def _line(self, now: float) -> str:
        total = "" if self.total is None else f" of {self.total:,.0f}"
        elapsed = timedelta(seconds=round(now - self._started))
        line = f"{self.n:,.0f}{total}{self.unit} after {elapsed}"
        return ", ".join(
            filter(None, (f"{self.desc}: {line}" if self.desc else line, self._postfix))
        )


def write(line: str) -> None:
    """Prints a line to stdout, above a bar if there is one."""
    tqdm.write(line)


def on_terminal() -> bool:
    """Whether a person looks at stderr, on a terminal that can redraw a line."""
    return sys.stderr.isatty() and environment().get("TERM") != "dumb"


def bar(
    *, hidden: bool = False, every: float = LINE_SECONDS, **shown: Any
) -> tqdm[Any] | ProgressLines:
    """A `tqdm` bar for `shown` if stderr is a terminal, else lines; neither if `hidden`."""
    if hidden or not on_terminal():
        known = {
            name: shown[name] for name in ("desc", "unit", "total", "initial") if name in shown
        }
        return ProgressLines(**known, every=every, hidden=hidden)
    return tqdm(**shown)
