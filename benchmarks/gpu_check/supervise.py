"""Stages as processes, each with a time limit, and their findings as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_check.stages import Stage

ROOT = Path(__file__).parents[2]
# Of what a stage that failed wrote to stderr, so many lines are kept.
LAST_LINES = 12
LAST_LINES_LATE = 60  # where each thread was
PIPE_SECONDS = 5.0  # for what a process that has ended still has in its pipes
SHOWN_CHARACTERS = 400


class Findings:
    """Writes each finding to a file at once, as a line of JSON, and shows it on stdout."""

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def tell(self, stage: str, figures: Mapping[str, Any]) -> None:
        record = {"stage": stage, **figures}
        with self._lock:
            self.records.append(record)
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            # Who reads along may leave.
            with suppress(BrokenPipeError):
                print(readable(stage, figures), flush=True)

    def close(self) -> None:
        self._file.close()


def readable(stage: str, figures: Mapping[str, Any]) -> str:
    """One line for people."""
    cells = (
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in figures.items()
    )
    text = f"{stage:<13}{'  '.join(cells)}".replace("\n", " ")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


class Supervisor:
    """Runs stages as processes; `stop` ends those that run.

    `command` starts one that ends at a time of `time.monotonic`.
    """

    def __init__(self, findings: Findings, command: Callable[[Stage, float], list[str]]) -> None:
        self._findings = findings
        self._command = command
        self._running: set[int] = set()

    def run(self, stage: Stage, seconds: float) -> None:
        """Runs a stage for at most `seconds`; tells what it finds, and how it ended."""
        began = time.monotonic()
        process = subprocess.Popen(
            self._command(stage, began + seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=_environment(stage),
            start_new_session=True,  # So that what it starts ends with it.
        )
        self._running.add(process.pid)
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        skipped = threading.Event()
        readers = (
            threading.Thread(target=self._read, args=(stage, process.stdout, skipped), daemon=True),
            threading.Thread(target=_keep, args=(process.stderr, said), daemon=True),
        )
        for reader in readers:
            reader.start()
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(process.pid)
            process.wait()
            self._running.discard(process.pid)
        for reader in readers:
            reader.join(PIPE_SECONDS)
        end: dict[str, Any] = {"ended": "skipped" if skipped.is_set() else "ok"}
        if late:
            end = {"ended": "too late", "stderr": said[-LAST_LINES_LATE:]}
        elif process.returncode:
            end = {"ended": "failed", "status": process.returncode, "stderr": said[-LAST_LINES:]}
        self._findings.tell(stage.name, end | {"seconds": round(time.monotonic() - began, 1)})

    def _read(self, stage: Stage, lines: IO[str], skipped: threading.Event) -> None:
        with lines:
            for line in lines:
                # Libraries print there, too.
                with suppress(ValueError):
                    figures = json.loads(line)
                    if isinstance(figures, dict):
                        if "skipped" in figures:
                            skipped.set()
                        self._findings.tell(stage.name, figures)

    def stop(self) -> None:
        for pid in tuple(self._running):
            _kill(pid)


def _keep(lines: IO[str], said: list[str]) -> None:
    with lines:
        said.extend(lines)


def _environment(stage: Stage) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Threads that spin while they wait would keep the stages beside them from computing.
    idle = {"OMP_WAIT_POLICY": "PASSIVE"} if stage.beside else {}
    return {**os.environ, "PYTHONPATH": path, **idle, **stage.environment}


def _kill(pid: int) -> None:
    """Ends a process that leads a session, and all in it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
