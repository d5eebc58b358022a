from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from service.engines import device_share
from service.engines.device_share import DeviceShare, DeviceShares, Permit, Tenant
from tests.support.waiting import until


class Hardware:
    """A device that computes one batch after the other; time passes when a result is awaited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy_until = 0.0
        self.in_flight: list[Tenant] = []
        self.seen: set[frozenset[Tenant]] = set()  # Who was in flight together.
        self.most_in_flight = 0
        self._lock = threading.Lock()
        monkeypatch.setattr(device_share, "perf_counter", lambda: self.now)

    def launch(self, tenant: Tenant, seconds: float) -> float:
        with self._lock:
            self.in_flight.append(tenant)
            self.seen.add(frozenset(self.in_flight))
            self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
            self.busy_until = max(self.now, self.busy_until) + seconds
            return self.busy_until

    def collect(self, tenant: Tenant, ends: float) -> None:
        time.sleep(1e-4)  # Others have the interpreter meanwhile.
        with self._lock:
            self.in_flight.remove(tenant)
            self.now = max(self.now, ends)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    return Hardware(monkeypatch)


def keep_busy(
    device: DeviceShare, hardware: Hardware, tenant: Tenant, cost: float, ended: Callable[[], bool]
) -> None:
    """As an engine's thread does while there is always work."""
    in_flight: deque[tuple[Permit, float]] = deque()
    while in_flight or not ended():
        begin = device.try_begin if in_flight else device.begin
        permit = None if ended() else begin(tenant)
        if permit is not None:
            in_flight.append((permit, hardware.launch(tenant, cost)))
        elif in_flight:
            permit, ends = in_flight.popleft()
            hardware.collect(tenant, ends)
            device.end(permit)
    device.leave(tenant)


@contextmanager
def busy(
    device: DeviceShare, hardware: Hardware, costs: dict[Tenant, float], ended: Callable[[], bool]
) -> Iterator[None]:
    """Threads that keep the device busy, all from the same moment."""
    threads = [
        threading.Thread(target=keep_busy, args=(device, hardware, tenant, cost, ended))
        for tenant, cost in costs.items()
    ]
    with device.alone(Tenant()):
        for thread in threads:
            thread.start()
        until(lambda: len(device._waiting) == len(threads))
    yield
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("shares", "costs"),
    [((1, 1), (1, 10)), ((3, 1), (1, 1)), ((1, 5), (4, 1)), ((2, 1, 1), (1, 3, 2))],
)
def test_the_devices_time_is_shared_whatever_batches_cost(
    hardware: Hardware, depth: int, shares: tuple[float, ...], costs: tuple[float, ...]
) -> None:
    device = DeviceShare(depth)
    tenants = [Tenant(share) for share in shares]
    used: list[list[float]] = []

    def ended() -> bool:
        if hardware.now >= 2000 and not used:
            used.append([tenant.used for tenant in tenants])
        return bool(used)

    with busy(device, hardware, dict(zip(tenants, costs, strict=True)), ended):
        pass
    fair = 2000 / sum(shares)
    assert used[0] == pytest.approx([fair] * len(shares), rel=0.1)


def test_batches_of_two_models_are_in_flight_together_and_never_three(hardware: Hardware) -> None:
    device, first, second = DeviceShare(2), Tenant(), Tenant()
    with busy(device, hardware, {first: 1, second: 1}, lambda: hardware.now >= 500):
        pass
    assert hardware.most_in_flight == 2
    assert frozenset({first, second}) in hardware.seen
    assert hardware.now == hardware.busy_until  # It never idled.


def test_one_model_alone_has_two_batches_in_flight() -> None:
    device, tenant = DeviceShare(2), Tenant()
    assert device.begin(tenant)
    assert device.try_begin(tenant)
    assert device.try_begin(tenant) is None


def test_nobody_takes_a_second_permit_before_who_waits(hardware: Hardware) -> None:
    device, first, second, third = DeviceShare(2), Tenant(), Tenant(), Tenant()
    mine, other = device.begin(first), device.begin(second)
    waiting = threading.Thread(target=device.begin, args=(third,))
    waiting.start()
    until(lambda: len(device._waiting) == 1)
    assert device.try_begin(first) is None
    device.end(other)
    waiting.join(20)
    assert device.try_begin(first) is None
    device.end(mine)
    assert device.try_begin(first)


def test_overlapping_batches_are_charged_once(hardware: Hardware) -> None:
    device, small, large = DeviceShare(2), Tenant(), Tenant(share=2)
    earlier = device.begin(small)
    hardware.now = 1
    later = device.begin(large)
    hardware.now = 3
    device.end(earlier)
    hardware.now = 7
    device.end(later)
    device.end(later)
    assert (small.used, large.used) == (3, 2)


def order(device: DeviceShare, **tenants: Tenant) -> list[str]:
    """In which order they have one batch each, having come in the given one."""
    had = list[str]()

    def work(name: str, tenant: Tenant) -> None:
        permit = device.begin(tenant)
        had.append(name)
        device.end(permit)
        device.leave(tenant)

    threads = [threading.Thread(target=work, args=item) for item in tenants.items()]
    with device.alone(Tenant()):
        for count, thread in enumerate(threads, start=1):
            thread.start()
            until(lambda count=count: len(device._waiting) == count)  # type: ignore[misc]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return had


def test_who_has_used_the_least_is_next_and_among_equals_the_first_that_came(
    hardware: Hardware,
) -> None:
    a, b, c, d = Tenant(used=3), Tenant(used=1), Tenant(used=2), Tenant(used=1)
    assert order(DeviceShare(), a=a, b=b, c=c, d=d) == ["b", "d", "c", "a"]


def test_who_was_idle_saves_up_no_time(hardware: Hardware) -> None:
    device, late, early = DeviceShare(), Tenant(), Tenant()
    for _ in range(100):
        permit = device.begin(early)
        hardware.now += 1
        device.end(permit)
    device.leave(early)
    device.end(device.begin(late))
    assert late.used == 99  # Level with the other's latest batch.


def test_who_is_ahead_waits_for_who_has_work_but_not_for_who_is_idle(hardware: Hardware) -> None:
    device, ahead, behind = DeviceShare(2), Tenant(), Tenant()
    device.end(device.begin(behind))  # It has work, and answers a batch.
    for _ in range(3):
        permit = device.begin(ahead)
        hardware.now += 1
        device.end(permit)
    permits: list[Permit] = []
    waiting = threading.Thread(target=lambda: permits.append(device.begin(ahead)))
    waiting.start()
    until(lambda: len(device._waiting) == 1)
    assert not permits
    device.leave(behind)
    waiting.join(20)
    assert permits


def test_who_is_alone_disturbs_nobody_and_is_not_starved(hardware: Hardware) -> None:
    device, first, second, measured = DeviceShare(2), Tenant(), Tenant(), Tenant()
    ended = threading.Event()
    with busy(device, hardware, {first: 1, second: 1}, ended.is_set):
        for _ in range(50):
            with device.alone(measured):
                assert not hardware.in_flight
                hardware.collect(measured, hardware.launch(measured, 0.5))
                assert not hardware.in_flight
        ended.set()
    assert measured.used >= 25
    assert frozenset({first, second}) in hardware.seen


def test_an_exception_ends_being_alone() -> None:
    device = DeviceShare()
    with pytest.raises(KeyError), device.alone(Tenant()):
        raise KeyError
    assert device.try_begin(Tenant())


def test_what_a_tenant_will_not_end_itself_is_freed(hardware: Hardware) -> None:
    device, hung, other = DeviceShare(2), Tenant(), Tenant()
    permits = [device.begin(hung), device.try_begin(hung)]
    hardware.now = 30
    device.free(hung)
    assert (hung.in_flight, hung.used) == (0, 30)
    assert device.begin(other)
    assert device.try_begin(other)
    for permit in permits:  # The call returns after all.
        assert permit is not None
        device.end(permit)
    assert device.try_begin(hung) is None


def test_only_a_gpu_has_two_batches_in_flight() -> None:
    devices = DeviceShares()
    assert devices["cpu"] is devices["cpu"]
    assert devices["cuda:0"] is not devices["cuda:1"]
    assert devices["cpu"].begin(tenant := Tenant())
    assert devices["cpu"].try_begin(tenant) is None
    assert devices["cuda:1"].begin(tenant)
    assert devices["cuda:1"].try_begin(tenant)
