"""Decoding JPEGs: by this service on the CPUs, and by nvJPEG on the device."""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import images
from benchmarks.common.vision import import_torchvision
from benchmarks.gpu_check.stage import Figures, NotPossible, Options
from models.preprocess import IMAGENET
from service import runtime
from service.inference.decoding import decode_image, prepare

FILES = 16
BATCHES = (32, 128)
MAX_PIXELS = 50_000_000


def jpeg(options: Options) -> Iterator[Figures]:
    """Photographs of 35 kB a second, and how far nvJPEG's pixels are from PIL's."""
    files = images.photos(FILES)
    prepare()
    for threads in dict.fromkeys((1, runtime.cpus())):
        yield {"decoder": "PIL", "threads": threads} | on_cpus(files, threads, options.seconds)
    if not options.on_cpu:
        decode = partial(_torchvision().decode_jpeg, device=options.device)
        raw = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        found = [pixels.permute(1, 2, 0).cpu().numpy() for pixels in decode(raw)]
        yield {"decoder": "nvJPEG", **_differences(files, found)}
        for size in BATCHES:
            batch = list(islice(cycle(raw), size))
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < options.seconds or not done:
                decode(batch)
                torch.cuda.synchronize(options.device)
                done += size
            rate = done / (time.perf_counter() - began)
            yield {"decoder": "nvJPEG", "size": size, "images_s": round(rate, 1)}


def _torchvision() -> Any:
    if importlib.util.find_spec("torchvision") is None:
        raise NotPossible("torchvision is not installed")
    import_torchvision()
    return importlib.import_module("torchvision.io")


def on_cpus(files: Sequence[bytes], threads: int, seconds: float) -> Figures:
    """Decoded, resized and cropped as the service does."""
    until = time.perf_counter() + seconds

    def work(_: int) -> int:
        done = 0
        for file in cycle(files):
            decode_image(file, IMAGENET, MAX_PIXELS)
            done += 1
            if time.perf_counter() >= until:
                break
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return {"images_s": round(done / (time.perf_counter() - began), 1)}


def _differences(files: Sequence[bytes], found: Sequence[NDArray[np.uint8]]) -> Figures:
    """Of whole images, in steps of 256."""
    gaps = []
    for file, pixels in zip(files, found, strict=True):
        with Image.open(io.BytesIO(file)) as image:
            gaps.append(np.abs(np.asarray(image.convert("RGB"), np.int16) - pixels))
    return {
        "mean_difference": round(float(np.mean([gap.mean() for gap in gaps])), 3),
        "largest_difference": int(max(gap.max() for gap in gaps)),
    }
