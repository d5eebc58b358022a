"""Pickles are data: arrays come out whole, and nothing that a file names is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.pickled import plain
from tests.support import python2

ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:0]])
def test_what_python_2_wrote_is_read_as_pickle_reads_it(array: Any) -> None:
    data = python2.pickled({"data": array, "labels": [3, -1, 70000], "name": "batch"})
    ours, pickles = plain(data), pickle.loads(data, encoding="bytes")
    assert ours.keys() == pickles.keys() == {b"data", b"labels", b"name"}
    assert ours[b"data"].dtype == np.uint8
    assert np.array_equal(ours[b"data"], pickles[b"data"])
    assert np.array_equal(ours[b"data"], array)
    assert ours[b"labels"] == [3, -1, 70000]
    assert ours[b"name"] == b"batch"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_todays_numpy_writes_is_read_too(protocol: int) -> None:
    read = plain(pickle.dumps({"data": ARRAY, "x": (1, 2.5, None, True)}, protocol))
    assert np.array_equal(read["data"], ARRAY)
    assert read["x"] == (1, 2.5, None, True)


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"), [(os.mkdir, "posix.mkdir"), (eval, "eval"), (getattr, "getattr")]
)
def test_no_code_is_run_and_its_name_is_told(
    tmp_path: Path, protocol: int, function: Any, name: str
) -> None:
    made = tmp_path / "made"
    arguments = {os.mkdir: (str(made),), eval: (f"open({str(made)!r}, 'w')",)}
    attack = Attack(function, *arguments.get(function, (1, "real")))
    with pytest.raises(ValueError, match=rf"it names \S*{name}, and no code is run"):
        plain(pickle.dumps({"data": attack}, protocol))
    assert not made.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02ccopy_reg\n_reconstructor\n.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    ],
)
def test_even_of_numpy_only_what_arrays_need_is_known(data: bytes) -> None:
    with pytest.raises(ValueError, match="no code is run"):
        plain(data)


def test_a_damaged_pickle_is_told_in_one_line() -> None:
    whole = python2.pickled({"data": ARRAY, "labels": [1, 2, 3]})
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match=r"\Anot a whole pickle \([^\n]+\)\Z"):
            plain(whole[:cut])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"U\x02u1", b"U\x02i8"),
        (b"U\x02u1", b"U\x01O"),
        (b"J\x04\x00\x00\x00", b"J\x05\x00\x00\x00"),
    ],
)
def test_an_array_of_anything_else_or_of_another_length_is_refused(old: bytes, new: bytes) -> None:
    data = python2.pickled({"data": ARRAY})
    assert data.count(old) == 1
    with pytest.raises(ValueError, match="an array"):
        plain(data.replace(old, new))
