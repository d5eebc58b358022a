"""Checks of engines that are alike on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.architecture import Architecture
from models.bundle import Bundle
from models.preprocess import CIFAR, InputSpec
from service.engines import parity
from service.engines.blueprint import Blueprint
from service.engines.engine import Warm
from service.inference.tasks import CLASSIFY, Embed, Explain, Pixels, Task
from tests.support import rounding

TINY = Architecture(
    block="basic", blocks=(1, 1), planes=(8, 16), stem="small", num_classes=5, shortcut="A"
)
Images = list[NDArray[np.uint8]]


def images(count: int, spec: InputSpec = CIFAR) -> Images:
    random = np.random.default_rng(count)
    return list(random.integers(0, 256, (count, *spec.shape), dtype=np.uint8))


def planned(
    made: Bundle, precision: str = "fp32", cache: Path | None = None, device: str = "cpu"
) -> Blueprint:
    return Blueprint(
        made, device, precision, max_batch=8, threads=1, request_seconds=0.0, cache=cache
    )


def expected(made: Bundle, batch: Images) -> NDArray[np.float32]:
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack(batch))
        found: NDArray[np.float32] = made.classifier()(pixels).numpy()
        return found


def exactly(made: Bundle) -> float:
    """A tolerance of parity that rounding alone keeps."""
    wanted = expected(made, parity.sample_images(made.input))
    return rounding.of_probabilities(wanted, made.tensors)


@contextmanager
def compiled_quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled here runs for a moment: torch need not try what the CPU can do, nor
    optimise."""
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "0")
    monkeypatch.setenv("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
    from torch._inductor import config

    # Also where this process has read it before, which depends on what else it has run.
    with config.patch("cpp.vec_isa_ok", False):
        yield


def check_maps(warm: Warm, made: Bundle, precision: str = "fp32") -> None:
    """Features and activation maps are those that the ranking comes from: with the head, they
    give the logits."""
    network, batch = made.network(), torch.from_numpy(np.stack(images(3)))
    with torch.inference_mode():
        normalised = made.classifier().normalise(batch)
        maps, logits = network.maps(normalised).numpy(), network(normalised).numpy()
    near = partial(rounding.assert_near, layers=made.tensors, precision=precision)
    head = made.tensors["head.weight"].numpy()
    assert not warm.launch(images(3))().details
    tasks: list[Task] = [Embed(), Explain(2), CLASSIFY]
    for turn in range(3):  # Each task with each image, and in each lane.
        asked = tasks[turn:] + tasks[:turn]
        ranking = warm.launch(images(3), asked)()
        for image, (task, detail) in enumerate(zip(asked, ranking.details, strict=True)):
            if task == CLASSIFY:
                assert detail is None
                continue
            assert detail is not None
            if task == Embed():
                near(detail, maps[image].mean((1, 2)))
            else:
                *grid, bias = detail
                near(grid, np.tensordot(head[2], maps[image], 1).ravel())
                total = np.mean(grid) + bias
                near([total], [logits[image, 2]], scale=np.abs(logits).max())
    likeliest = logits.argmax(1)
    ranking = warm.launch(images(3), [Explain()] * 3)()
    for image, detail in enumerate(ranking.details):
        assert detail is not None
        near(
            [detail[:-1].mean() + detail[-1]],
            [logits[image, likeliest[image]]],
            scale=np.abs(logits).max(),
        )


def check_fractions(warm: Warm, made: Bundle, precision: str = "fp32") -> None:
    """Pixels between whole numbers are computed as they are, and need no company of their kind."""
    whole = images(2)
    same: list[NDArray[np.float32]] = [image.astype(np.float32) for image in whole]
    near = partial(rounding.assert_probabilities_near, layers=made.tensors, precision=precision)
    near(warm.infer(same), warm.infer(whole))
    mixed: list[Pixels] = [whole[0], (same[1] * 0.9 + 0.3).astype(np.float32)]
    with torch.inference_mode():
        batch = np.stack([image.astype(np.float32) for image in mixed])
        exact = made.classifier()(torch.from_numpy(batch)).numpy()
    found = warm.infer(mixed)
    near(found, exact)
    rounded = warm.infer([mixed[1].astype(np.uint8)])
    assert np.abs(rounded - exact[1:]).max() > 2 * np.abs(found - exact).max()
