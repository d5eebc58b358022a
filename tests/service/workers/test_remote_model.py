"""A model on several devices: its images are shared, and what one device loses another computes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from service.errors import EngineFailed, NotReady, QueueFull
from service.workers.heartbeat import ENGINES
from tests.service.workers.test_engine_client import (
    FAILS,
    Echo,
    EngineSide,
    Pair,
    ask,
    expected,
    run,
    until,
)

GPUS = ("cuda:0", "cuda:1")


async def until_all_serve(pair: Pair) -> None:
    engines = [engine for model in pair.models for engine in model.engines]
    await until(lambda: all(engine.state.serves for engine in engines))


def hold(pair: Pair) -> None:
    """From now on no batch of the first model ends."""
    for side in pair.sides:
        side.echoes[0].go.clear()


def go_on(pair: Pair) -> None:
    for side in pair.sides:
        side.echoes[0].go.set()


async def submitted(pair: Pair, values: range) -> list[asyncio.Task[float]]:
    """Images of the first model that have been submitted, one after the other."""
    tasks = []
    for value in values:
        tasks.append(asyncio.create_task(ask(pair.models[0], value)))
        await asyncio.sleep(0)
    return tasks


def in_flight(pair: Pair) -> list[int]:
    return pair.occupancy.in_flight(0)[: len(GPUS)]


def test_images_go_where_the_fewest_are_in_flight(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        hold(pair)
        pair.occupancy.submit(1, 0, 1, 4)  # by another front end
        tasks = await submitted(pair, range(10))
        assert in_flight(pair) == [7, 3 + 4]
        assert pair.occupancy.total(0)[0] == 10
        go_on(pair)
        assert await asyncio.gather(*tasks) == [expected(value) for value in range(10)]
        assert in_flight(pair) == [0, 4]
        assert [side.echoes[0].computed for side in pair.sides] == [7, 3]

    run(tmp_path, test, devices=GPUS)


def test_a_slower_device_gets_fewer(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        for engine, seconds in zip(pair.models[0].engines, (0.001, 0.004), strict=True):
            engine.state.pace.measured({1: seconds})
        assert pair.models[0].queue.pace.seconds(10) == pytest.approx(10 / 1250)
        hold(pair)
        tasks = await submitted(pair, range(10))
        assert in_flight(pair) == [8, 2]
        go_on(pair)
        await asyncio.gather(*tasks)

    run(tmp_path, test, devices=GPUS)


def test_the_queue_has_one_limit_for_all_devices(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        hold(pair)
        tasks = await submitted(pair, range(4))
        assert in_flight(pair) == [2, 2]
        with pytest.raises(QueueFull, match="4 images waiting"):
            await ask(pair.models[0], 9)
        go_on(pair)
        await asyncio.gather(*tasks)
        assert await ask(pair.models[0], 9) == expected(9)

    run(tmp_path, test, max_queue=4, devices=GPUS)


def test_what_a_lost_process_had_another_device_computes(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        model, (lost, other) = pair.models[0], pair.sides
        hold(pair)
        tasks = await submitted(pair, range(6))
        tasks[0].cancel()  # What nobody waits for is not computed anywhere else.
        await until(lambda: lost.echoes[0].batches == 1)
        lost.stop()
        await until(lambda: not model.engines[0].state.ready)
        assert in_flight(pair) == [0, 5]
        assert model.ready
        assert model.engines[0].reason == "the engine process of cuda:0 ended; another is starting"
        go_on(pair)
        assert await asyncio.gather(*tasks[1:]) == [expected(value) for value in range(1, 6)]
        assert other.echoes[0].computed == 5
        assert pair.occupancy.total(0) == (0, 0)
        assert await ask(model, 9) == expected(9)
        lost.start()
        await until_all_serve(pair)
        hold(pair)
        tasks = await submitted(pair, range(4))
        assert in_flight(pair) == [2, 2]
        go_on(pair)
        await asyncio.gather(*tasks)

    run(tmp_path, test, devices=GPUS)


def test_an_image_is_submitted_to_another_device_only_once(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        with pytest.raises(EngineFailed, match="retry"):
            await ask(pair.models[0], FAILS)
        assert [side.echoes[0].batches for side in pair.sides] == [1, 1]
        hold(pair)
        tasks = await submitted(pair, range(4))
        pair.sides[0].stop()
        await until(lambda: in_flight(pair) == [0, 4])
        pair.sides[1].stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {NotReady}
        assert "cuda:1 ended; another is starting; retry" in str(results[0])
        assert not pair.models[0].ready
        assert pair.occupancy.total(0) == (0, 0)

    run(tmp_path, test, devices=GPUS)


def test_a_silent_process_gets_no_images_while_another_serves(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        model = pair.models[0]
        beating = asyncio.create_task(pair.heartbeats.beat(ENGINES))
        await asyncio.sleep(0.3)
        beating.cancel()
        await until(lambda: model.engines[0].state.silent)
        assert model.ready
        assert model.engines[0].reason == "the engine process of cuda:0 does not respond"
        await asyncio.gather(*(ask(model, value) for value in range(4)))
        assert [side.echoes[0].computed for side in pair.sides] == [0, 4]

    run(tmp_path, test, devices=GPUS)


def test_cards_and_reasons_are_those_of_all_devices(tmp_path: Path) -> None:
    cards: tuple[dict[str, Any], ...] = (
        {"engine": None, "precision": "bf16", "state": "failed", "decode": "host", "batch_ms": {}},
        {"engine": "fused", "precision": "bf16", "state": "ready", "decode": "device"},
    )

    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        model = pair.models[0]
        for engine, card in zip(model.engines, cards, strict=True):
            engine.card = card
        described = model.describe()
        assert described == {
            "engine": "fused",
            "precision": "bf16",
            "state": "ready",
            "decode": "device",
            "device": "cuda:0, cuda:1",
            "reason": "",
        }
        model.engines[0].card = cards[1] | {"precision": "fp16", "decode": "host"}
        described = model.describe()
        assert described["precision"] == "fp16, bf16"
        assert described["decode"] == "host", "one of the devices cannot"
        for side, why in zip(pair.sides, ("out of memory", "no device"), strict=True):
            side.echoes[0].ready, side.echoes[0].reason = False, why
        await until(lambda: not model.ready)
        await until(lambda: model.reason == "out of memory; no device")
        pair.sides[1].echoes[0].ready = True
        await until(lambda: model.ready)
        assert model.reason == ""

    run(tmp_path, test, devices=GPUS)


def test_a_broken_device_is_told_of_each_model_on_it(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        assert pair.repository.dead() == {}
        pair.repository.on_message({"broken": {"cuda:1": "cuda:1 is gone", "cuda:7": "not ours"}})
        assert pair.repository.dead() == dict.fromkeys(["first", "second"], "cuda:1 is gone")
        pair.repository.on_message({"broken": {}})
        assert pair.repository.dead() == {}

    run(tmp_path, test, devices=GPUS)


def test_a_new_model_must_be_reached_on_all_its_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.remote.STATE_SECONDS", 0.3)

    def add(side: EngineSide, number: int) -> None:
        side.server.add(number, side.echoes[0])  # type: ignore[arg-type]

    async def test(pair: Pair) -> None:
        facts = pair.facts_of(7, Echo("third", 16))
        add(pair.sides[0], 7)
        pair.repository.on_message({"models": [*pair.facts, facts], "version": 1})
        await until(lambda: len(pair.sent) == 1)
        assert pair.sent[0]["refusal"].startswith("third: the engine process of cuda:1 ")
        add(pair.sides[1], 7)
        pair.repository.on_message({"models": [*pair.facts, facts], "version": 2})
        await until(lambda: len(pair.sent) == 2)
        assert pair.sent[1] == {"version": 2}
        assert list(pair.repository.models) == ["first", "second", "third"]

    run(tmp_path, test, devices=GPUS)


def test_however_often_devices_are_lost_everyone_gets_its_own_answer(tmp_path: Path) -> None:
    """One device serves at any time, while the other may be lost and come back."""

    async def test(pair: Pair) -> None:
        await until_all_serve(pair)
        model, chance = pair.models[0], random.Random(0)
        counts = {"right": 0, "left": 0, "full": 0, "lost twice": 0}
        asking = True

        async def client(seed: int) -> None:
            own = random.Random(seed)
            while asking:
                value = own.randrange(FAILS)
                try:
                    async with asyncio.timeout(own.choice((0.001, 0.003, 10.0, 10.0))):
                        assert await ask(model, value) == expected(value)
                    counts["right"] += 1
                except TimeoutError:
                    counts["left"] += 1
                except QueueFull:
                    counts["full"] += 1
                    await asyncio.sleep(0.001)
                except NotReady:
                    counts["lost twice"] += 1

        clients = [asyncio.create_task(client(seed)) for seed in range(24)]
        for side in pair.sides * 4:
            await asyncio.sleep(chance.uniform(0.02, 0.08))
            side.stop()
            await until(lambda: not all(engine.state.ready for engine in model.engines))
            assert model.ready
            side.start()
            await until_all_serve(pair)
        asking = False
        async with asyncio.timeout(30):
            await asyncio.gather(*clients)
        assert counts["right"] > 200, counts
        assert counts["lost twice"] < counts["right"] / 20, counts
        # Every slot came back.
        await until(lambda: pair.occupancy.total(0) == (0, 0))
        assert in_flight(pair) == [0, 0]
        assert sorted(model.queue._free) == list(range(16))
        assert await asyncio.gather(*(ask(model, value) for value in range(16))) == [
            expected(value) for value in range(16)
        ]

    run(tmp_path, test, devices=GPUS)
