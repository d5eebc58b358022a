"""The repository of one process: its engines run in threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.config import capacity
from service.config.settings import ModelSettings, Settings
from service.metrics import Metrics
from service.repository.loader import Loader, lost
from service.repository.model import LocalModel
from service.repository.registry import Registry


class LocalRepository:
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
        self._registry: Registry[LocalModel] = Registry(
            load=self._loader.load,
            install=self._install,
            discard=LocalModel.close,
            timeout=settings.load_timeout_s,
        )
        self._registry.models = self._loader.open_all()
        self._serve()

    @property
    def models(self) -> Mapping[str, LocalModel]:
        return self._models

    def start(self) -> None:
        for model in self._registry.models:
            self._loader.start(model)

    async def put(self, settings: ModelSettings) -> bool:
        return await self._registry.put(settings)

    async def delete(self, name: str) -> None:
        await self._registry.delete(name)

    async def reload(self, models: Sequence[ModelSettings]) -> str:
        return await self._registry.reload(models)

    async def _install(self, *, required: bool) -> None:
        previous = self._models
        self._serve()
        for name, model in previous.items():
            if self._models.get(name) is not model:
                model.users.retire(model.close)

    def _serve(self) -> None:
        self._models = {model.name: model for model in self._registry.models}
        self._loader.show(self._registry.models)

    def dead(self) -> dict[str, str]:
        return lost(self.models.values())

    def close(self, timeout: float) -> bool:
        return self._loader.close(timeout)
