from __future__ import annotations

import re
import resource
import shutil
import signal
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import bundling
from models.bundle import Bundle
from models.classifier import Classifier
from models.preprocess import CIFAR, IMAGENET
from models.processor import has_bf16
from service.config.settings import ModelSettings, Settings
from service.engines import compiled, devices, parity, quantisation
from service.engines.devices import devices_of, engines_for, precision_of
from service.engines.start import blueprint_of, start_engine, start_first
from service.errors import ConfigError
from service.inference.ranking import rank
from tests.support import rounding
from tests.support.engine_checks import (
    TINY,
    check_fractions,
    check_maps,
    compiled_quickly,
    exactly,
    expected,
    images,
    planned,
)
from tests.support.fake_cuda import fake_cuda


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return bundling.untrained(TINY, "tiny", CIFAR)


def test_a_ranking_is_stable_and_reversible() -> None:
    given = np.array([[0.2, 0.5, 0.2, 0.1], [0.0, 0.0, 0.0, 1.0]], dtype=np.float32)
    ranking = rank(given)
    assert ranking.classes.tolist() == [[1, 0, 2, 3], [3, 0, 1, 2]]
    np.testing.assert_array_equal(ranking.by_class(), given)


@pytest.mark.parametrize("kind", ["eager", "openvino"])
@pytest.mark.parametrize("count", [1, 3, 5, 8, 19])
def test_padding_and_splitting_change_no_answer(tiny: Bundle, kind: str, count: int) -> None:
    warm = start_engine(kind, planned(tiny), exactly(tiny))
    warm.infer(images(8))  # Leaves other images in the slab.
    found = warm.infer(images(count))
    assert found.dtype == np.float32
    rounding.assert_probabilities_near(found, expected(tiny, images(count)), tiny.tensors)


OPENVINO_NETWORKS = {
    "post-activation, basic": replace(TINY, shortcut="B", blocks=(2, 1, 2), planes=(8, 16, 32)),
    "bottleneck": replace(TINY, block="bottleneck", shortcut="B"),
    "pre-activation": replace(TINY, shortcut="B", blocks=(2, 2), preact=True),
    "pre-activation bottleneck": replace(TINY, block="bottleneck", shortcut="B", preact=True),
    "wide, with dropout": replace(TINY, width=2, dropout=0.3, preact=True),
    "imagenet stem": replace(TINY, stem="imagenet", shortcut="B", num_classes=7),
    "option A at the end": replace(TINY, shortcut_padding="end", planes=(8, 24)),
    "option C": replace(TINY, shortcut="C"),
    "biases, and a bare shortcut": replace(
        TINY, shortcut="B", shortcut_norm=False, biases=("stem", "conv1", "conv2", "shortcut")
    ),
    "Flax's": replace(TINY, stem="imagenet", padding="same", pool_padding="same", shortcut="B"),
    "Keras's second": replace(
        TINY,
        block="bottleneck",
        stem="imagenet",
        preact=True,
        shortcut="B",
        stride_block="last",
        pool_padding="zero",
        biases=("stem", "conv3", "shortcut"),
    ),
    "3x3 shortcut": replace(TINY, shortcut="conv"),
    "stride in the first": replace(
        TINY, block="bottleneck", stride_at="1x1", shortcut="B", width=2
    ),
}


@pytest.mark.parametrize("name", OPENVINO_NETWORKS)
def test_openvino_computes_what_torch_computes(name: str) -> None:
    from service.engines.openvino_graph import build

    architecture = OPENVINO_NETWORKS[name]
    spec = replace(IMAGENET, size=64, resize=64) if architecture.stem == "imagenet" else CIFAR
    made = bundling.untrained(architecture, "any", spec)
    # Norms as a training leaves them, so that a lost one would show.
    torch.manual_seed(0)
    for key, tensor in made.tensors.items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    classifier = Classifier(made.network(), made.input).eval()
    assert build(classifier, spec.shape, 8, {}).outputs[0].partial_shape.rank.get_length() == 2
    found = start_engine("openvino", planned(made), 1.0).infer(images(3, spec))
    wanted = expected(made, images(3, spec))
    rounding.assert_probabilities_near(found, wanted, made.tensors)


@pytest.mark.parametrize("kind", ["eager", "openvino"])
def test_maps_and_fractions(tiny: Bundle, kind: str) -> None:
    warm = start_engine(kind, planned(tiny), None)
    check_maps(warm, tiny)
    check_fractions(warm, tiny)


def test_networks_are_built_while_others_start_and_serve(tiny: Bundle) -> None:
    failures: list[Exception] = []

    def start(kind: str) -> None:
        try:
            for _ in range(5):
                start_engine(kind, planned(tiny), exactly(tiny))
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=start, args=(kind,)) for kind in ("openvino", "eager") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_an_operation_openvino_is_not_told_of_is_named() -> None:
    from models.resnet import ResNet
    from service.engines.openvino_graph import build

    network = ResNet(TINY)
    network.set_head(torch.nn.Sequential(torch.nn.Linear(16, 5), torch.nn.Hardswish()))
    with pytest.raises(NotImplementedError, match="hardswish"):
        build(Classifier(network, CIFAR).eval(), CIFAR.shape, 1, {})


@pytest.mark.precision
@pytest.mark.parametrize("kind", ["eager", "openvino"])
def test_bf16_is_near_fp32(tiny: Bundle, kind: str) -> None:
    exact = start_engine("eager", planned(tiny), None).infer(images(4))
    near = start_engine(kind, planned(tiny, "bf16"), None).infer(images(4))
    # Without bf16 in hardware OpenVINO computes in fp32.
    least = 0 if kind == "eager" else -1
    allowed = rounding.of_probabilities(exact, tiny.tensors, "bf16")
    assert least < np.abs(exact - near).max() < allowed


def test_warming_up_refuses_weights_that_give_nan(tiny: Bundle) -> None:
    broken = dict(tiny.tensors)
    broken["head.bias"] = torch.full_like(broken["head.bias"], torch.nan)
    for kind in ("eager", "openvino"):
        with pytest.raises(RuntimeError, match="NaN in fp32 on cpu"):
            start_engine(kind, planned(replace(tiny, tensors=broken)), None)


def test_an_engine_beyond_the_tolerance_is_refused_and_plain_torch_serves(
    tiny: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = dict.fromkeys(quantisation.ranges(tiny, images(1)), (-1e3, 1e3))
    wrong = planned(replace(tiny, calibration={"ranges": coarse}), "int8")
    with pytest.raises(
        parity.ParityError, match=r"from fp32 by .*, more than parity_tolerance 0\.001"
    ):
        start_engine("openvino", wrong, 0.001)
    served = start_first(["openvino"], wrong, 0.001)
    assert (served.engine.name, served.engine.precision) == ("eager", "fp32")
    assert "engine openvino did not start, using eager" in caplog.text


def test_parity_tells_agreement_and_difference(tiny: Bundle) -> None:
    exact = start_engine("eager", planned(tiny), None)
    assert (exact.parity.images, exact.parity.top1_agreement) == (8, 1.0)
    assert exact.parity.max_difference <= exactly(tiny)

    def half_wrong(batch: Any) -> NDArray[np.float32]:
        found = exact.infer(batch)
        found[:4] = np.roll(found[:4], 1, axis=1)
        return found

    told = parity.check(half_wrong, [8], 1, planned(tiny), 1.0)
    assert told.top1_agreement == 0.5
    assert told.max_difference > 0.001


@pytest.mark.parametrize("wrong", [1, 2, 4, 8])
def test_parity_sees_each_batch_size_in_each_lane(tiny: Bundle, wrong: int) -> None:
    exact = start_engine("eager", planned(tiny), None)
    launched: Counter[int] = Counter()

    def wrong_in_the_second_lane(batch: Any) -> NDArray[np.float32]:
        found = exact.infer(batch)
        launched[len(batch)] += 1
        if len(batch) == wrong and launched[wrong] == 2:
            found[-1] = np.roll(found[-1], 1)
        return found

    sizes = [1, 2, 4, 8]
    with pytest.raises(parity.ParityError, match=rf"in a batch of {wrong}, more than"):
        parity.check(wrong_in_the_second_lane, sizes, 2, planned(tiny), exactly(tiny))
    launched.clear()
    parity.check(wrong_in_the_second_lane, sizes, 1, planned(tiny), exactly(tiny))
    assert launched == {1: 1, 2: 1, 4: 1, 8: 1}


def test_the_reference_is_kept_and_belongs_to_its_weights(tiny: Bundle, tmp_path: Path) -> None:
    here = planned(tiny, cache=tmp_path)
    first = parity.reference(here)
    (kept,) = tmp_path.iterdir()
    np.save(kept, first + 1)
    np.testing.assert_array_equal(parity.reference(here), first + 1)
    other = {name: tensor * 2 for name, tensor in tiny.tensors.items()}
    changed = planned(replace(tiny, tensors=other), cache=tmp_path)
    assert np.abs(parity.reference(changed) - first).max() < 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_reference_is_made_again(tiny: Bundle, tmp_path: Path) -> None:
    here = planned(tiny, cache=tmp_path)
    first = parity.reference(here)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:20], whole[:-4]):
        kept.write_bytes(damaged)
        again = parity.reference(here)
        rounding.assert_probabilities_near(again, first, tiny.tensors)
        np.testing.assert_array_equal(np.load(kept), again)
    assert len(kept.read_bytes()) == len(whole)


def test_what_openvino_compiled_is_kept_whole_or_not_at_all(
    tiny: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = planned(tiny, cache=tmp_path)

    # As a disk that is full: Python is told, and OpenVINO, which writes, says nothing of it.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        first = start_engine("openvino", here, exactly(tiny))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert re.search(r"cannot cache .*: File too large", caplog.text)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}
    caplog.clear()
    second = start_engine("openvino", here, exactly(tiny))
    (blob,) = tmp_path.glob("*.blob")
    written = blob.stat().st_mtime_ns
    third = start_engine("openvino", here, exactly(tiny))
    assert blob.stat().st_mtime_ns == written
    assert not caplog.records
    for warm in (second, third):
        rounding.assert_probabilities_near(
            warm.infer(images(3)), first.infer(images(3)), tiny.tensors
        )


@pytest.mark.precision  # What is not in 8 bits is in bf16 where the CPU has it.
def test_int8_is_calibrated_and_near(tiny: Bundle) -> None:
    told: list[int] = []
    found = quantisation.ranges(tiny, images(40), told.append)
    assert sum(told) == 40
    names = {n for n, m in tiny.network().named_modules() if hasattr(m, "weight") and "bn" not in n}
    assert set(found) == names - {"stem.norm"}
    assert all(low <= 0 < high for low, high in found.values())
    made = replace(tiny, calibration={"ranges": found})
    warm = start_engine("openvino", planned(made, "int8"), None)
    assert warm.engine.precision == "int8"
    assert 0 < warm.parity.max_difference < 0.1


@pytest.mark.precision
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("eager", "fp32"),
        ("eager", "bf16"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ],
)
def test_every_engine_divides_the_logits_by_the_temperature(
    tiny: Bundle, kind: str, precision: str
) -> None:
    ranges = {"ranges": quantisation.ranges(tiny, images(8))}
    found = {}
    for temperature in (1.0, 0.2):
        made = replace(tiny, temperature=temperature, calibration=ranges)
        found[temperature] = start_engine(kind, planned(made, precision), None).infer(images(4))
    logits = np.log(found[1.0])
    raised = np.exp(logits / 0.2)
    wanted = raised / raised.sum(1, keepdims=True)
    # Up to the head, which divides, both compute the same.
    head = {"head": tiny.tensors["head.weight"]}
    own = "bf16" if precision == "int8" else precision
    rounding.assert_probabilities_near(found[0.2], wanted, head, own)
    assert np.abs(found[0.2] - found[1.0]).max() > 0.05


def test_int8_without_calibration_says_what_to_do(tiny: Bundle) -> None:
    settings = ModelSettings(spec="x", precision="int8")
    with pytest.raises(ConfigError, match="resnet-serve calibrate"):
        blueprint_of(tiny, settings, "cpu", Settings())


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.slow
def test_compiled_once_and_loaded_from_then_on(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(tiny, temperature=0.5)
    here = planned(made, cache=tmp_path)
    with compiled_quickly(monkeypatch):
        first = start_engine("compile", here, exactly(made))
    wanted = expected(made, images(5))
    rounding.assert_probabilities_near(first.infer(images(5)), wanted, made.tensors)
    check_maps(first, made)
    check_fractions(first, made)
    assert [path.suffix for path in tmp_path.iterdir() if "compiled" in path.name] == [".pt2"]

    def must_not_run(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(compiled, "_compile_in_process", must_not_run)
    again = start_engine("compile", here, exactly(made))
    rounding.assert_probabilities_near(again.infer(images(3)), first.infer(images(3)), made.tensors)
    (package,) = tmp_path.glob("*.pt2")
    package.write_bytes(package.read_bytes()[:-1000])
    with pytest.raises(AssertionError, match="compiled again"):
        start_engine("compile", here, exactly(made))
    assert not package.exists()


def test_without_a_compiler_plain_torch_serves_and_says_so(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.delenv("CXX", raising=False)
    warm = start_first(["compile"], planned(tiny), None)
    assert warm.engine.name == "eager"
    assert "torch could not compile it: there is no C++ compiler; install g++" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:99"}, "cuda:99 is not available"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 needs a CUDA device"),
        ({"device": "cpu", "precision": "int8", "engine": "eager"}, "int8 needs device cpu and"),
        ({"device": "cpu", "decode": "device"}, "decode: device needs a CUDA device; use host"),
    ],
)
def test_what_the_hardware_cannot_do_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        devices_of(ModelSettings(spec="x", **settings))


def test_without_openvino_it_is_named_and_auto_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = ModelSettings(spec="x")
    assert engines_for(automatic, "cpu") == ["openvino"]
    monkeypatch.setattr(devices, "has_openvino", lambda: False)
    assert engines_for(automatic, "cpu") == ["eager", "compile"]
    assert engines_for(automatic, "cuda:0") == ["fused"]
    with pytest.raises(ConfigError, match="pip install 'openvino>="):
        devices_of(ModelSettings(spec="x", device="cpu", engine="openvino"))


def test_without_torchvision_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(spec="x", device="cuda:0", decode="device")
    with fake_cuda():
        assert devices_of(settings) == ["cuda:0"]
        monkeypatch.setattr(devices, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="needs torchvision; pip install "):
            devices_of(settings)


@pytest.mark.precision
def test_precision_is_what_is_asked_for_or_what_the_hardware_has() -> None:
    assert precision_of(ModelSettings(spec="x", precision="bf16"), "cpu") == "bf16"
    automatic = precision_of(ModelSettings(spec="x"), "cpu")
    assert automatic == ("bf16" if has_bf16() else "fp32")
