"""All models, with engines in threads of this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.config import capacity
from service.config.settings import ModelSettings, Settings
from service.metrics import Metrics
from service.repository.loader import Loader, lost
from service.repository.model import Model
from service.repository.registry import Roster


class Fleet:
    """All models, with engines in threads of this process.

    Raises:
        ConfigError: a model cannot be served, or two have the same name.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        request_seconds: float = capacity.USUAL_REQUEST,
    ) -> None:
        self._loader = Loader(settings, metrics, request_seconds)
        self._roster: Roster[Model] = Roster(
            load=self._loader.load,
            install=self._install,
            discard=Model.close,
            timeout=settings.load_timeout_s,
        )
        self._roster.members = self._loader.open_all()
        self._serve()

    @property
    def models(self) -> Mapping[str, Model]:
        return self._models

    def start(self) -> None:
        for model in self._roster.members:
            self._loader.start(model)

    async def put(self, row: ModelSettings) -> bool:
        return await self._roster.put(row)

    async def delete(self, name: str) -> None:
        await self._roster.delete(name)

    async def reload(self, rows: Sequence[ModelSettings]) -> str:
        return await self._roster.reload(rows)

    async def _install(self) -> None:
        before = self._models
        self._serve()
        for name, model in before.items():
            if self._models.get(name) is not model:
                model.lease.retire(model.close)

    def _serve(self) -> None:
        self._models = {model.name: model for model in self._roster.members}
        self._loader.show(self._roster.members)

    def dead(self) -> dict[str, str]:
        return lost(self.models.values())

    def close(self, timeout: float) -> bool:
        return self._loader.close(timeout)
