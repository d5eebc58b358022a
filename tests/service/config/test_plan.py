"""Costs are measured once, in a process of its own, and what the user set stays."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from service import runtime
from service.config import plan as planning
from service.config.capacity import Costs
from service.config.plan import UNMEASURED, Plan
from service.config.settings import Settings

SPEC = "builtin:resnet20-cifar10"
# So that several front ends are worth their cost.
FAST = Costs(engine=100e-6, decode=50e-6, request=250e-6)
SLOW = Costs(engine=0.015, decode=0.002, request=250e-6)


def settings(cache: Path, spec: str = SPEC, **given: object) -> Settings:
    return Settings.model_validate({"models": [{"spec": spec}], "cache_dir": cache, **given})


@pytest.fixture
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cpu_time", lambda *_: 16.0)


@pytest.mark.usefixtures("sixteen_cpus")
def test_the_plan_fills_in_what_the_user_left_open(tmp_path: Path) -> None:
    found = Plan(250e-6, [FAST, SLOW]).applied(settings(tmp_path))
    assert found.workers > 2
    assert found.decode_threads > 1
    alone = Plan(250e-6, [SLOW]).applied(settings(tmp_path))
    assert alone.workers == 1
    assert alone.decode_threads > 1


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize("given", [{"workers": 3}, {"decode_threads": 5}])
def test_what_the_user_set_stays(tmp_path: Path, given: dict[str, int]) -> None:
    found = Plan(250e-6, [FAST]).applied(settings(tmp_path, SPEC, **given))
    assert {name: getattr(found, name) for name in given} == given
    other = Plan(250e-6, [FAST]).applied(settings(tmp_path))
    assert (found.workers, found.decode_threads) != (other.workers, other.decode_threads)


def test_without_costs_the_settings_stay(tmp_path: Path) -> None:
    """As on a GPU, or where nothing could be measured."""
    given = settings(tmp_path)
    assert UNMEASURED.applied(given) == given


def test_threads_that_a_user_sets_need_no_measuring(tmp_path: Path) -> None:
    assert planning.plan(settings(tmp_path / "none", engine_threads=1)) is UNMEASURED
    assert not (tmp_path / "none").exists()


def test_a_plan_is_measured_once_and_leaves_all_that_a_start_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = planning.plan(settings(tmp_path))
    (costs,) = made.models
    assert 0 < made.request == costs.request
    assert costs.engine > 0
    assert costs.decode > 0
    kinds = {file.name.partition("-")[0] for file in tmp_path.iterdir()}
    assert {"plan", "tuning", "batches", "reference"} <= kinds
    assert "measuring" in caplog.text
    caplog.clear()
    monkeypatch.setattr(planning, "_measured", lambda _: pytest.fail("measured again"))
    assert planning.plan(settings(tmp_path)) == made
    assert not caplog.text


def kept_by(given: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plans that are measured, each another one, whenever none is kept for `given`."""
    plans: list[Plan] = []

    def measured(_: Settings) -> Plan:
        plans.append(Plan(1e-4 * (len(plans) + 1), [SLOW]))
        return plans[-1]

    monkeypatch.setattr(planning, "_measured", measured)
    assert planning.plan(given) == plans[-1]
    assert planning.plan(given) == plans[-1]
    assert len(plans) == 1
    return plans


def test_another_machine_or_another_model_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x08\x08")
    plans = kept_by(settings(tmp_path, str(model)), monkeypatch)
    model.write_bytes(b"\x08\x08" * 2)
    planning.plan(settings(tmp_path, str(model)))
    assert len(plans) == 2
    planning.plan(settings(tmp_path))
    assert len(plans) == 3
    monkeypatch.setattr(runtime, "cpu_time", lambda *_: 1.5)
    planning.plan(settings(tmp_path))
    assert len(plans) == 4
    monkeypatch.setenv("RESNET_SERVE_CPU_FLAGS", "avx2")
    planning.plan(settings(tmp_path))
    assert len(plans) == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"request": 1, "models": [{"engine": 1}]}'])
def test_a_damaged_plan_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    plans = kept_by(settings(tmp_path), monkeypatch)
    (file,) = tmp_path.glob("plan-*.json")
    file.write_text(text)
    assert planning.plan(settings(tmp_path)) == plans[-1]
    assert len(plans) == 2
    assert "damaged" in caplog.text
    assert json.loads(file.read_text())["request"] == plans[-1].request


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_measured", lambda _: Plan(1e-4, [SLOW]))
    nowhere = settings(Path("/proc/none"))
    assert planning.plan(nowhere) == Plan(1e-4, [SLOW])
    assert planning.plan(nowhere) == Plan(1e-4, [SLOW])


def test_a_model_that_cannot_be_served_is_left_to_the_start_to_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert planning.plan(settings(tmp_path, str(tmp_path / "none.safetensors"))) is UNMEASURED
    assert not caplog.text, "nothing that is not there is measured"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\x08\x08")  # As far as `specs.check` looks, it is one.
    assert planning.plan(settings(tmp_path, str(damaged))) is UNMEASURED
    assert not list(tmp_path.glob("plan-*"))
