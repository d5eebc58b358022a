"""What else a file's network or images could be, where a reference pair says that they differ.

Weights do not tell these things: the same tensors fit each of the alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from itertools import combinations
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from models.architecture import Architecture
from models.bundle import Bundle
from models.interchange import normalisations
from models.interchange.assumptions import ORDERS, effective, irrelevant
from models.interchange.comparison import compare
from models.interchange.reference import Pair
from models.preprocess import CHANNELS, RESAMPLING, InputSpec
from models.resnet import ResNet

# Images that each alternative is tried with; what fits is tried with all.
PROBES = 1
# Networks that are kept for alternatives of their images; they share their weights.
MOST_NETWORKS = 32
# Combinations of two alternatives that are tried: half a minute for a ResNet-50 on two CPUs.
MOST_COMBINATIONS = 200
# An alternative that fits must explain the difference, not just fall below the tolerance.
GAIN = 5

# Of the fields of an architecture that no tensor depends on.
VALUES: Mapping[str, tuple[Any, ...]] = {
    "stride_at": ("3x3", "1x1"),
    "pool": ("max", "none"),
    "stem_stride": (1, 2),
    "antialias": ("none", "average", "blur"),
    "padding": ("symmetric", "same"),
    "stem_padding": ("symmetric", "same"),
    "pool_padding": ("symmetric", "same", "zero", "ceil"),
    "shortcut_padding": ("both", "end"),
    "preact_shortcut": ("projected", "activated", "raw", "entry"),
    "stride_block": ("first", "last"),
    "stride_stages": ("later", "all"),
    "eps": (1e-5, 1e-3, 1.001e-5, 2e-5),
}


@dataclass(frozen=True)
class Change:
    """One alternative; those of one `group` exclude each other."""

    group: str
    structure: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    outputs: str = ""


@dataclass(frozen=True)
class Fit:
    """Changes under which a bundle agrees, as options of `convert`, and how well."""

    options: tuple[str, ...]
    difference: float
    relative: float

    def in_words(self) -> str:
        """One line."""
        return f"{' '.join(self.options)} (largest difference {self.difference:.2g})"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "options": list(self.options)}


@dataclass(frozen=True)
class Search:
    """`fits`: the best first; empty if nothing fits. `tried`: how many alternatives."""

    fits: tuple[Fit, ...]
    tried: int

    def in_words(self) -> str:
        """One line."""
        if self.fits:
            return "would fit: " + "; or ".join(fit.in_words() for fit in self.fits)
        return f"none of {self.tried} known alternatives would fit"


def search(bundle: Bundle, pairs: Sequence[Pair], tolerance: float) -> Search:
    """The alternatives under which a bundle's network agrees with all pairs, though it does not
    as it is: single ones, else combinations of two.

    Raises:
        PairError: see `compare`.
    """
    found = [compare(bundle, pair, tolerance) for pair in pairs]
    worst = max(range(len(pairs)), key=lambda number: found[number].relative)
    probe, base = _fewer(pairs[worst]), found[worst].relative
    changes = [*structures(bundle.architecture), *_inputs(bundle, pairs[worst])]
    network = lru_cache(MOST_NETWORKS)(partial(_network, bundle))
    tried = 0

    def tries(
        candidates: Sequence[tuple[Change, ...]],
    ) -> Iterator[tuple[float, tuple[Change, ...]]]:
        nonlocal tried
        for chosen in tqdm(candidates, "trying alternatives", disable=None, leave=False):
            # Weights or fields do not allow all of them, and some networks no odd sizes.
            with suppress(ValueError):
                changed = _changed(bundle, chosen)
                built = network(changed.architecture)
                tried += 1
                yield compare(changed, probe, tolerance, built).relative, chosen

    single = list(tries([(change,) for change in changes]))
    fits = _fits(bundle, pairs, single, base, tolerance)
    if not fits:
        ranked = [chosen[0] for _, chosen in sorted(single, key=lambda each: each[0])]
        both = [two for two in combinations(ranked, 2) if two[0].group != two[1].group]
        both.sort(key=lambda two: sum(map(ranked.index, two)))
        for each in tries(both[:MOST_COMBINATIONS]):
            if fits := _fits(bundle, pairs, [each], base, tolerance):
                break
    # Of those that compute the same but for rounding, the first in the table is the likeliest.
    return Search(tuple(sorted(fits, key=lambda fit: fit.relative > tolerance / 10)), tried)


def _fits(
    bundle: Bundle,
    pairs: Sequence[Pair],
    tried: Sequence[tuple[float, tuple[Change, ...]]],
    base: float,
    tolerance: float,
) -> list[Fit]:
    """Those that agree with every image of every pair."""
    fits = []
    for relative, chosen in tried:
        if relative > min(tolerance, base / GAIN):
            continue
        changed = _changed(bundle, chosen)
        found = [compare(changed, pair, tolerance) for pair in pairs]
        worst = max(found, key=lambda each: each.relative)
        if worst.agrees:
            fits.append(Fit(_options(bundle, changed), worst.difference, worst.relative))
    return fits


def _fewer(pair: Pair) -> Pair:
    if isinstance(pair.input, Image.Image):
        return pair
    return replace(pair, input=pair.input[:PROBES], output=pair.output[:PROBES])


def _changed(bundle: Bundle, changes: Sequence[Change]) -> Bundle:
    """The bundle with the changes.

    Raises:
        ValueError: its fields do not allow them.
    """
    structure = {k: v for change in changes for k, v in change.structure.items()}
    images = {k: v for change in changes for k, v in change.images.items()}
    outputs = next((change.outputs for change in changes if change.outputs), bundle.outputs)
    return replace(
        bundle,
        variant=None,
        architecture=replace(bundle.architecture, **structure),
        input=_prepared(bundle.input, images),
        outputs=cast("Any", outputs),
    )


def _network(bundle: Bundle, architecture: Architecture) -> ResNet:
    return replace(bundle, variant=None, architecture=architecture).network()


def _prepared(spec: InputSpec, images: Mapping[str, Any]) -> InputSpec:
    """The specification with changes; means go with their channels, and squashed images have the
    network's size."""
    changes = dict(images)
    order = changes.get("channels", spec.channels)
    if order != spec.channels:
        for name in ("mean", "std"):
            changes.setdefault(name, getattr(spec, name)[::-1])
    elif order == "bgr":
        for name in {"mean", "std"} & changes.keys():
            changes[name] = changes[name][::-1]
    return replace(spec, **changes)


def structures(architecture: Architecture) -> Iterator[Change]:
    """Other networks with the same tensors."""
    last = len(architecture.blocks) - 1
    values = {**VALUES, "dilation": ((), (last,), (last - 1, last))}
    now = {name: getattr(architecture, name) for name in values} | effective(architecture)
    for name, choices in values.items():
        if name not in irrelevant(architecture):
            yield from (Change(name, {name: value}) for value in choices if value != now[name])
    for padding in ("symmetric", "same"):  # As whole libraries pad.
        everywhere = dict.fromkeys(("padding", "stem_padding", "pool_padding"), padding)
        if any(now[name] != padding for name in everywhere):
            yield Change("paddings", everywhere)


def _inputs(bundle: Bundle, pair: Pair) -> Iterator[Change]:
    """Other ways to prepare images, as far as the pair can tell them apart, and to use logits."""
    spec = bundle.input
    count = CHANNELS[spec.channels]
    if count == 3:
        flipped = {"channels": ORDERS[spec.channels]}
        yield Change("channels", images=flipped)
        yield Change("channels", images={**flipped, "mean": spec.mean, "std": spec.std})
    for mean, std in {3: normalisations.OF_RGB, 1: normalisations.OF_GREY}.get(count, ()):
        yield Change("normalisation", images={"mean": mean, "std": std})
    if isinstance(pair.input, Image.Image):
        yield from _geometries(spec)
    outputs = "independent" if bundle.outputs == "exclusive" else "exclusive"
    yield Change("outputs", outputs=outputs)


def _geometries(spec: InputSpec) -> Iterator[Change]:
    for interpolation in RESAMPLING:
        if interpolation != spec.interpolation:
            yield Change("interpolation", images={"interpolation": interpolation})
    resizes = [spec.size]
    if isinstance(spec.size, int):
        resizes += [round(spec.size * ratio) for ratio in (232 / 224, 1 / 0.95, 1 / 0.9, 256 / 224)]
    for crop in ("center", "center_floor", "before_resize"):
        for resize in resizes:
            if (crop, resize) != (spec.crop, spec.resize):
                yield Change("crop", images={"crop": crop, "resize": resize})
    for crop in ("squash", "letterbox"):
        yield Change("crop", images={"crop": crop, "resize": spec.size})


def _options(before: Bundle, after: Bundle) -> tuple[str, ...]:
    """The options of `convert` that make the difference."""
    options = []
    for each in fields(Architecture):
        value = getattr(after.architecture, each.name)
        if value != getattr(before.architecture, each.name):
            text = f"{each.name}={_text(value)}"
            options.append(f"--set '{text}'" if "[" in text else f"--set {text}")
    names = {each.name for each in fields(InputSpec)}
    changed = {n for n in names if getattr(after.input, n) != getattr(before.input, n)}
    # `convert` lets some fields follow others.
    changed |= {"mean", "std"} if "channels" in changed else set()
    changed |= {"resize"} if changed & {"size", "crop"} else set()
    for each in fields(InputSpec):
        value = getattr(after.input, each.name)
        if each.name in changed:
            text = _text(value).strip("[]").replace(" ", "")
            options.append(f"--{each.name} {text}")
    if after.outputs != before.outputs:
        options.append(f"--outputs {after.outputs}")
    return tuple(options)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
