"""What a new engine process has opened, compared with what the front ends know."""

from __future__ import annotations

from typing import Any

import pytest

from service.config.settings import ModelSettings
from service.workers.coordinator import FORM, Coordinator, ServedModel

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
