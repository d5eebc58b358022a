from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.logs import LAUNCH, TEXT, Json, Text, fields, printable

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


def logged(code: str, format: str = "json", level: str = "info") -> list[str]:
    """The lines on the stderr of a process that configures its log, and then runs `code`."""
    begin = f"from service.logs import *; log_to_stderr({level!r}, {format!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import logging, sys\n{EARLIER}{begin}{code}"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr.splitlines()


# A library that has been imported before.
EARLIER = "earlier = logging.StreamHandler(); logging.getLogger('earlier').addHandler(earlier)\n"
# What a library may do to be heard, and what befalls a program.
LOUD = """
import threading, warnings
log = logging.getLogger("library")
log.propagate = False
log.addHandler(logging.StreamHandler())
log.handlers[0].setFormatter(logging.Formatter("W1128 23:01:21.639000 13911 x.py:183] %(message)s"))
log.warning("no CUDA runtime")
earlier.handle(logging.makeLogRecord({"msg": "said earlier"}))
print("printed in", end=" ", file=sys.stderr)
print("parts", file=sys.stderr)
warnings.warn("deprecated")
threading.Thread(target=lambda: 1 / 0).start()
threading.Event().wait(0.2)
raise KeyError("the end")
"""


def test_json_is_json_whatever_libraries_do_to_be_heard() -> None:
    lines = [json.loads(line) for line in logged(LOUD)]
    said = [(line["level"], line["logger"], line["message"]) for line in lines]
    assert said[0] == (
        "WARNING",
        "stderr",
        "W1128 23:01:21.639000 13911 x.py:183] no CUDA runtime",
    )
    assert said[1:3] == [
        ("WARNING", "stderr", "said earlier"),
        ("WARNING", "stderr", "printed in parts"),
    ]
    assert said[3][:2] == ("WARNING", "py.warnings")
    assert [line["exception"].splitlines()[-1] for line in lines[4:]] == [
        "ZeroDivisionError: division by zero",
        "KeyError: 'the end'",
    ]


def test_torch_is_json_too() -> None:
    """It has handlers of its own on its loggers, which tell the root nothing."""
    code = "import torch; logging.getLogger('torch.utils.cpp_extension').warning('no runtime')"
    (line,) = map(json.loads, logged(code))
    assert line["level"] == "WARNING"
    assert line["message"].endswith("no runtime")


def test_a_line_that_cannot_be_logged_is_told_in_json_too() -> None:
    lines = logged("class Odd:\n  def __str__(self): 1 / 0\nlogging.error('%s', Odd())")
    messages = [json.loads(line)["message"] for line in lines]
    assert "ZeroDivisionError: division by zero" in messages


@pytest.mark.parametrize("level", ["debug", "info"])
def test_debug_lines_of_libraries_are_never_shown(level: str) -> None:
    code = "for name in ('filelock', 'service.x'): logging.getLogger(name).debug('from ' + name)"
    messages = [json.loads(line)["message"] for line in logged(code, level=level)]
    assert messages == (["from service.x"] if level == "debug" else [])


def test_text_leaves_to_libraries_how_they_speak() -> None:
    lines = logged("print('plain', file=sys.stderr)", "text")
    assert lines == ["plain"]


def test_a_line_of_a_signals_handler_is_like_the_others() -> None:
    code = "log_in_signal_handler('service.x', 'stopping')"
    (line,) = map(json.loads, logged(code))
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "service.x", "stopping")
    (text,) = logged(code, "text")
    assert text.endswith(" INFO service.x: stopping")
    assert logged(code, level="warning") == []


def launched(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A process that the service launches, whose module has this body."""
    (folder / "noisy.py").write_text(f"import os, signal, sys\n{body}\n")
    code = f"import sys; sys.path.append({str(folder)!r})\n{LAUNCH}"
    return subprocess.run(
        [sys.executable, "-c", code, "debug", "json", "noisy", "one", "two"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_launched_process_logs_from_its_first_import_on(tmp_path: Path) -> None:
    body = (
        "from service.logs import configured\n"
        "print('imported', file=sys.stderr)\n"
        "def main(*words): print(*words, *configured(), file=sys.stderr)"
    )
    lines = map(json.loads, launched(tmp_path, body).stderr.splitlines())
    assert [line["message"] for line in lines] == ["imported", "one two debug json"]


def test_ctrl_c_while_a_launched_process_imports_leaves_no_traceback(tmp_path: Path) -> None:
    done = launched(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
