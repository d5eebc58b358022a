"""One model on one node: decoding, our queue and our engines, as an actor of Ray's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from service import runtime
from service.config.loading import validated
from service.config.settings import Settings
from service.errors import BadParameter, ServiceError, refusal_of
from service.inference.batcher import Priority
from service.inference.pipeline import Pipeline
from service.inference.tasks import Explain, Pixels, Task
from service.logs import log_to_stderr
from service.ray.metrics import REPLICA, RayMetrics
from service.ray.reply import Refused, Reply, version_of

if TYPE_CHECKING:
    from service.repository.model import LocalModel

LOOK_SECONDS = 0.05
CLOSE_SECONDS = 5.0


class Replica:
    """Begins to serve when its model does; one that cannot fails, and Ray starts another.

    `told`: the settings that were given, with this one model. What follows from the machine is
    decided here, from the CPUs that Ray has assigned.
    """

    async def __init__(self, told: dict[str, Any]) -> None:  # type: ignore[misc] # Ray awaits it.
        # Whoever composes the application, as the ingress, must not import torch.
        from service.repository.local import LocalRepository  # noqa: PLC0415
        from service.repository.model import facts_of  # noqa: PLC0415

        cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        settings = validated(Settings, **{"decode_threads": cpus, "engine_threads": cpus, **told})
        log_to_stderr(settings.log_level, settings.log_format)
        metrics = RayMetrics(REPLICA)
        repository = await asyncio.to_thread(LocalRepository, settings, metrics)
        self._repository = repository
        self._pipeline = Pipeline(metrics, repository)
        self._model: LocalModel = next(iter(repository.models.values()))
        repository.start()
        while self._model.state == "loading":  # noqa: ASYNC110 - engines are threads
            await asyncio.sleep(LOOK_SECONDS)
        if not self._model.ready:
            raise RuntimeError(f"{self._model.name}: {self._model.reason}")
        self._id = serve.get_replica_context().replica_id.unique_id
        self._facts = facts_of(self._model)
        self._version = version_of(self._facts)
        self._pushing = asyncio.create_task(metrics.keep_pushing())
        runtime.tune_interpreter()

    async def greet(self, known: str) -> dict[str, Any]:
        """How the model is; and its facts, unless the caller knows them by their version."""
        return {
            "ready": self._model.ready,
            "reason": self._model.reason,
            "card": self._model.describe(),
            "facts": self._unknown(known),
            "replica": self._id,
        }

    async def compute(
        self, image: bytes | Pixels, within: float, task: Task, priority: Priority, known: str
    ) -> Reply | Refused:
        """What `Pipeline.compute` makes of an image in `within` seconds, or a refusal."""
        try:
            self._pipeline.check(self._model, None, within)
            if isinstance(task, Explain) and (task.class_id or 0) >= len(self._model.labels):
                raise BadParameter(f"class_id must be below {len(self._model.labels)}")
            deadline = asyncio.get_running_loop().time() + within
            found = await self._pipeline.compute(self._model, image, deadline, task, priority)
        except ServiceError as error:
            return Refused(refusal_of(error), self._id)
        return Reply(
            version=self._version,
            facts=self._unknown(known),
            row=found.row,
            pixels=found.decoded.pixels if isinstance(task, Explain) else None,
            size=found.decoded.size,
            decode=found.decode,
            queue=found.queue,
            inference=found.inference,
            batch_size=found.batch_size,
            pace=self._model.batcher.seconds_per_job,
        )

    def _unknown(self, known: str) -> dict[str, Any] | None:
        return None if known == self._version else self._facts

    def check_health(self) -> None:
        """Ray's: what cannot recover in this process is replaced."""
        for reason in self._repository.dead().values():
            raise RuntimeError(reason)

    def __del__(self) -> None:
        # Ray calls it when the last request is answered.
        if hasattr(self, "_repository"):
            self._repository.close(CLOSE_SECONDS)
