"""The models of a front end, whose engines run in the engine process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from service import runtime
from service.config.settings import ModelSettings
from service.errors import error_of
from service.metrics import Metrics
from service.workers.control import Message
from service.workers.heartbeat import BEAT_SECONDS, ENGINE, SUPERVISOR, UNREADY_SECONDS
from service.workers.remote_model import FrontEndResources, RemoteModel

# For the engine process to send a new model's state; it may be dying.
STATE_SECONDS = 5.0


class RemoteRepository:
    """All models; the supervisor makes the changes that clients request.

    `facts`: those of the models at the start; `send`: sends a message to the supervisor.
    """

    def __init__(
        self,
        facts: Sequence[dict[str, Any]],
        resources: FrontEndResources,
        metrics: Metrics,
        send: Callable[..., None],
    ) -> None:
        self._resources = resources
        self._metrics = metrics
        self._send = send
        self._engine = resources.heartbeats.watch(ENGINE)
        self._supervisor = resources.heartbeats.watch(SUPERVISOR)
        self._dead = ""
        self._responses: dict[int, asyncio.Future[bool]] = {}
        self._numbers = count()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.models: dict[str, RemoteModel] = {}
        self._serve([RemoteModel(model_facts, resources) for model_facts in facts])

    def start(self) -> None:
        for model in self.models.values():
            model.start()
        self._keep(runtime.essential(self._watch_heartbeats(), "the watch of other processes"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_heartbeats(self) -> None:
        while True:
            silent = self._engine.look() > UNREADY_SECONDS
            for model in self.models.values():
                model.silent = silent
            gone = self._supervisor.look() > self._resources.patience
            self._dead = "the supervisor does not respond" if gone else ""
            await asyncio.sleep(BEAT_SECONDS)

    def dead(self) -> dict[str, str]:
        """Why this service must be replaced: the supervisor is frozen, and replaces nothing.

        It replaces a frozen engine process, and one with a lost engine.
        """
        return dict.fromkeys(self.models, self._dead) if self._dead else {}

    def close(self, timeout: float) -> bool:
        """True: no engine runs in this process."""
        self._resources.decoder.close()
        return True

    async def put(self, settings: ModelSettings) -> bool:
        return await self._request(put=settings.model_dump(mode="json"))

    async def delete(self, name: str) -> None:
        await self._request(delete=name)

    async def _request(self, **change: Any) -> bool:
        number = next(self._numbers)
        self._responses[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(request=number, **change)
            return await self._responses[number]
        finally:
            del self._responses[number]

    def on_message(self, message: Message) -> None:
        """Handles a message of the supervisor: a response, or other models."""
        if "models" in message:
            self._keep(runtime.essential(self._replace(**message), "replacing models"))
            return
        response = self._responses.get(message["response"])
        if response is None or response.done():
            return  # The request has been cancelled.
        if "refusal" in message:
            response.set_exception(error_of(message["refusal"]))
        else:
            response.set_result(message["created"])

    async def _replace(
        self, models: list[dict[str, Any]], version: int, *, required: bool = False
    ) -> None:
        """Serves `models`; unless they are `required`, only if all can be reached."""
        async with self._lock:
            present = {model.number: model for model in self.models.values()}
            replacement = [
                present.get(facts["number"]) or RemoteModel(facts, self._resources)
                for facts in models
            ]
            new = [model for model in replacement if model.number not in present]
            for model in new:
                model.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_SECONDS):
                    for model in new:
                        await model.has_state.wait()
            unreached = [model for model in new if not model.has_state.is_set()]
            if unreached and not required:
                reasons = {f"{model.name}: {model.reason}" for model in unreached}
                for model in new:
                    model.close()
                self._send(version=version, refusal="; ".join(sorted(reasons)))
                return
            self._serve(replacement)
        self._send(version=version)

    def _serve(self, models: Sequence[RemoteModel]) -> None:
        """Serves these models from now on; each of the others ends with its last request."""
        previous, self.models = self.models, {model.name: model for model in models}
        for name in previous.keys() - self.models.keys():
            self._metrics.unwatch_model(name)
        for name, model in self.models.items():
            if previous.get(name) is not model:
                self._watch(model)
        for name, model in previous.items():
            if self.models.get(name) is not model:
                model.users.retire(model.close)

    def _watch(self, model: RemoteModel) -> None:
        self._metrics.watch_model(
            model.name,
            (),
            model.limits.max_queue,
            depth=lambda: model.queue.depth,
            ready=lambda: model.ready,
        )
