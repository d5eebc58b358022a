"""Deadlines of requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.errors import DeadlineExceeded


@contextlib.asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """Cancels its block at `deadline`, a time of the event loop's clock.

    Raises:
        DeadlineExceeded: the deadline passed first.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded.passed() from None
