"""A reader who types a document from top to bottom, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from service import settings
from service.cli import main
from tests.conftest import CACHE, Service, started
from tests.guides.blocks import Block, Command, commands, pattern
from tests.guides.checks import CHECKS

# Added to commands that would take long; the later of two equal flags counts.
SHORTER = {
    "bench": ["--seconds", "0.2", "--warm-up-s", "0"],
    "train": ["--iterations", "2", "--batch-size", "8", "--eager"],
}
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8000")
FIRST_LINE = re.compile(r"# (\S+\.ya?ml)\n")
Started = dict[str, Service]


class Session:
    """`services` are kept by the command that started them, for every document that uses it."""

    def __init__(self, folder: Path, services: Started, running: contextlib.ExitStack) -> None:
        self.folder = folder
        self.services = services
        self.running = running
        self.service: Service | None = None
        self.said = ""
        self.scope: dict[str, object] = {}

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
        elif block.language == "python":
            code = compile(self._addressed(block.text), f"line {block.line}", "exec")
            exec(code, self.scope)
        elif block.language == "json":
            # However it is laid out.
            self._compare("".join(block.text.split()), "".join(self.said.split()))
        elif block.language == "yaml":
            self._settings(block.text)
        else:
            assert block.language == "text", f"line {block.line}: {block.language} is not known"

    def _run(self, command: Command) -> str:
        words = command.words
        if words[:2] in (["make", "serve"], ["resnet-serve", "serve"]):
            self._serve(command)
            return ""
        line = self._addressed(command.line)
        if words[0] == "resnet-serve":
            extra = SHORTER.get(words[1], [])
            if command.is_plain and not command.assignments:
                return self._invoke([*Command(line).words[1:], *extra])
            head, redirection, rest = line.partition(" >")
            line = " ".join([head, *extra]) + redirection + rest
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

    def _invoke(self, arguments: list[str]) -> str:
        """In this process, which has torch already."""
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"resnet-serve {' '.join(arguments)}\n{done.output}"
        return done.stdout

    def _serve(self, command: Command) -> None:
        arguments = [] if command.words[0] == "make" else command.words[2:]
        arguments = [word for word in arguments if word != "&"]
        key = " ".join([*command.assignments, *arguments])
        # A file of this folder is not another folder's of the same name.
        local = any((self.folder / word).exists() for word in arguments)
        key = f"{self.folder}: {key}" if local else key
        if key not in self.services:
            service = started(*arguments, cwd=self.folder, **command.environment)
            self.services[key] = self.running.enter_context(service)
        self.service = self.services[key]

    def _addressed(self, text: str) -> str:
        if not ADDRESS.search(text):
            return text
        if self.service is None:
            self._serve(Command("resnet-serve serve"))
        assert self.service is not None
        return ADDRESS.sub(f"127.0.0.1:{self.service.port}", text)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "HOME": str(self.folder), "RESNET_SERVE_CACHE_DIR": CACHE}
        return os.environ | ours

    def _compare(self, shown: str, said: str) -> None:
        assert pattern(shown).fullmatch(said), f"shown:\n{shown}\nsaid:\n{said}"

    def _settings(self, text: str) -> None:
        named = FIRST_LINE.match(text)
        path = self.folder / (named[1] if named else "settings.yaml")
        path.write_text(text)
        settings.load(config=str(path), environ={})
