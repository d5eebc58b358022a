"""Logging to stderr, as text or as JSON.

Each record is one line, whatever a client sent. Only tracebacks span more lines, and these are
indented, so that a client cannot forge a record. In JSON they are part of their record, and
what other libraries print to stderr becomes records; what native code writes by itself stays as it
is, since its last words in a crash must not be lost on the way.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

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
# Whose debug lines are logged; those of libraries tell nobody anything of this service.
OURS = ("service", "models")
# What prints to stderr as Google's loggers do, torch among them: a letter for the level, the month
# and day, the time.
PRINTED = re.compile(r"([DVIWEFC])\d{4} \d\d:\d\d:\d\d\.\d+ ")
PRINTED_LEVELS = {
    "D": logging.DEBUG,
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
    "C": logging.CRITICAL,
}
LONGEST_PRINTED = 2**16  # characters of a line
COMMAND = "resnet-serve: "  # Before the reason why it does not start.


def log_to_stderr(level: str, format: Format = "text") -> None:
    """Configures logging; each process of the service calls it first."""
    stderr = sys.stderr
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(Json() if format == "json" else Text(TEXT))
    logging.basicConfig(handlers=[handler])
    alone = logging.root.handlers == [handler]  # Else somebody, such as Ray, logs in his own way.
    if alone:
        set_log_level(level)
    for name, minimum in LEVELS.items():
        logging.getLogger(name).setLevel(minimum)
    warnings.formatwarning = _one_line
    logging.captureWarnings(True)
    if format == "json" and alone:
        sys.stderr = PrintedLines(stderr)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value)
        for name in [*logging.root.manager.loggerDict]:
            for other in logging.getLogger(name).handlers:
                if isinstance(other, logging.StreamHandler) and other.stream is stderr:
                    other.setStream(sys.stderr)


def set_log_level(level: str) -> None:
    """Sets the minimum level from now on."""
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(max(wanted, logging.INFO))
    for name in OURS:
        logging.getLogger(name).setLevel(wanted if wanted < logging.INFO else logging.NOTSET)


def configured() -> tuple[str, Format]:
    """The level and the format of this process's log, for a process that it starts."""
    debug = logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG)
    level = "debug" if debug else logging.getLevelName(logging.root.level).lower()
    as_json = any(isinstance(handler.formatter, Json) for handler in logging.root.handlers)
    return level, "json" if as_json else "text"


def log_in_signal_handler(name: str, message: str) -> None:
    """Logs at the level INFO by writing to the handlers' files: the signal may have interrupted
    whoever writes to their streams, which then take nothing from others."""
    log = logging.getLogger(name)
    if not log.isEnabledFor(logging.INFO):
        return
    record = log.makeRecord(name, logging.INFO, "", 0, message, (), None)
    for handler in logging.root.handlers:
        ours = isinstance(handler.formatter, (Json, Text))
        if ours and isinstance(handler, logging.StreamHandler):
            os.write(handler.stream.fileno(), handler.format(record).encode() + b"\n")


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


class PrintedLines(io.TextIOBase):
    """In the place of `sys.stderr`: makes a record of each line that is printed to it, whatever the
    log's level. What is printed while one is logged, such as a failure to do so, goes to `stream`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._of_thread = threading.local()
        self._log = logging.getLogger("stderr")

    def write(self, text: str) -> int:
        here = self._of_thread.__dict__
        if here.get("logs"):
            return self._stream.write(text)
        *lines, rest = (here.get("rest", "") + text).split("\n")
        if len(rest) > LONGEST_PRINTED:
            lines, rest = [*lines, rest], ""
        here["rest"] = rest
        here["logs"] = True
        try:
            for line in filter(str.strip, lines):
                # Of a progress bar, the last state.
                self._log_line(line.rstrip("\r").rpartition("\r")[2])
        finally:
            here["logs"] = False
        return len(text)

    def _log_line(self, line: str) -> None:
        level = logging.ERROR if line.startswith(COMMAND) else logging.WARNING
        if (prefix := PRINTED.match(line)) is not None:
            level = PRINTED_LEVELS[prefix[1]]
        self._log.handle(self._log.makeRecord(self._log.name, level, "", 0, line, (), None))

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


def _log_uncaught(kind: type[BaseException], error: BaseException | None, *_: object) -> None:
    """Logs what would be printed of an exception."""
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        logging.getLogger("stderr").critical("nobody handled an exception", exc_info=error)


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


def launch(level: str, format: Format, module: str, *arguments: str) -> None:
    """Configures logging, and then imports `module` and calls its `main`."""
    log_to_stderr(level, format)
    importlib.import_module(module).main(*arguments)


def launching(module: str, *arguments: str) -> Sequence[str]:
    """The arguments of Python for another process, which runs the `main` of `module` and logs like
    this one from its first import on."""
    # Files in the working directory must not shadow modules.
    return ("-P", "-c", LAUNCH, *configured(), module, *arguments)


# Not `-m service.logs`: other modules would import a second one. Ctrl-C reaches the processes of a
# terminal all at once: this one then ends without a traceback, until it has a handler.
LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
from service.logs import launch
launch(*sys.argv[1:])
"""
