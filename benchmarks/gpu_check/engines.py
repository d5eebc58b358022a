"""Engines for the stages, and what they are compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.stage import Options
from models.preprocess import InputSpec
from service import runtime
from service.config.settings import ModelSettings, Settings
from service.engines.blueprint import Blueprint
from service.engines.devices import devices_of
from service.engines.eager import eager
from service.engines.engine import Engine
from service.engines.parity import smooth_images
from service.engines.start import blueprint_of
from service.inference.tasks import Pixels
from service.repository import catalog

PICTURES = 64
EXACT_BATCH = 8
# Probabilities of one image by two programs of a network in 16 bits; those of two images are
# further apart.
NEAR = 0.05


def settings_of(options: Options) -> Settings:
    return Settings(cache_dir=options.scratch / "cache", engine_threads=runtime.spinning_threads())


def model_of(options: Options, kind: str) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "spec": options.model,
            "device": options.device,
            "precision": options.precision,
            "engine": kind,
            "max_batch": options.max_batch,
        }
    )


def blueprint_for(options: Options) -> Blueprint:
    """What every kind of engine is built from.

    Raises:
        ConfigError: there is no such model or device.
    """
    model = model_of(options, "auto")
    bundle = catalog.load(options.model).bundle
    return blueprint_of(bundle, model, devices_of(model)[0], settings_of(options))


def exact(blueprint: Blueprint) -> Engine:
    """Plain PyTorch in fp32 on the CPU, for batches of up to EXACT_BATCH images."""
    return eager(
        replace(
            blueprint,
            device="cpu",
            precision="fp32",
            max_batch=EXACT_BATCH,
            threads=runtime.spinning_threads(),
        )
    )


def expected(blueprint: Blueprint, images: list[Pixels]) -> NDArray[np.float32]:
    """Probabilities [N, K] of N images by `exact`."""
    engine = exact(blueprint)
    pieces = [images[at : at + EXACT_BATCH] for at in range(0, len(images), EXACT_BATCH)]
    return np.concatenate([engine.launch(each, len(each))().by_class() for each in pieces])


def pictures(spec: InputSpec, count: int = PICTURES) -> list[Pixels]:
    """Distinct smooth, colourful images uint8 [H, W, C]."""
    return [*smooth_images(spec.shape, count, seed=1)]
