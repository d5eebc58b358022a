"""One model on one node: decoding, our queue and our engines, as a Ray actor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from service import runtime
from service.config.loading import validated
from service.config.objectives import objectives_of
from service.config.settings import Settings
from service.errors import BadParameter, ServiceError, refusal_of
from service.inference.jobs import Priority
from service.inference.pace import Load
from service.inference.pipeline import Pipeline
from service.inference.tasks import Explain, Pixels, Task
from service.logs import log_to_stderr
from service.ray.metrics import REPLICA, RayMetrics
from service.ray.reply import Refusal, Reply, version_of

if TYPE_CHECKING:
    from service.repository.model import LocalModel

POLL_SECONDS = 0.05
CLOSE_SECONDS = 5.0


class Replica:
    """Starts to serve once its model is ready; if that fails, Ray starts another replica.

    `fields`: the explicitly set settings, with this one model. Defaults that depend on the machine
    are chosen here, from the CPUs that Ray has assigned.
    """

    async def __init__(self, fields: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it.
        # `service.ray.app` and the ingress import this module without torch.
        from service.repository.local import LocalRepository  # noqa: PLC0415
        from service.repository.model import facts_of  # noqa: PLC0415

        cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        settings = validated(Settings, **{"decode_threads": cpus, "engine_threads": cpus, **fields})
        log_to_stderr(settings.log_level, settings.log_format)
        metrics = RayMetrics(REPLICA, objectives_of(settings))
        repository = await asyncio.to_thread(LocalRepository, settings, metrics)
        self._repository = repository
        self._pipeline = Pipeline(metrics, repository, settings.metrics_classes)
        self._model: LocalModel = next(iter(repository.models.values()))
        repository.start()
        while self._model.state == "loading":  # noqa: ASYNC110 - engines are threads
            await asyncio.sleep(POLL_SECONDS)
        if not self._model.ready:
            raise RuntimeError(f"{self._model.name}: {self._model.reason}")
        self._id = serve.get_replica_context().replica_id.unique_id
        self._facts = facts_of(self._model)
        self._version = version_of(self._facts)
        self._pushing = asyncio.create_task(metrics.keep_pushing())
        runtime.tune_interpreter()

    async def report_status(self, known: str) -> dict[str, Any]:
        """The model's state; and its facts, unless the caller has those of version `known`."""
        return {
            "ready": self._model.ready,
            "reason": self._model.reason,
            "card": self._model.describe(),
            "facts": self._unknown(known),
            "replica": self._id,
        }

    async def compute(
        self, image: bytes | Pixels, within: float, task: Task, priority: Priority, known: str
    ) -> Reply | Refusal:
        """The result of `Pipeline.compute` for an image within `within` seconds, or a refusal."""
        try:
            self._pipeline.check(self._model, None, Load(within))
            if isinstance(task, Explain):
                _check(task, self._model)
            deadline = asyncio.get_running_loop().time() + within
            computed = await self._pipeline.compute(self._model, image, deadline, task, priority)
        except ServiceError as error:
            return Refusal(refusal_of(error), self._id)
        return Reply(
            version=self._version,
            facts=self._unknown(known),
            row=computed.row,
            pixels=computed.decoded.pixels if isinstance(task, Explain) else None,
            size=computed.decoded.size,
            decode=computed.decode,
            queue=computed.queue,
            inference=computed.inference,
            batch_size=computed.batch_size,
            pace=self._model.batcher.pace.seconds(1),
        )

    def _unknown(self, known: str) -> dict[str, Any] | None:
        return None if known == self._version else self._facts

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that cannot recover."""
        for reason in self._repository.dead().values():
            raise RuntimeError(reason)

    def __del__(self) -> None:
        # Ray calls this after the last response.
        if hasattr(self, "_repository"):
            self._repository.close(CLOSE_SECONDS)


def _check(task: Explain, model: LocalModel) -> None:
    """The caller may know the facts of another version of the model."""
    if not model.explains:
        raise BadParameter(f"{model.name} cannot explain")
    if (task.class_id or 0) >= len(model.labels):
        raise BadParameter(f"class_id must be below {len(model.labels)}")
