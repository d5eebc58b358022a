"""What the service answers, as data with the names that its JSON has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from service.client.exceptions import ClientError, UnreadableAnswer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """`probability` is from 0 to 1."""

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds in the service; `queue` is what was waited for a thread and for the engine,
    `inference` the time of computing the image's batch."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True)
class Classification:
    """`predictions` by falling probability; `batch_size` images were computed together."""

    model: str
    predictions: tuple[Prediction, ...]
    timing_ms: Timing
    batch_size: int

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Embedding:
    """`embedding` has `dimensions` features: what the network's head would have seen."""

    model: str
    dimensions: int
    normalized: bool
    embedding: tuple[float, ...]
    timing_ms: Timing
    batch_size: int


@dataclass(frozen=True, slots=True)
class Region:
    """Fractions of the upright image's width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A class activation map (Zhou 2016): how much each part of `region` speaks for the class.

    The mean of `grid`, h rows of w, plus `bias` is `logit`.
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
    """What a model sees of an image: `resize` and `size` in pixels."""

    size: int
    resize: int
    crop: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    source: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """`macs`: multiply-accumulates for one image; `engine` is None while it loads; `metrics`:
    measured accuracy by data set; `card` comes with one model, not with a list; `embedding` (its
    length) and `explain` are None where the service does not tell."""

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

    @property
    def ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class Models:
    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """True where `ok`; else `reasons` has a sentence for each model that is the cause."""

    ok: bool
    status: str
    reasons: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Item:
    """One of many images: `source` is what was given for it, with its `classification` or, where
    it failed alone, its `error`."""

    source: Any
    classification: Classification | None = None
    error: ClientError | None = None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(kind: type[T], body: bytes) -> T:
    """One of the classes above from JSON; fields that it does not know are left out.

    Raises:
        UnreadableAnswer: the JSON is something else.
    """
    try:
        found: T = _adapter(cast("Any", kind)).validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UnreadableAnswer(
            f"the answer is no {kind.__name__}: {place + ': ' if place else ''}{first['msg']}; "
            "is this the address of a resnet-serve of about this version?"
        ) from None
    return found
