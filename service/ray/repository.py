"""The models as the ingress sees them: each is a deployment, whose replicas compute."""

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

from models.preprocess import InputSpec
from service.config.settings import ModelSettings, Settings
from service.errors import RETRY_SECONDS, Conflict, DeadlineExceeded, NotReady, QueueFull, error_of
from service.inference.batcher import Job
from service.inference.decoding import DecodedImage
from service.inference.interfaces import Computed, Model, batch_share
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import Pixels
from service.metrics import Metrics
from service.ray.reply import Refused, Reply, version_of
from service.ray.resting import rest

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # between two looks at a model
GREETING_SECONDS = 5.0
# Times that the same replica is asked while it says that it is down, or that one may be lost.
ASKED = 3
SILENT = "no replica responds; Ray starts another"
UNCHANGEABLE = (
    "models on Ray change with the deployment: edit its configuration, then "
    "run `serve deploy`; no request fails meanwhile"
)
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class Replicas:
    """A deployment, and what its replicas have told; `models` has those of each version.

    `jobs` and `bytes` are what this process has sent and not been answered, `heard` when any
    replica answered last, by the event loop's clock; `patience` how many seconds of silence mean
    that none is left, or none that a caller would wait for.
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
        self.heard = -math.inf

    def adopt(self, facts: dict[str, Any] | None) -> None:
        """From now on these are the model's facts; its name stays."""
        if facts is None:
            return
        self.name = self.name or facts["name"]
        version = version_of(facts)
        if version not in self.models:
            self.models = {version: RayModel(self, facts, version)} | {
                known: model for known, model in self.models.items() if known == self.latest
            }
        self.latest = version

    async def look(self) -> None:
        """Asks how the model is: several replicas, if the first is lost or cannot serve just now.

        That none answers means something only after some time, in which no request is answered
        either: where all are busy, or the machine is, what was known goes on being true.
        """
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                told = await self._greeted()
        except (TimeoutError, NotReady, QueueFull):
            if asyncio.get_running_loop().time() - self.heard > self.patience:
                self.ready, self.reason = False, SILENT
            return
        self.ready, self.reason, self.card = told["ready"], told["reason"], told["card"]

    async def _greeted(self) -> dict[str, Any]:
        """What the first replica says that serves; if none does, what one of them says.

        Raises:
            QueueFull: as `ask` does.
            NotReady: all that were asked were lost.
        """
        told: dict[str, Any] | None = None
        lost = 0
        refusals: Counter[str] = Counter()
        while max(lost, 0, *refusals.values()) < ASKED:
            try:
                told = await ask(self.handle.greet, self.latest)
            except NotReady:
                lost += 1
                continue
            self.hear(told["facts"])
            if told["ready"]:
                return told
            rest(told["replica"])
            refusals[told["replica"]] += 1
        if told is None:
            raise _lost()
        return told

    def hear(self, facts: dict[str, Any] | None) -> None:
        """A replica has answered, with its model's facts if they were unknown here."""
        self.heard = asyncio.get_running_loop().time()
        self.adopt(facts)

    def check(self, cost: int = 0) -> None:
        """Refuses what makes too many bytes under way; slots are the replicas' to count.

        Raises:
            QueueFull: there are too many.
        """
        if self.bytes + cost > self.max_bytes:
            raise QueueFull.of(self.jobs, self.retry_after())

    def retry_after(self) -> float:
        return max(RETRY_SECONDS, math.ceil(self.jobs * self.pace))


class RayModel:
    """One version of a model; see `service.inference.interfaces.Model`."""

    def __init__(self, replicas: Replicas, facts: dict[str, Any], version: str) -> None:
        self.replicas = replicas
        self.version = version
        self.name = replicas.name
        self.settings = replicas.settings
        self.input = InputSpec(**facts["input"])
        self.labels: list[str] = facts["labels"]
        self.channels: int = facts["channels"]
        self.map_side: int = facts["map_side"]
        self.batch_share = batch_share(replicas.settings)
        self.users = RefCount()

    @property
    def ready(self) -> bool:
        return self.replicas.ready

    @property
    def reason(self) -> str:
        return self.replicas.reason

    def describe(self) -> dict[str, Any]:
        told = self.replicas
        state = told.card["state"] if told.ready else "loading"
        return told.card | {"name": self.name, "state": state, "reason": told.reason}

    def check(self, within: float) -> None:
        self.replicas.check()

    async def compute(
        self, image: bytes | Pixels, job: Job[Pixels, Row], deadline: float
    ) -> Computed:
        """Sends the image as it came to a replica, which decodes it."""
        started = time.perf_counter()
        replicas = self.replicas
        cost = len(image) if isinstance(image, bytes) else image.nbytes
        replicas.check(cost)
        replicas.jobs += 1
        replicas.bytes += cost
        try:
            async with asyncio.timeout_at(deadline):
                told = await _reply(replicas, deadline, image, job.task, job.priority, self.version)
        except TimeoutError:
            raise DeadlineExceeded.passed() from None
        except QueueFull:
            raise QueueFull.of(replicas.jobs, replicas.retry_after()) from None
        finally:
            replicas.jobs -= 1
            replicas.bytes -= cost
        if isinstance(told, Refused):
            raise error_of(told.refusal)
        replicas.pace = told.pace
        pixels = NO_PIXELS if told.pixels is None else told.pixels
        return Computed(
            model=replicas.models.get(told.version, self),
            row=told.row,
            decoded=DecodedImage(pixels, 0.0, told.decode, told.size),
            decode=told.decode,
            queue=told.queue,
            inference=told.inference,
            total=time.perf_counter() - started,
            batch_size=told.batch_size,
        )


class RayRepository:
    """All models, in the order of `handles`; their engines are the replicas'."""

    def __init__(self, settings: Settings, handles: list[DeploymentHandle], metrics: Metrics):
        patience = max(GREETING_SECONDS, settings.request_timeout_ms / 1000)
        self._replicas = [
            Replicas(handle, row, patience)
            for handle, row in zip(handles, settings.models, strict=True)
        ]
        self._metrics = metrics
        self._looking: list[asyncio.Task[None]] = []

    async def greet(self) -> None:
        """Waits until all models have been heard of."""
        for replicas in self._replicas:
            while not replicas.ready:
                await replicas.look()
                await asyncio.sleep(0 if replicas.ready else LOOK_SECONDS)
            self._metrics.watch_model(
                replicas.name,
                (),
                replicas.settings.max_queue,
                depth=lambda told=replicas: told.jobs,  # type: ignore[misc]
                ready=lambda told=replicas: told.ready,  # type: ignore[misc]
            )

    @property
    def models(self) -> Mapping[str, Model]:
        return {each.name: each.models[each.latest] for each in self._replicas}

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = [loop.create_task(_look_on(each)) for each in self._replicas]

    def dead(self) -> dict[str, str]:
        """Nothing: Ray replaces replicas that are lost."""
        return {}

    def close(self, timeout: float) -> bool:
        """Nothing computes in this process. Called by another thread than that of the loop."""
        for task in self._looking:
            task.get_loop().call_soon_threadsafe(task.cancel)
        return True

    async def put(self, settings: ModelSettings) -> bool:
        raise Conflict(UNCHANGEABLE)

    async def delete(self, name: str) -> None:
        raise Conflict(UNCHANGEABLE)


async def _look_on(replicas: Replicas) -> None:
    while True:
        before = replicas.ready
        await replicas.look()
        if before and not replicas.ready:
            log.warning("%s: %s", replicas.name, replicas.reason)
        await asyncio.sleep(LOOK_SECONDS)


async def _reply(
    replicas: Replicas, deadline: float, image: bytes | Pixels, *asked: Any
) -> Reply | Refused:
    """What the first replica answers that is ready: of another, that it refused is no answer.

    Raises as `ask` does.
    """
    refusals: Counter[str] = Counter()
    while True:
        within = deadline - asyncio.get_running_loop().time()
        told: Reply | Refused = await ask(replicas.handle.compute, image, within, *asked)
        if isinstance(told, Reply):
            replicas.hear(told.facts)
            return told
        replicas.hear(None)
        if not isinstance(error_of(told.refusal), NotReady):
            return told
        rest(told.replica)
        refusals[told.replica] += 1
        if refusals[told.replica] == ASKED:
            return told  # The router had no other, or it would not be the same one again.


async def ask(method: Any, *given: Any) -> Any:
    """What a replica answers; cancelled, it is told that nobody waits.

    Raises:
        QueueFull: as many wait for a replica as may.
        NotReady: the replica was lost.
    """
    response = method.remote(*given)
    try:
        return await response
    except BackPressureError:
        raise QueueFull("too many requests wait for a replica", RETRY_SECONDS) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            raise _lost() from None  # The replica's call was cancelled, not this one.
        with contextlib.suppress(Exception):  # It may just have failed: nobody asks any more.
            response.cancel()
        raise
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            raise _lost() from None
        raise  # A fault of the replica's own.
    except (RayError, RayServeException):
        raise _lost() from None


def _lost() -> NotReady:
    return NotReady("the replica that had the request is gone; retry", RETRY_SECONDS)
