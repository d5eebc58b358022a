"""An error after which no call to the device succeeds: whether the service knows it for that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.engines import blueprint_for, pictures
from benchmarks.gpu_check.served import Served
from benchmarks.gpu_check.stage import Figures, Options
from service.engines import faults
from service.errors import EngineFailed

LOST_SECONDS = 10.0


def poison(options: Options) -> Iterator[Figures]:
    """A kernel of somebody else's fails an assertion while an engine waits for work."""
    images = pictures(blueprint_for(options).bundle.input, 1)
    served = Served(options, options.kind)
    asyncio.run(served.ask(images))
    yield {"engine": served.running.engine.name, "state": served.thread.state}
    try:
        _fail_an_assertion(options.device)
    except RuntimeError as error:
        yield {"error": faults.in_one_line(error), "recognised": faults.poisons(error)}
    try:
        asyncio.run(served.ask(images))
        outcome = "answered"
    except EngineFailed as refusal:
        outcome = f"refused: {refusal}"
    state = served.settled("lost", seconds=LOST_SECONDS)
    yield {"outcome": outcome, "state_after": state, "reason": served.thread.reason}


def _fail_an_assertion(device: str) -> None:
    outside = torch.tensor([7], device=device)
    torch.zeros(1, device=device)[outside]
    torch.cuda.synchronize(device)
