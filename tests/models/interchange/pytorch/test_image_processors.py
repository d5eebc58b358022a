"""What transformers' own processors make of images is what our input specification makes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.interchange.pytorch.image_processors import input_spec
from models.preprocess import InputSpec, resize_and_crop
from tests.support import libraries

SIZES = [(547, 673), (135, 160), (301, 691), (649, 356), (158, 124), (256, 256)]
BASE: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bit": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "Bit, bilinear, not square": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 160, "width": 224}, "resample": 2},
    ),
    "CLIP": ("CLIPImageProcessor", {}),
    "DeiT": ("DeiTImageProcessor", {}),
    "ViT": ("ViTImageProcessor", {}),
    "ViT, not square": ("ViTImageProcessor", {"size": {"height": 160, "width": 224}}),
    "scaled to 2": ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}),
    "not scaled": ("ViTImageProcessor", {"do_rescale": False, "image_std": [60, 60, 60]}),
    "not normalised": ("ViTImageProcessor", {"do_normalize": False}),
    "ConvNext 224": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "ConvNext 384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
}


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * height)
    small = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("case", CASES)
def test_images_become_what_the_processor_makes_of_them(tmp_path: Path, case: str) -> None:
    libraries.import_transformers()
    kind, options = CASES[case]
    processor = getattr(importlib.import_module("transformers"), kind)(**options)
    processor.save_pretrained(tmp_path)
    spec = input_spec(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    mean, std = np.array(spec.mean), np.array(spec.std)
    for size in SIZES:
        image = picture(*size)
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = (resize_and_crop(image, spec) / 255 - mean) / std
        # In pixels: torch resizes to within one of what Pillow does.
        difference = np.abs(ours - theirs) * std * 255
        assert difference.max() <= 2.01
        assert difference.mean() < 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "PvtImageProcessor"}, "prepared by PvtImageProcessor, which is"),
        ({"do_resize": False}, "without do_resize: their size would be the network's"),
        ({"do_center_crop": False}, "without do_center_crop: their sizes would differ"),
        ({"size": {"longest_edge": 256}}, "images of size {'longest_edge': 256}"),
        ({"rescale_factor": 0}, "images are scaled by 0"),
        ({"resample": 4}, "resized by filter 4"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be numbers, one for each channel"),
        ({"size": {"shortest_edge": 200}}, "resize must be at least size"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
            | {"crop_pct": 2},
            "resize must be at least size",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        input_spec(BASE | changes)
    assert words in str(caught.value)


def test_older_configs_name_a_feature_extractor_and_a_number() -> None:
    older = {key: value for key, value in BASE.items() if key != "image_processor_type"}
    older |= {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2}
    assert input_spec(older) == InputSpec(
        size=224, resize=224, crop="squash", mean=(0.5,) * 3, std=(0.5,) * 3
    )
