"""Metadata and configuration of the service and its models."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic_core import to_json

from service.config.settings import Settings
from service.errors import UnknownModel
from service.inference.interfaces import Model
from service.inference.jobs import Priority
from service.inference.pipeline import Pipeline
from service.oip.codec import (
    DATATYPES,
    EMBEDDING,
    IMAGE,
    INPUT,
    PIXELS,
    PRIORITIES,
    PROBABILITIES,
    VERSION,
    shapes,
)

PLATFORM = "resnet-serve"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
STATES = {"ready": "READY", "loading": "LOADING"}
# ModelConfig's names of datatypes and layouts.
TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
FORMATS = {IMAGE: "FORMAT_NONE", PIXELS: "FORMAT_NHWC", INPUT: "FORMAT_NCHW"}


def server() -> dict[str, Any]:
    return {"name": PLATFORM, "version": version("resnet-serve"), "extensions": EXTENSIONS}


def outputs(model: Model) -> dict[str, int]:
    """The outputs, all FP32, with their length for one image; the first is the default."""
    probabilities = {PROBABILITIES: len(model.labels)} if model.labels else {}
    return {**probabilities, EMBEDDING: model.channels}


def parameters(model: Model) -> dict[str, str]:
    """What shapes do not say: the order of the channels of tensors, and whether the probabilities
    are of exclusive classes, and add up to 1, or of independent labels."""
    classes = {"outputs": model.outputs} if model.labels else {}
    return {"channels": model.input.channels, **classes}


def check_version(model: Model, version: str) -> None:
    """Raises `UnknownModel`: the model has no such version; an empty one is any."""
    if version not in ("", VERSION):
        raise UnknownModel(f"{model.name} has only version {VERSION}")


def preparation(model: Model) -> dict[str, dict[str, Any]]:
    """The parameters of each input: what a client does to an image before it sends the tensor.

    `layouts` are those of the shapes that it may have, the first one that of the metadata. The
    others are `input` in `GET /v1/models`: images are resized and cropped to uint8 `pixels`, of
    which `input` is (x / 255 - mean) / std for each channel. The service prepares an `image`.
    """
    steps = dict(model.describe()["input"])
    normalisation = {name: steps.pop(name) for name in ("mean", "std")}
    layouts = ["NCHW", "NHWC"][: len(shapes(model.input)[INPUT])]
    return {
        PIXELS: {"layouts": ["NHWC"], **steps},
        INPUT: {"layouts": layouts, **steps, **normalisation},
    }


def metadata(model: Model, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The inputs are alternatives: a request sends one. The first dimension is the batch.

    `labels`, if given, are a parameter of the output `probabilities`, in its order.
    """
    inputs, prepared = shapes(model.input), preparation(model)
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *inputs[name][0]]}
            | ({"parameters": prepared[name]} if name in prepared else {})
            for name, datatype in DATATYPES.items()
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, length]}
            | ({"parameters": {"labels": labels}} if name == PROBABILITIES and labels else {})
            for name, length in outputs(model).items()
        ],
        "parameters": parameters(model),
    }


def configuration(
    model: Model, settings: Settings, labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """The part of Triton's ModelConfig that applies here.

    Its parameters are texts; that of the `labels`, if they are given, is a JSON list.
    `max_batch_size` limits one request; the service batches several requests on its own.
    """
    inputs = shapes(model.input)
    card = model.describe()
    listed = {"labels": to_json(labels).decode()} if labels else {}
    kind = "KIND_GPU" if "cuda" in card["device"] else "KIND_CPU"
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": settings.max_batch_images,
        "input": [
            {
                "name": name,
                "data_type": TYPES[datatype],
                "format": FORMATS[name],
                "dims": list(inputs[name][0]),
                "optional": True,
            }
            for name, datatype in DATATYPES.items()
        ],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": [length]}
            for name, length in outputs(model).items()
        ],
        "instance_group": [{"name": model.name, "kind": kind, "count": 1}],
        "dynamic_batching": {
            "preferred_batch_size": [model.limits.max_batch],
            "max_queue_delay_microseconds": round(model.settings.max_delay_ms * 1000),
            "priority_levels": len(PRIORITIES),
            "default_priority_level": int(Priority.NORMAL),
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(settings.request_timeout_ms * 1000),
                "allow_timeout_override": True,
                "max_queue_size": model.limits.max_queue,
            },
        },
        "parameters": {
            name: {"string_value": str(value)}
            for name, value in (
                *((name, card[name]) for name in ("engine", "precision")),
                *parameters(model).items(),
                *listed.items(),
            )
        },
    }


def index(pipeline: Pipeline, settings: Settings, *, only_ready: bool) -> list[dict[str, str]]:
    """The models served, and configured models that are not served now."""
    unready = pipeline.unready()
    entries = []
    for name, model in pipeline.models.items():
        state = STATES.get(model.describe()["state"], "UNAVAILABLE")
        if state == "READY" and name in unready:
            state = "UNAVAILABLE"  # The service is shutting down.
        if state == "READY" or not only_ready:
            reason = unready.get(name, "")
            entries.append({"name": name, "version": VERSION, "state": state, "reason": reason})
    if not only_ready:
        entries += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
            for name in (configured.name for configured in settings.models)
            if name is not None and name not in pipeline.models
        ]
    return entries
