from __future__ import annotations

import json
import os

import numpy as np
import pytest

from service import exchange
from service.errors import BadParameter, NotReady, QueueFull, ServiceError, UnknownModel
from service.exchange import Answer, Frames, Kind, Region, Shape, Submit


def test_frames_are_whole_however_the_stream_is_cut() -> None:
    answers = [Answer(2**40, 1.5, 2.5, 32, 1.0), Answer(1, 0.0, 0.0, 0, 3.0)]
    submits = [Submit(7, 3, 12.25)]
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
    shape = Shape(3, 5, 7)
    fd = Region.allocate(shape)
    here, there = Region(fd, shape), Region(fd, shape)
    os.close(fd)
    assert (here.pixels.shape, here.rows.shape) == ((3, 5, 5, 3), (3, 2, 7))
    for value, slot in enumerate([*here.pixels, *here.rows], start=1):
        slot[...] = value
    for value, slot in enumerate([*there.pixels, *there.rows], start=1):
        assert np.all(slot == value)


def test_a_region_that_is_too_small_is_refused() -> None:
    fd = Region.allocate(Shape(1, 4, 10))
    with pytest.raises(ValueError, match="needs"):
        Region(fd, Shape(2, 4, 10))
    os.close(fd)


@pytest.mark.parametrize(
    "error", [QueueFull("full", 3.0), BadParameter("k"), UnknownModel("x"), NotReady("soon", 1.0)]
)
def test_a_refusal_arrives_as_it_was_raised(error: ServiceError) -> None:
    found = exchange.error_of(json.loads(json.dumps(exchange.refusal_of(error))))
    assert (type(found), str(found)) == (type(error), str(error))
    assert getattr(found, "retry_after", None) == getattr(error, "retry_after", None)
