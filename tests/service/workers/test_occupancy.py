from __future__ import annotations

import os

from service.config.choices import MOST_DEVICES
from service.config.settings import MOST_MODELS
from service.http.acceptor import LEAD
from service.workers.occupancy import ModelOccupancy, Occupancy

# More than any front end has here.
MANY = 2**62


def test_everyone_sees_what_all_hold_and_the_dead_hold_nothing() -> None:
    fd = Occupancy.allocate(3)
    first, second = Occupancy(fd, 3), Occupancy(fd, 3)
    os.close(fd)
    first.hold(0, 1, 5, 100)
    second.hold(2, 1, 7, 2**40)
    second.hold(2, 0, 1, 1)
    assert first.total(1) == second.total(1) == (12, 2**40 + 100)
    first.clear(2)
    assert second.total(1) == (5, 100)
    assert second.total(0) == (0, 0)


def test_a_lead_is_over_the_one_with_the_fewest_connections_who_still_accepts() -> None:
    fd = Occupancy.allocate(3)
    occupancy = Occupancy(fd, 3)
    os.close(fd)
    assert occupancy.lead(0, 5, MANY) == 0
    assert occupancy.lead(1, 2, MANY) == 0
    assert occupancy.lead(0, 5, MANY) == 3
    occupancy.clear(1)
    assert occupancy.lead(0, 5, MANY) == 0
    assert occupancy.total(0) == (0, 0)


def test_a_full_one_leaves_a_connection_to_another_that_has_room_for_one_more() -> None:
    fd = Occupancy.allocate(2)
    occupancy = Occupancy(fd, 2)
    os.close(fd)
    assert occupancy.lead(1, 1, 2) == 0
    assert occupancy.lead(0, 2, 3) <= LEAD
    assert occupancy.lead(0, 2, 2) > LEAD
    assert occupancy.lead(1, 2, 2) == 0


def test_one_that_is_gone_is_forgotten_and_no_other() -> None:
    fd = Occupancy.allocate(3)
    occupancy = Occupancy(fd, 3)
    os.close(fd)
    for front_end, connections in enumerate((5, 1, 2)):
        occupancy.lead(front_end, connections, MANY)
        occupancy.hold(front_end, 7, 1, 10)
    occupancy.clear(1)
    assert occupancy.lead(0, 5, MANY) == 3
    assert occupancy.total(7) == (2, 20)
    occupancy.leave(2)
    assert occupancy.lead(0, 5, MANY) == 0
    assert occupancy.total(7) == (2, 20), "what it has admitted is still to be computed"


def test_all_numbers_are_whole_ones_of_64_bits() -> None:
    fd = Occupancy.allocate(3)
    assert os.fstat(fd).st_size == 8 * 3 * (MOST_MODELS * (2 + MOST_DEVICES) + 1)
    occupancy = Occupancy(fd, 3)
    os.close(fd)
    many = 2**53 + 1  # which is not among the floats of 64 bits
    occupancy.hold(2, MOST_MODELS - 1, 1, many)
    assert occupancy.total(MOST_MODELS - 1) == (1, many)
    occupancy.submit(2, MOST_MODELS - 1, MOST_DEVICES - 1, many)
    assert occupancy.in_flight(MOST_MODELS - 1)[-1] == many
    assert occupancy.total(MOST_MODELS - 1) == (1, many)
    assert occupancy.lead(2, many, MANY) == 0


def test_everyone_sees_what_each_device_has_to_compute() -> None:
    fd = Occupancy.allocate(3)
    first, second = Occupancy(fd, 3), Occupancy(fd, 3)
    os.close(fd)
    first.submit(0, 5, 0, 3)
    first.submit(0, 5, 1, 4)
    second.submit(2, 5, 1, 5)
    second.submit(2, 4, 1, 100)  # of another model
    assert first.in_flight(5)[:3] == second.in_flight(5)[:3] == [3, 9, 0]
    assert len(first.in_flight(5)) == MOST_DEVICES
    first.clear(2)
    assert second.in_flight(5)[:3] == [3, 4, 0]
    assert second.in_flight(4) == [0] * MOST_DEVICES
    assert second.total(5) == (0, 0), "what is held is counted apart"


def test_a_model_of_a_front_end_has_its_own_entries() -> None:
    fd = Occupancy.allocate(2)
    occupancy = Occupancy(fd, 2)
    os.close(fd)
    one, other = ModelOccupancy(occupancy, 0, 3), ModelOccupancy(occupancy, 1, 3)
    elsewhere = ModelOccupancy(occupancy, 0, 4)
    one.hold(2, 20)
    other.hold(3, 30)
    other.submit(1, 2)
    assert one.total() == other.total() == (5, 50)
    assert one.in_flight()[:2] == [0, 2]
    assert elsewhere.total() == (0, 0)
    assert not any(elsewhere.in_flight())
