"""Reference pairs in every form that libraries leave them in, and one clear line for the rest."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from models.interchange import reference
from models.interchange.reference import PairError

INPUT = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
OUTPUT = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


def pb(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array).SerializeToString())


def as_json(path: Path, array: NDArray[Any]) -> None:
    path.write_text(json.dumps(array.tolist()))


WRITERS: dict[str, Callable[[Path, NDArray[Any]], object]] = {
    ".npy": np.save,
    ".npz": np.savez,
    ".pt": lambda path, array: torch.save(torch.from_numpy(array), path),
    ".safetensors": lambda path, array: safetensors.numpy.save_file({"x": array}, path),
    ".pb": pb,
    ".json": as_json,
}


def assert_ours(pairs: list[reference.Pair]) -> None:
    (pair,) = pairs
    assert isinstance(pair.input, np.ndarray)
    np.testing.assert_array_equal(pair.input, INPUT)
    np.testing.assert_array_equal(pair.output, OUTPUT)
    assert pair.images == 2


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_two_files_in_a_row_are_input_and_output(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]
    for path, array in zip(paths, (INPUT, OUTPUT), strict=True):
        WRITERS[suffix](path, array)
    assert_ours(reference.read(paths))
    assert_ours([reference.two(*paths)])


def test_a_csv_file_is_an_output(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", INPUT)
    np.savetxt(tmp_path / "y.csv", OUTPUT, delimiter=",", fmt="%.9g")
    assert_ours(reference.read([tmp_path / "x.npy", tmp_path / "y.csv"]))


@pytest.mark.parametrize("names", [("input", "output"), ("output", "input"), ("logits", "x")])
def test_a_file_with_both_is_a_pair_whatever_their_order(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    arrays: dict[str, Any] = {name: INPUT if name in ("input", "x") else OUTPUT for name in names}
    np.savez(tmp_path / "a.npz", **arrays)
    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "a.pt")
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    for suffix in ("npz", "pt", "safetensors"):
        path = tmp_path / f"a.{suffix}"
        assert_ours(reference.read([path]))
        assert_ours([reference.two(path, path)])


def test_the_only_two_arrays_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", theirs=OUTPUT, seen=INPUT)
    torch.save((torch.from_numpy(INPUT), torch.from_numpy(OUTPUT)), tmp_path / "a.pt")
    assert_ours(reference.read([tmp_path / "a.npz"]))
    assert_ours(reference.read([tmp_path / "a.pt"]))


def test_several_pairs_follow_one_another(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input=INPUT, output=OUTPUT)
    np.save(tmp_path / "x.npy", INPUT)
    np.save(tmp_path / "y.npy", OUTPUT)
    paths = [tmp_path / name for name in ("a.npz", "x.npy", "y.npy", "a.npz")]
    assert [pair.name for pair in reference.read(paths)] == ["a.npz", "x.npy", "a.npz"]


def zoo_folder(folder: Path, sets: int = 2) -> Path:
    for number in range(sets):
        pb(folder / f"test_data_set_{number}" / "input_0.pb", INPUT)
        pb(folder / f"test_data_set_{number}" / "output_0.pb", OUTPUT)
    return folder


def test_the_model_zoos_test_data_is_found_in_folders_and_archives(tmp_path: Path) -> None:
    folder = zoo_folder(tmp_path / "model", 11)
    names = [f"test_data_set_{number}" for number in range(11)]
    assert [pair.name for pair in reference.read([folder])] == names
    assert_ours(reference.read([folder / "test_data_set_0"]))
    modes: dict[str, Literal["w:gz", "w"]] = {"m.tar.gz": "w:gz", "m.tar": "w"}
    for name, mode in modes.items():
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(folder, "model")
        pairs = reference.read([tmp_path / name])
        assert [pair.name for pair in pairs] == [f"model/{each}" for each in names]
        assert_ours(pairs[:1])


def test_the_older_test_data_of_the_model_zoo_has_one_more_dimension(tmp_path: Path) -> None:
    np.savez(tmp_path / "test_data_0.npz", inputs=INPUT[None], outputs=OUTPUT[None])
    assert_ours(reference.read([tmp_path]))


def test_an_image_is_an_input(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    np.save(tmp_path / "y.npy", OUTPUT[0])
    (pair,) = reference.read([tmp_path / "a.png", tmp_path / "y.npy"])
    assert isinstance(pair.input, Image.Image)
    assert pair.output.shape == (1, 5)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (INPUT[0], (1, 3, 8, 8)),
        (INPUT.astype(np.float64), (2, 3, 8, 8)),
        (INPUT.astype(np.float16), (2, 3, 8, 8)),
    ],
)
def test_inputs_become_float32_batches(given: NDArray[Any], kept: tuple[int, ...]) -> None:
    found = reference._images("x", given)
    assert found.shape == kept
    assert found.dtype == np.float32


def test_whole_numbers_from_0_to_255_are_pixels() -> None:
    assert reference._images("x", np.full((1, 3, 4, 4), 255, np.int64)).dtype == np.uint8
    assert reference._images("x", np.full((1, 3, 4, 4), 256, np.int64)).dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "count", "kept"),
    [((5,), 1, (1, 5)), ((2, 5, 1, 1), 2, (2, 5)), ((2,), 2, (2, 1)), ((1, 2, 5), 2, (2, 5))],
)
def test_outputs_become_rows(shape: tuple[int, ...], count: int, kept: tuple[int, ...]) -> None:
    assert reference._rows("y", np.zeros(shape), count).shape == kept


def _unreadable(path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("x.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "not a whole npy file"),
    ("x.npy", lambda path: np.save(path, np.array([object()])), "not a whole npy file"),
    ("x.npz", lambda path: path.write_bytes(b"PK\x03\x04"), "not a whole npz file"),
    ("x.pt", _unreadable, "holds more than tensors; save them with"),
    ("x.pt", lambda path: torch.save({"a": 1}, path), "holds no tensors by name"),
    ("x.pb", lambda path: path.write_bytes(b"\xff" * 9), "not a whole pb file"),
    ("x.json", lambda path: path.write_text("[[1, [2]]]"), "not a whole json file"),
    ("x.csv", lambda path: path.write_text("a,b"), "not a whole csv file"),
    ("x.csv", lambda path: path.write_text(""), "not a whole csv file"),
    ("x.safetensors", lambda path: path.write_bytes(b"x"), "not a whole safetensors file"),
    ("x.png", lambda path: path.write_bytes(b"no"), "neither an image nor one of .npy, .npz"),
    ("x.npz", lambda path: np.savez(path, a=INPUT, b=INPUT, c=OUTPUT), "call them input and out"),
    ("x.npz", lambda path: np.savez(path, input=INPUT, output=OUTPUT[:1]), "shape [1, 5], not"),
    ("x.npz", lambda path: np.savez(path, input=INPUT[0, 0], output=OUTPUT), "not [N, C, H, W]"),
    ("x.npz", lambda path: np.savez(path, input=INPUT * np.nan, output=OUTPUT), "not finite (NaN"),
    ("x.npz", lambda path: np.savez(path, input=INPUT, output=OUTPUT * np.inf), "not finite (NaN"),
    ("x.npz", lambda path: np.savez(path, input=INPUT.astype(str), output=OUTPUT), "not numbers"),
    ("x.npz", lambda path: np.savez(path, input=INPUT[:0], output=OUTPUT), "not [N, C, H, W]"),
    ("x.npz", lambda path: np.savez(path, input=INPUT, output=OUTPUT[:0]), "shape [0, 5], not"),
    (
        "x.npy",
        lambda path: np.save(path, OUTPUT),
        "shape [2, 5], not [N, C, H, W] or [N, H, W, C]; INPUT comes before OUTPUT",
    ),
    ("x.tar.gz", lambda path: path.write_bytes(b"\x1f\x8b\x08"), "not a whole tar archive"),
]


@pytest.mark.parametrize(("name", "write", "words"), BAD)
def test_a_bad_file_is_named_in_one_line(
    tmp_path: Path, name: str, write: Callable[[Path], object], words: str
) -> None:
    np.save(tmp_path / "y.npy", OUTPUT)
    write(tmp_path / name)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        reference.read([tmp_path / name, tmp_path / "y.npy"])
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", INPUT)
    with pytest.raises(PairError, match=r"x\.npy: its output is missing; a pair is"):
        reference.read([tmp_path / "x.npy"])
    with pytest.raises(PairError, match=r"none\.npy: No such file"):
        reference.read([tmp_path / "none.npy"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairError, match="empty: holds no test data"):
        reference.read([tmp_path / "empty"])
    with pytest.raises(PairError, match=r"empty: a folder; `resnet-serve check MODEL"):
        reference.two(tmp_path / "empty", tmp_path / "empty")
    pb(tmp_path / "half" / "input_0.pb", INPUT)
    with pytest.raises(PairError, match=r"half/input_0\.pb: lacks an output beside it"):
        reference.read([tmp_path / "half"])


def test_an_archive_of_arrays_may_not_expand_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", input=np.zeros((1, 3, 64, 64)), output=np.zeros(5))
    monkeypatch.setattr(reference, "MOST_BYTES", 90_000)
    with pytest.raises(PairError, match=r"x\.npz: expands to more than"):
        reference.read([tmp_path / "x.npz"])


def test_data_in_another_file_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto

    tensor = numpy_helper.from_array(INPUT)
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "x.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(PairError, match="its data is in another file"):
        reference.read([tmp_path / "x.pb"])
