"""Front end and engine processes, each on its side of a real socket and real shared memory."""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from models.preprocess import CIFAR
from service.config.settings import ModelSettings
from service.errors import Conflict, EngineFailed, NotReady, QueueFull
from service.inference.batcher import Batcher
from service.inference.decoding import Decoder
from service.inference.jobs import Job
from service.inference.ranking import Row
from service.inference.tasks import (
    CLASSIFY,
    Embed,
    Explain,
    ImageInput,
    JpegFile,
    Pixels,
    Task,
)
from service.metrics import Metrics
from service.repository.model import LocalModel
from service.workers import remote
from service.workers.control import engine_socket
from service.workers.engine_server import EngineServer
from service.workers.heartbeat import ENGINES, Heartbeats
from service.workers.occupancy import Occupancy
from service.workers.remote import RemoteRepository
from service.workers.remote_model import FrontEndResources, RemoteModel

CLASSES = 3
CHANNELS, MAP_SIDES = 4, (2, 3)
DETAIL: dict[Task, int] = {
    CLASSIFY: 0,
    Embed(): CHANNELS,
    Explain(): math.prod(MAP_SIDES) + 1,
}  # numbers, by task
CLASS_NUMBERS = np.arange(CLASSES, dtype=np.int32)
FAILS = 255


class Echo:
    """Stands for a model in the engine process: it answers what number an image was made of."""

    def __init__(self, name: str, max_queue: int) -> None:
        self.name = name
        self.spec = CIFAR
        self.labels = tuple("abc")
        self.ready, self.reason = True, ""
        self.batcher: Batcher[ImageInput, Row] = Batcher(max_jobs=max_queue, max_bytes=2**30)
        self.batches = self.computed = 0
        self.more = 0  # numbers in a detail than its slot expects
        self.go = threading.Event()
        self.go.set()

    def describe(self) -> dict[str, Any]:
        engine = {"engine": "echo", "precision": "fp32", "decode": "host"}
        return {"name": self.name, "state": "ready", **engine}

    def close(self) -> None:
        self.batcher.close()

    def run(self) -> None:
        while self.batcher.wait(8):
            if not (batch := self.batcher.take(lambda waiting: min(waiting, 8))):
                continue
            self.batches += 1
            self.go.wait()
            time.sleep(random.random() / 500)
            images = [values_of(job.payload) for job in batch if job.payload is not None]
            if any((image == FAILS).all() for image in images):
                self.batcher.fail(batch, EngineFailed("retry", retry_after=4.0))
                continue
            # A slot that two wrote at once would differ between its pixels.
            values = [(int(image.min()) << 8) + int(image.max()) for image in images]
            probabilities = np.repeat(np.array(values)[:, None], CLASSES, 1).astype(np.float32)
            self.computed += len(batch)
            rows = [
                Row(CLASS_NUMBERS, row, np.repeat(row[:1], DETAIL[job.task] + self.more))
                for job, row in zip(batch, probabilities, strict=True)
            ]
            self.batcher.finish(batch, rows)


def values_of(image: ImageInput) -> Pixels:
    return image.data if isinstance(image, JpegFile) else image


class EngineSide:
    """An engine process: its models, and the tasks that serve them."""

    def __init__(self, folder: Path, index: int, max_queue: int) -> None:
        self.echoes = [Echo("first", max_queue), Echo("second", max_queue)]
        self._path = engine_socket(str(folder), index)
        self._tasks: list[asyncio.Task[None]] = []
        self.server: EngineServer

    def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        Path(self._path).unlink(missing_ok=True)
        listener.bind(self._path)
        listener.listen()
        self.server = EngineServer()
        for number, echo in enumerate(self.echoes):
            self.server.add(number, cast("LocalModel", echo))
        loop = asyncio.get_running_loop()

        async def accept() -> None:
            with listener:
                await self.server.accept(listener)

        self._tasks = [loop.create_task(accept()), loop.create_task(self.server.watch())]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for connections in self.server._connections.values():
            for connection in list(connections):
                connection.close()


class Pair:
    """The front end's models, and what is behind them."""

    def __init__(self, folder: Path, max_queue: int, devices: Sequence[str]) -> None:
        self.devices = devices
        self.sides = [EngineSide(folder, index, max_queue) for index in range(len(devices))]
        self.echoes = self.sides[0].echoes
        self.facts = [self.facts_of(number, echo) for number, echo in enumerate(self.echoes)]
        fd = Occupancy.allocate(2)
        self.occupancy = Occupancy(fd, 2)
        os.close(fd)
        fd = Heartbeats.allocate(1)
        self.heartbeats = Heartbeats(fd, 1)
        os.close(fd)
        self.sent: list[dict[str, Any]] = []  # to the supervisor

        def send(**message: Any) -> None:
            self.sent.append(message)

        decoder = Decoder(1, 32**2)
        resources = FrontEndResources(
            0, str(folder), self.occupancy, self.heartbeats, patience=3.0, decoder=decoder
        )
        self.repository = RemoteRepository(self.facts, resources, Metrics(), send)
        self.models: list[RemoteModel] = list(self.repository.models.values())

    @property
    def server(self) -> EngineServer:
        return self.sides[0].server

    def facts_of(self, number: int, echo: Echo) -> dict[str, Any]:
        """As the supervisor lists a model."""
        settings = ModelSettings(spec="x", name=echo.name, max_queue=echo.batcher.max_jobs)
        return {
            "number": number,
            "name": echo.name,
            "settings": settings.model_dump(mode="json"),
            "limits": list(settings.limits(["cpu"])),
            "input": {"size": 32, "resize": 32, "mean": (0, 0, 0), "std": (1, 1, 1)},
            "labels": list(echo.labels),
            "outputs": "exclusive",
            "channels": CHANNELS,
            "map_sides": MAP_SIDES,
            "explains": True,
            "engines": [
                {"device": device, "index": index, "card": echo.describe()}
                for index, device in enumerate(self.devices)
            ],
        }

    def start_engine(self) -> None:
        for side in self.sides:
            side.start()

    def stop_engine(self) -> None:
        for side in self.sides:
            side.stop()

    async def until_ready(self, ready: bool = True) -> None:
        await until(lambda: all(model.ready for model in self.models) is ready)


@asynccontextmanager
async def paired(
    folder: Path, max_queue: int, devices: Sequence[str] = ("cpu",)
) -> AsyncIterator[Pair]:
    pair = Pair(folder, max_queue, devices)
    echoes = [echo for side in pair.sides for echo in side.echoes]
    threads = [threading.Thread(target=echo.run) for echo in echoes]
    for thread in threads:
        thread.start()
    pair.start_engine()
    pair.repository.start()
    try:
        await pair.until_ready()
        yield pair
    finally:
        pair.stop_engine()
        for model in pair.repository.models.values():
            model.close()
        await asyncio.sleep(0.05)
        for echo in echoes:
            echo.go.set()
            echo.batcher.close()
        for thread in threads:
            thread.join()


def admitted(model: RemoteModel) -> Job[ImageInput, Row]:
    job: Job[ImageInput, Row] = Job()
    model.queue.admit(job, 10)
    return job


async def ask(model: RemoteModel, value: int) -> float:
    """What an image whose pixels or bytes all are `value` is answered with."""
    job: Job[ImageInput, Row] = Job(random.choice(list(DETAIL)))
    model.queue.admit(job, 10)
    try:
        whole = np.full((32, 32, 3), value, np.uint8)
        file = JpegFile(np.full(random.randint(1, 32 * 32 * 3 * 4), value, np.uint8), 500, 375)
        image: ImageInput = random.choice((whole, whole.astype(np.float32), file))
        model.queue.submit(job, image, image.nbytes)
        classes, row, detail = await job.future
        assert job.admitted <= job.started <= job.finished
        assert job.batch_size > 0
        assert np.array_equal(classes, CLASS_NUMBERS)
        assert row.shape == (CLASSES,)
        assert np.all(row == row[0])
        expected = DETAIL[job.task]
        assert (0 if detail is None else len(detail)) == expected
        assert detail is None or np.all(detail == row[0])
        return float(row[0])
    finally:
        job.future.cancel()


def expected(value: int) -> float:
    return float((value << 8) + value)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run(
    folder: Path,
    test: Callable[[Pair], Awaitable[None]],
    max_queue: int = 16,
    devices: Sequence[str] = ("cpu",),
) -> None:
    async def inside() -> None:
        async with paired(folder, max_queue, devices) as pair:
            await test(pair)

    asyncio.run(inside())


def test_whoever_stays_gets_its_own_answer_however_many_leave(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        counts = {"right": 0, "left": 0, "full": 0}

        async def caller(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(150):
                value = chance.randrange(FAILS)
                patience = chance.choice((0.0, 0.0005, 0.001, 0.003, 10.0, 10.0))
                try:
                    async with asyncio.timeout(patience):
                        answer = await ask(chance.choice(pair.models), value)
                    assert answer == expected(value)
                    counts["right"] += 1
                except TimeoutError:
                    counts["left"] += 1
                except QueueFull:
                    counts["full"] += 1
                    await asyncio.sleep(0.001)

        async with asyncio.timeout(60):
            await asyncio.gather(*(caller(seed) for seed in range(40)))
        assert min(counts.values()) > 20, counts
        # Every slot came back: all places can be had again, and answer rightly.
        await asyncio.sleep(0.1)
        values = range(16)
        answers = await asyncio.gather(*(ask(pair.models[0], value) for value in values))
        assert answers == [expected(value) for value in values]
        assert [pair.occupancy.total(model) for model in range(2)] == [(0, 0)] * 2

    run(tmp_path, test)


def test_a_full_queue_is_refused_and_a_waiting_job_that_left_is_never_computed(
    tmp_path: Path,
) -> None:
    async def test(pair: Pair) -> None:
        echo, model = pair.echoes[0], pair.models[0]
        echo.go.clear()
        first = asyncio.create_task(ask(model, 1))
        await until(lambda: echo.batches == 1)
        others = [asyncio.create_task(ask(model, 2)) for _ in range(3)]
        await until(lambda: echo.batcher.depth == 3)
        with pytest.raises(QueueFull, match="the queue is full"):
            model.queue.check()
        for task in others:
            task.cancel()
        await until(lambda: echo.batcher.depth == 0)
        # What computes keeps its slot even when its caller leaves.
        first.cancel()
        await asyncio.sleep(0.05)
        model.queue.check()
        late = [asyncio.create_task(ask(model, value)) for value in (5, 6, 7)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            model.queue.check()
        echo.go.set()
        assert await asyncio.gather(*late) == [expected(value) for value in (5, 6, 7)]
        assert echo.computed == 4

    run(tmp_path, test, max_queue=4)


def test_a_result_that_does_not_fit_its_slot_frees_it(tmp_path: Path) -> None:
    """As when a model of another form took the place of the one that the front end knows."""

    async def test(pair: Pair) -> None:
        pair.echoes[0].more = 100
        for _ in range(3):  # More than there are slots.
            with pytest.raises(EngineFailed, match="does not fit this model any more; retry"):
                await ask(pair.models[0], 5)
        pair.echoes[0].more = 0
        assert await ask(pair.models[0], 7) == expected(7)

    run(tmp_path, test, max_queue=2)


def test_refusals_and_states_of_the_engine_process_arrive(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        with pytest.raises(EngineFailed, match="retry") as caught:
            await ask(pair.models[1], FAILS)
        assert caught.value.retry_after == 4.0
        assert await ask(pair.models[1], 9) == expected(9)
        pair.echoes[0].ready, pair.echoes[0].reason = False, "the engine failed: out of memory"
        await pair.until_ready(False)
        assert pair.models[0].describe()["reason"] == "the engine failed: out of memory"
        assert pair.models[1].ready

    run(tmp_path, test)


def test_a_lost_engine_process_fails_every_job_at_once_and_the_next_one_serves(
    tmp_path: Path,
) -> None:
    async def test(pair: Pair) -> None:
        pair.echoes[0].go.clear()
        model = pair.models[0]
        decoding = admitted(model)
        jobs = [asyncio.create_task(ask(model, value)) for value in range(5)]
        await asyncio.sleep(0.05)
        pair.stop_engine()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(result) for result in results} == {NotReady}
        assert isinstance(decoding.future.exception(), NotReady)
        assert (model.ready, model.describe()["state"]) == (False, "loading")
        with pytest.raises(NotReady):
            admitted(model)
        pair.start_engine()
        await pair.until_ready()
        # What has been decoded meanwhile belongs to the old connection.
        model.queue.submit(decoding, np.zeros((32, 32, 3), np.uint8), 3072)
        late = [asyncio.create_task(ask(model, 100 + value)) for value in range(5)]
        await asyncio.sleep(0.05)
        # The old jobs' batch ends now, into memory that nobody reads.
        pair.echoes[0].go.set()
        assert await asyncio.gather(*late) == [expected(100 + value) for value in range(5)]

    run(tmp_path, test)


def test_a_replaced_model_answers_its_last_requests_and_is_then_freed(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        old, kept = pair.models
        echo = Echo("first", 16)
        thread = threading.Thread(target=echo.run)
        thread.start()
        pair.server.add(7, cast("LocalModel", echo))
        with old.users:
            pair.repository.on_message(
                {"models": [pair.facts_of(7, echo), pair.facts[1]], "version": 1}
            )
            await until(lambda: pair.sent == [{"version": 1}])
            pair.server.retire(0)
            new = pair.repository.models["first"]
            assert new is not old
            assert list(pair.repository.models.values()) == [new, kept]
            assert await ask(old, 3) == await ask(new, 3) == expected(3)
            assert (pair.echoes[0].computed, echo.computed) == (1, 1)
            assert set(pair.server.models) == {1, 7}
            assert 0 in pair.server._models
        await until(lambda: 0 not in pair.server._models)
        assert pair.echoes[0].batcher.wait(1) is False
        assert [pair.occupancy.total(row) for row in (0, 1, 7)] == [(0, 0)] * 3
        assert await ask(new, 4) == expected(4)
        echo.batcher.close()
        thread.join()

    run(tmp_path, test)


def test_models_that_cannot_be_reached_are_refused_unless_they_are_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "STATE_SECONDS", 0.5)

    async def test(pair: Pair) -> None:
        unknown = pair.facts_of(7, Echo("unknown", 16))  # The engine process does not have it.
        # No memory holds its results.
        large = pair.facts_of(8, Echo("large", 16)) | {"channels": 2**50}
        before, files = list(pair.repository.models), open_files()
        pair.repository.on_message({"models": [*pair.facts, unknown, large], "version": 1})
        await until(lambda: len(pair.sent) == 1)
        assert pair.sent[0]["version"] == 1
        assert "unknown: the engine process " in pair.sent[0]["refusal"]
        assert "large: cannot connect to the engine process: " in pair.sent[0]["refusal"]
        assert list(pair.repository.models) == before
        assert await ask(pair.models[0], 3) == expected(3)
        assert caplog.text.count("large: cannot connect") == 1, "each failure is logged once"
        pair.repository.on_message({"models": [*pair.facts, large], "version": 2, "required": True})
        await until(lambda: len(pair.sent) == 2)
        assert pair.sent[1] == {"version": 2}
        assert not pair.repository.models["large"].ready
        assert "cannot connect" in pair.repository.models["large"].describe()["reason"]
        assert await ask(pair.models[1], 4) == expected(4)
        await until(lambda: open_files() <= files + 2)  # Each failure leaves no file open.

    run(tmp_path, test)


def test_while_the_engine_process_is_silent_no_model_is_ready(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        beating = asyncio.create_task(pair.heartbeats.beat(ENGINES))
        await asyncio.sleep(0.5)
        assert all(model.ready for model in pair.models)
        beating.cancel()
        await pair.until_ready(False)
        assert {model.reason for model in pair.models} == {"the engine process does not respond"}
        assert pair.repository.dead() == {}, "the supervisor replaces it"
        beating = asyncio.create_task(pair.heartbeats.beat(ENGINES))
        await pair.until_ready()
        beating.cancel()

    run(tmp_path, test)


def test_what_the_supervisor_refuses_is_raised_where_it_was_asked(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        asking = asyncio.create_task(pair.repository.delete("first"))
        await until(lambda: len(pair.sent) == 1)
        assert pair.sent[0]["delete"] == "first"
        number = pair.sent[0]["request"]
        pair.repository.on_message(
            {"response": number, "refusal": ["conflict", "the default model", None]}
        )
        with pytest.raises(Conflict, match="the default model"):
            await asking
        # Who asked may have been cancelled meanwhile.
        pair.repository.on_message({"response": number, "created": False})

    run(tmp_path, test)


async def until(is_met: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_met():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
