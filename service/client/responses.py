"""The service's responses, as dataclasses with the names of its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.client.exceptions import ClientError, UnreadableAnswer
from service.client.typed_json import Mismatch, typed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """`probability` is from 0 to 1: of a model with `outputs` "exclusive", they add up to 1 over
    all classes; with "independent", each label has its own."""

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds; `accept` is the wait from the arrival of the request until the service began
    with it (0 from older services, which do not tell), `queue` the wait for a decoding thread and
    for the engine, `inference` the time of computing the image's batch."""

    accept: float = field(default=0.0, kw_only=True)
    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True)
class Classification:
    """`predictions` in descending order of probability; `batch_size` images formed the batch."""

    model: str
    predictions: tuple[Prediction, ...]
    timing_ms: Timing
    batch_size: int

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Embedding:
    """`embedding` has `dimensions` features: the input of the network's head."""

    model: str
    dimensions: int
    normalized: bool
    embedding: tuple[float, ...]
    timing_ms: Timing
    batch_size: int


@dataclass(frozen=True, slots=True)
class Region:
    """Fractions of the upright image's width and height; beyond 0 to 1 where the model sees the
    image with a border (`crop` is "letterbox")."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A class activation map (Zhou 2016): how much each part of `region` contributes to the class.

    `logit` is the mean of `grid`, h rows of w values, plus `bias`.
    """

    model: str
    class_id: int
    label: str
    probability: float
    logit: float
    bias: float
    grid: tuple[tuple[float, ...], ...]
    region: Region
    predictions: tuple[Prediction, ...]
    timing_ms: Timing
    batch_size: int


@dataclass(frozen=True, slots=True)
class Input:
    """How a model preprocesses an image; `resize` and `size` are pixels of both sides, or height
    and width. `channels` ("rgb", "bgr", "grey" or "rgba") are those of `mean`, `std` and `fill`,
    which is the colour beside an image with `crop` "letterbox"; empty: 0."""

    size: int | tuple[int, int]
    resize: int | tuple[int, int]
    crop: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "rgb"
    fill: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    source: str
    sha256: str | None = None
    storage: str = "fp32"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """`macs`: multiply-accumulates per image; `num_classes`: 0 of a model without a head, which
    embeds only; `outputs`: "exclusive", one class is right and the probabilities of all add up to
    1 (older services have only these), or "independent", any number of labels is; `engine` is None
    while loading; `metrics`: measured accuracy by data set; `card` is None in a list; `embedding`
    (its length) and `explain` are None if the service does not report them; `labels` are those of
    the classes in their order, None in a list, for more than 1,000 classes, and from older
    services; `views`: "mirrored" if answers average the image and its mirror image."""

    name: str
    architecture: str
    parameters: int
    layers: int
    macs: int
    num_classes: int
    input: Input
    device: str
    precision: str
    engine: str | None
    state: str
    weights: Weights
    metrics: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    card: str | None = None
    embedding: int | None = None
    explain: bool | None = None
    outputs: str = "exclusive"
    labels: tuple[str, ...] | None = None
    views: str = "plain"

    @property
    def ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class Models:
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """True if `ok`; otherwise `reasons` explains, for each model that is the cause."""

    ok: bool
    status: str
    reasons: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Item:
    """One of many images: `source` is the argument, with its `classification` or its `error`."""

    source: Any
    classification: Classification | None = None
    error: ClientError | None = None


def read(kind: type[T], body: bytes) -> T:
    """One of the classes above from JSON, ignoring unknown fields.

    Raises:
        UnreadableAnswer: the JSON is invalid or something else.
    """
    try:
        response: T = typed(kind, json.loads(body))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, Mismatch) else "not JSON"
        raise UnreadableAnswer(
            f"the response is not a valid {kind.__name__}: {reason}; "
            "is this the address of resnet-serve, in a similar version?"
        ) from None
    return response
