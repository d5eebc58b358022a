"""The JSON of responses, as OpenAPI describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from models.preprocess import Channels, Crop, Interpolation
from service.inference.interfaces import Computed
from service.inference.ranking import top_k
from service.json_pieces import PIECE, json_list, json_object

# A length of both sides, or height and width.
Sides = int | Annotated[list[int], Field(min_length=2, max_length=2)]
Outputs = Literal["exclusive", "independent"]
Views = Literal["plain", "mirrored"]
Storage = Literal["fp32", "fp16"]
CROP = (
    "how size is cut out of the resized image: from its centre; the longer side is truncated and "
    "the corner rounded (center), the side rounded and the corner truncated (center_floor), or "
    "both truncated (center_truncate); before_resize: a centred square of size / resize of the "
    "shorter side is cut out first and resized to size; squash: the image is resized to the box, "
    "whatever its proportions; letterbox: it is resized to fit into the box, and put into the "
    "middle of size"
)
PROBABILITY = (
    "0 to 1: the softmax of exclusive classes, which adds up to 1 over all of them, or an "
    "independent label's own sigmoid; GET /v1/models says which in outputs"
)


class Prediction(BaseModel):
    class_id: int
    label: str
    probability: float = Field(description=PROBABILITY)


class Timing(BaseModel):
    """Milliseconds."""

    accept: float = Field(
        description="from the arrival of the request's last byte until the service began with it"
    )
    decode: float
    queue: float = Field(description="waiting for a decoding thread, then for the engine")
    inference: float = Field(description="computing the image's batch")
    total: float


class Classification(BaseModel):
    model: str
    predictions: list[Prediction] = Field(description="in descending order of probability")
    timing_ms: Timing
    batch_size: int = Field(description="images in the same batch, this one included")


class BatchItem(BaseModel):
    """Either predictions or an error."""

    filename: str
    predictions: list[Prediction] | None = None
    error: str | None = None


class BatchClassification(BaseModel):
    model: str
    results: list[BatchItem] = Field(description="in the order of the images")


class Embedding(BaseModel):
    model: str
    dimensions: int
    normalized: bool = Field(description="whether the vector was divided by its Euclidean length")
    embedding: list[float] = Field(description="the input of the network's head")
    timing_ms: Timing
    batch_size: int = Field(description="images in the same batch, this one included")


class Region(BaseModel):
    """In fractions of the upright image's width and height; beyond 0 to 1 where the model sees the
    image with a border (crop: letterbox)."""

    left: float
    top: float
    width: float
    height: float


class Explanation(BaseModel):
    model: str
    class_id: int
    label: str
    probability: float = Field(description=PROBABILITY)
    logit: float = Field(description="the mean of the grid plus the bias")
    bias: float
    grid: list[list[float]] = Field(description="rows from the top; each position's contribution")
    region: Region = Field(description="the part of the image that the grid covers")
    predictions: list[Prediction] = Field(description="in descending order of probability")
    timing_ms: Timing
    batch_size: int = Field(description="images in the same batch, this one included")


class Input(BaseModel):
    size: Sides = Field(description="pixels of both sides, or height and width")
    resize: Sides = Field(
        description="pixels of both sides of a box, or its height and width; the image is resized "
        "until it just covers the box, unless crop says otherwise"
    )
    crop: Crop = Field(description=CROP)
    interpolation: Interpolation = Field(description="Pillow's filters, which also smooth")
    mean: list[float] = Field(description="of each channel, of values scaled to 0 to 1")
    std: list[float] = Field(description="of each channel, of values scaled to 0 to 1")
    channels: Channels = Field(
        "rgb",
        description="of pixels and tensors, in their order; omitted if rgb",
        exclude_if=lambda channels: channels == "rgb",
    )
    fill: list[int] = Field(
        default_factory=list,
        description="of each channel, beside a letterboxed image; omitted if 0",
        exclude_if=lambda fill: not fill,
    )


class Weights(BaseModel):
    model_config = ConfigDict(extra="allow")

    source: str
    sha256: str | None = Field(description="of the bundle's file; null for random weights")
    storage: Storage = Field(
        "fp32",
        description="fp16: the file holds weights rounded to 16 bits; omitted if fp32",
        exclude_if=lambda storage: storage == "fp32",
    )


class Parity(BaseModel):
    images: int
    top1_agreement: float = Field(description="share of images with the same most likely class")
    max_difference: float = Field(description="largest difference of any probability")


class CpuMilliseconds(BaseModel):
    engine: float = Field(description="all of its threads, with all CPUs busy")
    decode: float = Field(description="of a typical file")
    request: float = Field(description="of HTTP")


class ModelCard(BaseModel):
    name: str
    architecture: str = Field(description="the variant's name, or custom")
    depth: int
    parameters: int = Field(description="learnable scalars")
    layers: int = Field(description="Conv2d and Linear modules")
    macs: int = Field(description="multiply-accumulates for one image")
    num_classes: int = Field(description="0: the model has no head; POST /v1/embed works")
    outputs: Outputs = Field(
        description="exclusive: one class is right, and the probabilities of all add up to 1; "
        "independent: any number of labels is, and each has a probability of its own"
    )
    configuration: dict[str, Any] = Field(description="every field of the architecture")
    block: str = Field(
        "",
        description="import path of a block of the network's own, instead of the configuration's; "
        "omitted if it has none",
        exclude_if=lambda path: not path,
    )
    head: str = Field(
        "",
        description="import path of a head of the network's own; omitted if it has none",
        exclude_if=lambda path: not path,
    )
    views: Views = Field(
        "plain",
        description="mirrored: predictions, embeddings and maps are the mean over the image and "
        "its mirror image, which takes the macs twice; omitted if plain",
        exclude_if=lambda views: views == "plain",
    )
    input: Input
    embedding: int = Field(description="length of the vector that POST /v1/embed returns")
    explain: bool = Field(description="whether POST /v1/explain works for this model")
    device: str
    precision: str
    engine: str | None = Field(description="null while it loads")
    decode: str = Field(description="where plain JPEGs are decoded: host or device")
    exact_decode: bool = Field(description="whether large JPEGs are decoded in full, see settings")
    threads: int | None = Field(None, description="threads of an engine on the CPU")
    streams: int | None = Field(
        None, description="parts of a batch computed in parallel; null: batches are not split"
    )
    split_from: int | None = Field(None, description="the smallest batch that is split")
    cpu_ms: CpuMilliseconds | None = Field(
        None,
        description="measured CPU time of one image in milliseconds, from which the number of "
        "threads was chosen; null if engine_threads is set",
    )
    parity: Parity | None = Field(
        None, description="the engine compared with plain PyTorch in fp32"
    )
    batch_ms: dict[int, float] | None = Field(
        None, description="milliseconds that each batch size took after warm-up"
    )
    state: str = Field(description="loading, ready, failed, or lost (only a restart can help)")
    reason: str = Field(description="why it is not ready")
    weights: Weights
    metrics: dict[str, Any] = Field(
        description="measured accuracy per data set; lists and tables, such as the accuracy of "
        "each class, only in GET /v1/models/{name}, and with the labels"
    )
    temperature: float = Field(description="divisor of the logits; 1 if none was fitted")


class VersionStatus(BaseModel):
    """As TensorFlow Serving describes the state of a model's version."""

    version: str
    state: Literal["LOADING", "AVAILABLE", "UNLOADING", "END"]
    status: dict[Literal["error_code", "error_message"], str]


class ModelDetails(ModelCard):
    labels: list[str] | None = Field(
        None,
        description="of the classes, in their order: a prediction's class_id is the index; empty "
        "if the model has no classes; omitted if there are more than 1,000, unless labels=true",
        exclude_if=lambda labels: labels is None,
    )
    card: str = Field(description="what users should know about the model, in Markdown")
    ready: bool = Field(description="whether it can serve now, for clients of KServe V1")
    model_version_status: list[VersionStatus] = Field(
        description="the same for clients of TensorFlow Serving"
    )


class Models(BaseModel):
    models: list[ModelCard]


class Health(BaseModel):
    status: str
    reasons: dict[str, str] = Field(default_factory=dict, description="by model")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


def predictions_of(computed: Computed, k: int, start: int = 0) -> list[dict[str, Any]]:
    """The JSON of the top `k` `Prediction`s, from the one at `start`."""
    row = computed.row
    ranked = row._replace(classes=row.classes[start:], probabilities=row.probabilities[start:])
    return [
        {"class_id": p.class_id, "label": p.label, "probability": round(p.probability, 6)}
        for p in top_k(ranked, computed.model.labels, k - start)
    ]


def classification_of(
    model: str, computed: Computed, k: int, timing_ms: dict[str, float]
) -> dict[str, Any]:
    """A `Classification` as plain data: pydantic would cost more than all else."""
    return {
        "model": model,
        "predictions": predictions_of(computed, k),
        "timing_ms": timing_ms,
        "batch_size": computed.batch_size,
    }


def classification_json(
    model: str, computed: Computed, k: int, timing_ms: dict[str, float]
) -> bytes:
    """The JSON of a `Classification`."""
    if k <= PIECE:
        return to_json(classification_of(model, computed, k, timing_ms))
    document = classification_of(model, computed, 0, timing_ms)
    del document["predictions"]
    return json_object(document, "predictions", predictions_json(computed, k))


def batch_json(
    model: str, names: Sequence[str], results: Sequence[Computed | str], k: int
) -> bytes:
    """The JSON of a `BatchClassification`; a result that is a text is an error."""
    items = (
        to_json({"filename": name, "error": result})
        if isinstance(result, str)
        else json_object({"filename": name}, "predictions", predictions_json(result, k))
        for name, result in zip(names, results, strict=True)
    )
    return json_object({"model": model}, "results", b"[" + b",".join(items) + b"]")


def predictions_json(computed: Computed, k: int) -> bytes:
    """The JSON of the top `k` `Prediction`s."""
    return json_list(k, lambda part: predictions_of(computed, part.stop, part.start))


def slowest_of(computed: Sequence[Computed], total: float) -> dict[str, float]:
    """Several images' timing in milliseconds: the slowest of each phase, and `total` in seconds."""
    longest = {
        phase: max((getattr(image, phase) for image in computed), default=0.0)
        for phase in ("accept", "decode", "queue", "inference")
    }
    return {phase: round(s * 1000, 3) for phase, s in (longest | {"total": total}).items()}


def timing_of(computed: Computed) -> dict[str, float]:
    """The JSON of a `Timing`."""
    return {
        "accept": round(computed.accept * 1000, 3),
        "decode": round(computed.decode * 1000, 3),
        "queue": round(computed.queue * 1000, 3),
        "inference": round(computed.inference * 1000, 3),
        "total": round(computed.total * 1000, 3),
    }
