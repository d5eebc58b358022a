"""Batches depend on seed and epoch alone: not on ranks or on what ran before."""

from __future__ import annotations

from collections import Counter
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
from models.data.augment import Augmentation, draw_crops
from models.data.choices import CropKind
from models.data.datasets import Dataset
from models.data.loading import Loading
from models.data.order import batches_of, shuffled
from models.data.seeds import mix
from models.data.source import Resident, Source, held_out, open_source
from models.data.streamed import Streamed
from models.preprocess import CHANNELS, CIFAR, IMAGENET, Channels
from tests.support.augmented import crop_and_flip, cutout


def dataset(count: int = 23, size: int = 8) -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(1, 256, (count, size, size, 3), dtype=np.uint8)
    return Dataset(images, np.arange(count) % 3, ("a", "b", "c"), "made")


def epoch(source: Source, **options: Any) -> list[tuple[Tensor, Tensor]]:
    defaults: dict[str, Any] = {
        "seed": 1,
        "epoch": 0,
        "start": 0,
        "batch_size": 6,
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


def global_batches(
    count: int, seed: int, epoch: int, start: int, batch_size: int
) -> Iterator[Tensor]:
    return (each.indices for each in batches_of(shuffled(count, seed, epoch), start, batch_size))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"padding_mode": "reflect", "crop_padding": 2},
    {"alternate_flip": True, "cutout": 4},
    {"crop_padding": 0, "flip": False},
    {"jitter": 0.4, "lighting": 0.1, "auto_augment": "rand", "erasing": 0.5},
    {"balance": "sampling", "last_batch": "keep", "jitter": 0.4},
]
every_option = pytest.mark.parametrize("options", OPTIONS)


@every_option
def test_ranks_together_see_what_one_process_sees(options: dict[str, Any]) -> None:
    source = Resident(dataset(), "cpu", Augmentation(**options))
    whole = epoch(source)
    last = [5] if options.get("last_batch") == "keep" else []
    assert [len(targets) for _, targets in whole] == [6, 6, 6, *last]
    for world in (2, 3, 4):
        parts = [epoch(source, rank=rank, world=world) for rank in range(world)]
        for step, (images, targets) in enumerate(whole):
            for rank, part in enumerate(parts):
                assert torch.equal(part[step][0], images[rank::world])
                assert torch.equal(part[step][1], targets[rank::world])


@every_option
def test_an_epoch_goes_on_from_any_batch(options: dict[str, Any]) -> None:
    whole = epoch(Resident(dataset(), "cpu", Augmentation(**options)), epoch=3)
    for start in range(5):
        rest = epoch(Resident(dataset(), "cpu", Augmentation(**options)), epoch=3, start=start)
        assert same(rest, whole[start:])


def test_seeds_and_epochs_differ_in_order_and_in_crops() -> None:
    source = Resident(dataset(), "cpu")
    first = epoch(source)
    assert same(epoch(source), first)
    torch.manual_seed(5)
    assert same(epoch(source), first)
    for other in ({"seed": 2}, {"epoch": 1}, {"seed": 0, "epoch": 1}):
        assert not same(epoch(source, **other), first)


def test_drawing_batches_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(Resident(dataset(), "cpu", Augmentation(alternate_flip=True, cutout=2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_comes_once_but_for_an_incomplete_batch() -> None:
    data = dataset()
    source = Resident(data, "cpu", Augmentation(crop_padding=0, flip=False))
    numbers = {image.tobytes(): number for number, image in enumerate(data.images)}
    seen: list[int] = []
    for images, targets in epoch(source):
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert targets.dtype == torch.int64
        rows = [numbers[image.numpy().tobytes()] for image in images]
        assert data.targets[rows].tolist() == targets.tolist()
        seen += rows
    assert len(seen) == len(set(seen)) == 18
    assert epoch(source, batch_size=24) == []
    assert len(source) == 23
    orders = [torch.cat(list(global_batches(23, 1, each, 0, 23))).tolist() for each in (0, 1)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1]
    assert seen == orders[0][:18]


def test_a_batch_is_augmented_as_the_functions_do_it() -> None:
    data = dataset()
    source = Resident(data, "cpu", Augmentation(crop_padding=3, cutout=3, fill=(1, 2, 3)))
    chosen = list(global_batches(23, 1, 2, 0, 6))
    for step, (images, _) in enumerate(epoch(source, epoch=2)):
        generator = torch.Generator().manual_seed(mix("augment", 1, 2, step))
        batch = torch.from_numpy(data.images)[chosen[step]]
        batch = crop_and_flip(batch, 3, generator)
        assert torch.equal(images, cutout(batch, 3, generator, (1, 2, 3)))


def test_an_images_flip_is_random_at_first_and_then_the_opposite_of_the_last() -> None:
    data = dataset(200)
    source = Resident(data, "cpu", Augmentation(crop_padding=0, alternate_flip=True))
    plain = {image.tobytes(): number for number, image in enumerate(data.images)}
    turned = {np.flip(image, 1).tobytes(): number for number, image in enumerate(data.images)}

    def mirrored(number: int, seed: int = 1) -> set[int]:
        found = [
            each.numpy().tobytes()
            for images, _ in epoch(source, seed=seed, epoch=number, batch_size=50)
            for each in images
        ]
        assert all((each in plain) != (each in turned) for each in found)
        return {turned[each] for each in found if each in turned}

    first = mirrored(0)
    assert 70 < len(first) < 130
    assert mirrored(1) == set(range(200)) - first
    assert mirrored(2) == first
    assert mirrored(0, seed=2) != first


def test_without_alternation_flips_are_drawn_anew() -> None:
    crops = [
        draw_crops(64, 0, torch.Generator().manual_seed(mix("augment", 1, e, 0))) for e in (0, 1)
    ]
    assert not torch.equal(crops[0].mirrored, crops[1].mirrored)
    assert not torch.equal(crops[0].mirrored, ~crops[1].mirrored)
    counted = Counter(
        tuple(image[0, :2, 0].tolist())
        for e in range(40)
        for images, _ in epoch(
            Resident(dataset(1), "cpu", Augmentation(crop_padding=0)), epoch=e, batch_size=1
        )
        for image in images
    )
    assert len(counted) == 2
    assert all(8 < times < 32 for times in counted.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": -1}, "at least 0"),
        ({"cutout": -1}, "at least 0"),
        ({"padding_mode": "edge"}, "padding_mode must be zeros or reflect, not 'edge'"),
        (
            {"padding_mode": "reflect", "crop_padding": 8},
            "crop_padding must be less than the images' 8 pixels",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resident(dataset(), "cpu", Augmentation(**options))


def folder(path: Path, size: int = 40) -> Path:
    for number in range(7):
        file = path / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (number, 0, 0)).save(file)
    return path


def test_small_images_are_resident_and_large_ones_or_many_are_streamed(tmp_path: Path) -> None:
    path, counts = folder(tmp_path), list[int]()
    resident = open_source(
        path,
        CIFAR,
        "cpu",
        augmentation=Augmentation(crop_padding=0),
        loading=Loading(progress=counts.append),
    )
    assert isinstance(resident, Resident)
    assert counts == [1, 2, 3, 4, 5, 6, 7]
    few = 7 * 32 * 32 * 3
    sides = {128: Resident, 129: Streamed}
    for side, kind in sides.items():
        spec = replace(CIFAR, size=side, resize=side)
        assert isinstance(open_source(path, spec, "cpu"), kind)
    for bytes_allowed, kind in {few: Resident, few - 1: Streamed}.items():
        loading = Loading(resident_bytes=bytes_allowed)
        assert isinstance(open_source(path, CIFAR, "cpu", loading=loading), kind)
    # Random parts of the image itself are better than of what is left after resizing.
    resized = Augmentation(crops="resized")
    assert isinstance(open_source(path, CIFAR, "cpu", augmentation=resized), Streamed)
    with pytest.raises(ValueError, match="cannot be cropped as 'resized' asks; stream them"):
        open_source(path, CIFAR, "cpu", augmentation=resized, loading=Loading(resident=True))
    streamed = open_source(path, CIFAR, "cpu", loading=Loading(resident=False))
    assert isinstance(streamed, Streamed)
    for source in (resident, streamed):
        assert source.classes == ("cat", "dog")
        assert source.source == tmp_path.name
        assert len(source) == 7
        batches = epoch(source, batch_size=3)
        assert [images.shape for images, _ in batches] == [(3, 32, 32, 3)] * 2


@pytest.mark.parametrize("crops", ["padded", "resized", "scaled"])
@pytest.mark.parametrize("side", [32, 224])
def test_crops_are_those_asked_for_whatever_the_size(
    tmp_path: Path, crops: CropKind, side: int
) -> None:
    asked = Augmentation(crops=crops, alternate_flip=True, cutout=3, erasing=0.1)
    spec = replace(CIFAR, size=side, resize=side)
    assert open_source(folder(tmp_path), spec, "cpu", augmentation=asked).applied == asked.applied()


def test_a_photograph_is_filled_with_the_colour(tmp_path: Path) -> None:
    filled = Augmentation(crops="resized", cutout=448, fill=(9, 8, 7))
    source = open_source(folder(tmp_path), IMAGENET, "cpu", augmentation=filled)
    ((images, _),) = epoch(source)
    assert set(map(tuple, images.reshape(-1, 3).tolist())) == {(9, 8, 7)}


def test_photographs_are_resized_as_the_network_is_served(tmp_path: Path) -> None:
    path = folder(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "train" / "cat" / "0.png")
    resized = Augmentation(crops="resized")
    one, other = (
        epoch(open_source(path, replace(IMAGENET, interpolation=each), "cpu", augmentation=resized))
        for each in ("bilinear", "nearest")
    )
    assert not same(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": "grey", "mean": (0.5,), "std": (0.5,)},
        {"channels": "bgr"},
        {"channels": "rgba", "mean": (0.5,) * 4, "std": (0.5,) * 4},
        {"size": (28, 40), "resize": (32, 40)},
        {"crop": "letterbox", "fill": (1, 2, 3)},
        {"crop": "squash", "size": 24},
    ],
)
def test_training_sees_images_as_they_are_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = folder(tmp_path)
    for number, file in enumerate(sorted(path.rglob("*.png"))):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    spec = replace(CIFAR, **changes)
    plain = Augmentation(crop_padding=0, flip=False)
    served = datasets.read(path, spec, split="train")
    expected = {image.tobytes() for image in served.images}
    for resident in (True, False):
        loading = Loading(resident=resident)
        source = open_source(path, spec, "cpu", augmentation=plain, loading=loading)
        ((images, _),) = epoch(source, batch_size=7)
        assert images.shape == (7, *spec.shape)
        assert {image.numpy().tobytes() for image in images} == expected
    assert held_out(path, spec, 1).images.shape == (1, *spec.shape)


@pytest.mark.parametrize("channels", ["bgr", "grey", "rgba"])
def test_images_in_memory_change_as_opened_ones_do(tmp_path: Path, channels: Channels) -> None:
    count = CHANNELS[channels]
    spec = replace(CIFAR, channels=channels, mean=(0.5,) * count, std=(0.5,) * count)
    changed = Augmentation(crop_padding=0, flip=False, jitter=0.5, auto_augment="trivial")
    one, other = (
        epoch(
            open_source(
                folder(tmp_path),
                spec,
                "cpu",
                augmentation=changed,
                loading=Loading(resident=resident),
            )
        )
        for resident in (True, False)
    )
    assert same(one, other)


def test_training_images_of_another_size_are_those_that_are_served_at_it(tmp_path: Path) -> None:
    path, smaller = folder(tmp_path), Augmentation(crop_padding=0, flip=False, train_size=24)
    sources = [
        open_source(path, CIFAR, "cpu", augmentation=smaller, loading=Loading(resident=resident))
        for resident in (True, False)
    ]
    one, other = map(epoch, sources)
    assert same(one, other)
    assert one[0][0].shape == (6, 24, 24, 3)
    with pytest.raises(ValueError, match="8 x 8 pixels, which is not the train_size 24"):
        Resident(dataset(), "cpu", smaller)


def test_rare_classes_are_drawn_as_often_as_others() -> None:
    data = replace(dataset(120), targets=np.array([1] * 6 + [0] * 114), classes=("a", "b", "c"))
    source = Resident(data, "cpu", Augmentation(balance="sampling"))
    drawn = torch.cat([targets for e in range(4) for _, targets in epoch(source, epoch=e)])
    assert len(drawn) == 480
    assert 200 < int((drawn == 1).sum()) < 280


def test_images_left_out_are_reported(tmp_path: Path) -> None:
    path, lines = folder(tmp_path), list[str]()
    (path / "train" / "cat" / "0.png").write_bytes(b"")
    source = open_source(path, CIFAR, "cpu", loading=Loading(corrupt="skip", report=lines.append))
    assert len(source) == 6
    assert lines == [f"{path}: train/cat/0.png is not a readable image; left out"]
    with pytest.raises(ValueError, match=r"train/cat/0\.png is not a readable image"):
        open_source(path, CIFAR, "cpu")


def test_images_that_are_held_out_are_not_trained_on(tmp_path: Path) -> None:
    path, plain = folder(tmp_path), Augmentation(crop_padding=0, flip=False)
    kept = held_out(path, CIFAR, 3)
    assert kept.source == f"3 held out of {tmp_path.name}"
    assert len(kept.images) == 3
    source = open_source(path, CIFAR, "cpu", hold_out=3, augmentation=plain)
    assert len(source) == 4
    (batch,) = epoch(source, batch_size=4)
    found = [image.tobytes() for image in [*kept.images, *batch[0].numpy()]]
    whole = open_source(path, CIFAR, "cpu", augmentation=plain)
    (everything,) = epoch(whole, batch_size=7)
    assert sorted(found) == sorted(image.tobytes() for image in everything[0].numpy())
    assert np.array_equal(held_out(path, CIFAR, 3).images, kept.images), "the same each time"
    with pytest.raises(ValueError, match="of 7 images 7 cannot be held out"):
        held_out(path, CIFAR, 7)


def test_a_share_of_each_class_is_held_out(tmp_path: Path) -> None:
    for name, count in (("ape", 8), ("cat", 4)):
        (tmp_path / name).mkdir()
        for shade in range(count):
            Image.new("RGB", (32, 32), (shade, count, 0)).save(tmp_path / name / f"{shade}.png")
    kept = held_out(tmp_path, CIFAR, 0.25)
    assert np.bincount(kept.targets).tolist() == [2, 1]
    assert kept.source == f"3 held out of {tmp_path.name}"
    assert len(open_source(tmp_path, CIFAR, "cpu", hold_out=0.25)) == 9


def test_a_single_class_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "rose").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "rose" / "0.png")
    with pytest.raises(ValueError, match="training needs at least two classes; all 1 images are"):
        open_source(tmp_path, CIFAR, "cpu")
