"""Threads and streams are chosen by measuring; what they compute does not depend on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.bundling import untrained
from models.variants import variant
from service import runtime
from service.config.capacity import Costs
from service.engines import tuning
from service.engines.blueprint import Blueprint
from service.engines.start import KINDS, start_engine
from service.engines.tuning import Forward, Tuning, Way
from service.inference.tasks import Embed, Pixels
from tests.support import rounding

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def network() -> Bundle:
    row = variant("resnet20")
    return untrained(row.architecture, "resnet20", row.input)


def planned(network: Bundle, cache: Path | None = None, **given: Any) -> Blueprint:
    fields = {"max_batch": 8, "threads": None, "request_seconds": 1e-4, **given}
    return Blueprint(network, "cpu", "fp32", cache=cache, **fields)


def images(count: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(count)
    return [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


class Machine:
    """Stands in for an engine's forwards: they take as long as is written down for a way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
        self.per_image: dict[Way, float] = {}
        self.built: list[Way] = []
        monkeypatch.setattr(runtime, "cpus", lambda: cpus)
        monkeypatch.setattr(runtime, "cpu_time", lambda: float(cpus))
        monkeypatch.setattr(tuning, "seconds_of", lambda forward, _: forward)
        monkeypatch.setattr(tuning, "decode_seconds", lambda _: 1e-3)

    def build(self, way: Way) -> Any:
        self.built.append(way)
        return {size: size * self.per_image[way] for size in (1, 2, 4, 8)}

    def tuned(self, blueprint: Blueprint, *, streams: bool = True) -> Tuning:
        return tuning.measure(self.build, blueprint, streams=streams)


def test_an_engine_that_costs_much_gets_all_cpus(
    monkeypatch: pytest.MonkeyPatch, network: Bundle
) -> None:
    machine = Machine(monkeypatch, cpus=2)
    machine.per_image = {Way(2): 0.010}
    found = machine.tuned(planned(network))
    assert (found.whole, found.split) == (Way(2), None)
    assert found.costs == Costs(engine=0.020, decode=1e-3, request=1e-4)
    assert found.per_image == 0.010


def test_an_engine_that_costs_little_leaves_cpus_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, network: Bundle
) -> None:
    machine = Machine(monkeypatch, cpus=2)
    machine.per_image = {Way(2): 100e-6, Way(1): 190e-6}
    found = machine.tuned(planned(network, request_seconds=250e-6))
    assert (found.whole, found.split) == (Way(1), None)
    assert found.per_image == 190e-6, "that of the threads which were chosen"


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (4, 3)])
def test_threads_that_spin_leave_a_cpu_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, network: Bundle, cpus: int, threads: int
) -> None:
    """As torch's do: with a decoder on the last CPU, all of them would wait for one."""
    machine = Machine(monkeypatch, cpus)
    machine.per_image = {Way(threads): 0.010}
    assert machine.tuned(planned(network), streams=False).whole == Way(threads)


def test_streams_serve_where_threads_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, network: Bundle
) -> None:
    machine = Machine(monkeypatch, cpus=16)
    machine.per_image = {Way(16): 0.004, Way(2, 8): 0.0030, Way(4, 4): 0.0028, Way(8, 2): 0.0035}
    found = machine.tuned(planned(network))
    # A stream has no fewer threads than let the largest batch, of 8, occupy all.
    assert (
        machine.built == [Way(16), Way(2, 8), Way(4, 4), Way(8, 2), Way(16)][: len(machine.built)]
    )
    assert (found.split, found.split_from) == (Way(4, 4), 1)


def test_no_other_way_is_tried_when_the_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch, network: Bundle
) -> None:
    machine = Machine(monkeypatch, cpus=16)
    machine.per_image = {Way(16): 0.004, Way(2, 8): 0.003}
    monkeypatch.setattr(tuning, "BUDGET", 0.0)
    assert machine.tuned(planned(network)).split == Way(2, 8)


def test_the_threads_that_a_user_sets_are_the_threads(
    monkeypatch: pytest.MonkeyPatch, network: Bundle
) -> None:
    machine = Machine(monkeypatch, cpus=2)
    machine.per_image = {Way(6): 0.004, Way(1, 6): 0.003, Way(2, 3): 0.004}
    found = machine.tuned(planned(network, threads=6))
    assert (found.whole, found.split, found.costs) == (Way(6), Way(1, 6), None)


def test_fewer_threads_are_fewer_streams_of_as_many_threads() -> None:
    both = Tuning(Way(16), Way(4, 4), 8)
    assert tuning.with_fewer(both, 14) == Tuning(Way(14), Way(4, 3), 8)
    assert tuning.with_fewer(both, 7) == Tuning(Way(7)), "one stream is no split"
    assert tuning.with_fewer(Tuning(Way(16)), 15) == Tuning(Way(15))


@pytest.mark.parametrize(
    ("whole", "split", "limit"),
    [
        ({1: 1, 2: 2, 4: 4}, {1: 2, 2: 1.9, 4: 3}, 2),
        ({1: 1, 2: 2, 4: 4}, {1: 0.9, 2: 1.9, 4: 3}, 1),
        ({1: 1, 2: 2, 4: 4}, {1: 0.9, 2: 2.1, 4: 3}, 4),  # not by accident once before
        ({1: 1, 2: 2}, {1: 2, 2: 2, 4: 3}, 2),  # only sizes that both were timed with
    ],
)
def test_batches_are_split_from_where_it_is_always_faster(
    whole: dict[int, float], split: dict[int, float], limit: int
) -> None:
    assert tuning.first_faster(split, whole) == limit


def test_a_split_must_be_worth_its_memory() -> None:
    whole, split = {8: 0.100}, {Way(1, 2): {8: 0.099}}
    assert tuning.choose(2, whole, split).split is None
    assert tuning.choose(2, whole, {Way(1, 2): {8: 0.090}}).split == Way(1, 2)


@pytest.mark.parametrize(("threads", "ways"), [(3, 1), (4, 3)])
def test_few_threads_are_not_split(
    monkeypatch: pytest.MonkeyPatch, network: Bundle, threads: int, ways: int
) -> None:
    machine = Machine(monkeypatch, cpus=threads)
    machine.per_image = {Way(3): 0.01, Way(4): 0.01, Way(1, 4): 0.005, Way(2, 2): 0.006}
    machine.tuned(planned(network))
    assert len(machine.built) == ways


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_split_batches_have_the_same_answers_and_maps(
    network: Bundle, count: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are real here, however many CPUs there are."""
    whole = KINDS["openvino"](planned(network, threads=1))
    found = Tuning(Way(3), Way(1, 3), 2)
    monkeypatch.setattr("service.engines.openvino.tune", lambda *_, **__: found)
    split = KINDS["openvino"](planned(network, threads=3))
    batch: list[Pixels] = [image.astype(dtype) for image in images(count)]
    tasks = [Embed()] * count
    expected = whole.launch(batch, 8, tasks)()
    for _ in range(3):  # Nothing of the batch before is left.
        split.launch(images(8), 8)()
        ranking = split.launch(batch, 8, tasks)()
        rounding.assert_probabilities_near(ranking.by_class(), expected.by_class(), network.tensors)
        for detail, wanted in zip(ranking.details, expected.details, strict=True):
            assert detail is not None
            assert wanted is not None
            rounding.assert_near(detail, wanted, network.tensors)


def test_the_choice_is_kept_for_the_same_network_on_the_same_machine(
    network: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[Way] = []

    def build(way: Way) -> Forward:
        builds.append(way)
        return lambda batch: (batch[:, 0, 0], lambda: batch)

    def tuned(blueprint: Blueprint) -> Tuning:
        builds.clear()
        return tuning.tune(build, blueprint, "openvino", streams=True)

    first = tuned(planned(network, tmp_path))
    assert builds
    assert tuned(planned(network, tmp_path)) == first
    assert not builds
    tuned(planned(network, tmp_path, fresh=True))
    assert builds, "asked to measure again"
    monkeypatch.setattr(runtime, "cpu_time", lambda *_: 1.5)
    tuned(planned(network, tmp_path))
    assert builds, "another machine"
    (damaged, *_) = tmp_path.glob("tuning-*.json")
    for file in tmp_path.glob("tuning-*.json"):
        file.write_text("{}")
    tuned(planned(network, tmp_path))
    assert builds, "a damaged file"
    assert json.loads(damaged.read_text()) is not None


def test_a_start_measures_again_what_a_busy_machine_made_slow(
    network: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    blueprint = planned(network, tmp_path)
    start_engine("openvino", blueprint, None)
    (file,) = tmp_path.glob("tuning-*.json")
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"per_image": 1.0}))
    plan = tmp_path / "plan-0.json"
    plan.touch()
    caplog.clear()
    start_engine("openvino", blueprint, None)
    assert "measuring again" in caplog.text
    assert json.loads(file.read_text())["per_image"] < 1.0
    assert not plan.exists(), "it was made from what was measured then"


def test_batch_sizes_are_kept_and_measured_again_when_they_are_wrong(
    network: Bundle, tmp_path: Path
) -> None:
    blueprint = planned(network, tmp_path, threads=1)
    first = start_engine("openvino", blueprint, None)
    (file,) = tmp_path.glob("batches-*.json")
    kept = file.read_text()
    file.write_text(json.dumps(dict.fromkeys(json.loads(kept), 50.0)))
    again = start_engine("openvino", blueprint, None)
    assert max(again.buckets.seconds.values()) < 50.0
    assert first.buckets.seconds.keys() <= {1, 2, 4, 8}


def test_torch_computes_with_the_threads_that_were_chosen(
    network: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    used: list[int] = []
    forward = torch.nn.Conv2d.forward

    def counting(self: Any, batch: Any) -> Any:
        used.append(torch.get_num_threads())
        return forward(self, batch)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            engine = KINDS["eager"](planned(network, threads=threads))
            used.clear()
            engine.launch(images(1), 1)()
            assert set(used) == {threads}
    finally:
        torch.set_num_threads(before)


def test_what_is_told_has_all_that_was_chosen() -> None:
    costs = Costs(engine=0.0172, decode=0.0015, request=0.00022)
    found = Tuning(Way(2), Way(1, 2), 4, costs, 0.0086)
    assert found.describe() == {
        "threads": 2,
        "streams": 2,
        "split_from": 4,
        "cpu_ms": {"engine": 17.2, "decode": 1.5, "request": 0.22},
    }
    assert "2 threads, batches of 4 or more in 2 streams" in str(found)
    assert replace(found, split=None, costs=None).describe() == {"threads": 2}
