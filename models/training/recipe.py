"""What a training recipe says, and what of it has an effect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from models.data.choices import AutoAugment, Balance, CropKind, LastBatch, PaddingMode

Shape = Literal["constant", "linear", "cosine"]
Unit = Literal["iterations", "epochs"]
Decays = Literal["weights", "all"]
Optimizer = Literal["sgd", "adamw"]
StemInit = Literal["he", "whitened"]
Freeze = Literal["none", "stem", "stage1", "stage2", "stage3", "stage4", "backbone"]
Norm = Literal["batch", "frozen"]
Keep = Literal["last", "best"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the schedule that ends at `until`, in the recipe's unit. The learning rate is
    `factor` times its peak ("constant"), or goes there from the previous factor ("linear",
    "cosine")."""

    until: float
    factor: float
    shape: Shape = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train.

    `paper`: the recipe's origin. `published`: the beginning of the source, in
        `models.reports.published`, of the results that the recipe should reproduce.
    `unit`, `phases`: the schedule; training ends with the last phase.
    `batch_size`: images per step over all processes. `learning_rate`: the schedule's peak.
    `weight_decay`, `decays`: of the "weights" of convolutions and linear layers, or of "all"
        parameters.
    `crops`: "padded" pads each side by `crop_padding` pixels in `padding_mode` and crops to the
        original size (He 2015, section 4.2); "resized" crops random parts and resizes them
        (Szegedy et al., arXiv:1409.4842, section 6). Images are mirrored half the time, or with
        `alternate_flip` in every second epoch (Jordan, arXiv:2404.00498, section 3.6).
    `cutout`: side in pixels of a square filled with grey (arXiv:1708.04552); 0 for none.
    `mixup`: alpha of the distribution of mixing weights (arXiv:1710.09412); 0 for none.
    `ema`: decay of the exponential moving average of the weights, which is the result; 0 for none.
    `dropout`, `shortcut`, `stride_at`: defaults for the network.

    Images, besides:

    `flip`: mirror images at all; text and digits should not be.
    `crops` "scaled" resizes the shorter side to a random length within `shorter_side` pixels and
        crops a square (He 2015, section 3.4).
    `scale`: the range of a resized crop's area, as a fraction of the image's.
    `train_size`: side in pixels of training images; 0: that of the network's input.
    `jitter`: strength of random changes of brightness, contrast and saturation; 0 for none.
    `lighting`: standard deviation of AlexNet's colour noise along the principal components
        (Krizhevsky 2012, section 4.1); 0 for none.
    `auto_augment`: "rand" is RandAugment (arXiv:1909.13719), "trivial" TrivialAugment
        (arXiv:2103.10158).
    `erasing`: probability of random erasing (arXiv:1708.04896).
    `cutmix`: alpha of CutMix (arXiv:1905.04899); with mixup, each batch gets one of the two.
    `last_batch`: "keep" trains on an epoch's incomplete last batch too.
    `mean`, `std`: normalisation of the images, where it is part of the recipe.

    Optimisation, besides:

    `optimizer`: "sgd" with momentum, or "adamw" (arXiv:1711.05101), whose first beta is `momentum`.
    `clip`: greatest norm of the gradient of all weights together; 0 does not clip.
    `body_rate`: factor of the learning rate below the head (Howard and Ruder, arXiv:1801.06146).
    `bias_rate`: factor of the learning rate of normalisation's biases (Jordan 2024, section 3.4);
        their weight decay is divided by it, so that the product remains.
    `lookahead`: steps between the averages of Lookahead (arXiv:1907.08610), with Jordan's rising
        decay (2024, section 3.4); 0 for none. The result is the average, as with `ema`.
    `freeze`: the last part, from the input on, whose weights and statistics stay as they are;
        "backbone" is all but the head.
    `norm`: batch normalisation uses each batch's statistics, or "frozen" ones: the start's. Its
        scales and offsets are then fixed as well (He 2015, appendix A).
    `balance`: make up for rare classes: by weights in the "loss", in inverse proportion to the
        classes' training images, or by "sampling" them more often.
    `keep`: the result is the "last" epoch's network, or the "best" on the validation images.
    `patience`: end after so many epochs without a better one on the validation images; 0: never.
    `stem_init`: the stem's convolution starts with He's random values, or "whitened": with filters
        that whiten patches of the training images (Jordan 2024, section 3.2).
    `zero_init_residual`: every residual branch starts at zero (Goyal, arXiv:1706.02677, section
        5.1).

    Raises:
        ValueError: a value is invalid; the message names the field.
    """

    paper: str
    published: str = ""
    unit: Unit
    phases: tuple[Phase, ...]
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float
    decays: Decays = "weights"
    label_smoothing: float = 0.0
    crops: CropKind = "padded"
    crop_padding: int = 4
    padding_mode: PaddingMode = "zeros"
    alternate_flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    ema: float = 0.0
    dropout: float | None = None
    shortcut: str | None = None
    stride_at: str | None = None
    flip: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    shorter_side: tuple[int, int] = (256, 480)
    train_size: int = 0
    jitter: float = 0.0
    lighting: float = 0.0
    auto_augment: AutoAugment = "none"
    erasing: float = 0.0
    cutmix: float = 0.0
    last_batch: LastBatch = "drop"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    optimizer: Optimizer = "sgd"
    clip: float = 0.0
    body_rate: float = 1.0
    bias_rate: float = 1.0
    lookahead: int = 0
    freeze: Freeze = "none"
    norm: Norm = "batch"
    balance: Balance = "none"
    keep: Keep = "last"
    patience: int = 0
    stem_init: StemInit = "he"
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        # JSON gives lists of objects.
        phases = tuple(p if isinstance(p, Phase) else Phase(**p) for p in self.phases)
        object.__setattr__(self, "phases", phases)
        for name in ("scale", "shorter_side", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        ends = [phase.until for phase in self.phases]
        if not ends or ends[0] <= 0 or ends != sorted(set(ends)):
            raise ValueError(f"phases must end in increasing order, not at {ends}")
        for name, low, high in LIMITS:
            value = getattr(self, name)
            if not low <= value < high:
                raise ValueError(f"{name} must be from {low} to below {high:g}, not {value!r}")
        for name in ("body_rate", "bias_rate"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0; to keep weights as they are, use freeze")
        if self.ema and self.lookahead:
            raise ValueError("ema and lookahead are two averages of the weights; use one")

    @property
    def length(self) -> float:
        """How long training is, in `unit`."""
        return self.phases[-1].until

    def steps(self, steps_per_epoch: int) -> int:
        """The number of training steps."""
        per_unit = 1 if self.unit == "iterations" else steps_per_epoch
        return max(1, round(self.length * per_unit))

    def factor(self, done: float) -> float:
        """The factor of the learning rate after the fraction `done` of all steps."""
        at, begin, before = done * self.length, 0.0, 0.0
        for phase in self.phases:
            if at < phase.until or phase is self.phases[-1]:
                break
            begin, before = phase.until, phase.factor
        share = (at - begin) / (phase.until - begin)
        if phase.shape == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        elif phase.shape == "constant":
            share = 1.0
        return before + share * (phase.factor - before)

    def lasting(self, unit: Unit, length: float) -> Recipe:
        """This recipe with its schedule stretched to another length."""
        stretch = length / self.length
        phases = tuple(replace(phase, until=phase.until * stretch) for phase in self.phases)
        return replace(self, unit=unit, phases=phases)

    def record(self) -> dict[str, Any]:
        """What is done of the recipe, as JSON values.

        Missing are `published`, fields without effect beside the others, such as `shorter_side`
        without the crops "scaled", and what the recipe leaves out: fields at their defaults, apart
        from those that say what every recipe does.
        """
        recorded = json_values(self)
        return {
            name: value
            for name, value in recorded.items()
            if name != "published"
            and has_effect(name, recorded)
            and (name in ALWAYS or name not in DEFAULTS or value != DEFAULTS[name])
        }

    def differences(self, other: Recipe) -> dict[str, Any]:
        """The fields of `other` that differ, with their values in it, as JSON values."""
        mine, others = asdict(self), asdict(other)
        return {name: value for name, value in others.items() if mine[name] != value}


# Fields that have an effect only where another one has this value.
ONLY_WITH: dict[str, tuple[str, object]] = {
    "crop_padding": ("crops", "padded"),
    "padding_mode": ("crops", "padded"),
    "scale": ("crops", "resized"),
    "shorter_side": ("crops", "scaled"),
    "alternate_flip": ("flip", True),
    "nesterov": ("optimizer", "sgd"),
}
# Fields that have no effect where another one has this value.
UNLESS: dict[str, tuple[tuple[str, object], ...]] = {
    "body_rate": (("freeze", "backbone"),),
    "bias_rate": (("freeze", "backbone"), ("norm", "frozen")),
    "norm": (("freeze", "backbone"),),
}
# What a record says even where it is the default.
ALWAYS = {"optimizer", "momentum", "nesterov", "decays", "last_batch", "flip", "crops"}
ALWAYS |= {"crop_padding", "padding_mode", "scale", "shorter_side"}
CHOICES = {
    "unit": get_args(Unit),
    "decays": get_args(Decays),
    "crops": get_args(CropKind),
    "padding_mode": get_args(PaddingMode),
    "shortcut": (None, "A", "B", "C", "conv"),
    "stride_at": (None, "3x3", "1x1"),
    "auto_augment": get_args(AutoAugment),
    "last_batch": get_args(LastBatch),
    "optimizer": get_args(Optimizer),
    "freeze": get_args(Freeze),
    "norm": get_args(Norm),
    "balance": get_args(Balance),
    "keep": get_args(Keep),
    "stem_init": get_args(StemInit),
}
LIMITS = (
    ("batch_size", 1, math.inf),
    ("learning_rate", 0.0, math.inf),
    ("momentum", 0.0, 1.0),
    ("weight_decay", 0.0, math.inf),
    ("label_smoothing", 0.0, 1.0),
    ("crop_padding", 0, math.inf),
    ("cutout", 0, math.inf),
    ("mixup", 0.0, math.inf),
    ("ema", 0.0, 1.0),
    ("train_size", 0, math.inf),
    ("jitter", 0.0, math.inf),
    ("lighting", 0.0, math.inf),
    ("erasing", 0.0, 1.0),
    ("cutmix", 0.0, math.inf),
    ("clip", 0.0, math.inf),
    ("body_rate", 0.0, math.inf),
    ("bias_rate", 0.0, math.inf),
    ("lookahead", 0, math.inf),
    ("patience", 0, math.inf),
)


def json_values(recipe: Recipe) -> dict[str, Any]:
    """All fields of a recipe as they come back from JSON."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return values


def has_effect(name: str, recorded: Mapping[str, Any]) -> bool:
    """Whether the field has an effect beside the other fields of a complete record."""
    other, value = ONLY_WITH.get(name, (name, recorded.get(name)))
    useless = any(recorded.get(each) == there for each, there in UNLESS.get(name, ()))
    return bool(recorded.get(other) == value) and not useless


def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the fields that it does not have, at their defaults; other keys remain."""
    return {**DEFAULTS, **recorded}


# As they come back from JSON. A record may lack any of them, so that none can ever change.
DEFAULTS: dict[str, Any] = json.loads(
    json.dumps({f.name: f.default for f in fields(Recipe) if f.default is not MISSING})
)
