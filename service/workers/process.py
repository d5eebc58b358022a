"""A child process of the supervisor, and its role."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service import logs
from service.config.variables import environment
from service.workers.control import Message, encode

MARGIN_SECONDS = 5.0
MAX_MESSAGE = 2**26


@dataclass(slots=True)
class Role:
    """What a child does, and its successor after it.

    `name`: in the log; `key`: in the names of the metrics' files; `module`: of `service.workers`;
    `listeners`: the sockets on which it accepts connections; `number`: among the heartbeats.
    `serving_since`: when the current child began to serve, None if it has not; `reason`: why it is
    about to end, if it says so; `restarts`: in a row, of children that did not serve for long.
    """

    name: str
    key: str
    module: str
    listeners: Sequence[socket.socket]
    number: int
    serving_since: float | None = None
    reason: str = ""
    restarts: int = 0

    def serves(self) -> None:
        self.serving_since = time.monotonic()


class ChildProcess:
    """A running child and the supervisor's end of its control channel."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, role: Role, folder: str, inherited: Sequence[int]) -> ChildProcess:
        """Starts a child, which inherits its listeners and the other descriptors.

        Raises:
            OSError: there is no memory, or there are too many processes or files.
        """
        ours, theirs = socket.socketpair()
        channel = theirs.fileno()
        listeners = [listener.fileno() for listener in role.listeners]
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *logs.launching(
                        f"service.workers.{role.module}",
                        str(channel),
                        ",".join(map(str, listeners)),
                        folder,
                    ),
                    pass_fds=(channel, *listeners, *inherited),
                    env=environment(
                        PYTHONPATH=os.pathsep.join(sys.path), PROMETHEUS_MULTIPROC_DIR=folder
                    ),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
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
        """Closes the channel, on which the child exits at once; it is told that this is meant."""
        self.send(end=True)
        self._writer.close()

    async def end(self) -> None:
        """Disconnects, and kills the child if it does not exit."""
        self.disconnect()
        try:
            await asyncio.wait_for(self.process.wait(), MARGIN_SECONDS)
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """Ends the child at once, even if it is stopped."""
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            self.process.kill()
