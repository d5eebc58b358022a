"""Weights of transformers' `ResNetForImageClassification`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.bundle import BundleError
from models.interchange.imported import INPUT, NORMALISATION, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint, read_json, weights_file
from models.interchange.pytorch.image_processors import input_spec
from models.interchange.pytorch.layout import Layout
from models.interchange.pytorch.location import locate
from models.preprocess import IMAGENET, InputSpec

LAYOUT = Layout(
    name="transformers resnet",
    body=r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    renames=(
        (r"^resnet\.", ""),
        (r"^embedder\.embedder\.convolution\.", "stem.conv."),
        (r"^embedder\.embedder\.normalization\.", "stem.norm."),
        (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.\2."),
        (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
        (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
        (r"\.shortcut\.convolution\.", ".shortcut.conv."),
        (r"\.shortcut\.normalization\.", ".shortcut.bn."),
    ),
    # It projects where the shape changes, also where a stage strides without widening.
    numerics={"shortcut": "B"},
)
MULTI_LABEL = "multi_label_classification"
SAID = ("stride_at", "padding", "stem_padding", "stem_stride", "pool", "antialias", "dilation")


def read(path: Path, said: Said) -> Imported:
    """The weights in a folder, or in a file beside its `config.json`, under our names.

    A `preprocessor_config.json` beside them determines the input; it is unknown without.

    Raises:
        BundleError: it cannot be read, has no config, or is something else.
    """
    file = weights_file(path)
    checkpoint = read_checkpoint(file, said)
    located = locate([LAYOUT], checkpoint, path, said, "not a transformers ResNet")
    config = read_json(file.with_name("config.json"))
    if config is None:
        raise BundleError(f"{path}: needs its config.json, which says where it strides")
    if config.get("hidden_act", "relu") != "relu":
        raise BundleError(f"{path}: activates with {config['hidden_act']}, not with relu")
    tensors, architecture, notes = located.to_ours(
        said,
        stride_at="1x1" if config.get("downsample_in_bottleneck") else "3x3",
        stride_stages="all" if config.get("downsample_in_first_stage") else "later",
    )
    default, normalised = located.prepared(IMAGENET)
    try:
        spec, more = _input(file.with_name("preprocessor_config.json"), said)
        labels = _labels(config) if architecture.num_classes else None
        problem = _problem(config, architecture.num_classes, said)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path}: {error}") from None
    known = {*SAID, *(INPUT if spec else normalised), *(["outputs"] if problem else ())}
    return Imported(
        layout=LAYOUT.name,
        tensors=tensors,
        architecture=architecture,
        spec=spec or default,
        said=frozenset(known),
        asked=frozenset() if spec else NORMALISATION - normalised,
        notes=(*notes, *more),
        labels=labels,
        outputs="independent" if problem == MULTI_LABEL else "exclusive",
        file=file,
    )


def _input(path: Path, said: Said) -> tuple[InputSpec | None, tuple[str, ...]]:
    """The input that a `preprocessor_config.json` says, or None where the user's counts.

    Raises:
        ValueError: it says something else than `InputSpec` can, and the user nothing.
    """
    prepared = read_json(path)
    if prepared is None:
        return None, ()
    try:
        return input_spec(prepared), ()
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{path.name} lacks {error}"
        if said.input.keys() >= NORMALISATION:
            return None, (f"{path.name} is not followed: {reason}",)
        raise ValueError(f"{reason}; give --size, --crop, --mean and --std instead") from None


def _problem(config: Mapping[str, Any], classes: int, said: Said) -> str | None:
    """What the network was trained for, if it says so.

    Raises:
        ValueError: its outputs are no classes.
    """
    problem = config.get("problem_type")
    if said.outputs is not None or not classes:
        return None
    if problem not in (None, MULTI_LABEL, "single_label_classification", "regression"):
        raise ValueError(f"problem_type {problem!r} is not supported")
    if problem == "regression" or (classes == 1 and problem != MULTI_LABEL):
        raise ValueError(
            f"a network for regression, whose outputs ({classes}) are values, not classes; if they "
            "are logits, give --outputs independent"
        )
    return problem


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    indices = [str(index) for index in range(len(names))]
    if set(indices) != set(names):
        raise ValueError("id2label must name the classes from 0 on")
    return tuple(str(names[index]) for index in indices)
