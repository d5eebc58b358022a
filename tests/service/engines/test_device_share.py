from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from service.engines.device_share import DeviceShare


def until_waiting(device: DeviceShare, count: int) -> None:
    """Until so many wait for their turn."""
    until = time.monotonic() + 20
    while len(device._waiting) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def order(device: DeviceShare, *names: str) -> list[str]:
    """In which order they have one turn each, having come in the given one; time is not used."""
    had = list[str]()
    device.acquire("starter")

    def work(name: str) -> None:
        device.acquire(name)
        had.append(name)
        device.release(name, 0.0)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for count, thread in enumerate(threads, start=1):
        thread.start()
        until_waiting(device, count)
    device.release("starter", 0.0)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return had


def use(device: DeviceShare, name: str, seconds: float) -> None:
    device.acquire(name)
    device.release(name, seconds)


def contend(shares: dict[str, float], seconds: dict[str, float], turns_in_all: int) -> Counter[str]:
    """How many turns each had while all of them always wanted one; time is only claimed."""
    device, order = DeviceShare(), list[str]()
    device.acquire("starter")

    def work(name: str) -> None:
        device.acquire(name)
        while len(order) < turns_in_all:
            order.append(name)
            # Back before the next turn is given, or it would be of the others' whatever they had.
            with device._changed:
                device.release(name, seconds[name], shares[name])
                device.acquire(name)
        device.release(name, 0.0)

    threads = [threading.Thread(target=work, args=(name,)) for name in shares]
    for thread in threads:
        thread.start()
    until_waiting(device, len(shares))
    device.release("starter", 0.0)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return Counter(order)


def test_equal_shares_get_equal_time_whatever_their_batches_cost() -> None:
    had = contend({"small": 1, "large": 1}, {"small": 0.001, "large": 0.01}, 1100)
    assert had["small"] / had["large"] == pytest.approx(10, rel=0.03)


def test_a_larger_share_gets_more() -> None:
    had = contend({"a": 3, "b": 1}, {"a": 0.01, "b": 0.01}, 400)
    assert had["a"] / had["b"] == pytest.approx(3, rel=0.03)


def test_who_was_idle_saves_up_no_turns() -> None:
    device = DeviceShare()
    for _ in range(100):
        device.acquire("busy")
        device.release("busy", 1.0)
    device.acquire("late")
    device.release("late", 1.0)
    # Level with the other's latest turn, not a hundred seconds ahead of it.
    assert device._used["late"] >= 99
    device.acquire("busy")
    assert not device.contended
    device.release("busy", 1.0)


def test_who_is_new_comes_before_who_has_used_the_device() -> None:
    device = DeviceShare()
    use(device, "old", 0.25)
    assert order(device, "old", "new") == ["new", "old"]


def test_who_was_forgotten_is_new_when_it_comes_again() -> None:
    device = DeviceShare()
    for name, seconds in (("replaced", 100.0), ("busy", 1.0)):
        use(device, name, seconds)
    device.forget("replaced")
    device.forget("never there")
    assert order(device, "busy", "replaced") == ["replaced", "busy"]
