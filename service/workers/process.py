"""A child process of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from service.config.variables import environment
from service.workers.control import Message, encode

MARGIN_SECONDS = 5.0
MAX_MESSAGE = 2**26


class ChildProcess:
    """A running child and the supervisor's end of its control channel."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.started = time.monotonic()
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(
        cls, module: str, listener: socket.socket, folder: str, inherited: Sequence[int]
    ) -> ChildProcess:
        """Runs `service.workers.MODULE`, which inherits `listener` and the other descriptors."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # Files in the working directory must not shadow modules.
                "-m",
                f"service.workers.{module}",
                *(str(fd) for fd in (theirs.fileno(), listener.fileno())),
                folder,
                pass_fds=(theirs.fileno(), listener.fileno(), *inherited),
                env=environment(
                    PYTHONPATH=os.pathsep.join(sys.path), PROMETHEUS_MULTIPROC_DIR=folder
                ),
                start_new_session=True,
            )
        return cls(process, *await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE))

    def send(self, **message: Any) -> None:
        """Sends a message, unless the child has ended."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> Message | None:
        """The child's next message; None if it ended first."""
        with contextlib.suppress(ConnectionError):
            if text := await self._reader.readline():
                message: Message = json.loads(text)
                return message
        return None

    def disconnect(self) -> None:
        """Closes the channel, on which the child exits at once."""
        self._writer.close()

    async def end(self) -> None:
        """Disconnects, and kills the child if it does not exit."""
        self.disconnect()
        try:
            await asyncio.wait_for(self.process.wait(), MARGIN_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
