"""Models that share a device, on the fake one of `tests/support/fake_cuda.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from service.config.settings import ModelSettings, Settings
from service.inference.jobs import Job
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.metrics import Metrics
from service.repository.local import LocalRepository
from service.repository.model import LocalModel
from tests.conftest import PATIENCE
from tests.support.fake_cuda import fake_cuda

TINY = {"block": "basic", "blocks": [1], "planes": [8], "stem": "small", "num_classes": 3}


def row(name: str) -> ModelSettings:
    return ModelSettings(
        spec="random:", name=name, architecture=TINY, device="cuda:0", max_batch=4, max_queue=64
    )


async def classify(model: LocalModel, value: int) -> Row:
    job: Job[ImageInput, Row] = Job()
    model.batcher.admit(job, 1)
    model.batcher.submit(job, np.full(model.input.shape, value, np.uint8), 1)
    async with asyncio.timeout(PATIENCE):
        return await job.future


async def classify_all(model: LocalModel) -> list[list[float]]:
    rows = await asyncio.gather(*(classify(model, value) for value in range(16)))
    return [row.probabilities.tolist() for row in rows]


def test_a_model_that_starts_and_captures_on_a_gpu_disturbs_none_that_serves(
    tmp_path: Path,
) -> None:
    async def serve() -> None:
        settings = Settings(models=[row("first")], cache_dir=tmp_path)
        repository = LocalRepository(settings, Metrics())
        repository.start()
        first = repository.models["first"]
        async with asyncio.timeout(PATIENCE):
            while not first.ready:  # noqa: ASYNC110 - engines are threads
                await asyncio.sleep(0.01)
        alone = await classify_all(first)
        loading = asyncio.create_task(repository.put(row("second")))
        rounds = 0
        while not loading.done():
            assert np.allclose(await classify_all(first), alone, atol=1e-5)
            rounds += 1
        assert await loading
        assert rounds > 0
        both = [classify_all(model) for model in repository.models.values()]
        for found in await asyncio.gather(*both):
            assert np.allclose(found, alone, atol=1e-5)  # They have the same weights.
        assert {worker.state for m in repository.models.values() for worker in m.workers} == {
            "ready"
        }
        assert await asyncio.to_thread(repository.close, PATIENCE)

    with fake_cuda():
        asyncio.run(serve())
