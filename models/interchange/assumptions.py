"""What `convert` takes from the user, from the file, and for granted, and how it says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models import labels as label_files
from models.architecture import Architecture
from models.bundle import BundleError
from models.interchange.imported import DESCRIBED, INPUT, STRUCTURE, Imported, Said
from models.preprocess import BY_COUNT, CHANNELS, InputSpec, PerChannel, Sides
from models.suggestions import hint

ORDERS = {"rgb": "bgr", "bgr": "rgb"}


class InputUnknown(BundleError):
    """Neither the file nor the user says how images are prepared, and there is no likely value."""


def input_of(source: Imported, said: Said) -> InputSpec:
    """The input specification: the file's, changed as the user says.

    Fields that depend on those that the user gives follow them: `resize` keeps its ratio to
    `size`, or equals it where nothing is cropped; mean and deviation keep their channels.

    Raises:
        InputUnknown: a field is asked for.
        BundleError: a value is invalid, or does not fit the network.
    """
    given, spec, count = dict(said.input), source.spec, source.architecture.in_channels
    missing = [name for name in INPUT if name in source.asked and name not in given]
    if count not in BY_COUNT:
        raise BundleError(f"its images have {count} channels; supported are 1, 3 and 4")
    channels = given.get("channels", spec.channels)
    if channels not in CHANNELS:
        raise BundleError(f"channels {channels}: {hint(channels, CHANNELS)}")
    if CHANNELS[channels] != count:
        if "channels" in given:
            fitting = " or ".join(name for name in CHANNELS if CHANNELS[name] == count)
            raise BundleError(
                f"the network takes images of {count} channel{'s' * (count > 1)}, and {channels} "
                f"has {CHANNELS[channels]}; give --channels {fitting}"
            )
        channels = BY_COUNT[count]
    if len(spec.mean) != count:
        missing += [name for name in ("mean", "std") if name not in (*given, *missing)]
    for name in ("mean", "std"):
        if name in given and len(given[name]) != count:
            values = f"value{'s' * (len(given[name]) > 1)}"
            raise BundleError(
                f"--{name} has {len(given[name])} {values}; the images have {count} "
                f"channel{'s' * (count > 1)} ({channels})"
            )
    if missing:
        raise InputUnknown(f"its layout ({source.layout}) does not say {_advice(missing, count)}")
    if channels == ORDERS.get(spec.channels):
        flipped: dict[str, PerChannel] = {"mean": spec.mean[::-1], "std": spec.std[::-1]}
        given = flipped | given
    if "size" in given and "resize" not in given:
        given["resize"] = _resized(given["size"], spec, given.get("crop", spec.crop))
    elif given.get("crop", spec.crop) != spec.crop and "resize" not in given:
        given["resize"] = _resized(spec.size, spec, given["crop"])
    try:
        return replace(spec, **{**given, "channels": channels})
    except (ValueError, TypeError) as error:
        raise BundleError(str(error)) from None


def _advice(missing: Sequence[str], count: int) -> str:
    """What is missing, and the options that say it, as in `A, nor B; give --a and --b`."""
    values = {1: "VALUE", 3: "r,g,b", 4: "r,g,b,a"}[count]
    normalised = f"--mean {values} and --std {values}"
    known = {
        "channels": ("the order of its channels", "--channels rgb or --channels bgr"),
        "mean": ("how images were normalised", normalised),
        "std": ("how images were normalised", normalised),
    }
    asked = [known.get(name, (f"its {name}", f"--{name}")) for name in missing]
    questions, options = (dict.fromkeys(each) for each in zip(*asked, strict=True))
    return f"{', nor '.join(questions)}; give {', with '.join(options)}"


def _resized(size: Sides, spec: InputSpec, crop: str) -> Sides:
    if crop in ("squash", "letterbox"):
        return size
    ratio = min(spec.box) / min(spec.height, spec.width)
    sides = (size, size) if isinstance(size, int) else size
    high, wide = (int(side * ratio) for side in sides)
    return high, wide


def assumed(
    source: Imported, spec: InputSpec, said: Said, labels: tuple[str, ...]
) -> dict[str, Any]:
    """The fields, with their values as JSON, that neither the user nor the file determines."""
    known = source.said | set(said.input) | set(said.numerics)
    known |= {name for name in DESCRIBED if getattr(said, name) is not None}
    if source.labels is not None:
        known |= {"labels"}
    if not labels:
        known |= {"labels", "outputs"}
    values: dict[str, Any] = {name: getattr(spec, name) for name in INPUT}
    values |= {"labels": _shown(labels), "outputs": source.outputs}
    values |= effective(source.architecture)
    ignored = irrelevant(source.architecture)
    names = (*DESCRIBED, *INPUT, *STRUCTURE)
    return {name: values[name] for name in names if name not in known and name not in ignored}


def effective(architecture: Architecture) -> dict[str, Any]:
    """The fields `STRUCTURE` of an architecture, by what they do: a pool is "max" or "none",
    and a stride is a number."""
    values = {name: getattr(architecture, name) for name in STRUCTURE}
    return values | {
        "pool": "max" if architecture.has_pool else "none",
        "stem_stride": architecture.stride_of_stem,
    }


def irrelevant(architecture: Architecture) -> set[str]:
    """The fields of an architecture that make no difference to its network."""
    strides = len(architecture.blocks) > 1
    bottleneck, strided = architecture.block == "bottleneck", strides and not architecture.dilation
    in_3x3 = not (bottleneck and architecture.stride_at == "1x1")
    needs = {
        "stride_at": bottleneck and strides,
        "padding": strided and (in_3x3 or architecture.shortcut == "conv"),
        # A 3x3 window in steps of 1 lies alike.
        "stem_padding": architecture.stride_of_stem == 2,
        "pool_padding": architecture.has_pool and architecture.antialias != "average",
        "antialias": in_3x3 and not architecture.preact and not architecture.dilation,
        "dilation": strides,
        "head": bool(architecture.head),
        "shortcut_padding": architecture.shortcut == "A",
        "preact_shortcut": architecture.preact,
    }
    return {name for name, matters in needs.items() if not matters}


def _shown(labels: tuple[str, ...]) -> str:
    for name in label_files.NAMES:
        if labels == label_files.read(name):
            return name
    return f"{labels[0]} to {labels[-1]}" if len(labels) > 1 else "".join(labels)


def in_words(prepared: Mapping[str, Any]) -> str:
    """How images are prepared in one line: `size 224, resize 256, crop center, ...`."""

    def words(name: str, value: Any) -> str:
        shown = name.replace("_", " ")
        if name in ("size", "resize") and not isinstance(value, int):
            return f"{shown} {value[0]}x{value[1]}"
        if isinstance(value, tuple | list):
            return f"{shown} {','.join(f'{part:.4g}' for part in value)}"
        return f"{shown} {value}"

    return ", ".join(words(name, value) for name, value in prepared.items())


def as_options(assumptions: Mapping[str, Any]) -> str:
    """Assumptions as the options of `convert` that would say the same, in one line:
    `--outputs exclusive --size 224 ... --set pool=max --set 'dilation=[]'`."""

    def option(name: str, value: Any) -> str:
        if name == "labels" and value not in label_files.NAMES:
            return f"--labels FILE ({value})"
        if name in STRUCTURE:
            text = f"{name}={_compact(value)}"
            return f"--set '{text}'" if "[" in text else f"--set {text}"
        return f"--{name} {_compact(value).strip('[]')}"

    return " ".join(option(name, value) for name, value in assumptions.items())


def _compact(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_compact, value))}]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def as_two_classes(source: Imported, said: Said) -> Imported:
    """A network with one logit x as one with the logits 0 and x: the softmax of those is the
    sigmoid of x, exactly.

    The classes are "not NAME" and NAME where there is one name.
    """
    if source.architecture.num_classes != 1 or said.outputs == "independent":
        return source
    if source.outputs == "independent" and source.said >= set(DESCRIBED):
        return source  # A file of ours, whose bundle had one independent class.
    last = source.architecture.head_names[-1]
    tensors = dict(source.tensors)
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in tensors:
            tensors[name] = _below_zeros(tensors[name])
    architecture = replace(source.architecture, num_classes=2)
    labels = source.labels
    if labels is not None and len(labels) == 1:
        labels = two_classes(labels[0])
    provenance = {**source.provenance, "outputs": "one logit, as that of the second of two classes"}
    note = (
        "its single output became two classes: the second has the sigmoid's probability; "
        "--outputs independent keeps one label"
    )
    return replace(
        source,
        tensors=tensors,
        architecture=architecture,
        labels=labels,
        outputs="exclusive",
        provenance=provenance,
        notes=(*source.notes, note),
    )


def two_classes(label: str) -> tuple[str, str]:
    """The labels of what has a label and what has not."""
    return f"not {label}", label


def _below_zeros(rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:1]), rows])


def as_json(assumptions: Mapping[str, Any]) -> dict[str, Any]:
    """The assumptions as a bundle's provenance keeps them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in assumptions.items()}
