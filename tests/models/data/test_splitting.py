"""Validation images are drawn class by class, the same each time, and copies stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data import splitting
from models.data.collection import Collection, InMemory, find
from models.data.splitting import rows, split


def made(*counts: int, exclusive: bool = True) -> Collection:
    """Different images, so many of each class."""
    targets = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(targets) * 12, dtype=np.uint32).view(np.uint8)[: len(targets) * 12]
    pixels = pixels.reshape(-1, 2, 2, 3).copy()
    pixels[:, 0, 0, :2] = np.arange(len(targets))[:, None] // (256, 1) % 256
    classes = tuple(map(str, range(len(counts))))
    kept = targets if exclusive else np.eye(len(counts), dtype=np.bool_)[targets]
    return Collection(InMemory(pixels), kept, classes, Path("set"))


def counts(collection: Collection) -> list[int]:
    return list(map(int, np.bincount(collection.targets, minlength=len(collection.classes))))


@pytest.mark.parametrize(
    ("sizes", "part", "validation"),
    [
        ((40, 20, 10), 0.2, [8, 4, 2]),
        ((40, 20, 10), 14, [8, 4, 2]),
        ((100, 2, 2), 0.1, [8, 1, 1]),
        ((100, 1, 0, 2), 0.05, [4, 0, 0, 1]),
        ((2, 2), 0.01, [1, 1]),
        ((2, 2), 0.99, [1, 1]),
        ((50, 3, 1), 51, [49, 2, 0]),
    ],
)
def test_each_class_has_its_share_in_both(
    sizes: tuple[int, ...], part: float, validation: list[int]
) -> None:
    training, held = split(made(*sizes), part)
    assert counts(held) == validation
    assert counts(training) == [size - out for size, out in zip(sizes, validation, strict=True)]
    assert held.classes == training.classes


def test_both_parts_are_the_whole_set_and_depend_on_the_seed_only() -> None:
    collection = made(30, 30)
    held, kept = rows(collection, 0.3)
    assert sorted([*held, *kept]) == list(range(60))
    assert held.tolist() == sorted(held)
    assert np.array_equal(rows(collection, 0.3)[0], held)
    assert not np.array_equal(rows(collection, 0.3, seed=1)[0], held)


def test_a_number_below_that_of_the_classes_is_drawn_from_any() -> None:
    drawn = {tuple(counts(split(made(*[5] * 10), 3, seed)[1])) for seed in range(8)}
    assert all(sum(each) == 3 for each in drawn)
    assert len(drawn) > 1


@pytest.mark.parametrize("part", [0, -1, 1.5, 4, float("nan")])
def test_what_leaves_a_class_without_training_images_is_refused(part: float) -> None:
    words = "of 5 images 4 cannot be held out, but at most 3" if part == 4 else "a share below 1"
    with pytest.raises(ValueError, match=rf"\Aset: {words}"):
        split(made(3, 2), part)


def test_images_with_several_labels_are_drawn_at_random() -> None:
    training, held = split(made(10, 10, exclusive=False), 0.25)
    assert (len(training), len(held)) == (15, 5)


def folder(path: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_copies_are_on_one_side(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        names = {f"{c}/{i:02}.png": f"{c}{i // 2:02}".encode() for c in "ab" for i in range(20)}
        collection = find(folder(tmp_path, names))
    else:
        collection = made(20, 20)
        collection.images.pixels[1::2] = collection.images.pixels[::2]  # type: ignore[attr-defined]
    for seed in range(5):
        held, _ = rows(collection, 0.3, seed)
        assert len(held) == 12
        assert (held[::2] + 1 == held[1::2]).all()


def test_a_set_of_copies_alone_has_no_images_to_hold_out(tmp_path: Path) -> None:
    files = {f"{name}/{index}.png": name.encode() for name in "ab" for index in range(9)}
    with pytest.raises(ValueError, match="no image can be held out: copies of an image stay"):
        split(find(folder(tmp_path, files)), 0.2)


def test_a_copy_in_another_class_stays_in_training(tmp_path: Path) -> None:
    names = {f"{c}/{i}.png": f"{c}{i}".encode() for c in "ab" for i in range(3)}
    collection = find(folder(tmp_path, names | {"a/0.png": b"same", "b/0.png": b"same"}))
    for seed in range(5):
        held, _ = rows(collection, 2, seed)
        assert not {0, 3} & set(held.tolist())
    assert len(rows(collection, 4)[0]) == 4


def test_copies_are_not_looked_for_in_too_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = find(folder(tmp_path, {f"a/{i}.png": b"same" for i in range(6)}))
    assert len(rows(collection, 3)[0]) == 0
    monkeypatch.setattr(splitting, "MOST_HASHED", 23)
    assert len(rows(collection, 3)[0]) == 3
