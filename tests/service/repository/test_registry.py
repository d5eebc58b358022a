"""The rules of changing models, and what becomes of those that were replaced."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from service.config.settings import MOST_MODELS, ModelSettings, Settings
from service.errors import Conflict, LoadFailed, NotReady, UnknownModel
from service.metrics import Metrics
from service.repository.local import LocalRepository
from service.repository.registry import Registry


@dataclass(eq=False)
class Loaded:
    name: str
    settings: ModelSettings


class Service:
    """Models whose SPEC says how many seconds they take to load, or that they fail."""

    def __init__(self, *names: str, timeout: float) -> None:
        self.registry: Registry[Loaded] = Registry(
            load=self.load, install=self.install, discard=self.discard, timeout=timeout
        )
        self.registry.models = [Loaded(name, row(name)) for name in names]
        self.installed: list[list[str]] = []
        self.discarded: list[str] = []
        self.loading = 0
        self.unreachable = ""  # the name of a model that not every process can serve

    async def load(self, row: ModelSettings) -> Loaded:
        self.loading += 1
        assert self.loading == 1, "one change at a time"
        try:
            await asyncio.sleep(float(row.spec))
        except ValueError:
            raise LoadFailed(row.spec) from None
        finally:
            self.loading -= 1
        return Loaded(row.name or "own", row)

    async def install(self, *, required: bool) -> None:
        await asyncio.sleep(0)
        self.installed.append(self.names)
        if self.unreachable in self.names:
            assert not required
            raise NotReady("a process cannot connect", 1.0)

    def discard(self, loaded: Loaded) -> None:
        self.discarded.append(loaded.name)

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.registry.models]


def row(name: str | None = None, spec: str = "0", max_batch: int = 32) -> ModelSettings:
    return ModelSettings(spec=spec, name=name, max_batch=max_batch)


def run(test: Callable[[Service], Awaitable[None]], timeout: float = 30) -> None:
    async def inside() -> None:
        await test(Service("a", "b", timeout=timeout))

    asyncio.run(inside())


def test_a_new_one_is_last_and_a_replaced_one_keeps_its_place() -> None:
    async def test(service: Service) -> None:
        before = service.registry.models
        assert await service.registry.put(row("c")) is True
        assert await service.registry.put(row("a")) is False
        assert service.names == ["a", "b", "c"]
        assert service.registry.models[0] is not before[0]
        assert service.registry.models[1] is before[1]
        await service.registry.delete("b")
        assert service.installed == [["a", "b", "c"], ["a", "b", "c"], ["a", "c"]]

    run(test)


def test_what_does_not_load_in_time_or_at_all_changes_nothing() -> None:
    async def test(service: Service) -> None:
        with pytest.raises(LoadFailed, match="broken"):
            await service.registry.put(row("a", "broken"))
        with pytest.raises(LoadFailed, match=r"not ready after 0\.2 s; increase load_timeout_s"):
            await service.registry.put(row("a", "60"))
        with pytest.raises(UnknownModel, match="did you mean a"):
            await service.registry.delete("aa")
        with pytest.raises(Conflict, match="default model"):
            await service.registry.delete("a")
        assert (service.names, service.installed) == (["a", "b"], [])

    run(test, timeout=0.2)


def test_there_is_room_for_so_many() -> None:
    async def test(service: Service) -> None:
        service.registry.models = [
            Loaded(f"n{index}", row(f"n{index}")) for index in range(MOST_MODELS)
        ]
        with pytest.raises(Conflict, match="256 models"):
            await service.registry.put(row("one-more"))
        assert await service.registry.put(row("n7")) is False

    run(test)


def test_changes_take_turns_and_one_whose_caller_left_is_made_whole() -> None:
    async def test(service: Service) -> None:
        first = asyncio.create_task(service.registry.put(row("c", "0.05")))
        second = asyncio.create_task(service.registry.put(row("d")))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second is True
        assert service.installed == [["a", "b", "c"], ["a", "b", "c", "d"]]

    run(test)


def test_what_not_every_process_can_serve_is_taken_back() -> None:
    async def test(service: Service) -> None:
        service.unreachable = "c"
        with pytest.raises(NotReady, match="cannot connect"):
            await service.registry.put(row("c"))
        with pytest.raises(NotReady, match="cannot connect"):
            await service.registry.reload([row("a"), row("c"), row("d")])
        assert service.names == ["a", "b"]
        assert service.installed == [["a", "b", "c"], ["a", "b"], ["a", "c", "d"], ["a", "b"]]
        assert service.discarded == ["c", "c", "d"]
        assert await service.registry.put(row("d")) is True

    run(test)


def test_a_change_that_fails_when_its_caller_has_left_is_nobodys_error() -> None:
    async def test(service: Service) -> None:
        faults: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        left = asyncio.create_task(service.registry.put(row("c", "broken")))
        await asyncio.sleep(0)
        left.cancel()
        assert await service.registry.put(row("d")) is True
        assert left.cancelled()
        del left
        gc.collect()
        await asyncio.sleep(0)
        assert faults == []
        assert not service.registry._changes, "what has ended is not kept"

    run(test)


def test_the_default_model_is_not_deleted_and_its_caller_is_told_what_to_do() -> None:
    async def test(service: Service) -> None:
        with pytest.raises(Conflict) as refused:
            await service.registry.delete("a")
        assert str(refused.value) == (
            "a is the default model and cannot be deleted; PUT another one under its name, "
            "or change the configuration's first model and send SIGHUP"
        )

    run(test)


def test_a_service_begins_with_no_model() -> None:
    async def test(service: Service) -> None:
        fresh = Registry[Loaded](
            load=service.load, install=service.install, discard=service.discard, timeout=1
        )
        assert fresh.models == []
        assert await fresh.put(row("a")) is True

    run(test)


def test_a_configuration_replaces_what_differs_and_keeps_what_does_not() -> None:
    async def test(service: Service) -> None:
        kept = service.registry.models[1]
        said = await service.registry.reload([row("c"), row("b"), row("a", max_batch=7), row()])
        assert said == "a replaced; c, own added; b unchanged"
        assert service.names == ["c", "b", "a", "own"]
        assert service.registry.models[1] is kept
        # A row without a name is what was asked for without one, however alike the others are.
        assert await service.registry.reload([row()]) == "a, b, c removed; own unchanged"

    run(test)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("c"), row("d"), row("a", "broken")], r"^models\[2\]\.spec: broken$"),
        ([row("c"), row("d"), row("a", "60")], r"^models\[2\]\.spec: 60: not ready"),
        ([row("c"), row("own"), row(max_batch=1)], r"models\[2\]\.name: 'own' is already in use"),
    ],
)
def test_a_configuration_of_which_one_model_does_not_load_changes_nothing(
    rows: list[ModelSettings], message: str
) -> None:
    async def test(service: Service) -> None:
        with pytest.raises(LoadFailed, match=message):
            await service.registry.reload(rows)
        assert (service.names, service.installed) == (["a", "b"], [])
        assert service.discarded[:2] == [rows[0].name, rows[1].name]

    run(test, timeout=0.2)


def test_a_replaced_model_is_freed_with_its_engine_and_thread() -> None:
    tiny = {"block": "basic", "blocks": [1], "planes": [4], "stem": "small", "num_classes": 2}
    settings = Settings(
        models=[
            ModelSettings(
                spec="random:", name="main", architecture=tiny, engine="eager", max_batch=1
            )
        ]
    )

    async def test() -> None:
        metrics = Metrics()
        repository = LocalRepository(settings, metrics)
        repository.start()
        while not repository.models["main"].ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gone: list[weakref.ref[object]] = []
        for _ in range(3):
            model = repository.models["main"]
            thread = model.workers[0]
            assert thread.running is not None
            gone += [weakref.ref[object](model), weakref.ref[object](thread.running.engine)]
            with model.users:
                await repository.put(settings.models[0])
                assert thread.is_alive()
            thread.join(10)
            assert not thread.is_alive()
            del model, thread
        # By counting references alone: what serves is exempt from the search for cycles.
        assert [found() for found in gone] == [None] * 6
        assert b'resnet_serve_model_ready{model="main"} 1.0' in metrics.render()
        assert repository.close(10)

    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()


def test_a_load_that_takes_too_long_leaves_no_thread_behind() -> None:
    settings = Settings(models=[ModelSettings(spec="random:resnet20", engine="eager")])
    hasty = settings.model_copy(update={"load_timeout_s": 1e-3})

    async def test() -> None:
        repository = LocalRepository(hasty, Metrics())
        with pytest.raises(LoadFailed, match="load_timeout_s"):
            await repository.put(ModelSettings(spec="random:resnet20", name="late", engine="eager"))
        assert list(repository.models) == ["resnet20"]
        # What still loads is not waited for, but known: a process must not end under it.
        until = time.monotonic() + 20
        while not repository.close(0):
            assert time.monotonic() < until
            time.sleep(0.01)  # noqa: ASYNC251

    asyncio.run(test())
