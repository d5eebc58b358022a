"""The command's entry: `resnet-serve`, or `python -m service.cli`."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

CLIENT = "the Python client, service.client, works without"


def main() -> None:
    """Runs the command, or says in one line why it cannot run here.

    Ctrl-C during the imports ends it as a signal does, without a traceback.
    """
    hidden = _hidden()
    if hidden is not None:
        sys.exit(
            f"resnet-serve: {hidden} hides a package of resnet-serve; call the command "
            "resnet-serve, not python -m service.cli, without that folder in PYTHONPATH; to train "
            "in several processes, torchrun --no-python resnet-serve"
        )
    if sys.platform == "win32":
        sys.exit(f"resnet-serve: runs in WSL 2 or in a container, not on Windows; {CLIENT}")
    if sys.platform == "darwin" and "serve" in sys.argv[1:2]:
        sys.exit(f"resnet-serve: serve needs Linux, in a container for example; {CLIENT}")
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # Else whoever started it has it ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from service.cli.main import main as command
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "service", "models"):
            raise
        sys.exit(
            f"resnet-serve: needs {missing}, which is not installed; install resnet-serve again, "
            f"without --no-deps; {CLIENT}"
        )
    signal.signal(signal.SIGINT, interrupt)
    _settle_streams()
    _run(command)


def _settle_streams() -> None:
    """Opens the null device where a stream is closed, as by `>&-`: else the next file would get
    its number. Names of files that are no text are escaped rather than end a command."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(command: Callable[[], object]) -> None:
    """Runs the command; where stdout cannot be written, as on a full disk, a line says so."""
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # Python would try again at the exit.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        ended = error.__context__
        if isinstance(ended, SystemExit) and ended.code:
            raise ended from None  # It has been said.
        sys.exit(f"resnet-serve: stdout: {error.strerror or error}")


def _hidden() -> str | None:
    """The file that Python takes for our package `models`, if it is not ours."""
    found = find_spec("models")
    origin = None if found is None else found.origin
    ours = Path(__file__).parents[2] / "models" / "__init__.py"
    return None if origin is None or Path(origin).resolve() == ours.resolve() else origin


if __name__ == "__main__":
    main()
