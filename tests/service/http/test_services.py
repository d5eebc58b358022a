"""Responses that would block the event loop are formatted in a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.cli.trial import Instant
from service.config.settings import Settings
from service.http.app import create_app
from service.http.services import DIRECT_VALUES, Services


class Repository:
    def __init__(self) -> None:
        self.models = {Instant.name: Instant()}


@pytest.mark.parametrize("values", [0, DIRECT_VALUES, DIRECT_VALUES + 1, 10**6])
def test_responses_with_many_values_are_formatted_in_a_thread(values: int) -> None:
    async def scene() -> None:
        app = create_app(Settings(), repository=Repository())  # type: ignore[arg-type]
        services: Services = app.state.services
        thread = await services.format(values, threading.current_thread)
        direct = thread is threading.current_thread()
        assert direct is (values <= DIRECT_VALUES)
        services.lane.close()

    asyncio.run(scene())
