"""What a new engine process has opened, compared with what the front ends know."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from service.config.settings import ModelSettings
from service.errors import NotReady
from service.workers.coordinator import FORM, Coordinator, ServedModel
from service.workers.process import ChildProcess

FACTS: dict[str, Any] = {
    "name": "a",
    "input": {"size": 32},
    "labels": ["cat", "dog"],
    "channels": 64,
    "map_side": 8,
    "card": {"parameters": 1},
}


def served() -> tuple[Coordinator, ServedModel]:
    settings = ModelSettings(spec="a.safetensors")
    coordinator = Coordinator([settings], 1.0)
    model = ServedModel(0, settings, FACTS)
    coordinator.registry.models = [model]
    return coordinator, model


def test_a_model_that_is_the_same_but_for_its_card_goes_on() -> None:
    coordinator, model = served()
    assert coordinator._reopened(model, FACTS | {"card": {"parameters": 2}}) is model
    assert coordinator.registry.models == [model]


@pytest.mark.parametrize("fact", FORM)
def test_a_model_of_another_form_replaces_it(fact: str) -> None:
    """A front end that kept the old form would misread results, or never get one."""
    coordinator, model = served()
    other = FACTS | {fact: "another"}
    replacement = coordinator._reopened(model, other)
    assert replacement is not model
    assert replacement.number != model.number
    assert replacement.facts == other
    assert coordinator.registry.models == [replacement]


class Child:
    """Stands for a process: it keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.sent.append(message)


def test_a_client_whose_change_fails_by_a_bug_gets_a_response(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, _ = served()
    child = Child()

    async def fail(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(coordinator.registry, "delete", fail)
    message = {"request": 5, "delete": "a"}
    asyncio.run(coordinator._change(cast("ChildProcess", child), message))
    (response,) = child.sent
    assert response["response"] == 5
    assert response["refusal"][0] == "internal_error"
    assert "a change of the models failed" in caplog.text


def test_what_a_front_end_refuses_is_taken_back_everywhere() -> None:
    coordinator, model = served()
    able, unable, engine = (Child() for _ in range(3))
    coordinator._engine = cast("ChildProcess", engine)
    coordinator._loaded = {0, 1}
    new = ServedModel(1, ModelSettings(spec="b", name="b"), FACTS | {"name": "b"})

    async def acknowledge() -> None:
        for child in (able, unable):
            while not child.sent:  # noqa: ASYNC110
                await asyncio.sleep(0)
            sent = child.sent.pop(0)
            reply = {"version": sent["version"]}
            if child is unable and not sent["required"]:
                reply["refusal"] = "b: cannot connect"
            await coordinator.on_front_end_message(cast("ChildProcess", child), reply)
            shown[id(child)] = [row["name"] for row in sent["models"]]

    shown: dict[int, list[str]] = {}

    async def test() -> None:
        for child in (able, unable):
            coordinator.join(cast("ChildProcess", child))
        change = asyncio.create_task(coordinator.registry._switch([model, new]))
        await acknowledge()
        assert shown[id(able)] == ["a", "b"]
        await acknowledge()
        with pytest.raises(NotReady, match="nothing was changed: b: cannot connect; retry"):
            await change

    asyncio.run(test())
    assert shown == {id(able): ["a"], id(unable): ["a"]}
    assert coordinator.registry.models == [model]
    assert engine.sent[-1] == {"serve": [0]}, "the engine process ends what nobody serves"
    assert not coordinator._refusals
