from __future__ import annotations

import os

import numpy as np
import pytest

from service import exchange
from service.exchange import Answer, Frames, Kind, Region, Shape, Submit


def test_frames_are_whole_however_the_stream_is_cut() -> None:
    answers = [Answer(2**40, 1.5, 2.5, 32, 1.0), Answer(1, 0.0, 0.0, 0, 3.0)]
    submits = [Submit(7, 3, 1, 12.25)]
    stream = (
        exchange.frame(Kind.ANSWER, b"".join(exchange.ANSWER.pack(*each) for each in answers))
        + exchange.message(Kind.STATE, {"models": ["é"]})
        + exchange.frame(Kind.SUBMIT, exchange.SUBMIT.pack(*submits[0]))
    )
    for step in (1, 2, 7, len(stream)):
        frames = Frames()
        found = [
            received
            for start in range(0, len(stream), step)
            for received in frames.feed(stream[start : start + step])
        ]
        assert [kind for kind, _ in found] == [Kind.ANSWER, Kind.STATE, Kind.SUBMIT]
        assert list(exchange.answers(found[0][1])) == answers
        assert exchange.content(found[1][1]) == {"models": ["é"]}
        assert list(exchange.submits(found[2][1])) == submits


def test_both_sides_of_a_region_see_the_same_slots_and_no_slot_overlaps_another() -> None:
    shapes = [Shape(3, 5, 7), Shape(2, 4, 1)]
    fd = Region.allocate(shapes)
    here, there = Region(fd, shapes), Region(fd, shapes)
    os.close(fd)
    assert [pixels.shape for pixels in here.pixels] == [(3, 5, 5, 3), (2, 4, 4, 3)]
    assert [rows.shape for rows in here.rows] == [(3, 2, 7), (2, 2, 1)]
    slots = [
        slot
        for pixels, rows in zip(here.pixels, here.rows, strict=True)
        for slot in [*pixels, *rows]
    ]
    for value, slot in enumerate(slots, start=1):
        slot[...] = value
    seen = [
        slot
        for pixels, rows in zip(there.pixels, there.rows, strict=True)
        for slot in [*pixels, *rows]
    ]
    for value, slot in enumerate(seen, start=1):
        assert np.all(slot == value)


def test_a_region_that_is_too_small_is_refused() -> None:
    fd = Region.allocate([Shape(1, 4, 10)])
    with pytest.raises(ValueError, match="needs"):
        Region(fd, [Shape(2, 4, 10)])
    os.close(fd)
