"""Comparing a bundle's network with reference pairs, in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle import Bundle
from models.classifier import Normalise
from models.interchange.reference import Pair, PairError
from models.preprocess import CHANNELS, InputSpec, resize_and_crop, upright
from models.resnet import ResNet

# Of the largest reference value. Two correct libraries differ by 1e-6 to 1e-5 of it; a wrong eps
# of 1e-3 by more than this.
TOLERANCE = 1e-4
BATCH = 16
# Fractions of 1 by which probabilities may miss 1 in all, or lie outside of 0 to 1.
ROUNDING = 1e-3
# Probabilities p of which no p (1 - p) is larger hide what their logits differ by.
SURE = 1e-2
LEAST = 1e-30  # Below it, float32 has few digits, or none.
# What half precision explains: bfloat16 rounds by 1/256, and every layer adds to that.
HALF = 0.02

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """How far a network's outputs are from a pair's.

    `input`, `output`: how the pair was understood. `difference`: the largest of all values;
    `relative`: that by the largest reference value. `same_class`: how many images keep their
    largest output. `notes`: what the pair does not tell. `blind`: it tells nothing, as the network
    answers noise with no larger difference.
    """

    pair: str
    images: int
    input: str
    output: str
    difference: float
    relative: float
    same_class: int
    tolerance: float
    notes: tuple[str, ...] = ()
    blind: bool = False

    @property
    def agrees(self) -> bool:
        return self.relative <= self.tolerance and not self.blind

    def in_words(self) -> str:
        """One line."""
        if self.blind:
            return (
                f"cannot be judged by {self.pair}: other images would give that output too, within "
                f"the tolerance {self.tolerance:g}; give logits, of images that they tell apart"
            )
        verb = "agrees with" if self.agrees else "differs from"
        images = f"{self.images} image{'s' * (self.images > 1)}"
        return (
            f"{verb} {self.pair}: {images} ({self.input}), {self.output}; largest difference "
            f"{self.difference:.2g}, {self.relative:.2g} of the largest value "
            f"(tolerance {self.tolerance:g}); top-1 equal for {self.same_class} of {self.images}"
        )

    def as_json(self) -> dict[str, Any]:
        shown = {name: value for name, value in asdict(self).items() if name != "tolerance"}
        return {**shown, "notes": list(self.notes), "agrees": self.agrees}


@dataclass(frozen=True)
class Reading:
    """One way to understand a pair's input: the network's input, float32 [N, C, H, W]."""

    name: str
    images: Tensor
    normalised: bool  # The pair does not tell how images are normalised.


def compare(
    bundle: Bundle, pair: Pair, tolerance: float = TOLERANCE, network: ResNet | None = None
) -> Comparison:
    """The comparison under the likeliest reading of the pair.

    A float input is what the network sees; if that differs, values from 0 to 1 or to 255 are
    normalised as the bundle says. Outputs in [0, 1] are probabilities. What fits is compared with
    the network's answer to noise: if that fits too, the pair tells nothing. `network`: the
    bundle's, if it was built before.

    Raises:
        PairError: the pair's shapes do not fit the network's.
    """
    network = network or bundle.network()
    best: Comparison | None = None
    for reading in readings(pair, bundle.input):
        try:
            outputs = _computed(network, reading.images)
        except RuntimeError as error:  # Some networks take no odd sizes.
            reason = " ".join(str(error).split())[:150]
            raise PairError(f"{pair.name}: the network cannot compute it ({reason})") from None
        for kind in kinds(pair.output, network):
            found = _compared(bundle, pair, reading, kind, outputs, tolerance)
            if best is None or (not best.agrees and found.relative < best.relative):
                best, seen = found, reading
    assert best is not None
    if best.agrees:
        noise = replace(seen, images=_noise(seen.images))
        outputs = _computed(network, noise.images).repeat(pair.images, axis=0)
        kind = best.output.partition(",")[0]
        control = _compared(bundle, pair, noise, kind, outputs, tolerance)
        best = replace(best, blind=control.agrees)
    return best


def _noise(images: Tensor) -> Tensor:
    """One image of noise with the mean of `images` and a deviation of at least 1, or theirs."""
    spread = max(float(images.std()), 1.0)
    noise = torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(0))
    return noise * spread + images.mean()


def readings(pair: Pair, spec: InputSpec) -> Iterator[Reading]:
    """The ways to understand a pair's input, the likeliest first."""
    if isinstance(pair.input, Image.Image):
        pixels = resize_and_crop(upright(pair.input, spec.channels), spec)
        yield Reading("an image file", _normalised(pixels[None], spec), normalised=False)
        return
    array = _channels_last(pair, spec)
    if array.dtype == np.uint8:
        yield Reading("pixels", _normalised(_ordered(array, spec), spec), normalised=False)
        return
    seen = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    yield Reading("as the network sees them", seen, normalised=True)
    if spec.channels == "bgr":
        yield Reading("as the network sees them, but for red first", seen.flip(1), normalised=True)
    least, most = array.min(), array.max()
    for top in (1, 255):
        if least >= 0 and (0 if top == 1 else 1) < most <= top:
            scaled = _ordered(array, spec) * np.float32(255 / top)
            name = f"pixels as values from 0 to {top}"
            yield Reading(name, _normalised(scaled, spec), normalised=False)


def _channels_last(pair: Pair, spec: InputSpec) -> NDArray[Any]:
    array, count = pair.input, CHANNELS[spec.channels]
    assert isinstance(array, np.ndarray)
    first, last = array.shape[1] == count, array.shape[3] == count
    if not (first or last):
        raise PairError(
            f"{pair.name}: its input has the shape {list(array.shape)}; the network takes "
            f"{count} channel{'s' * (count > 1)}"
        )
    if first and last:  # Few pixels each way: the specification's shape decides.
        last = array.shape[1:] == spec.shape and array.shape[2:] != spec.shape[:2]
    return array if last else array.transpose(0, 2, 3, 1)


def _ordered(pixels: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
    """Pixels in the order of `spec.channels`, from red first."""
    return pixels[..., ::-1] if spec.channels == "bgr" else pixels


def _normalised(pixels: NDArray[Any], spec: InputSpec) -> Tensor:
    found: Tensor = Normalise(spec)(torch.from_numpy(np.ascontiguousarray(pixels)))
    return found


def kinds(output: Rows, network: ResNet) -> tuple[str, ...]:
    """What a reference output may be, the likeliest first."""
    if not network.architecture.num_classes:
        return ("features",)
    many, sums = output.shape[1] > 1, output.sum(1)
    if output.min() >= -ROUNDING and output.max() <= 1 + ROUNDING:
        if many and np.abs(sums - 1).max() <= ROUNDING:
            return ("probabilities (softmax)",)
        return ("probabilities (sigmoid)", "logits")
    logs = output.astype(np.float64).clip(max=1)
    if many and output.max() <= ROUNDING and np.abs(np.exp(logs).sum(1) - 1).max() <= ROUNDING:
        return ("logarithms of probabilities",)
    return ("logits",)


def _computed(network: ResNet, images: Tensor) -> Rows:
    """Logits [N, K], or features of a network without a head."""
    layers = network if network.architecture.num_classes else network.features
    with torch.inference_mode():
        parts = [layers(images[i : i + BATCH]).numpy() for i in range(0, len(images), BATCH)]
    outputs: Rows = np.concatenate(parts)
    return outputs


def _compared(
    bundle: Bundle,
    pair: Pair,
    reading: Reading,
    kind: str,
    outputs: Rows,
    tolerance: float,
) -> Comparison:
    wanted = pair.output
    ours = _as_kind(outputs, kind, bundle)
    if wanted.shape[1] == 1 and ours.shape[1] == 2:
        # One logit became the second of two; the first is 0.
        ours = ours[:, 1:] - ours[:, :1] if kind == "logits" else ours[:, 1:]
    if ours.shape != wanted.shape:
        what = "features" if kind == "features" else "classes"
        values = f"{wanted.shape[1]:,} value{'s' * (wanted.shape[1] > 1)}"
        raise PairError(
            f"{pair.name}: its output has {values} for each image, the model "
            f"{ours.shape[1]:,} {what}"
        )
    same_class, blind = int((ours.argmax(1) == wanted.argmax(1)).sum()), False
    if kind.startswith("prob") and (wanted * (1 - wanted)).max() < SURE:
        told = (wanted >= LEAST) & (wanted <= 1 - SURE)
        # Small ones have all their digits, and so have their logarithms.
        ours, wanted = (np.log(np.maximum(p[told], LEAST)) for p in (ours, wanted))
        kind, blind = f"{kind}, by their logarithms", not told.any()
    difference = float(np.abs(ours - wanted).max(initial=0))
    largest = float(np.abs(wanted).max(initial=0))
    relative = difference / largest if largest else float("inf") if difference or blind else 0.0
    notes = []
    if reading.normalised:
        notes.append(_of_normalised(pair, bundle.input))
    elif _is_grey(reading.images, bundle.input):
        notes.append(f"{pair.name} shows only grey: it does not tell the order of the channels")
    if tolerance < relative <= HALF and _is_half(pair.output):
        notes.append(f"{pair.name} is in half precision; --tolerance {HALF:g} allows for it")
    height, width = reading.images.shape[2:]
    if (height, width) != bundle.input.shape[:2]:
        notes.append(f"{pair.name} has {height}x{width} pixels, which is not the model's size")
    if bundle.temperature != 1.0 and "prob" in kind:
        notes.append("compared without the model's temperature")
    return Comparison(
        pair=pair.name,
        images=pair.images,
        input=reading.name,
        output=kind,
        difference=difference if np.isfinite(difference) else float("inf"),
        relative=relative if np.isfinite(relative) else float("inf"),
        same_class=same_class,
        tolerance=tolerance,
        notes=tuple(notes),
        blind=blind,
    )


def _of_normalised(pair: Pair, spec: InputSpec) -> str:
    """What a pair that holds what the network sees does not tell, or hints at."""
    assert isinstance(pair.input, np.ndarray)
    least, most = pair.input.min(), pair.input.max()
    # With most ways to normalise, dark pixels are negative.
    if least >= 0 and most <= 255 and max(spec.mean) > 0:
        top, std = (1, 1.0) if most <= 1 else (255, 1 / 255)
        values = [",".join([f"{value:.6g}"] * len(spec.mean)) for value in (0.0, std)]
        return (
            f"{pair.name} has values from 0 to {top}: if these are pixels, the network takes them "
            f"without normalisation, --mean {values[0]} --std {values[1]}"
        )
    untold = "mean and std" if len(spec.mean) == 1 else "mean, std and the order of the channels"
    return f"{pair.name} is normalised already: it does not tell {untold}"


def _is_grey(images: Tensor, spec: InputSpec) -> bool:
    """Whether normalised images have equal channels, up to rounding."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    pixels = (images * std + mean)[:, :3]
    return pixels.shape[1] == 3 and bool((pixels - pixels[:, :1]).abs().max() < 1e-4)


def _is_half(output: Rows) -> bool:
    """Whether float16 or bfloat16 has all values."""
    with np.errstate(over="ignore"):
        small = bool((output.astype(np.float16) == output).all())
    return small or bool((torch.from_numpy(output).bfloat16().float().numpy() == output).all())


def _as_kind(outputs: Rows, kind: str, bundle: Bundle) -> Rows:
    """Logits as the pair's kind of output, by the bundle's kind of classes."""
    if kind in ("logits", "features"):
        return outputs
    logits = torch.from_numpy(outputs).double()
    exclusive = bundle.outputs == "exclusive"
    logs = logits.log_softmax(1) if exclusive else torch.nn.functional.logsigmoid(logits)
    found: Rows = (logs if kind.startswith("log") else logs.exp()).float().numpy()
    return found


def notes_of(comparisons: Sequence[Comparison]) -> list[str]:
    """Each note once."""
    return list(dict.fromkeys(chain.from_iterable(c.notes for c in comparisons)))


def record(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What a bundle's provenance keeps of a check, as JSON values."""
    worst = max(comparisons, key=lambda each: each.relative)
    return {
        "pairs": [each.pair for each in comparisons],
        "images": sum(each.images for each in comparisons),
        "difference": worst.difference,
        "relative": worst.relative,
    }
