"""A model of a front end, whose engines run in the engine processes of its devices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from service.config.choices import Decode
from service.config.settings import MOST_MODELS, ModelSettings
from service.inference.decoding import Decoder
from service.inference.described_model import DescribedModel
from service.inference.interfaces import Computed
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.tasks import ImageInput, Pixels
from service.workers.control import process_name
from service.workers.engine_client import EngineState, SlotQueue
from service.workers.heartbeat import Heartbeats
from service.workers.occupancy import ModelOccupancy, Occupancy
from service.workers.remote_engine import RemoteEngine
from service.workers.shared_memory import MemoryShape

STATES = ("ready", "loading", "failed", "lost")  # the best first


@dataclass(frozen=True, slots=True)
class FrontEndResources:
    """Resources that the models of a front end share.

    `index`: the front end's own; `folder`: where the engine processes listen; `patience`: seconds
    after which a silent process counts as frozen.
    """

    index: int
    folder: str
    occupancy: Occupancy
    heartbeats: Heartbeats
    patience: float
    decoder: Decoder


class RemoteModel(DescribedModel):
    """A model whose engines run in engine processes; see `service.inference.interfaces.Model`.

    `facts` come from the supervisor. The model is ready while one of its devices is.
    """

    def __init__(self, facts: dict[str, Any], resources: FrontEndResources) -> None:
        settings = ModelSettings.model_validate(facts["settings"])
        super().__init__(facts["name"], settings, facts)
        self.number: int = facts["number"]
        self.engines: list[RemoteEngine] = []
        for row in facts["engines"]:
            device = row["device"]
            process = process_name(device, alone=len(facts["engines"]) == 1)
            engine = RemoteEngine(
                self.name, self.number, device, EngineState(row["index"], process)
            )
            engine.card = row["card"]
            self.engines.append(engine)
        index = self.number % MOST_MODELS
        self._decoder = resources.decoder
        self._folder = resources.folder
        self.queue = SlotQueue(
            self.limits.max_queue,
            settings.max_queue_bytes,
            ModelOccupancy(resources.occupancy, resources.index, index),
            [engine.state for engine in self.engines],
        )

    def start(self) -> None:
        shape = MemoryShape(
            self.limits.max_queue,
            self.input.shape,
            len(self.labels),
            self.channels,
            math.prod(self.map_sides),
        )
        for engine in self.engines:
            engine.start(self.queue, shape, self._folder)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    async def reached(self) -> None:
        """Waits until all its engine processes have responded."""
        for engine in self.engines:
            await engine.has_state.wait()

    @property
    def unreached(self) -> str:
        """Why an engine process has not responded yet; empty if all have."""
        return _joined((e.reason for e in self.engines if not e.has_state.is_set()), "; ")

    @property
    def ready(self) -> bool:
        return any(engine.state.serves for engine in self.engines)

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty if it is."""
        return "" if self.ready else _joined((e.reason for e in self.engines), "; ")

    @property
    def _decode(self) -> Decode:
        """As `service.repository.model.LocalModel.decode`."""
        running = [engine.card for engine in self.engines if engine.card["engine"]]
        on_device = running and all(card["decode"] == "device" for card in running)
        return "device" if on_device else "host"

    def describe(self) -> dict[str, Any]:
        """The cards of all engines as one, as that of a model with all of them in one process."""
        cards = [engine.card for engine in self.engines]
        running = [card for card in cards if card["engine"]]
        return (running or cards)[0] | {
            "device": _joined(engine.device for engine in self.engines),
            "precision": _joined(card["precision"] for card in running or cards),
            "engine": _joined(card["engine"] for card in running) or None,
            "decode": self._decode,
            "state": min((card["state"] for card in cards), key=STATES.index),
            "reason": self.reason,
        }

    def check(self, load: Load) -> None:
        self.queue.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        on_device = self._decode == "device"
        return await decode_and_queue(
            self, self._decoder, self.queue, image, job, deadline, on_device=on_device
        )


def _joined(values: Iterable[str], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(values))
