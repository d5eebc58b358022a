"""Logging to stderr, as text or as JSON.

Each record is one line, whatever a client sent. Only tracebacks span more lines, and these are
indented, so that a client cannot forge a record.
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
# Minimum levels. These loggers warn of bad input, which the client's response already reports, and
# at lower levels they repeat it: several lines for one image.
LEVELS = {
    # It also logs startup and shutdown, which service.http.server does for us.
    "uvicorn.error": logging.ERROR,
    "python_multipart": logging.CRITICAL,
    # It logs a traceback for each call that fails in transit; our own calls log theirs.
    "grpc": logging.CRITICAL,
}


def log_to_stderr(level: str, format: Format = "text") -> None:
    """Configures logging; each process of the service calls it first."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if format == "json" else Text(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name, minimum in LEVELS.items():
        logging.getLogger(name).setLevel(minimum)
    warnings.formatwarning = _one_line
    logging.captureWarnings(True)


def set_log_level(level: str) -> None:
    """Sets the minimum level from now on."""
    logging.getLogger().setLevel(level.upper())


def fields(message: str, **values: Any) -> dict[str, Any]:
    """The `extra` of a record with fields of its own: in JSON, `message` and the fields replace the
    formatted text. None and "" are left out."""
    present = {name: value for name, value in values.items() if value not in (None, "")}
    return {"fields": {"message": message} | present}


class LogLimit:
    """Rate limit: `lines` per reason every `seconds`; suppressed lines are counted.

    Reasons must come from the code, never from a client: the limit remembers each.
    """

    def __init__(self, seconds: float, lines: int = 1) -> None:
        self._seconds = seconds
        self._lines = lines
        self._until: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self._suppressed: Counter[str] = Counter()

    def suppressed(self, reason: str) -> int | None:
        """Lines suppressed since the last one logged; None: suppress this one, too."""
        now = time.monotonic()
        if now >= self._until.get(reason, 0.0):
            self._until[reason] = now + self._seconds
            self._left[reason] = self._lines
        if not self._left[reason]:
            self._suppressed[reason] += 1
            return None
        self._left[reason] -= 1
        return self._suppressed.pop(reason, 0)


def with_suppressed(count: int) -> str:
    """The end of a line that reports the lines suppressed before it."""
    return f" (and {count} more since the last such line)" if count else ""


class Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {printable(line)}" for line in lines)


class Json(logging.Formatter):
    """RFC 8259 in ASCII; `time` in the format of RFC 3339."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line |= fields
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
    """`text` with unprintable characters escaped: they could break, colour or reverse a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
