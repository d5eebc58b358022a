"""The command's entry: `resnet-serve`, or `python -m service.cli`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Runs the command, or says in one line what it lacks where only the client is installed.

    Ctrl-C during the imports ends it as a signal does, without a traceback.
    """
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
            f"resnet-serve: needs {missing}, which is not installed: pip install resnet-serve; "
            "the Python client, service.client, works without"
        )
    signal.signal(signal.SIGINT, interrupt)
    command()


if __name__ == "__main__":
    main()
