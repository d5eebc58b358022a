"""A Python client for the service: `pip install 'resnet-serve[client]'`.

>>> with Client("http://127.0.0.1:8000") as client:
...     print(client.classify("cat.jpg").best.label)
...     for item in client.classify_folder("photos"):
...         print(item.source, item.error or item.classification.best.label)

`AsyncClient` is its counterpart for asyncio. Neither imports torch.
"""

from __future__ import annotations

from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.exceptions import (
    Busy,
    ClientError,
    DeadlinePassed,
    ImageRefused,
    KeyRefused,
    RequestRefused,
    TimedOut,
    UnknownModel,
    Unreachable,
    UnreadableAnswer,
    UnreadableImage,
)
from service.client.responses import (
    Classification,
    Embedding,
    Explanation,
    Health,
    Input,
    Item,
    ModelInfo,
    Prediction,
    Region,
    Timing,
    Weights,
)

__all__ = [
    "AsyncClient",
    "Busy",
    "Classification",
    "Client",
    "ClientError",
    "DeadlinePassed",
    "Embedding",
    "Explanation",
    "Health",
    "ImageRefused",
    "Input",
    "Item",
    "KeyRefused",
    "ModelInfo",
    "Prediction",
    "Region",
    "RequestRefused",
    "TimedOut",
    "Timing",
    "UnknownModel",
    "Unreachable",
    "UnreadableAnswer",
    "UnreadableImage",
    "Weights",
]
