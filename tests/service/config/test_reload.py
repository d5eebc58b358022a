"""What SIGHUP cannot change is said with its place, as at the start."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from service.config import loading
from service.config.reload import Reload
from service.config.settings import ModelSettings, Settings
from service.errors import LoadFailed


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, handler)


def test_a_model_that_cannot_be_loaded_is_named_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 0\nmodels:\n- spec: a\n- spec: b\n")
    reload = Reload(lambda: loading.read(config=str(path), environ={}))
    failed = asyncio.Event()

    async def change(models: Sequence[ModelSettings]) -> str:
        failed.set()
        raise LoadFailed(loading.of_model(1, "b: no such file"))

    async def attend() -> None:
        task = asyncio.create_task(reload.attend(Settings(), change, lambda _: None))
        signal.raise_signal(signal.SIGHUP)
        await failed.wait()
        task.cancel()

    with caplog.at_level(logging.ERROR):
        asyncio.run(attend())
    (line,) = caplog.messages
    assert line == f"SIGHUP changed nothing: {path}:4: models[1].spec: b: no such file"
