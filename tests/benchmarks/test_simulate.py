"""Laws that hold of every queue, and rules that are the service's own."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.scale import simulate as command
from benchmarks.scale.simulation import Fleet, Host, Outcome, Scaling, arrivals, simulate
from benchmarks.scale.simulation.balancers import POLICIES
from service.engines.buckets import HANDOVER, Buckets

TABLE = {1: 0.004, 2: 0.005, 4: 0.007, 8: 0.012}
HOST = Host(TABLE, decode_slots=2, decode=0.001)


def poisson(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    return arrivals.times(arrivals.steady(rate), seconds, np.random.default_rng(seed))


def batch_of_one(seconds: float) -> Host:
    """A server in the textbook's sense: one at a time, always as fast."""
    return Host({1: seconds}, decode_slots=0, handover=0.0, max_queue=10**9, timeout=math.inf)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_arrival_is_answered_once(policy: str) -> None:
    """Under overload, with failures, scaling and second tries."""
    fleet = Fleet(
        replace(HOST, max_queue=24, timeout=0.03, loop=0.0002, refusal=0.0001, spread=0.2),
        hosts=3,
        policy=policy,
        balancers=2,
        retries=2,
        mtbf=1.0,
        detect=0.05,
        cold_start=0.3,
        scaling=Scaling(6.0, least=1, most=4, interval=0.2, hold=0.5),
    )
    due = poisson(3000, 2.0)
    found = simulate(fleet, due, 2.0, seed=1)
    answers = found.as_json()["answers"]
    assert set(answers) == {"200", "429", "503", "504"}
    assert sum(answers.values()) == len(due)
    assert found.tries > len(due)
    assert found.failures > 0
    assert (found.latency >= 0).all()
    assert found.deepest <= 24


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    def run(seed: int) -> Outcome:
        fleet = Fleet(replace(HOST, spread=0.1), hosts=4, mtbf=5.0, cold_start=0.5, retries=1)
        return simulate(fleet, poisson(1500, 2.0), 2.0, seed=seed)

    first, again, other = run(1), run(1), run(2)
    assert np.array_equal(first.latency, again.latency)
    assert first.as_json() == again.as_json()
    assert not np.array_equal(first.latency, other.latency)


def test_the_mean_wait_is_that_of_the_formula() -> None:
    """M/D/1 (Pollaczek and Khinchine): rho times the service time over 2 (1 - rho)."""
    service, load = 0.01, 0.7
    found = simulate(Fleet(batch_of_one(service)), poisson(load / service, 500.0), 500.0)
    wait = found.latency.mean() - service
    assert wait == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_utilisation_is_offered_work() -> None:
    found = simulate(Fleet(batch_of_one(0.01)), poisson(60, 200.0), 200.0)
    assert found.busy_seconds == pytest.approx(len(found.due) * 0.01)
    assert found.as_json()["utilisation"] == pytest.approx(0.6, rel=0.05)


def test_littles_law() -> None:
    """How many are inside on average is the rate times the mean stay, refusals included."""
    fleet = Fleet(replace(HOST, max_queue=16), hosts=3, retries=1)
    found = simulate(fleet, poisson(2500, 4.0), 4.0)
    assert Counter(found.status.tolist())[429] > 0
    assert found.inside_seconds == pytest.approx(found.stays)


def test_more_devices_and_more_hosts_never_answer_less() -> None:
    due = poisson(2500, 2.0)
    for fleets in (
        [Fleet(replace(HOST, devices=count, decode_slots=8, timeout=0.2)) for count in (1, 2, 4)],
        [Fleet(replace(HOST, timeout=0.2), hosts=count) for count in (1, 2, 4)],
    ):
        answered = [Counter(simulate(f, due, 2.0).status.tolist())[200] for f in fleets]
        assert answered == sorted(answered)
        assert answered[-1] > 1.5 * answered[0]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_overload_is_answered_at_capacity(in_flight: int) -> None:
    host = replace(HOST, decode_slots=0, in_flight=in_flight, timeout=0.2)
    found = simulate(Fleet(host), poisson(3 * host.capacity, 4.0), 4.0, warm_up=1.0).as_json()
    assert host.capacity == pytest.approx(8 / (0.012 + HANDOVER))
    assert found["images_per_second"] == pytest.approx(host.capacity, rel=0.02)
    assert found["utilisation"] > 0.95
    assert found["batch_size"] == pytest.approx(8, rel=0.02)
    # Refused as too late before the queue is full, as the service does.
    assert found["answers"]["429"] > 0
    assert found["latency_ms"]["p99.9"] <= 200


class Recorded(Buckets):
    """What the service's rule was asked, and what it said."""

    asked: list[tuple[int, int]]

    def __init__(self, seconds: Mapping[int, float]) -> None:
        super().__init__(seconds)
        Recorded.asked = []

    def take(self, waiting: int) -> int:
        count = super().take(waiting)
        Recorded.asked.append((waiting, count))
        return count


def test_batches_are_those_of_the_services_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.simulation.node.Buckets", Recorded)
    # Five are best as four and one here: eight take longer than both.
    uneven = {1: 0.003, 4: 0.005, 8: 0.02}
    found = simulate(Fleet(replace(HOST, batch_seconds=uneven)), poisson(600, 2.0), 2.0)
    rule = Buckets(uneven)
    assert all(count == rule.take(waiting) for waiting, count in Recorded.asked)
    assert (5, 4) in Recorded.asked
    assert sum(count for _, count in Recorded.asked) == found.computed == len(found.due)


def test_a_deadline_that_passes_is_504_at_that_moment() -> None:
    host = Host({1: 0.1}, decode_slots=1, decode=0.03, timeout=0.15, handover=0.0)
    found = simulate(Fleet(host), np.array([0.0, 0.001, 0.002]), 1.0)
    # The second is computing when its time is over; the third waits for too long.
    assert found.status.tolist() == [200, 504, 504]
    assert found.latency[0] == pytest.approx(0.13)
    assert found.latency[1:] == pytest.approx([0.15, 0.15])


def test_a_failed_host_loses_what_it_had_and_another_takes_it() -> None:
    """Nobody is refused for good who tries again."""
    fleet = Fleet(HOST, hosts=4, retries=3, mtbf=4.0, detect=0.1, cold_start=1.0)
    found = simulate(fleet, poisson(800, 6.0), 6.0, seed=3)
    assert found.failures >= 3
    assert found.tries > len(found.due)
    assert set(found.status.tolist()) == {200}
    alone = simulate(replace(fleet, retries=0), poisson(800, 6.0), 6.0, seed=3)
    assert 0 < Counter(alone.status.tolist())[503] < 0.2 * len(alone.due)


@pytest.mark.parametrize(("signal", "target"), [("unanswered", 8.0), ("rate", 0.7 * HOST.capacity)])
def test_scaling_follows_the_load_after_a_cold_start(
    signal: Literal["unanswered", "rate"], target: float
) -> None:
    low, high = 200.0, 4 * HOST.capacity
    rates = np.concatenate((np.full(2, low), np.full(6, high), np.full(8, low)))
    due = arrivals.times(rates, 16.0, np.random.default_rng(0))
    scaling = Scaling(target, least=1, most=8, interval=0.5, hold=2.0, signal=signal)
    fleet = Fleet(replace(HOST, timeout=0.3), scaling=scaling, cold_start=1.5)
    found = simulate(fleet, due, 16.0)
    grew = next(time for time, hosts in found.hosts if hosts > 1)
    assert 2.0 + 1.5 <= grew <= 2.0 + 1.5 + 2 * 0.5
    assert max(hosts for _, hosts in found.hosts) >= 4
    assert found.hosts[-1][1] < 4
    refused = found.due[found.status != 200]
    assert ((refused > 2.0) & (refused < grew)).mean() > 0.5


def test_two_choices_find_shorter_queues_than_chance() -> None:
    host = replace(HOST, timeout=5.0)
    due = poisson(0.85 * 20 * host.capacity, 0.6)
    tails = {
        policy: np.quantile(simulate(Fleet(host, 20, policy), due, 0.6).latency, 0.99)
        for policy in POLICIES
    }
    assert tails["power_of_two"] < 0.9 * tails["random"]
    assert tails["least_outstanding"] < 0.9 * tails["random"]


def test_the_least_loaded_host_is_found() -> None:
    balancer = POLICIES["least_outstanding"](Random(0))
    assert balancer.pick() is None
    for name in "abc":
        balancer.add(name)
    picked = [balancer.pick() for _ in range(6)]
    assert Counter(picked) == {"a": 2, "b": 2, "c": 2}
    balancer.returned("b")
    assert balancer.pick() == "b"
    balancer.remove("c")
    balancer.returned("c")
    assert {balancer.pick() for _ in range(2)} == {"a", "b"}


def test_grains_keep_capacity_and_load() -> None:
    host = replace(HOST, batch_seconds={8: 0.012, 16: 0.02, 32: 0.036})
    fine = simulate(Fleet(host, 4), poisson(0.7 * 4 * host.capacity, 2.0), 2.0).as_json()
    due = poisson(0.7 * 4 * host.capacity / 8, 2.0)
    coarse = simulate(Fleet(host, 4), due, 2.0, grain=8).as_json()
    assert host.in_grains(8).capacity * 8 == pytest.approx(host.capacity)
    assert coarse["images_per_second"] == pytest.approx(fine["images_per_second"], rel=0.05)
    with pytest.raises(ValueError, match="multiple of a grain of 64"):
        host.in_grains(64)


@pytest.mark.parametrize("kind", command.KINDS)
def test_arrivals_have_the_rate_that_was_asked_for(kind: str) -> None:
    due = command.due_times(kind, 500.0, 200.0, seed=0)
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] <= 200
    assert len(due) == pytest.approx(500 * 200, rel=0.02 if kind != "bursts" else 0.3)
    each = np.bincount((due / 2).astype(int), minlength=100)
    # A Poisson process' counts have the variance of their mean; the others vary more.
    if kind == "poisson":
        assert each.var() / each.mean() == pytest.approx(1, abs=0.35)
    else:
        assert each.var() / each.mean() > 10


def test_the_command_prints_and_gives_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command.main(["--seconds", "1", "--warm-up", "0.2", "--load", "0.5"])
    assert "images per second" in capsys.readouterr().out
    rates = tmp_path / "rates.txt"
    rates.write_text("1\n3\n")
    options = ["--arrivals", str(rates), "--seconds", "1", "--warm-up", "0", "--rate", "400"]
    command.main([*options, "--batch-ms", "1:5,4:8", "--usd-per-hour", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert sum(found["answers"].values()) == pytest.approx(400, rel=0.2)
    assert found["usd"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch-ms", "one"], "write it as"),
        (["--rate", "0"], "must be above 0"),
        (["--arrivals", "nowhere.txt"], "nowhere.txt"),
        (["--warm-up", "30"], "must be shorter"),
        (["--grain", "64", "--seconds", "3"], "multiple of a grain of 64"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert says in str(ended.value) + capsys.readouterr().err
