"""What a process knows of a model whose engines run in another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.preprocess import InputSpec
from service.config.settings import Limits, ModelSettings
from service.inference.interfaces import batch_share
from service.inference.refcount import RefCount


class DescribedModel:
    """The facts in `service.inference.interfaces.Model`, as `service.repository.model.facts_of`
    sends them."""

    def __init__(self, name: str, settings: ModelSettings, facts: dict[str, Any]) -> None:
        self.name = name
        self.settings = settings
        self.limits = Limits(*facts["limits"])
        self.batch_share = batch_share(self.limits)
        self.input = InputSpec(**facts["input"])
        self.labels: Sequence[str] = facts["labels"]
        self.outputs: str = facts["outputs"]
        self.channels: int = facts["channels"]
        height, width = facts["map_sides"]
        self.map_sides: tuple[int, int] = height, width
        self.explains: bool = facts["explains"]
        self.users = RefCount()
        self.entering = 0
