"""Which models the supervisor has each engine process serve, and what it tells the front ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import pytest

from service.config.settings import ModelSettings
from service.errors import ConfigError, LoadFailed, NotReady, refusal_of
from service.workers import engine_pool
from service.workers.coordinator import FORM, Coordinator, ServedModel
from service.workers.device_engine import DeviceEngine
from service.workers.process import ChildProcess, Role

FACTS: dict[str, Any] = {
    "name": "a",
    "settings": {"spec": "a"},
    "limits": [32, 256],
    "input": {"size": 32},
    "labels": ["cat", "dog"],
    "channels": 64,
    "outputs": "exclusive",
    "map_sides": [8, 8],
    "explains": True,
    "card": {"parameters": 1, "weights": {"sha256": "1234"}},
}
GPUS = ["cuda:0", "cuda:1"]


class Child:
    """Stands for a process: it keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.killed = False

    def send(self, **message: Any) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.killed = True


def as_child(child: Child) -> ChildProcess:
    return cast("ChildProcess", child)


class House:
    """A coordinator whose engine processes are not real: `children` of each device."""

    def __init__(self, *devices: list[str], names: Sequence[str] = "abcdefgh") -> None:
        """Begins with a model on each of these lists of devices."""
        self.children: dict[str, Child] = {}
        self.devices = list(devices)
        self.configured = [ModelSettings(spec=f"{names[index]}") for index in range(len(devices))]
        self.coordinator = Coordinator(self.configured, 5.0, self._start)
        self.coordinator.engines.start_first()
        self.coordinator.resolved(self.devices)

    def _start(self, index: int, device: str) -> DeviceEngine:
        role = Role("the engine process", "", "engine_process", cast("Any", None), index)
        return DeviceEngine(role, index, device)

    def engine(self, device: str) -> DeviceEngine:
        return next(engine for engine in self.coordinator.engines if engine.device == device)

    async def report(self, device: str, **other: Any) -> Child:
        """A new process of a device has opened its models."""
        child = self.children[device] = Child()
        if self.coordinator.started.is_set():
            models = self.coordinator.models_on(device)
            opened = [model.settings for model in models]
        else:
            models = []
            pairs = zip(self.configured, self.devices, strict=True)
            opened = [settings for settings, devices in pairs if device in devices]
        facts = [FACTS | {"name": settings.spec} | other for settings in opened]
        await self.coordinator.engine_started(self.engine(device), as_child(child), models, facts)
        return child

    async def begin(self) -> House:
        for engine in [*self.coordinator.engines]:
            await self.report(engine.device)
        return self

    async def respond(self, device: str, result: Any) -> dict[str, Any]:
        """The process of a device responds to the next command; an error is refused."""
        async with asyncio.timeout(5):
            while not (child := self.children.get(device)) or not (  # noqa: ASYNC110
                commands := [m for m in child.sent if m.keys() & {"resolve", "load"}]
            ):
                await asyncio.sleep(0)
        child.sent.remove(commands[0])
        number = commands[0].get("resolve", commands[0].get("load"))
        kind = "refusal" if isinstance(result, Exception) else "result"
        content = refusal_of(result) if isinstance(result, Exception) else result
        self.engine(device).on_message({"done": number, kind: content})
        return commands[0]

    def sent(self, device: str) -> dict[str, Any]:
        """The last message to the process of a device."""
        return self.children[device].sent[-1]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_models_are_served_once_each_device_has_a_process_that_has_opened_its_own() -> None:
    async def test() -> None:
        house = House(GPUS, ["cuda:1"], ["cpu", "cuda:1"])
        coordinator = house.coordinator
        assert [engine.device for engine in coordinator.engines] == ["cuda:0", "cuda:1", "cpu"]
        assert [model.device for model in coordinator.settings()] == house.devices
        for device in ("cuda:1", "cpu"):
            await house.report(device)
            assert not coordinator.started.is_set()
        await house.report("cuda:0")
        assert coordinator.started.is_set()
        numbers = {device: child.sent for device, child in house.children.items()}
        assert numbers == {
            "cuda:0": [{"numbers": [0]}],
            "cuda:1": [{"numbers": [0, 1, 2]}],
            "cpu": [{"numbers": [2]}],
        }
        facts = coordinator.facts()
        assert [row["name"] for row in facts] == ["a", "b", "c"]
        assert [(e["device"], e["index"]) for e in facts[2]["engines"]] == [
            ("cpu", 2),
            ("cuda:1", 1),
        ]
        assert facts[2]["engines"][0]["card"] == FACTS["card"]
        names = [engine.role.name for engine in coordinator.engines]
        assert names == [f"the engine process of {d}" for d in ("cuda:0", "cuda:1", "cpu")]

    run(test())


def test_the_only_process_has_no_other_name() -> None:
    assert House(["cpu"]).engine("cpu").role.name == "the engine process"


def test_the_largest_limits_of_its_devices_are_the_models() -> None:
    async def test() -> None:
        house = House(["cpu", "cuda:0"])
        await house.report("cpu")
        await house.report("cuda:0", limits=[256, 128])
        (facts,) = house.coordinator.facts()
        assert facts["limits"] == [256, 256]
        assert facts["settings"] == {"spec": "a", "device": ["cpu", "cuda:0"]}

    run(test())


def test_configured_models_of_one_name_on_two_devices_are_refused() -> None:
    async def test() -> None:
        house = House(["cpu"], ["cuda:0"], names="aa")
        await house.report("cpu")
        with pytest.raises(ConfigError) as caught:
            await house.report("cuda:0")
        assert str(caught.value) == "models[1].name: 'a' is already in use; choose another"

    run(test())


def test_more_devices_than_there_is_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pool, "MOST_DEVICES", 2)
    House(GPUS)
    with pytest.raises(ConfigError, match="cpu would be one more than 2 devices"):
        House(GPUS, ["cpu"])


def test_what_auto_was_at_the_start_it_stays() -> None:
    async def test() -> None:
        house = await House(["cuda:0"]).begin()
        assert house.configured[0].device == "auto"
        (model,) = house.coordinator.registry.models
        assert model.settings is house.configured[0], "a reload finds it unchanged"
        (opened,) = house.coordinator.settings()
        assert (opened.name, opened.device) == ("a", ["cuda:0"])

    run(test())


def test_a_model_that_is_the_same_but_for_its_card_goes_on() -> None:
    async def test() -> None:
        house = await House(["cpu"]).begin()
        (model,) = house.coordinator.registry.models
        facts = FACTS | {"card": {"parameters": 2, "weights": {"sha256": "5678"}}}
        assert house.coordinator._reopened(model, facts) is model
        assert house.coordinator.registry.models == [model]

    run(test())


@pytest.mark.parametrize("fact", FORM)
def test_a_model_of_another_form_replaces_it(fact: str) -> None:
    """A front end that kept the old form would misread results, or never get one."""

    async def test() -> None:
        house = await House(["cpu"]).begin()
        (model,) = house.coordinator.registry.models
        await house.report("cpu", **{fact: "another"})
        (replacement,) = house.coordinator.registry.models
        assert replacement.number != model.number
        assert replacement.facts == model.facts | {fact: "another"}
        assert house.children["cpu"].sent[0] == {"numbers": [replacement.number]}

    run(test())


def test_other_weights_on_one_of_several_devices_replace_those_on_all() -> None:
    async def test() -> None:
        house = await House(GPUS, ["cuda:1"]).begin()
        both, alone = house.coordinator.registry.models
        other = {"card": {"weights": {"sha256": "5678"}}}
        await house.report("cuda:1", **other)
        replacement, same = house.coordinator.registry.models
        assert same is alone
        assert replacement.number not in (both.number, alone.number)
        # The next process there will open the new file.
        assert house.children["cuda:0"].killed
        assert not house.children["cuda:1"].killed
        await house.report("cuda:0", **other)
        assert house.coordinator.registry.models == [replacement, alone]

    run(test())


def test_a_new_model_is_loaded_on_all_its_devices_and_a_new_one_gets_a_process() -> None:
    async def test() -> None:
        house = await House(["cpu"]).begin()
        settings = ModelSettings(spec="b", name="b", device="cuda:all")
        loading = asyncio.create_task(house.coordinator.registry.put(settings))
        command = await house.respond("cpu", GPUS)
        assert command["settings"]["device"] == "cuda:all"
        for device in GPUS:
            while device not in [engine.device for engine in house.coordinator.engines]:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await house.report(device)
            assert house.children[device].sent[0] == {"numbers": []}
            command = await house.respond(device, FACTS | {"name": "b"})
            assert command["settings"]["device"] == GPUS
        assert await loading
        _, model = house.coordinator.registry.models
        assert (model.name, model.devices) == ("b", GPUS)
        for device in GPUS:
            assert house.sent(device) == {"serve": [model.number], "keep": []}
        assert house.sent("cpu") == {"serve": [0], "keep": []}
        assert house.engine("cpu").role.name == "the engine process of cpu"

    run(test())


def test_what_one_device_refuses_changes_nothing_on_any() -> None:
    async def test() -> None:
        house = await House(GPUS).begin()
        settings = ModelSettings(spec="b", name="b", device=GPUS)
        loading = asyncio.create_task(house.coordinator.registry.put(settings))
        await house.respond("cuda:0", GPUS)
        await house.respond("cuda:0", FACTS | {"name": "b"})
        await house.respond("cuda:1", LoadFailed("b: no memory"))
        with pytest.raises(LoadFailed, match="b: no memory"):
            await loading
        assert [model.name for model in house.coordinator.registry.models] == ["a"]
        for device in GPUS:
            assert house.sent(device) == {"serve": [0], "keep": []}

    run(test())


def test_a_device_that_is_not_there_is_refused() -> None:
    async def test() -> None:
        house = await House(["cpu"]).begin()
        settings = ModelSettings(spec="b", name="b", device="cuda:7")
        loading = asyncio.create_task(house.coordinator.registry.put(settings))
        await house.respond("cpu", LoadFailed("device: cuda:7 is not available"))
        with pytest.raises(LoadFailed, match="cuda:7 is not available"):
            await loading
        assert len(house.coordinator.engines) == 1

    run(test())


def test_a_process_that_starts_meanwhile_does_not_stop_a_load_on_another_device() -> None:
    async def test() -> None:
        house = await House(GPUS).begin()
        settings = ModelSettings(spec="b", name="b", device="cuda:0")
        loading = asyncio.create_task(house.coordinator.registry.put(settings))
        await house.respond("cuda:0", ["cuda:0"])
        while not any("load" in message for message in house.children["cuda:0"].sent):  # noqa: ASYNC110
            await asyncio.sleep(0)
        house.coordinator.engine_ended(house.engine("cuda:1"))
        await house.report("cuda:1", channels=128)  # Its file has changed, for all devices.
        (replacement,) = house.coordinator.registry.models
        assert house.children["cuda:0"].killed, "it has not opened the new file"
        house.coordinator.engine_ended(house.engine("cuda:0"))
        with pytest.raises(NotReady, match="cuda:0 ended while loading the model; retry"):
            await loading
        await house.report("cuda:0", channels=128)
        loading = asyncio.create_task(house.coordinator.registry.put(settings))
        await house.respond("cuda:0", ["cuda:0"])
        while not any("load" in message for message in house.children["cuda:0"].sent):  # noqa: ASYNC110
            await asyncio.sleep(0)
        house.coordinator._serve()
        (number,) = house.sent("cuda:0")["keep"]
        assert house.sent("cuda:0")["serve"] == [replacement.number]
        assert number not in house.sent("cuda:0")["serve"]
        await house.respond("cuda:0", FACTS | {"name": "b"})
        assert await loading

    run(test())


def test_a_process_that_ends_before_all_have_started_ends_the_start() -> None:
    async def test() -> None:
        house = House(GPUS)
        await house.report("cuda:0")
        with pytest.raises(ConfigError, match="the engine process of cuda:0 ended while starting"):
            house.coordinator.engine_ended(house.engine("cuda:0"))

    run(test())


def test_a_broken_device_is_told_to_the_front_ends_until_it_serves_again() -> None:
    async def test() -> None:
        house = await House(GPUS).begin()
        coordinator, broken, front_end = house.coordinator, house.engine("cuda:1"), Child()
        coordinator.join(as_child(front_end))
        coordinator.engine_serves(broken)
        assert front_end.sent == [], "it was not broken"
        coordinator.engine_ended(broken)
        coordinator.engine_breaks(broken, "torch sees 1 CUDA devices")
        why = (
            "the engine process of cuda:1 was restarted 5 times and did not serve: "
            "torch sees 1 CUDA devices"
        )
        assert front_end.sent == [{"broken": {"cuda:1": why}}]
        assert coordinator.engines.broken() == {"cuda:1": why}
        # What needs it is refused at once, and does not wait for it.
        settings = ModelSettings(spec="b", name="b", device=GPUS)
        loading = asyncio.create_task(coordinator.registry.put(settings))
        await house.respond("cuda:0", GPUS)
        with pytest.raises(NotReady, match="1 CUDA devices; retry"):
            await loading
        await house.report("cuda:1")
        assert len(front_end.sent) == 1, "it has opened its models, and does not serve yet"
        coordinator.engine_serves(broken)
        assert front_end.sent[1:] == [{"broken": {}}]

    run(test())


def test_a_client_whose_change_fails_by_a_bug_gets_a_response(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = House(["cpu"]).coordinator
    child = Child()

    async def fail(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(coordinator.registry, "delete", fail)
    message = {"request": 5, "delete": "a"}
    asyncio.run(coordinator._change(as_child(child), message))
    (response,) = child.sent
    assert response["response"] == 5
    assert response["refusal"][0] == "internal_error"
    assert "a change of the models failed" in caplog.text


def test_what_a_front_end_refuses_is_taken_back_everywhere() -> None:
    able, unable = Child(), Child()
    shown: dict[int, list[str]] = {}

    async def test() -> None:
        house = await House(["cpu"]).begin()
        coordinator = house.coordinator
        (model,) = coordinator.registry.models
        house.engine("cpu")._loaded.add(1)
        settings = ModelSettings(spec="b", name="b")
        new = ServedModel(1, settings, ["cpu"], model.facts | {"name": "b"})

        async def acknowledge() -> None:
            for child in (able, unable):
                while not child.sent:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                sent = child.sent.pop(0)
                reply = {"version": sent["version"]}
                if child is unable and not sent["required"]:
                    reply["refusal"] = "b: cannot connect"
                await coordinator.on_front_end_message(as_child(child), reply)
                shown[id(child)] = [row["name"] for row in sent["models"]]

        for child in (able, unable):
            coordinator.join(as_child(child))
        change = asyncio.create_task(coordinator.registry._switch([model, new]))
        await acknowledge()
        assert shown[id(able)] == ["a", "b"]
        await acknowledge()
        with pytest.raises(NotReady, match="nothing was changed: b: cannot connect; retry"):
            await change
        assert shown == {id(able): ["a"], id(unable): ["a"]}
        assert coordinator.registry.models == [model]
        assert house.sent("cpu")["serve"] == [0], "the engine process ends what nobody serves"
        assert not coordinator._refusals

    run(test())
