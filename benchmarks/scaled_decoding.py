"""What decoding JPEGs at a fraction of their size changes in what a network says.

python -m benchmarks.scaled_decoding --model builtin:resnet20-cifar10 FOLDER --output results.json

Each image is decoded as the service does, and whole; both go through the same network in fp32.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import images
from benchmarks.serving.ceilings import MAX_PIXELS
from models.preprocess import InputSpec, resize_and_crop, upright_rgb
from service.inference.decoding import decode
from service.repository import catalog


def decoded_whole(data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return resize_and_crop(upright_rgb(image), spec)


def compare(spec: str, encoded: list[bytes]) -> dict[str, Any]:
    """Differences of pixels, in steps of 256, and of predictions."""
    bundle = catalog.load(spec).bundle
    classifier = bundle.classifier()
    scaled = np.stack([decode(each, bundle.input, MAX_PIXELS) for each in encoded])
    whole = np.stack([decoded_whole(each, bundle.input) for each in encoded])
    with torch.inference_mode():
        says, said = (classifier(torch.from_numpy(each)).numpy() for each in (scaled, whole))
    changed = (scaled != whole).any((1, 2, 3))
    apart = np.abs(scaled.astype(int) - whole)
    return {
        "model": spec,
        "images": len(encoded),
        "images_changed": int(changed.sum()),
        "pixels_mean_difference": round(float(apart.mean()), 3),
        "pixels_largest_difference": int(apart.max()),
        "top1_agreement": round(float((says.argmax(1) == said.argmax(1)).mean()), 4),
        "probability_mean_difference": round(float(np.abs(says - said).max(1).mean()), 4),
        "probability_largest_difference": round(float(np.abs(says - said).max()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("folder", type=Path, help="its files are the images")
    given = parser.parse_args()
    found = compare(given.model, images.read(given.folder))
    given.output.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
