"""The control channel between the supervisor and each process it starts: one JSON object a line.

    supervisor → engine     {"settings", ...}         to start with, including all models, and
                                                      "device", its own; without, only
                                                      "devices" is to be responded
                            {"numbers": [...]}        the numbers of its models
                            {"resolve", "settings"}   the number and settings of a new model, for
                                                      its devices
                            {"load", "settings"}      to load it
                            {"serve", "keep"}         numbers of the models that serve, and of
                                                      those that load; all others end
    engine → supervisor     {"devices": [...]}        those of each model
                            {"models": [...]}         the facts of its models, for the front ends
                            {"ready": true}           it serves
                            {"error": "..."}          it cannot start, or go on
                            {"done", "result"}        a new model's number, and its devices or
                                                      facts, or a "refusal"
    supervisor → front end  {"settings", "index", "occupancy", "heartbeats", "models", "broken",
                               "grpc"}                the addresses that it serves gRPC on
                            {"models", "version", "required"}
                                                      the models that serve from now on; unless
                                                      required, only if all can be reached
                            {"broken": {...}}         why, by device that does not come back
                            {"response", "created"}   a change was made, or a "refusal"
                            {"signal": 15}            shut down as on that signal
    front end → supervisor  {"up": true}              it accepts connections
                            {"error": "..."}          it cannot start
                            {"version"}               it serves that version's models, or says
                                                      why it cannot in "refusal"
                            {"request", "put"}        settings of a model, or a name to "delete"
    supervisor → both       {"apply": {...}}          settings that can change at runtime
                            {"end": true}             exit at once

A closed channel without an "end" means that the supervisor died: the process says so, exits at once
and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from service.runtime import FAILED_STATUS, exit_at_once

Message = dict[str, Any]
log = logging.getLogger(__name__)


class ControlChannel:
    """A child's end of the channel, and the `folder` that all processes share.

    The supervisor alone acts on signals and forwards them over the channel, once, even where a
    terminal or a service manager sends them to every process.
    """

    def __init__(self, fd: int, folder: str) -> None:
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self.folder = folder
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def receive(self) -> Message:
        """The next message; exits the process if the channel is closed, or if told to."""
        text = b""
        with contextlib.suppress(ConnectionError):
            text = self._file.readline()
        if not text.endswith(b"\n"):
            log.warning("the supervisor has ended without a word; exiting")
            self._exit()
        message: Message = json.loads(text)
        if "end" in message:
            self._exit()
        return message

    def send(self, **message: Any) -> None:
        """Sends a message; exits the process if the channel is closed.

        Whoever receives knows whether that was meant, and says so if not.
        """
        try:
            self._socket.sendall(encode(message))
        except ConnectionError:
            self._exit()

    def follow(self, handle: Callable[[Message], object]) -> None:
        """Passes each message to `handle` on the running event loop.

        A thread receives them, so that a busy loop does not delay exit. If one cannot be handled,
        the process exits: it would disagree with the others from then on.
        """
        loop = asyncio.get_running_loop()

        def handle_or_exit(message: Message) -> None:
            try:
                handle(message)
            except Exception:
                log.critical("cannot handle a message of the supervisor; exiting", exc_info=True)
                exit_at_once(FAILED_STATUS)

        def read() -> None:
            while True:
                message = self.receive()
                with contextlib.suppress(RuntimeError):  # The loop has ended, and the process will.
                    loop.call_soon_threadsafe(handle_or_exit, message)

        threading.Thread(target=read, name="control", daemon=True).start()

    def _exit(self) -> NoReturn:
        # A supervisor that was killed could not remove it.
        shutil.rmtree(self.folder, ignore_errors=True)
        exit_at_once(0)


def engine_socket(folder: str, index: int) -> str:
    """Path of the socket on which an engine process listens."""
    return f"{folder}/engine-{index + 1}"


def process_name(device: str, *, alone: bool) -> str:
    """What the engine process of a device is called; `alone`: there is no other device."""
    return "the engine process" if alone and device == "cpu" else f"the engine process of {device}"


def encode(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"
