"""Each operation is torchvision's, and what is drawn is what the papers say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from models.data import auto_augment
from models.data.auto_augment import (
    BOTH_WAYS,
    LEVELS,
    MOVING,
    OPERATIONS,
    RAND,
    TRIVIAL,
    RandomOperations,
    Ranges,
    apply,
)
from tests.support.libraries import import_torchvision

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def picture(mode: str = "RGB") -> Image.Image:
    """30 x 24 pixels, noisy and asymmetric."""
    random = np.random.default_rng(0)
    rising = np.linspace(0, 120, 30)[None, :, None]
    pixels = (random.integers(0, 128, (24, 30, 4)) + rising).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ranges", [RAND, TRIVIAL], ids=["rand", "trivial"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(name: str, ranges: Ranges) -> None:
    import_torchvision()
    from torchvision.transforms import InterpolationMode, autoaugment

    if ranges is RAND:
        space = autoaugment.RandAugment()._augmentation_space(LEVELS, (24, 30))
    else:
        space = autoaugment.TrivialAugmentWide()._augmentation_space(LEVELS)
    assert set(space) == set(THEIRS.values())
    strengths, signed = space[THEIRS[name]]
    assert signed == (name in BOTH_WAYS)
    image = picture()
    for level in (0, 9, 30):
        ours = ranges.strength(name, level / (LEVELS - 1), *image.size)
        theirs = float(strengths[level]) if strengths.ndim else ours
        assert ours == pytest.approx(theirs, abs=1e-4)
        for sign in (1, -1) if signed else (1,):
            expected = autoaugment._apply_op(
                image, THEIRS[name], sign * theirs, InterpolationMode.NEAREST, None
            )
            found = apply(image, name, sign * ours, MOVING["nearest"])
            difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
            # Their strengths are rounded to float32.
            assert difference.max() <= (1 if name in {"brightness", "color", "contrast"} else 0)


def test_operations_by_hand() -> None:
    image = Image.fromarray(np.array([[10, 100, 200], [30, 60, 255]], np.uint8))
    nearest = MOVING["nearest"]

    def after(name: str, strength: float) -> list[list[int]]:
        return [list(map(int, row)) for row in np.asarray(apply(image, name, strength, nearest))]

    assert after("translate_x", 1.9) == [[0, 10, 100], [0, 30, 60]]
    assert after("translate_y", -1) == [[30, 60, 255], [0, 0, 0]]
    assert after("rotate", 180) == [[255, 60, 30], [200, 100, 10]]
    assert after("solarize", 100) == [[10, 155, 55], [30, 60, 0]]
    assert after("posterize", 2) == [[0, 64, 192], [0, 0, 192]]
    assert after("brightness", -0.5) == [[5, 50, 100], [15, 30, 127]]
    assert after("color", 0.9) == np.asarray(image).tolist(), "grey has no saturation"
    assert after("autocontrast", 0)[0] == [0, 93, 197]


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_and_transparent_images_are_changed_too(name: str, mode: str) -> None:
    image = picture(mode)
    changed = apply(image, name, RAND.strength(name, 0.3, *image.size), MOVING["nearest"])
    assert (changed.mode, changed.size) == (mode, image.size)
    if mode == "RGBA" and name not in auto_augment.MOVES:
        assert changed.getchannel("A").tobytes() == image.getchannel("A").tobytes()
        alone = apply(
            image.convert("RGB"), name, RAND.strength(name, 0.3, 30, 24), MOVING["nearest"]
        )
        assert changed.convert("RGB").tobytes() == alone.tobytes()


def test_operations_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    def noted(image: Image.Image, name: str, strength: float, _: object) -> Image.Image:
        calls.append((name, strength))
        return image

    monkeypatch.setattr(auto_augment, "apply", noted)
    image, random = picture(), np.random.default_rng(0)
    for _ in range(2000):
        auto_augment.rand("bilinear")(image, random)
    assert len(calls) == 4000
    counted = Counter(name for name, _ in calls)
    assert counted.keys() == OPERATIONS.keys()
    assert all(200 < times < 380 for times in counted.values())
    turns = Counter(strength for name, strength in calls if name == "rotate")
    assert turns.keys() == {9.0, -9.0}
    assert {strength for name, strength in calls if name == "posterize"} == {7}
    calls.clear()
    for _ in range(2000):
        auto_augment.trivial("bilinear")(image, random)
    assert len(calls) == 2000
    turned = {strength for name, strength in calls if name == "rotate"}
    assert len(turned) > 50
    assert (min(turned), max(turned)) == (-135, 135)


def test_equal_generators_give_equal_images() -> None:
    operations = RandomOperations(TRIVIAL, 3, None, "bicubic")
    first, again, other = (
        operations(picture(), np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2)
    )
    assert first == again != other
