"""The network that every peer serves, in two variants.

`tutorial` runs it as tutorials do: PIL, one float32 tensor an image, plain PyTorch. `tuned` runs
this project's decoder and engine, so that what is left to compare is the framework around them.
Each peer reads what it serves from the environment: PEER_MODEL, PEER_VARIANT, PEER_PORT.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle import Bundle
from models.preprocess import resize_and_crop
from service.config import capacity
from service.config.settings import ModelSettings, Settings
from service.engines.devices import engines_for
from service.engines.start import blueprint_of, start_first
from service.inference.decoding import decode_image
from service.inference.tasks import Pixels
from service.repository import catalog
from service.runtime import cpus

Infer = Callable[[Sequence[Pixels]], NDArray[np.float32]]

HOST = "127.0.0.1"
MODEL = os.environ.get("PEER_MODEL", "builtin:resnet20-cifar10")
VARIANT = os.environ.get("PEER_VARIANT", "tutorial")
PORT = int(os.environ.get("PEER_PORT", "8000"))

# Images computed at once.
MAX_BATCH = {"tutorial": 8, "tuned": 32}[VARIANT]
CPUS = cpus()
DECODE_THREADS = min(4, CPUS)
MAX_PIXELS = 50_000_000


def build_engine(spec: str, bundle: Bundle) -> Infer:
    """This project's engine for the CPU, warm; only the thread that calls this may drive it.

    It chooses its threads by measuring, as in this project's service.

    The result gives probabilities [N, K] of images uint8 [H, W, 3].
    """
    model = ModelSettings(spec=spec, device="cpu", max_batch=MAX_BATCH)
    service = Settings(models=[model])
    blueprint = blueprint_of(bundle, model, "cpu", service, request_seconds=capacity.USUAL_REQUEST)
    return start_first(engines_for(model, "cpu"), blueprint, None).infer


class Network(ABC):
    """From encoded images to answers, in three steps that a framework may place as it likes."""

    def __init__(self, spec: str) -> None:
        self.bundle = catalog.load(spec).bundle

    @abstractmethod
    def prepare(self, data: bytes) -> Any:
        """One image ready for `infer`, from its encoded bytes. May run in any thread."""

    @abstractmethod
    def infer(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """Probabilities [N, K] of N prepared images."""

    def answer(self, row: NDArray[np.float32]) -> dict[str, Any]:
        """The five likeliest classes of a row [K], as JSON can hold them."""
        best = np.argsort(-row, kind="stable")[:5]
        return {
            "predictions": [
                {
                    "class_id": int(index),
                    "label": self.bundle.labels[index],
                    "probability": round(float(row[index]), 6),
                }
                for index in best
            ]
        }


class Tutorial(Network):
    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self._network = self.bundle.network()
        self._mean = torch.tensor(self.bundle.input.mean).reshape(3, 1, 1)
        self._std = torch.tensor(self.bundle.input.std).reshape(3, 1, 1)

    def prepare(self, data: bytes) -> torch.Tensor:
        """What torchvision's Resize, CenterCrop, ToTensor and Normalize give: float32 [3, H, W]."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = resize_and_crop(image, self.bundle.input)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(self._mean).div_(self._std)

    def infer(self, prepared: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = self._network(torch.stack(list(prepared)))
            rows: NDArray[np.float32] = logits.softmax(1).numpy()
            return rows


class Tuned(Network):
    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self._infer = build_engine(spec, self.bundle)

    def prepare(self, data: bytes) -> Pixels:
        """Uint8 [H, W, 3]."""
        return decode_image(data, self.bundle.input, MAX_PIXELS).pixels

    def infer(self, prepared: Sequence[Pixels]) -> NDArray[np.float32]:
        return self._infer(prepared)


def load() -> Network:
    """The network that the environment names, warm; `infer` belongs to the calling thread."""
    return Tuned(MODEL) if VARIANT == "tuned" else Tutorial(MODEL)
