"""What goes to stderr: a line for a person, or an object for a machine.

Each record is one line, whatever a client put into it; only a traceback has more, and those begin
with blanks, so that nothing in them passes for a record.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The least that is told of these. What they warn of is what clients have sent, who are told of it
# in their answers; in detail they repeat it, several lines for one image.
LEVELS = {
    # It also tells its own life; ours is told by service.http.server.
    "uvicorn.error": logging.ERROR,
    "python_multipart": logging.CRITICAL,
}


def log_to_stderr(level: str, format: Format = "text") -> None:
    """Called by each process of the service, before it logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if format == "json" else Text(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name, least in LEVELS.items():
        logging.getLogger(name).setLevel(least)
    warnings.formatwarning = _one_line
    logging.captureWarnings(True)


def set_log_level(level: str) -> None:
    """The least that is logged from now on."""
    logging.getLogger().setLevel(level.upper())


def fields(message: str, **values: Any) -> dict[str, Any]:
    """What `extra` a line is logged with that has fields of its own: as JSON, `message` and they
    take the place of the whole text. None and "" are left out."""
    present = {name: value for name, value in values.items() if value not in (None, "")}
    return {"fields": {"message": message} | present}


class Quiet:
    """Lets a line for each reason through every so many `seconds`, and counts the others."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()

    def unlogged(self, reason: str) -> int:
        """How many lines were held back since the last one; -1 if this one is, too."""
        now = time.monotonic()
        if now < self._until.get(reason, 0.0):
            self._unlogged[reason] += 1
            return -1
        self._until[reason] = now + self._seconds
        return self._unlogged.pop(reason, 0)


def and_more(unlogged: int) -> str:
    """What a line says of those that were held back before it."""
    return f" (and {unlogged} more since the last such line)" if unlogged else ""


class Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {printable(line)}" for line in lines)


class Json(logging.Formatter):
    """RFC 8259 in ASCII; `time` as RFC 3339 has it."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        given: Mapping[str, Any] = getattr(record, "fields", {})
        line |= given
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {message}"


def printable(text: str) -> str:
    """`text` with whatever would break, colour or turn a line written as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
