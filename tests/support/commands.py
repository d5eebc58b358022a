"""Commands, run in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from service.cli.main import main


def run(*arguments: str | Path, status: int = 0) -> Result:
    """What a command printed; in this process, which has torch already."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done
