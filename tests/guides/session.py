"""A reader who types a document from top to bottom, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from service.cli.main import main
from service.config import loading
from tests.conftest import CACHE, Service, started
from tests.guides.blocks import Block, Command, commands, pattern
from tests.guides.checks import CHECKS
from tests.support.waiting import until

# Added to commands that would take long; the later of two equal flags counts.
SHORTER = {
    "bench": ["--seconds", "0.2", "--warm-up-s", "0"],
    "train": ["--iterations", "2", "--batch-size", "8", "--eager"],
}
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8000")
GRPC_ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8001")
GRPC_STARTED = re.compile(r"serving gRPC on ([^\s,]+)")
FIRST_LINE = re.compile(r"(?:# |// |<!-- )(\S+\.(?:ya?ml|py|mjs|html))(?: -->)?\n")


class Shared(contextlib.ExitStack):
    """A service, and its end."""

    service: Service | None = None

    def start(self) -> Service:
        self.service = self.service or self.enter_context(started())
        return self.service


class Session(contextlib.ExitStack):
    """`shared` outlives it: the service with the default settings, once one of them needed it."""

    def __init__(self, folder: Path, shared: Shared) -> None:
        super().__init__()
        self.folder = folder
        self.shared = shared
        self.service: Service | None = None
        self.said = ""
        self.scope: dict[str, object] = {}
        self.exported: dict[str, str] = {}

    def run(self, block: Block) -> None:
        """Does what the block says.

        Raises:
            AssertionError: it failed, or showed something else.
        """
        if block.needs:
            for command in commands(block):
                CHECKS[block.needs](command)
        elif block.language in ("sh", "console"):
            for command in commands(block):
                self.said = self._run(command)
                if command.shown:
                    self._compare(command.shown, self.said)
        elif block.language == "python" and (named := FIRST_LINE.match(block.text)):
            (self.folder / named[1]).write_text(block.text)
            self.callback(sys.modules.pop, named[1].removesuffix(".py"), None)
        elif block.language == "python":
            code = compile(self._addressed(block.text), f"line {block.line}", "exec")
            exec(code, self.scope)
        elif block.language in ("js", "html") and (named := FIRST_LINE.match(block.text)):
            (self.folder / named[1]).write_text(self._addressed(block.text))
        elif block.language == "json":
            # However it is laid out.
            self._compare("".join(block.text.split()), "".join(self.said.split()))
        elif block.language == "yaml":
            self._settings(block.text)
        else:
            assert block.language in ("text", "csv"), (
                f"line {block.line}: {block.language} is not known"
            )

    def _run(self, command: Command) -> str:
        words = command.words
        if words[:2] in (["make", "serve"], ["resnet-serve", "serve"]):
            self._serve(command)
            return ""
        if words[:2] == ["kill", "-HUP"]:
            self._reload()
            return ""
        if words[0] == "export":
            values = (word.replace("$PWD", str(self.folder)) for word in words[1:])
            self.exported |= dict(value.partition("=")[::2] for value in values)
            if words[1].startswith("PYTHONPATH="):
                self._find_modules()
            return ""
        line = self._addressed(command.line)
        if words[0] == "resnet-serve" and not command.assignments:
            head, _, path = line.partition(" > ")
            if Command(head).is_plain:
                said = self._invoke(Command(head).words[1:])
                if path:
                    (self.folder / Command(path).words[0]).write_text(said)
                return said
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _find_modules(self) -> None:
        """Lets this process import what PYTHONPATH names, and others what this one imports too."""
        sys.path.insert(0, str(self.folder))
        self.callback(sys.path.remove, str(self.folder))
        inherited = os.environ.get("PYTHONPATH", "")
        self.exported["PYTHONPATH"] += f"{os.pathsep}{inherited}" if inherited else ""

    def _invoke(self, arguments: list[str]) -> str:
        """In this process, which has torch already."""
        arguments = [*arguments, *SHORTER.get(arguments[0], [])]
        if arguments == ["health"] and self.service is not None:
            arguments += ["--port", str(self.service.port)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"resnet-serve {' '.join(arguments)}\n{done.output}"
        return done.stdout

    def _serve(self, command: Command) -> None:
        arguments = [] if command.words[0] == "make" else command.words[2:]
        # Any free port, as several documents may be run at once.
        arguments = ["0" if word == "8001" else word for word in arguments if word != "&"]
        if not arguments and not command.assignments and not self.exported:
            self.service = self.shared.start()
            return
        variables: dict[str, Any] = self.exported | command.environment
        self.service = self.enter_context(started(*arguments, cwd=self.folder, **variables))

    def _reload(self) -> None:
        """The service is the shell's first job."""
        service = self.service
        assert service is not None
        seen = len(service.log)
        service.process.send_signal(signal.SIGHUP)
        until(lambda: any("reloaded the configuration" in line for line in service.log[seen:]))

    def _addressed(self, text: str) -> str:
        if GRPC_ADDRESS.search(text):
            assert self.service is not None
            text = GRPC_ADDRESS.sub(self.service._wait_for(GRPC_STARTED), text)
        if not ADDRESS.search(text):
            return text
        self.service = self.service or self.shared.start()
        return ADDRESS.sub(f"127.0.0.1:{self.service.port}", text)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "HOME": str(self.folder), "RESNET_SERVE_CACHE_DIR": CACHE}
        return os.environ | ours | self.exported

    def _compare(self, shown: str, said: str) -> None:
        assert pattern(shown).fullmatch(said), f"shown:\n{shown}\nsaid:\n{said}"

    def _settings(self, text: str) -> None:
        named = FIRST_LINE.match(text)
        path = self.folder / (named[1] if named else "settings.yaml")
        path.write_text(text)
        loading.load(config=str(path), environ={})
