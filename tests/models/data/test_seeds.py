"""Seeds depend on every part and on their order."""

from __future__ import annotations

from itertools import product

from models.data.seeds import mix


def test_every_part_counts_and_so_does_its_place() -> None:
    seeds = {mix(*parts) for parts in product(range(-3, 8), repeat=3)}
    assert len(seeds) == 11**3
    assert mix("flip", 1) != mix("order", 1)
    assert mix(1, 23) != mix(12, 3)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_neighbours_share_no_bits_but_by_chance() -> None:
    ones = sum((mix(0, epoch) ^ mix(0, epoch + 1)).bit_count() for epoch in range(500))
    assert 31 < ones / 500 < 33


def test_seeds_are_the_same_on_every_machine() -> None:
    assert mix("order", 0, 0) == 0xB05B81EBD1CBF7F2
