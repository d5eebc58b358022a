"""Streamed batches depend on seed and epoch alone, and evaluation's are what `read` gives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.data import datasets
from models.data.augment import Augmentation
from models.data.changes import changes_for
from models.data.choices import CropKind
from models.data.collection import Collection, InMemory, find
from models.data.crops import RandomCrop, ShiftedCrop
from models.data.loading import Loading
from models.data.order import batches_of, shuffled
from models.data.seeds import mix
from models.data.streamed import Stream, Streamed, stream
from models.preprocess import CHANNELS, CIFAR, Channels, InputSpec
from tests.support.augmented import cutout

SPEC = InputSpec(size=8, resize=10, mean=CIFAR.mean, std=CIFAR.std)
COUNT = 14


def folder(path: Path) -> Path:
    """Noise, of which every other image is a photograph's format and size."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        file = path / ("cat", "dog")[number % 2] / f"{number:02}.{('png', 'jpg')[number % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = random.integers(12, 60, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return path


def archive(path: Path, mode: str) -> Path:
    with tarfile.open(path / "set.tar", mode) as made:  # type: ignore[call-overload]
        for file in sorted(folder(path / "set").rglob("*.*g")):
            made.add(file, f"set/{file.parent.name}/{file.name}")
    return path / "set.tar"


RESIZED = Augmentation(crops="resized")


def streamed(path: Path, augmentation: Augmentation = RESIZED, **options: Any) -> Streamed:
    return Streamed(find(path), SPEC, augmentation, Loading(**options))


def global_batches(
    count: int, seed: int, epoch: int, start: int, batch_size: int
) -> Iterator[Tensor]:
    return (each.indices for each in batches_of(shuffled(count, seed, epoch), start, batch_size))


def epoch(source: Streamed, **options: Any) -> list[tuple[Tensor, Tensor]]:
    defaults: dict[str, Any] = {
        "seed": 1,
        "epoch": 0,
        "start": 0,
        "batch_size": 4,
        "rank": 0,
        "world": 1,
        "device": "cpu",
    }
    return list(source.batches(**defaults | options))


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_batch_holds_the_crops_of_its_images(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    batches = epoch(streamed(tmp_path), epoch=2)
    crop = RandomCrop(size=8)
    chosen = list(global_batches(COUNT, 1, 2, 0, 4))
    assert len(batches) == len(chosen) == 3
    for (images, targets), indices in zip(batches, chosen, strict=True):
        assert images.dtype == torch.uint8
        assert targets.tolist() == found.targets[indices].tolist()
        for image, index in zip(images, indices.tolist(), strict=True):
            expected = crop(found.images.open(index), mix("crop", 1, 2, index))
            assert np.array_equal(image.numpy(), expected)


def plain(**fields: Any) -> Augmentation:
    return Augmentation(crops="resized", **fields)


def test_an_images_flip_alternates_between_epochs(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    source = Streamed(found, SPEC, plain(alternate_flip=True))
    crop = RandomCrop(size=8, flip=False)
    flips: list[dict[int, bool]] = []
    for number in range(3):
        flips.append({})
        chosen = torch.cat(list(global_batches(COUNT, 1, number, 0, 7)))
        images = torch.cat([images for images, _ in epoch(source, epoch=number, batch_size=7)])
        for image, index in zip(images.numpy(), chosen.tolist(), strict=True):
            upright = crop(found.images.open(index), mix("crop", 1, number, index))
            flips[-1][index] = not np.array_equal(image, upright)
            expected = upright[:, ::-1] if flips[-1][index] else upright
            assert np.array_equal(image, expected)
    assert 0 < sum(flips[0].values()) < COUNT
    assert flips[1] == {index: not mirrored for index, mirrored in flips[0].items()}
    assert flips[2] == flips[0]


def test_fills_a_square_of_each_photograph(tmp_path: Path) -> None:
    folder(tmp_path)
    fill = (1, 2, 3)
    cut = Streamed(find(tmp_path), SPEC, plain(cutout=3, fill=fill))
    chosen = zip(epoch(streamed(tmp_path), epoch=2), epoch(cut, epoch=2), strict=True)
    for step, ((before, _), (after, _)) in enumerate(chosen):
        generator = torch.Generator().manual_seed(mix("augment", 1, 2, step))
        assert torch.equal(after, cutout(before, 3, generator, fill))
        assert not torch.equal(after, before)


AUGMENTED = plain(alternate_flip=True, cutout=4)
EVERYTHING = Augmentation(
    crop_padding=2,
    jitter=0.4,
    lighting=0.1,
    auto_augment="trivial",
    erasing=0.5,
    last_batch="keep",
    balance="sampling",
)


def test_it_says_what_it_applies(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    for asked in (AUGMENTED, EVERYTHING):
        assert Streamed(found, SPEC, asked).applied == asked.applied()


def test_padded_crops_shift_the_image_that_is_served(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    source = Streamed(found, SPEC, Augmentation(crop_padding=3, padding_mode="reflect"))
    crop = ShiftedCrop(spec=SPEC, padding=3, mode="reflect")
    chosen = list(global_batches(COUNT, 1, 2, 0, 4))
    for (images, _), indices in zip(epoch(source, epoch=2), chosen, strict=True):
        for image, index in zip(images.numpy(), indices.tolist(), strict=True):
            assert np.array_equal(image, crop(found.images.open(index), mix("crop", 1, 2, index)))


def test_images_are_changed_after_their_crops(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    before = epoch(streamed(tmp_path))
    augmentation = plain(jitter=0.4, auto_augment="rand")
    changes = changes_for(augmentation, SPEC)
    assert changes is not None
    after = epoch(Streamed(found, SPEC, augmentation))
    for step, indices in enumerate(global_batches(COUNT, 1, 0, 0, 4)):
        for row, index in enumerate(indices.tolist()):
            expected = changes(before[step][0][row].numpy(), mix("crop", 1, 0, index))
            assert np.array_equal(after[step][0][row].numpy(), expected)


def test_a_last_batch_is_kept_on_request(tmp_path: Path) -> None:
    found = find(folder(tmp_path))
    kept = epoch(Streamed(found, SPEC, plain(last_batch="keep", cutout=2)))
    assert [len(targets) for _, targets in kept] == [4, 4, 4, 2]
    assert same(kept[:3], epoch(Streamed(found, SPEC, plain(cutout=2))))


def test_copies_of_an_image_in_an_epoch_are_not_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    rare = np.array([1] + [0] * 7)
    collection = Collection(InMemory(pixels[rare]), rare, ("common", "rare"), Path("made"))
    source = Streamed(collection, SPEC, plain(balance="sampling"))
    ((images, targets),) = epoch(source, batch_size=8)
    again = [image.numpy().tobytes() for image in images[targets == 1]]
    assert len(again) > 1
    assert len(set(again)) == len(again)


@pytest.mark.parametrize(
    ("channels", "size"), [("grey", 8), ("bgr", (6, 9)), ("rgba", (9, 6)), ("rgb", (6, 9))]
)
@pytest.mark.parametrize("crops", ["padded", "resized", "scaled"])
def test_images_have_the_shape_of_the_input(
    tmp_path: Path, channels: Channels, size: Any, crops: CropKind
) -> None:
    count = CHANNELS[channels]
    ones = (0.5,) * count
    spec = InputSpec(size=size, resize=12, channels=channels, mean=ones, std=ones)
    augmentation = Augmentation(
        crops=crops, shorter_side=(10, 12), cutout=2, fill=(9,) * count, jitter=0.2
    )
    batches = epoch(Streamed(find(folder(tmp_path)), spec, augmentation))
    assert {images.shape for images, _ in batches} == {(4, *spec.shape)}
    assert all((images == 9).all(3).any() for images, _ in batches)


def test_training_images_may_be_smaller_than_the_networks_input(tmp_path: Path) -> None:
    source = Streamed(find(folder(tmp_path)), SPEC, plain(train_size=6))
    assert {images.shape for images, _ in epoch(source)} == {(4, 6, 6, 3)}


@pytest.mark.parametrize("augmentation", [RESIZED, AUGMENTED, EVERYTHING])
def test_ranks_together_see_what_one_process_sees_from_any_batch_on(
    tmp_path: Path, augmentation: Augmentation
) -> None:
    source = Streamed(find(folder(tmp_path)), SPEC, augmentation)
    whole = epoch(source)
    for world in (2, 3):
        for rank in range(world):
            expected = [(images[rank::world], targets[rank::world]) for images, targets in whole]
            assert same(epoch(source, rank=rank, world=world), expected)
    for start in range(len(whole) + 1):
        assert same(epoch(source, start=start), whole[start:])
    assert not same(epoch(source, epoch=1), whole)
    assert not same(epoch(source, seed=2), whole)


@pytest.mark.timeout(300)  # The processes import torch.
def test_worker_processes_change_nothing_and_live_on(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "cat" / "00.png").write_bytes(b"")
    lines: list[str] = []
    source = streamed(path, EVERYTHING, workers=2, corrupt="skip", report=lines.append)
    alone = streamed(path, EVERYTHING, corrupt="skip")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = source.batches(seed=1, epoch=0, start=0, batch_size=4, rank=0, world=1, device="cpu")
    next(first)  # An epoch that is broken off leaves nothing for the next.
    first.close()  # type: ignore[attr-defined]
    loader = source._loader._loaders[False]
    workers = loader._iterator._workers  # type: ignore[union-attr]
    for number in range(3):
        assert same(epoch(source, epoch=number), epoch(alone, epoch=number))
    assert same(epoch(source, start=1, rank=1, world=2), epoch(alone, start=1, rank=1, world=2))
    assert loader._iterator._workers is workers  # type: ignore[union-attr]
    assert len(workers) == 2
    assert torch.equal(torch.get_rng_state(), before), "dropout draws the same, whatever is read"
    assert lines == [
        f"{path.name}: cat/00.png is not a readable image "
        "(unknown format or a rare kind of one); left out"
    ]
    with pytest.raises(ValueError, match=rf"\A{path.name}: cat/00\.png is not a readable[^\n]+\Z"):
        epoch(streamed(path, workers=1), batch_size=COUNT)


def test_another_of_its_batch_stands_in_for_an_unreadable_image(tmp_path: Path) -> None:
    path = folder(tmp_path)
    broken = {0, 1, 5}
    names = [find(path).images.name(index) for index in range(COUNT)]
    for index in broken:
        (path / names[index]).write_bytes(b"no image")
    lines: list[str] = []
    source = streamed(path, corrupt="skip", report=lines.append)
    found, crop = find(path), RandomCrop(size=8)
    whole = epoch(source, batch_size=7)
    for (images, targets), indices in zip(whole, global_batches(COUNT, 1, 0, 0, 7), strict=True):
        for row in range(7):
            order = [*indices[row:].tolist(), *indices[:row].tolist()]
            index = next(each for each in order if each not in broken)
            expected = crop(found.images.open(index), mix("crop", 1, 0, index))
            assert np.array_equal(images[row].numpy(), expected)
            assert targets[row] == found.targets[index]
    for rank in range(3):
        expected_part = [(images[rank::3], targets[rank::3]) for images, targets in whole]
        assert same(epoch(source, batch_size=7, rank=rank, world=3), expected_part)
    assert len(lines) == 3, "each is named once, in whatever epoch it comes"
    assert {line.split()[1] for line in lines} == {names[index] for index in broken}


def test_a_batch_of_nothing_readable_is_an_error(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for file in path.rglob("*.*g"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="nor is any other of its batch"):
        epoch(streamed(path, corrupt="skip"))


def test_archives_are_streamed_unless_they_are_compressed(tmp_path: Path) -> None:
    path = archive(tmp_path, "w")
    assert same(epoch(streamed(path)), epoch(streamed(tmp_path / "set")))
    with pytest.raises(ValueError, match=r"set\.tar: .*; decompress it"):
        streamed(archive(tmp_path, "w:gz"))


def test_images_in_memory_are_streamed_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    collection = Collection(InMemory(pixels), np.arange(9), tuple("abcdefghi"), Path("made"))
    source = Streamed(collection, replace(SPEC, size=48, resize=48), RESIZED)
    batches = epoch(source)
    assert [images.shape for images, _ in batches] == [(4, 48, 48, 3)] * 2


def test_a_negative_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must"):
        streamed(folder(tmp_path), workers=-1)


def gathered(batches: Stream) -> tuple[list[int], Any, list[int]]:
    read = list(batches)
    images = np.concatenate([images for images, _ in read])
    targets = np.concatenate([targets for _, targets in read])
    return [len(targets) for _, targets in read], images.tolist(), targets.tolist()


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz", "w:xz"])
def test_evaluation_sees_every_image_once_as_read_gives_it(tmp_path: Path, kind: str) -> None:
    path = folder(tmp_path) if kind == "folder" else archive(tmp_path, kind)
    data = datasets.read(path, SPEC)
    batches = stream(path, SPEC, batch_size=4)
    assert (batches.classes, batches.source, len(batches)) == (data.classes, data.source, COUNT)
    for _ in range(2):
        sizes, images, targets = gathered(batches)
        assert sizes == [4, 4, 4, 2]
        assert images == data.images.tolist()
        assert targets == data.targets.tolist()
    labels = ("dog", "ape", "cat")
    other = batches.relabelled(labels)
    assert other.classes == labels
    assert gathered(other)[2] == data.relabelled(labels).targets.tolist()
    assert gathered(batches)[2] == data.targets.tolist()
    with pytest.raises(ValueError, match="class 'cat' is not one of the model's labels"):
        batches.relabelled(("dog",))


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz"])
def test_evaluation_leaves_unreadable_images_out_or_names_them(tmp_path: Path, kind: str) -> None:
    path = folder(tmp_path) if kind == "folder" else archive(tmp_path, kind)
    if kind == "folder":
        (path / "cat" / "04.png").write_bytes(b"")
    else:
        content = path.read_bytes()
        entry, bad = tarfile.TarInfo("set/cat/zz.png"), io.BytesIO(b"no image")
        entry.size = 8
        with tarfile.open(path, kind) as made, tarfile.open(fileobj=io.BytesIO(content)) as old:  # type: ignore[call-overload]
            for number, member in enumerate(old):
                if number == 2:
                    made.addfile(entry, bad)
                made.addfile(member, old.extractfile(member))
    batches = stream(path, SPEC, batch_size=4, corrupt="skip")
    data = datasets.read(path, SPEC, corrupt="skip")
    for _ in range(2):
        _, images, targets = gathered(batches)
        assert images == data.images.tolist()
        assert targets == data.targets.tolist()
        assert [line.split()[0] for line in batches.skipped] == list(data.skipped)
    assert len(data.skipped) == 1
    with pytest.raises(ValueError, match=rf"\A{path}: \S+ is not a readable image \([^\n]+\Z"):
        list(stream(path, SPEC, batch_size=4))


def test_a_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        stream(folder(tmp_path), SPEC, batch_size=0)
