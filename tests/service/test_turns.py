from __future__ import annotations

import threading
from collections import Counter

from service.turns import Turns


def contend(shares: dict[str, float], seconds: dict[str, float], turns_in_all: int) -> Counter[str]:
    """How many turns each had while all of them always wanted one; time is only claimed."""
    turns, had, order = Turns(), Counter[str](), list[str]()
    turns.acquire("starter")
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            turns.acquire(name)
            order.append(name)
            if len(order) >= turns_in_all:
                stop.set()
            # Who has just had a turn must be able to come back before the next is given.
            turns._changed.acquire()
            turns._changed.release()
            turns.release(name, seconds[name], shares[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in shares]
    for thread in threads:
        thread.start()
    turns.release("starter", 0.0)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    had.update(order)
    return had


def test_equal_shares_get_equal_time_whatever_their_batches_cost() -> None:
    seconds = {"small": 0.001, "large": 0.01}

    def ratio() -> float:
        had = contend({"small": 1, "large": 1}, seconds, 1100)
        return (had["small"] * 0.001) / (had["large"] * 0.01)

    # Alone in the queue for a moment, either may take a turn out of order; for longer, where the
    # machine lets one of the threads wait.
    assert any(0.5 < ratio() < 2 for _ in range(3))


def test_a_larger_share_gets_more() -> None:
    seconds = {"a": 0.01, "b": 0.01}
    had = contend({"a": 3, "b": 1}, seconds, 400)
    assert had["a"] > 1.3 * had["b"]


def test_who_was_idle_saves_up_no_turns() -> None:
    turns = Turns()
    for _ in range(100):
        turns.acquire("busy")
        turns.release("busy", 1.0)
    turns.acquire("late")
    turns.release("late", 1.0)
    # Level with the other's latest turn, not a hundred seconds ahead of it.
    assert turns._used["late"] >= 99
    turns.acquire("busy")
    assert not turns.contended
    turns.release("busy", 1.0)
