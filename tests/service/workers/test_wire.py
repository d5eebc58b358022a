from __future__ import annotations

import os

import numpy as np
import pytest

from service.inference.ranking import Row
from service.inference.tasks import CLASSIFY, Embed, Explain, ImageInput, JpegFile, Task
from service.workers import wire
from service.workers.shared_memory import (
    FILE,
    FRACTIONAL,
    WHOLE,
    Content,
    MemoryShape,
    SharedMemory,
)
from service.workers.wire import Frames, JobResult, Kind, Submit


def regions(shape: MemoryShape) -> tuple[SharedMemory, SharedMemory]:
    """The same memory, as two processes have it."""
    fd = SharedMemory.allocate(shape)
    here, there = SharedMemory(fd, shape), SharedMemory(fd, shape)
    os.close(fd)
    return here, there


def test_frames_are_whole_however_the_stream_is_cut() -> None:
    results = [JobResult(2**40, 1.5, 2.5, 32, 1.0), JobResult(1, 0.0, 0.0, 0, 3.0)]
    submits = [Submit(7, 3, 12.25, 13.5, -1, 2, FILE, 602_112, 65_535, 1)]
    stream = (
        wire.frame(Kind.RESULT, b"".join(wire.RESULT.pack(*each) for each in results))
        + wire.message(Kind.STATE, {"models": ["é"]})
        + wire.frame(Kind.SUBMIT, wire.SUBMIT.pack(*submits[0]))
    )
    for step in (1, 2, 7, len(stream)):
        frames = Frames()
        found = [
            received
            for start in range(0, len(stream), step)
            for received in frames.feed(stream[start : start + step])
        ]
        assert [kind for kind, _ in found] == [Kind.RESULT, Kind.STATE, Kind.SUBMIT]
        assert list(wire.results(found[0][1])) == results
        assert wire.content(found[1][1]) == {"models": ["é"]}
        assert list(wire.submits(found[2][1])) == submits


def test_both_sides_of_a_region_see_the_same_slots_and_no_slot_overlaps_another() -> None:
    here, there = regions(MemoryShape(3, (5, 4, 1), 7, channels=4, cells=9))
    for pixels in (here.whole, here.fractional):
        assert pixels.shape == (3, 5, 4, 1)
        for value, slot in enumerate([*pixels, *here.rows], start=1):
            slot[...] = value
        for value, slot in enumerate([*there.rows], start=4):
            assert np.all(slot == value)
        for slot in range(3):
            form = WHOLE if pixels is here.whole else FRACTIONAL
            assert np.all(there.read_image(slot, Content(form)) == slot + 1)


def test_an_image_is_read_as_it_was_written() -> None:
    here, there = regions(MemoryShape(2, (5, 3, 4), 7, channels=4, cells=9))
    whole = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    file = JpegFile(np.arange(240, dtype=np.uint8), 500, 375)
    longest = JpegFile(np.full(5 * 3 * 4 * 4, 7, np.uint8), 1, 65_535)
    images: list[ImageInput] = [whole, (whole / 3).astype(np.float32), file, longest, whole]
    for image in images:  # Each in the place of the one before.
        for slot in range(2):
            found = there.read_image(slot, here.write_image(slot, image))
            if isinstance(image, JpegFile):
                assert isinstance(found, JpegFile)
                assert (found.width, found.height) == (image.width, image.height)
                np.testing.assert_array_equal(found.data, image.data)
            else:
                assert isinstance(found, np.ndarray)
                assert found.dtype == image.dtype
                np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("task", "length"), [(CLASSIFY, 0), (Embed(), 4), (Explain(), 10), (Explain(2), 10)]
)
def test_a_row_is_read_as_it_was_written(task: Task, length: int) -> None:
    here, there = regions(MemoryShape(2, (1, 1, 3), 3, channels=4, cells=9))
    detail = np.arange(length, dtype=np.float32) if length else None
    classes = np.array([2, 0, 1], np.int32)
    probabilities = np.array([0.5, 0.3, 0.2], np.float32)
    here.write_row(1, Row(classes, probabilities, detail))
    found = there.read_row(1, task)
    here.rows[...] = 0  # The next job's.
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_array_equal(found.probabilities, probabilities)
    if detail is None:
        assert found.detail is None
    else:
        np.testing.assert_array_equal(found.detail, detail)


def test_a_region_that_is_too_small_is_refused() -> None:
    fd = SharedMemory.allocate(MemoryShape(1, (4, 4, 3), 10, 3, 4))
    with pytest.raises(ValueError, match="needs"):
        SharedMemory(fd, MemoryShape(2, (4, 4, 3), 10, 3, 4))
    os.close(fd)


@pytest.mark.parametrize("task", [CLASSIFY, Embed(), Explain(), Explain(0), Explain(999)])
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    assert wire.task_of(wire.number_of(task)) == task
