"""Engines on a CUDA device: a simulated one everywhere, and a real one where there is one.

The simulated device computes on the CPU and judges the order of streams and what captures permit;
it knows nothing of kernels, layouts and speed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import bundling
from models.bundle import Bundle
from models.preprocess import CIFAR
from service.engines import faults
from service.engines.cuda import CudaEngine
from service.engines.cuda_graph import give_memory_back
from service.engines.engine import Warm
from service.engines.faults import CaptureFailed
from service.engines.fused import FoldedNetwork
from service.engines.start import start_engine, start_first
from service.inference.tasks import Embed, Explain
from tests.service.engines.test_fused import NETWORKS
from tests.support import rounding, tiny
from tests.support.cuda.runtime import FakeCuda
from tests.support.engine_checks import (
    TINY,
    check_fractions,
    check_maps,
    expected,
    images,
    planned,
)
from tests.support.fake_cuda import fake_cuda

FAKE, REAL = "simulated", "real"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring stops at no size: the simulated device is slower than any that gains by batches."""
    monkeypatch.setattr("service.engines.buckets.RELIABLE", 100.0)
    monkeypatch.setattr("service.engines.buckets.LONGEST", 100.0)
    monkeypatch.setattr("service.engines.buckets.LONGEST_SAMPLE", 1e-6)


@pytest.fixture(params=[FAKE, pytest.param(REAL, marks=[pytest.mark.gpu, needs_cuda])])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device; if it is simulated, nothing races on it."""
    if request.param == REAL:
        yield "cuda:0"
        return
    with fake_cuda() as fake:
        yield "cuda:0"
        assert not fake.races


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda() as fake:
        yield fake
        assert not fake.races


@pytest.fixture(scope="module")
def made() -> Bundle:
    return bundling.untrained(TINY, "tiny", CIFAR)


def started(made: Bundle, kind: str = "fused", precision: str = "bf16", **changes: Any) -> Warm:
    plan = replace(planned(made, precision, device="cuda:0"), **changes)
    return start_engine(kind, plan, None)


@pytest.mark.parametrize("kind", ["eager", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_is_near_the_cpu(made: Bundle, device: str, kind: str, precision: str) -> None:
    warm = started(made, kind, precision)
    batch = images(5)
    near = rounding.assert_probabilities_near
    near(warm.infer(batch), expected(made, batch), made.tensors, precision)
    if precision == "fp32":
        check_maps(warm, made)
        check_fractions(warm, made)


@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_two_batches_in_flight_keep_apart(made: Bundle, device: str, kind: str) -> None:
    warm = started(made, kind, "fp32")
    flying = [(images(1), warm.launch(images(1)))]
    for turn in range(20):
        batch = images(1 + turn * 3 % 8)
        flying.append((batch, warm.launch(batch)))
        given, collect = flying.pop(0)
        found = collect().by_class()
        rounding.assert_probabilities_near(found, expected(made, given), made.tensors)


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_every_kind_of_network_is_folded(
    fake: FakeCuda, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    architecture = tiny.architecture(**{"planes": (8, 16), **changes})
    made = replace(bundling.untrained(architecture, "any", CIFAR), name="any")
    network = tiny.randomised(made.network())
    made = replace(made, tensors=dict(network.state_dict()))
    found = started(made, "fused", "fp16", max_batch=2).infer(images(2))
    rounding.assert_probabilities_near(found, expected(made, images(2)), made.tensors, "fp16")
    assert "fuse" not in caplog.text  # All layouts are those that cuDNN is fast for.


def test_cudnn_ends_the_convolutions_of_blocks_and_not_those_of_three_channels(
    fake: FakeCuda,
) -> None:
    made = bundling.untrained(replace(TINY, shortcut="B"), "tiny", CIFAR)
    warm = started(made)
    fake.kernels.clear()
    warm.infer(images(8))
    kinds = {name: count for name, count in fake.kernels.items() if "conv" in name}
    # Two blocks of two convolutions, of which the second one's shortcut has another.
    assert kinds == {
        "aten::cudnn_convolution_relu": 2,
        "aten::cudnn_convolution_add_relu": 2,
        "aten::conv2d": 2,
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_is_captured_before_the_first_request_and_serving_allocates_nothing(
    made: Bundle, fake: FakeCuda, precision: str
) -> None:
    warm = started(made, "fused", precision)
    sizes = list(warm.buckets.seconds)
    assert sizes == [1, 2, 4, 8]
    assert warm.engine.graphs == 2 * (len(sizes) + 1)  # One more explains a class.
    before, graphs = fake.allocations, fake.calls["cudaStreamBeginCapture"]
    for count in (1, 3, 8, 5):
        for batch in (images(count), [image.astype(np.float32) + 0.5 for image in images(count)]):
            warm.launch(batch, [Embed()] * count)()
            warm.launch(batch, [Explain()] * count)()
    assert fake.allocations == before
    assert fake.calls["cudaStreamBeginCapture"] == graphs
    assert warm.engine.graphs == 2 * (len(sizes) + 1)


def test_whoever_waits_for_a_batch_sleeps(made: Bundle, fake: FakeCuda) -> None:
    warm = started(made)
    fake.waited.clear()
    warm.infer(images(3))
    warm.infer([image.astype(np.float32) for image in images(3)])
    assert fake.waited
    assert all(event.blocking for event in fake.waited)


@pytest.mark.parametrize("where", ["aten::addcmul", "cudaGraphLaunch"])
def test_an_engine_that_is_dropped_when_a_launch_fails_leaves_nothing_in_flight(
    made: Bundle, fake: FakeCuda, where: str
) -> None:
    warm = started(made)
    fake.fail_next(RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), where)
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        warm.infer(images(8))
    del warm
    found = started(made).infer(images(8))  # In the memory of the other one.
    rounding.assert_probabilities_near(found, expected(made, images(8)), made.tensors, "bf16")


def test_only_what_is_asked_for_comes_back(made: Bundle, fake: FakeCuda) -> None:
    ranking = started(made).launch(images(3), [Embed(), Explain(1), Explain()])()
    assert [len(detail) for detail in ranking.details if detail is not None] == [16, 257, 257]


def test_a_capture_disturbs_nobody_beside_it(made: Bundle, fake: FakeCuda) -> None:
    """One thread serves, with allocations and waiting, while another captures."""
    serving = started(made, "eager")
    stop, failures, served = threading.Event(), [], 0

    def serve() -> None:
        nonlocal served
        while not stop.is_set():
            try:
                serving.infer(images(3))
                served += 1
            except Exception as error:  # noqa: BLE001 - all count
                failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(3):
            warm = started(made)
            give_memory_back()
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert served > 3
    found = warm.infer(images(3))
    rounding.assert_probabilities_near(found, expected(made, images(3)), made.tensors, "bf16")


def test_no_algorithms_are_measured_within_a_capture(
    made: Bundle, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, seen = FoldedNetwork.__call__, set[tuple[bool, bool]]()

    def looks(network: FoldedNetwork, images: torch.Tensor) -> torch.Tensor:
        seen.add((torch.cuda.is_current_stream_capturing(), torch.backends.cudnn.benchmark))
        return compute(network, images)

    monkeypatch.setattr(FoldedNetwork, "__call__", looks)
    started(made)
    assert seen == {(False, True), (True, False)}
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_measuring_algorithms_gives_no_memory_back_which_a_capture_beside_it_forbids(
    made: Bundle, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    told: list[bool] = []
    switch = "_cudnn_set_conv_benchmark_empty_cache"
    monkeypatch.setattr(torch._C, switch, told.append, raising=False)
    started(made, kind)
    assert set(told) == {False}


def test_memory_that_ends_in_a_capture_limits_the_batches_and_breaks_nothing(
    made: Bundle, fake: FakeCuda
) -> None:
    full = started(made)
    assert full.buckets.largest == 8
    engine = full.engine
    assert isinstance(engine, CudaEngine)
    enough = torch.cuda.memory_allocated()
    del full, engine
    fake.memory(enough - 20_000)
    warm = started(made)
    assert warm.buckets.largest < 8
    found = warm.infer(images(8))
    rounding.assert_probabilities_near(found, expected(made, images(8)), made.tensors, "bf16")
    give_memory_back()


def test_an_engine_that_does_not_fit_starts_with_smaller_batches(
    made: Bundle, fake: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    started(made, max_batch=1)
    fake.memory(2 * torch.cuda.max_memory_allocated())
    torch.cuda.empty_cache()
    warm = started(made, max_batch=64)
    assert 1 <= warm.buckets.largest < 8
    (first, *_) = [line for line in caplog.messages if "out of memory" in line]
    assert first.startswith("tiny: out of memory for batches of 64, starting with 32: CUDA out of")
    found = warm.infer(images(8))
    rounding.assert_probabilities_near(found, expected(made, images(8)), made.tensors, "bf16")
    fake.memory(1000)
    with pytest.raises(torch.OutOfMemoryError):
        started(made)


def test_a_start_tells_what_it_does(made: Bundle, fake: FakeCuda) -> None:
    told: list[str] = []
    started(made, progress=told.append)
    assert told[0] == "loading the weights"
    assert "batches of 4, of up to 8 images" in told
    assert told[-1] == "comparing its probabilities with fp32"


def test_a_capture_that_fails_poisons_the_process_and_the_next_one_uses_no_graphs(
    made: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = replace(planned(made, "bf16", device="cuda:0"), cache=tmp_path)
    compute = FoldedNetwork.__call__

    def waits(network: FoldedNetwork, images: torch.Tensor) -> torch.Tensor:
        torch.cuda.synchronize()
        return compute(network, images)

    with pytest.MonkeyPatch.context() as patch, fake_cuda():
        patch.setattr(FoldedNetwork, "__call__", waits)
        with pytest.raises(CaptureFailed) as caught:
            start_first(["fused"], plan, None)
        assert faults.poisons(caught.value)
        assert str(caught.value) == (
            "a CUDA graph could not be captured: CUDA error: "
            "operation not permitted when stream is capturing"
        )
        with pytest.raises(RuntimeError) as broken:
            give_memory_back()
        assert faults.poisons(broken.value)

    with fake_cuda() as successor:
        warm = start_first(["fused"], plan, None)
        assert warm.engine.name == "eager"
        assert not successor.races
    (line,) = [each for each in caplog.messages if "failed before" in each]
    assert "using eager" in line
    (kept,) = tmp_path.glob("refused-*")
    assert str(kept) in line
    kept.unlink()
    with fake_cuda():
        assert start_first(["fused"], plan, None).engine.name == "fused"


def test_what_cudnn_does_not_fuse_takes_more_kernels_and_is_said_once(
    made: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_cuda(fused=False) as fake:
        warm = start_first(["fused"], planned(made, "bf16", device="cuda:0"), None)
        assert (warm.engine.name, warm.engine.graphs) == ("fused", 2 * (4 + 1))
        found = warm.infer(images(3))
        assert not fake.races
    rounding.assert_probabilities_near(found, expected(made, images(3)), made.tensors, "bf16")
    (line,) = [each for each in caplog.messages if "fuse" in each]
    assert line.startswith("cuDNN does not fuse every convolution, which takes more time: Could")


def test_cudnn_is_not_asked_to_fuse_convolutions_of_odd_channels(
    fake: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    made = bundling.untrained(replace(TINY, planes=(8, 17)), "tiny", CIFAR)
    warm = started(made)
    fake.kernels.clear()
    found = warm.infer(images(8))
    assert fake.kernels["aten::cudnn_convolution_relu"] == 1
    assert fake.kernels["aten::conv2d"] >= 2
    assert "fuse" not in caplog.text
    rounding.assert_probabilities_near(found, expected(made, images(8)), made.tensors, "bf16")


@pytest.mark.parametrize("what", ["cudnn", "operation"])
def test_eager_serves_what_cannot_be_folded_and_says_why(
    made: Bundle, fake: FakeCuda, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if what == "cudnn":
            patch.setattr("torch.backends.cudnn.is_available", lambda: False)
            why = "this PyTorch has no cuDNN"
        else:
            patch.setattr("models.resnet.F.relu", torch.sigmoid)
            why = "sigmoid is not an operation of a ResNet"
        warm = start_first(["fused"], planned(made, "bf16", device="cuda:0"), 1.0)
    assert warm.engine.name == "eager"
    assert f"tiny: engine fused did not start, using eager: {why}" in caplog.messages


def test_a_second_device_is_its_own(made: Bundle) -> None:
    with fake_cuda(count=2) as fake:
        warm = start_engine("fused", planned(made, "bf16", device="cuda:1"), None)
        found = warm.infer(images(3))
        assert not fake.races
        assert torch.cuda.memory_allocated("cuda:0") == 0
        assert torch.cuda.memory_allocated("cuda:1") > 0
    rounding.assert_probabilities_near(found, expected(made, images(3)), made.tensors, "bf16")


def test_fp32_is_not_tf32(made: Bundle, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    for kind in ("fused", "eager"):
        torch.backends.cudnn.allow_tf32 = True
        started(made, kind, "fp32")
        assert not torch.backends.cudnn.allow_tf32
