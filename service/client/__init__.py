"""A Python client for the service.

>>> with Client("http://127.0.0.1:8000") as client:
...     print(client.classify("cat.jpg").best.label)
...     for item in client.classify_folder("photos"):
...         print(item.source, item.error or item.classification.best.label)

`AsyncClient` is its counterpart for asyncio. Both need httpx, and nothing
else of what the service needs: docs/guides/clients.md shows how to install them alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Imported when it is asked for: `service.client.address` needs no httpx.
if TYPE_CHECKING:
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

MODULES = ("asynchronous", "blocking", "exceptions", "responses")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in MODULES:
            value = getattr(import_module(f"service.client.{module}"), name, None)
            if value is not None:
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
