from __future__ import annotations

import asyncio
import threading

from service.http.exposition import Exposition
from service.metrics import Metrics


class Slow(Metrics):
    """Reads only when it may; counts readings, and how many there are at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read = threading.Event()
        self.readings = self.at_a_time = self.most_at_a_time = 0

    def render(self, *, openmetrics: bool = False) -> bytes:
        self.readings += 1
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        assert self.may_read.wait(60)
        self.at_a_time -= 1
        return super().render(openmetrics=openmetrics)


def test_many_scrapes_share_a_reading_beside_the_loop() -> None:
    async def test() -> None:
        metrics = Slow()
        exposition = Exposition(metrics)
        first = asyncio.create_task(exposition.text(openmetrics=False))
        while not metrics.readings:  # noqa: ASYNC110 - it begins in a thread
            await asyncio.sleep(0.001)
        # The loop goes on, and what it counts now is in the next reading, which all others share.
        metrics.images.labels("a").inc()
        others = [asyncio.create_task(exposition.text(openmetrics=False)) for _ in range(50)]
        another_format = asyncio.create_task(exposition.text(openmetrics=True))
        await asyncio.sleep(0)
        metrics.may_read.set()
        await first
        texts = await asyncio.gather(*others)
        assert all(b'images_total{model="a"} 1.0' in text for text in texts)
        assert (await another_format).endswith(b"# EOF\n")
        assert (metrics.readings, metrics.most_at_a_time) == (3, 1)

    asyncio.run(test())


def test_a_reading_shows_all_that_was_counted_before() -> None:
    async def test() -> None:
        metrics = Metrics()
        exposition = Exposition(metrics)
        for number in range(1, 20):
            metrics.images.labels("a").inc()
            counted = await exposition.counted()
            assert counted["a"]["resnet_serve_images_total"] == number

    asyncio.run(test())
