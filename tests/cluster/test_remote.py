"""What the ingress makes of replicas that are lost, down, full or silent; without a cluster."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from models.preprocess import CIFAR
from service.config.settings import ModelSettings, Settings
from service.errors import EngineFailed, NotReady, QueueFull, ServiceError, refusal_of
from service.inference.pipeline import Pipeline
from service.inference.ranking import Row
from service.metrics import Metrics

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    # Those of Ray, when it is imported.
    pytest.mark.filterwarnings("ignore"),
]

FACTS = {
    "name": "cifar",
    "input": asdict(CIFAR),
    "labels": ["cat", "dog"],
    "channels": 64,
    "outputs": "exclusive",
    "map_sides": [8, 8],
    "explains": True,
    "limits": [32, 256],
}
ROW = Row(np.array([1]), np.array([1.0]), None)
LOST, FULL = "lost", "full"
AB = {"a", "b"}
DOWN, BUSY, FAILED = NotReady("down", 1), QueueFull("full", 1), EngineFailed("failed", 1)


class Method:
    """A handle's method that answers as it is told, call by call; then it is silent."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    def remote(self, *_: Any) -> asyncio.Future[Any]:
        from ray.exceptions import ActorDiedError
        from ray.serve.exceptions import BackPressureError

        self.calls += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.answers:
            told = self.answers.pop(0)
            if told == LOST:
                future.set_exception(ActorDiedError())
            elif told == FULL:
                future.set_exception(BackPressureError(1, 1))
            else:
                future.set_result(told)
        return future


class Handle:
    def __init__(self, report_status: Method, compute: Method) -> None:
        self.report_status, self.compute = report_status, compute


def status(ready: bool, replica: str = "a") -> dict[str, Any]:
    reason = "" if ready else "down"
    return {"ready": ready, "reason": reason, "card": {}, "facts": FACTS, "replica": replica}


def replied() -> Any:
    from service.ray.reply import Reply, version_of

    return Reply(version_of(FACTS), None, ROW, None, (1, 1), 0.0, 0.0, 0.0, 1, 0.0)


def refused(error: ServiceError, replica: str = "a") -> Any:
    from service.ray.reply import Refusal

    return Refusal(refusal_of(error), replica)


@pytest.fixture(autouse=True)
def cooldown_ends(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The replicas that cool down; none at first."""
    from service.ray import cooldown

    ends: dict[str, float] = {}
    monkeypatch.setattr(cooldown, "_until", ends)
    return ends


@pytest.mark.parametrize("replied_lately", [True, False])
@pytest.mark.parametrize(
    ("answers", "ready", "calls"),
    [
        ([status(True)], True, 1),
        ([LOST, status(True)], True, 2),
        ([LOST, LOST, status(True)], True, 3),
        ([status(False), status(True, "b")], True, 2),
        ([*(status(False, name) for name in "abcd"), status(True, "e")], True, 5),
        ([status(False), LOST, LOST, LOST], False, 4),
        ([status(False)] * 3, False, 3),
        ([status(False), status(False, "b")] * 3, False, 5),
        # No replica reports: that means not ready, unless requests were answered lately.
        ([LOST] * 3, None, 3),
        ([FULL], None, 1),
        ([], None, 1),
    ],
)
def test_a_look_at_a_model(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[Any],
    ready: bool | None,
    calls: int,
    replied_lately: bool,
) -> None:
    from service.ray import repository

    monkeypatch.setattr(repository, "STATUS_TIMEOUT_SECONDS", 0.5)
    method = Method(*answers)

    async def poll() -> repository.ModelDeployment:
        handle: Any = Handle(method, Method())
        row = ModelSettings(spec="builtin:resnet20-cifar10")
        deployment = repository.ModelDeployment(handle, row, patience=10)
        deployment.ready = True
        deployment.last_reply = asyncio.get_running_loop().time() - (0 if replied_lately else 11)
        await deployment.poll()
        return deployment

    deployment = asyncio.run(poll())
    assert deployment.ready == (replied_lately if ready is None else ready)
    assert (deployment.reason == repository.SILENT) == (ready is None and not replied_lately)
    assert method.calls == calls


@pytest.mark.parametrize(
    ("answers", "expected", "rests"),
    [
        ([replied()], nullcontext(), set()),
        ([refused(DOWN), replied()], nullcontext(), {"a"}),
        ([refused(DOWN), refused(DOWN, "b"), replied()], nullcontext(), AB),
        # All are down, so that the router had to give the same ones again.
        ([refused(DOWN), refused(DOWN, "b")] * 3, pytest.raises(NotReady, match="down"), AB),
        ([refused(BUSY)], pytest.raises(QueueFull, match=r"^full$"), set()),
        # It may be the image that an engine fails with.
        ([refused(FAILED)], pytest.raises(EngineFailed), set()),
        # And the image that a process ends with.
        ([LOST], pytest.raises(NotReady, match="lost"), set()),
        ([FULL], pytest.raises(QueueFull, match="1 images waiting"), set()),
    ],
)
def test_an_image_is_computed_by_a_replica_that_is_ready(
    answers: list[Any],
    expected: AbstractContextManager[Any],
    rests: set[str],
    cooldown_ends: dict[str, float],
) -> None:
    from service.ray import repository

    settings = Settings(models=[ModelSettings(spec="builtin:resnet20-cifar10")])
    method = Method(*answers)

    async def compute() -> Any:
        handle: Any = Handle(Method(status(True)), method)
        models = repository.RayRepository(settings, [handle], metrics := Metrics())
        await models.wait_until_ready()
        pipeline = Pipeline(metrics, models)
        deadline = asyncio.get_running_loop().time() + 100
        return await pipeline.compute(pipeline.find(None), b"an image", deadline)

    with expected:
        assert asyncio.run(compute()).row is ROW
    assert cooldown_ends.keys() == rests
    assert len(method.answers) <= 1
