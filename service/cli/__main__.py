"""The command's entry: `resnet-serve`, or `python -m service.cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command, or says in one line what it lacks where only the client is installed."""
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
    command()


if __name__ == "__main__":
    main()
