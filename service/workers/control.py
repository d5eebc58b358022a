"""The line between the supervisor and a process it started: JSON objects, one a line.

    supervisor → engine     {"settings"}              what it needs to start, models included
                            {"numbers": [...]}        what its models are called from now on
                            {"load", "settings"}      a number and a model to load beside them
                            {"serve": [...]}          the models that serve; others end
    engine → supervisor     {"models": [...]}         what the front ends must know of them
                            {"error": "..."}          the configuration is impossible
                            {"loaded", "facts"}       a number and its model, or a "refusal"
    supervisor → front end  {"settings", "index", "ledger", "models"}
                            {"models", "version"}     the models that serve from now on
                            {"answer", "created"}     a change was made, or a "refusal"
                            {"signal": 15}            end as on that signal
    front end → supervisor  {"up": true}              it accepts connections
                            {"version"}               it serves those models
                            {"question", "put"}       a model to serve, or a name to "delete"
    supervisor → both       {"apply": {...}}          settings that can change while it runs

Its end is the supervisor's death, or its wish: a child whose line closes leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any


class Line:
    """A child's end of the line, and the `folder` that all processes share.

    Signals are the supervisor's business: what it makes of them comes over the line, once, even
    where a terminal or a service manager sends them to every process.
    """

    def __init__(self, fd: int, folder: str) -> None:
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self.folder = folder
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def receive(self) -> dict[str, Any]:
        """The next message; the process ends where there will be none."""
        text = self._file.readline()
        if not text.endswith(b"\n"):
            self._leave()
        received: dict[str, Any] = json.loads(text)
        return received

    def send(self, **message: Any) -> None:
        self._socket.sendall(encode(message))

    def follow(self, act: Callable[[dict[str, Any]], object]) -> None:
        """Gives every message to `act`, in a thread: it notices the end whatever else is busy."""

        def read() -> None:
            while True:
                act(self.receive())

        threading.Thread(target=read, name="line", daemon=True).start()

    def _leave(self) -> None:
        # A supervisor that was killed could not do it.
        shutil.rmtree(self.folder, ignore_errors=True)
        logging.shutdown()
        # Other threads may be inside native code; unloading the interpreter would abort them.
        os._exit(0)


def engine_socket(folder: str) -> str:
    """Where the engine process listens."""
    return f"{folder}/engine"


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
