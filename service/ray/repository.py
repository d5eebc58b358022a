"""The ingress's repository: each model is a deployment, whose replicas compute."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from service.config.settings import ModelSettings, Settings
from service.errors import RETRY_SECONDS, Conflict, DeadlineExceeded, NotReady, QueueFull, error_of
from service.inference.decoding import DecodedImage
from service.inference.described_model import DescribedModel
from service.inference.interfaces import Computed, Model
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.ranking import Row
from service.inference.tasks import ImageInput, Pixels
from service.metrics import Metrics
from service.ray.cooldown import start_cooldown
from service.ray.reply import Refusal, Reply, version_of

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5  # between two status requests to a model
STATUS_TIMEOUT_SECONDS = 5.0
# Attempts with a replica that reports itself down, and with replicas that get lost.
ATTEMPTS = 3
SILENT = "no replica responds; Ray is starting another"
UNCHANGEABLE = (
    "models on Ray change with the deployment: edit its configuration, then "
    "run `serve deploy`; no request fails meanwhile"
)
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class ModelDeployment:
    """A model's deployment, with the last known state of its replicas; `models`: by version.

    `jobs` and `bytes`: this process's outstanding requests; `last_reply`: the time of the latest
    reply from any replica, by the event loop's clock; after `patience` seconds without a reply, the
    deployment counts as not ready.
    """

    def __init__(self, handle: DeploymentHandle, settings: ModelSettings, patience: float) -> None:
        self.handle = handle
        self.patience = patience
        self.settings = settings
        self.max_bytes = settings.max_queue_bytes
        self.name = ""
        self.ready, self.reason = False, "it has not responded yet"
        self.card: dict[str, Any] = {}
        self.models: dict[str, RayModel] = {}
        self.latest = ""  # version
        self.jobs = self.bytes = 0
        self.pace = 0.0
        self.last_reply = -math.inf

    def adopt(self, facts: dict[str, Any] | None) -> None:
        """Makes these the model's facts; its name stays."""
        if facts is None:
            return
        self.name = self.name or facts["name"]
        version = version_of(facts)
        if version not in self.models:
            self.models = {version: RayModel(self, facts, version)} | {
                known: model for known, model in self.models.items() if known == self.latest
            }
        self.latest = version

    async def poll(self) -> None:
        """Updates the model's state, from several replicas if the first is lost or not ready.

        Silence counts only after `patience` seconds without a reply to any request: if all replicas
        or the machine are busy, the last known state still holds.
        """
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_SECONDS):
                status = await self._request_status()
        except (TimeoutError, NotReady, QueueFull):
            if asyncio.get_running_loop().time() - self.last_reply > self.patience:
                self.ready, self.reason = False, SILENT
            return
        self.ready, self.reason, self.card = status["ready"], status["reason"], status["card"]

    async def _request_status(self) -> dict[str, Any]:
        """The status of the first ready replica; if none is ready, that of any.

        Raises:
            QueueFull: as `call` does.
            NotReady: all replicas reached were lost.
        """
        status: dict[str, Any] | None = None
        lost = 0
        refusals: Counter[str] = Counter()
        while max(lost, 0, *refusals.values()) < ATTEMPTS:
            try:
                status = await call(self.handle.report_status, self.latest)
            except NotReady:
                lost += 1
                continue
            self.note_reply(status["facts"])
            if status["ready"]:
                return status
            start_cooldown(status["replica"])
            refusals[status["replica"]] += 1
        if status is None:
            raise _lost()
        return status

    def note_reply(self, facts: dict[str, Any] | None) -> None:
        """Notes a replica's reply, with its model's facts if they were unknown here."""
        self.last_reply = asyncio.get_running_loop().time()
        self.adopt(facts)

    def check(self, cost: int = 0) -> None:
        """Limits the bytes in flight; the replicas limit the slots.

        Raises:
            QueueFull: `cost` more bytes would exceed the limit.
        """
        if self.bytes + cost > self.max_bytes:
            raise QueueFull.of(self.jobs, self.retry_after())

    def retry_after(self) -> float:
        return max(RETRY_SECONDS, math.ceil(self.jobs * self.pace))


class RayModel(DescribedModel):
    """One version of a model; see `service.inference.interfaces.Model`."""

    def __init__(self, deployment: ModelDeployment, facts: dict[str, Any], version: str) -> None:
        super().__init__(deployment.name, deployment.settings, facts)
        self.deployment = deployment
        self.version = version

    @property
    def ready(self) -> bool:
        return self.deployment.ready

    @property
    def reason(self) -> str:
        return self.deployment.reason

    def describe(self) -> dict[str, Any]:
        deployment = self.deployment
        state = deployment.card["state"] if deployment.ready else "loading"
        return deployment.card | {
            "name": self.name,
            "state": state,
            "reason": deployment.reason,
        }

    def check(self, load: Load) -> None:
        self.deployment.check()

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        """Sends the undecoded image to a replica, which decodes it."""
        started = time.perf_counter()
        deployment = self.deployment
        cost = len(image) if isinstance(image, bytes) else image.nbytes
        deployment.check(cost)
        deployment.jobs += 1
        deployment.bytes += cost
        try:
            async with asyncio.timeout_at(deadline):
                reply = await _request_reply(
                    deployment, deadline, image, job.task, job.priority, self.version
                )
        except TimeoutError:
            raise DeadlineExceeded.passed() from None
        except QueueFull:
            raise QueueFull.of(deployment.jobs, deployment.retry_after()) from None
        finally:
            deployment.jobs -= 1
            deployment.bytes -= cost
        if isinstance(reply, Refusal):
            raise error_of(reply.refusal)
        deployment.pace = reply.pace
        pixels = NO_PIXELS if reply.pixels is None else reply.pixels
        return Computed(
            model=deployment.models.get(reply.version, self),
            row=reply.row,
            decoded=DecodedImage(pixels, 0.0, reply.decode, reply.size),
            accept=max(0.0, started - job.received),
            decode=reply.decode,
            queue=reply.queue,
            inference=reply.inference,
            total=time.perf_counter() - job.received,
            batch_size=reply.batch_size,
        )


class RayRepository:
    """All models, in the order of `handles`; their engines run in the replicas."""

    def __init__(self, settings: Settings, handles: list[DeploymentHandle], metrics: Metrics):
        patience = max(STATUS_TIMEOUT_SECONDS, settings.request_timeout_ms / 1000)
        self._deployments = [
            ModelDeployment(handle, model, patience)
            for handle, model in zip(handles, settings.models, strict=True)
        ]
        self._metrics = metrics
        self._polling: list[asyncio.Task[None]] = []

    async def wait_until_ready(self) -> None:
        """Waits for all models, and registers their metrics."""
        for deployment in self._deployments:
            while not deployment.ready:
                await deployment.poll()
                await asyncio.sleep(0 if deployment.ready else POLL_SECONDS)
            self._metrics.watch_model(
                deployment.name,
                (),
                deployment.models[deployment.latest].limits.max_queue,
                depth=lambda deployment=deployment: deployment.jobs,  # type: ignore[misc]
                ready=lambda deployment=deployment: deployment.ready,  # type: ignore[misc]
            )

    @property
    def models(self) -> Mapping[str, Model]:
        return {
            deployment.name: deployment.models[deployment.latest]
            for deployment in self._deployments
        }

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._polling = [
            loop.create_task(_keep_polling(deployment)) for deployment in self._deployments
        ]

    def dead(self) -> dict[str, str]:
        """Empty: Ray replaces lost replicas."""
        return {}

    def close(self, timeout: float) -> bool:
        """Stops polling; nothing computes in this process. Not called in the loop's thread."""
        for task in self._polling:
            task.get_loop().call_soon_threadsafe(task.cancel)
        return True

    async def put(self, settings: ModelSettings) -> bool:
        raise Conflict(UNCHANGEABLE)

    async def delete(self, name: str) -> None:
        raise Conflict(UNCHANGEABLE)


async def _keep_polling(deployment: ModelDeployment) -> None:
    while True:
        was_ready = deployment.ready
        await deployment.poll()
        if was_ready and not deployment.ready:
            log.warning("%s: %s", deployment.name, deployment.reason)
        await asyncio.sleep(POLL_SECONDS)


async def _request_reply(
    deployment: ModelDeployment, deadline: float, image: bytes | Pixels, *args: Any
) -> Reply | Refusal:
    """The reply of the first ready replica; others are retried elsewhere.

    Raises as `call` does.
    """
    refusals: Counter[str] = Counter()
    while True:
        within = deadline - asyncio.get_running_loop().time()
        reply: Reply | Refusal = await call(deployment.handle.compute, image, within, *args)
        if isinstance(reply, Reply):
            deployment.note_reply(reply.facts)
            return reply
        deployment.note_reply(None)
        if not isinstance(error_of(reply.refusal), NotReady):
            return reply
        start_cooldown(reply.replica)
        refusals[reply.replica] += 1
        if refusals[reply.replica] == ATTEMPTS:
            return reply  # The router had no other, or it would not have chosen this one again.


async def call(method: Any, *args: Any) -> Any:
    """Calls a replica's method; cancelling this cancels the replica's call.

    Raises:
        QueueFull: Ray's queue for the deployment is full.
        NotReady: the replica was lost.
    """
    response = method.remote(*args)
    try:
        return await response
    except BackPressureError:
        raise QueueFull("too many requests are waiting for a replica", RETRY_SECONDS) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            raise _lost() from None  # The replica's call was cancelled, not this one.
        with contextlib.suppress(Exception):  # It may just have failed, which no longer matters.
            response.cancel()
        raise
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            raise _lost() from None
        raise  # A bug in the replica.
    except (RayError, RayServeException):
        raise _lost() from None


def _lost() -> NotReady:
    return NotReady("the replica handling the request was lost; retry", RETRY_SECONDS)
