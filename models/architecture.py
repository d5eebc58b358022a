"""The architecture of a ResNet as data, without torch.

The papers are cited as He 2015 (arXiv:1512.03385), He 2016 (arXiv:1603.05027) and
Zagoruyko 2016 (arXiv:1605.07146).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast, get_args

from models.plain_numbers import integer, number

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "small"]
Shortcut = Literal["A", "B", "C", "conv"]
ShortcutPadding = Literal["both", "end"]
Stride = Literal["3x3", "1x1"]
StrideBlock = Literal["first", "last"]
StrideStages = Literal["later", "all"]
Pool = Literal["usual", "max", "none"]
Antialias = Literal["none", "average", "blur"]
Padding = Literal["symmetric", "same"]
PoolPadding = Literal["symmetric", "same", "zero", "ceil"]
PreactStem = Literal["bare", "activated", "activated_once"]
PreactShortcut = Literal["projected", "activated", "raw", "entry"]

EXPANSION = {"basic": 1, "bottleneck": 4}
# Far above any network of the papers: a mistyped or malicious description, which may come from a
# file or a request, must not take all memory. As float32, so many weights are 2 GB.
MOST_WEIGHTS = 500_000_000
MOST_BLOCKS = 2_000
MOST_CLASSES = 100_000
MOST_CHANNELS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything that determines what a ResNet computes.

    `block`, `blocks`, `planes`: the kind of block, and for each stage the number of blocks and
        the channels of their inner convolutions. The stem has `planes[0]` channels. Every stage
        but the first halves the resolution in its first block.
    `stem`: "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max-pool (He 2015, table 1);
        "small" a 3x3 convolution alone (He 2015, section 4.2).
    `preact`: normalise and activate before each convolution (He 2016, figure 1b).
    `width`: multiplies the inner channels. The output of a basic block widens with it, that of a
        bottleneck does not (Zagoruyko 2016, section 2.3).
    `shortcut`: "A" pads new channels with zeros, "B" projects where the shape changes, "C"
        projects everywhere (He 2015, section 3.3); "conv" is B with a 3x3 kernel.
    `shortcut_padding`: option A's zeros on "both" sides of the channels, or at their "end".
    `stride_at`: where a bottleneck strides: its "3x3" convolution (known as v1.5), or its first
        "1x1" (v1, He 2015).
    `dropout`: probability between a basic block's convolutions (Zagoruyko 2016, section 2.4).
    `num_classes`: outputs of the head; 0 builds a backbone without one.
    `head`: the widths of the layers between the features and the classes: () is one linear layer,
        (128,) two of them with a ReLU between.
    `in_channels`: channels of the input images.

    The other fields cover networks of other libraries that share a name but compute differently:

    `stem_channels`, `stem_stride`: of the stem's convolution; 0: `planes[0]`, and what `stem` says.
    `pool`: whether the stem has the 3x3 max-pool of stride 2: "usual" is as `stem` says, "max" and
        "none" differ from it.
    `antialias`: what precedes subsampling by 2 in the stem's pool and behind the strided 3x3
        convolutions of post-activation blocks, which then stride 1 (timm's `aa_layer`): "average"
        averages 2x2 pixels, "blur" weighs 3x3 pixels binomially (Zhang 2019, arXiv:1904.11486).
    `dilation`: the stages, counted from 0, that dilate their 3x3 convolutions by 2 instead of
        striding; those of the next stages remain dilated (torchvision's
        `replace_stride_with_dilation`, timm's `output_stride`; Yu 2017, arXiv:1705.09914).
    `stride_block`: a stage strides in its "first" block or in its "last"; with "last", the last
        stage does not stride (Keras V2).
    `stride_stages`: the "later" stages stride, or "all" do (transformers'
        `downsample_in_first_stage`).
    `padding`: padding of strided 3x3 convolutions: "symmetric", or "same" as in TensorFlow and
        Flax, which pad an even side at its end only.
    `stem_padding`: the same for the stem's convolution.
    `pool_padding`: padding of the stem's pooling: "symmetric" and "same" pad with minus infinity,
        "zero" pads symmetrically with zeros (Keras V2, before any activation), "ceil" does not
        pad and rounds the resolution up (Caffe).
    `biases`: the convolutions with a bias: any of "stem", "conv1", "conv2", "conv3", "shortcut".
    `shortcut_norm`: a post-activation block normalises its projection, like its other
        convolutions (Keras's CIFAR example does not).
    `eps`: what normalisation adds to the variance.
    `input_norm`: normalise the images with a learnt layer (v2 of MXNet and ONNX).
    `preact_stem`: the stem of a pre-activation network is "bare"; or "activated" as in other
        networks, and every block activates again (MXNet v2); or "activated_once", and the first
        block does not activate again (He 2016, appendix).
    `preact_shortcut`: what the shortcut of a pre-activation block sees. "projected": the
        activated input where it has a convolution, else the raw input. "activated", "raw": always
        that one. "entry": the activated input in the first block of each stage (He 2016, in
        words).
    `final_norm`: a pre-activation network normalises and activates its features.

    Raises:
        ValueError: a value is invalid; the message names the field and its valid values.
    """

    block: Block
    blocks: tuple[int, ...]
    planes: tuple[int, ...]
    stem: Stem
    num_classes: int
    preact: bool = False
    width: float = 1
    shortcut: Shortcut = "B"
    shortcut_padding: ShortcutPadding = "both"
    stride_at: Stride = "3x3"
    dropout: float = 0.0
    in_channels: int = 3
    stride_block: StrideBlock = "first"
    stride_stages: StrideStages = "later"
    padding: Padding = "symmetric"
    stem_padding: Padding = "symmetric"
    pool_padding: PoolPadding = "symmetric"
    biases: tuple[str, ...] = ()
    shortcut_norm: bool = True
    eps: float = 1e-5
    input_norm: bool = False
    preact_stem: PreactStem = "bare"
    preact_shortcut: PreactShortcut = "projected"
    final_norm: bool = True
    head: tuple[int, ...] = ()
    stem_channels: int = 0
    stem_stride: int = 0
    pool: Pool = "usual"
    antialias: Antialias = "none"
    dilation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # JSON and YAML give lists; a frozen, hashable value wants tuples.
        for name in ("blocks", "planes"):
            object.__setattr__(self, name, _sizes(name, getattr(self, name)))
        object.__setattr__(self, "biases", _biased(self.biases))
        object.__setattr__(self, "head", _sizes("head", self.head) if self.head else ())
        if len(self.blocks) != len(self.planes):
            raise ValueError(
                f"blocks and planes must be equally long, not {len(self.blocks)} and "
                f"{len(self.planes)}"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
            # 1 equals True, and so does NumPy's True, which is no JSON value.
            object.__setattr__(self, name, choices[choices.index(value)])
        for name, least in (("num_classes", 0), ("in_channels", 1), ("stem_channels", 0)):
            count = integer(getattr(self, name))
            if count is None or count < least:
                raise ValueError(
                    f"{name} must be an integer of at least {least}, not {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, count)
        for name in ("width", "dropout", "eps"):
            if (plain := number(getattr(self, name))) is None:
                raise ValueError(f"{name} must be a number, not {getattr(self, name)!r}")
            object.__setattr__(self, name, plain)
        self._check_size()
        object.__setattr__(self, "dilation", self._dilated())
        self._check_combinations()
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must be above 0 and below 1, not {self.eps!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")

    def _check_combinations(self) -> None:
        if self.dropout and self.block == "bottleneck":
            raise ValueError("dropout must be 0 for bottleneck blocks: no paper defines it there")
        if self.head and not self.num_classes:
            raise ValueError("head must be empty in a backbone, which has no classes")
        if self.dilation and self.stride_block == "last":
            raise ValueError("dilation must be empty where stages stride in their last block")
        if self.antialias != "none":
            for name, usual in (("preact", False), ("stride_at", "3x3"), ("dilation", ())):
                if getattr(self, name) != usual:
                    raise ValueError(f"{name} must be {usual!r} where antialias is not none")

    def _dilated(self) -> tuple[int, ...]:
        value, known = self.dilation, range(1, len(self.blocks))
        stages = set(map(integer, value)) if isinstance(value, list | tuple) else {None}
        if not stages.issubset(known):
            raise ValueError(
                f"dilation must be stages that stride, from 1 to {len(self.blocks) - 1}, "
                f"not {value!r}"
            )
        return tuple(stage for stage in known if stage in stages)

    def _check_size(self) -> None:
        for name, size, most in (
            ("blocks", sum(self.blocks), MOST_BLOCKS),
            ("planes", max(self.planes), MOST_CHANNELS),
            ("in_channels", self.in_channels, MOST_CHANNELS),
            ("stem_channels", self.stem_channels, MOST_CHANNELS),
            ("head", max(self.head, default=0), MOST_CHANNELS),
            ("num_classes", self.num_classes, MOST_CLASSES),
        ):
            if size > most:
                raise ValueError(f"{name} must be at most {most:,}{' in all' * (name == 'blocks')}")
        if self.width <= 0 or any(planes * self.width % 1 for planes in self.planes):
            raise ValueError(f"width must give whole channels, not {self.width!r}")
        if self.weights > MOST_WEIGHTS:
            raise ValueError(
                f"the network would have more than {MOST_WEIGHTS:,} weights; it needs fewer "
                "blocks, planes or classes, or less width"
            )

    @property
    def weights(self) -> int:
        """About how many weights the network has, from its description alone: those of its
        convolutions and its head, with a projection in each stage that may have one."""
        channels = self.stem_width
        total = self.in_channels * channels * (9 if self.stem == "small" else 49)
        for count, planes in zip(self.blocks, self.planes, strict=True):
            width = round(planes * self.width)
            out = width if self.block == "basic" else planes * EXPANSION["bottleneck"]
            kernel, inner = (9, 9 * width) if self.block == "basic" else (1, 9 * width + out)
            total += width * (kernel * (channels + (count - 1) * out) + count * inner)
            if self.shortcut != "A":
                projections = channels + (count - 1) * out * (self.shortcut == "C")
                total += out * projections * (9 if self.shortcut == "conv" else 1)
            channels = out
        layers = (channels, *self.head, self.num_classes)
        return total + sum(inputs * outputs for inputs, outputs in pairwise(layers))

    @property
    def stem_width(self) -> int:
        """Channels of the stem's convolution."""
        return self.stem_channels or self.planes[0]

    @property
    def stride_of_stem(self) -> int:
        """The stride of the stem's convolution."""
        return self.stem_stride or (1 if self.stem == "small" else 2)

    @property
    def has_pool(self) -> bool:
        """Whether the stem pools."""
        return self.pool == "max" or (self.pool == "usual" and self.stem == "imagenet")

    @property
    def out_channels(self) -> int:
        """Channels of the features before the head."""
        width = self.width if self.block == "basic" else 1
        return round(self.planes[-1] * width) * EXPANSION[self.block]

    @property
    def head_names(self) -> tuple[str, ...]:
        """See `head_names`; () without a head."""
        return head_names(len(self.head) + 1) if self.num_classes else ()

    @property
    def depth(self) -> int:
        """Layers with weights, as He 2015 counts them: without shortcuts."""
        return 2 + sum(self.blocks) * (2 if self.block == "basic" else 3)


def head_names(layers: int) -> tuple[str, ...]:
    """The names of the linear layers of a head of so many, in a network's state dict.

    Every other module of a sequence is a ReLU; a layer alone is in none.
    """
    return ("head",) if layers == 1 else tuple(f"head.{2 * place}" for place in range(layers))


def _sizes(name: str, value: object) -> tuple[int, ...]:
    sizes = tuple(map(integer, value)) if isinstance(value, list | tuple) else ()
    if not sizes or not all(size is not None and size > 0 for size in sizes):
        raise ValueError(f"{name} must be a list of positive integers, not {value!r}")
    return cast("tuple[int, ...]", sizes)


def _biased(value: object) -> tuple[str, ...]:
    """Biases in a fixed order, so that equal networks compare equal."""
    if not isinstance(value, list | tuple) or not all(name in BIASED for name in value):
        raise ValueError(f"biases must be some of {', '.join(BIASED)}, not {value!r}")
    return tuple(name for name in BIASED if name in value)


CHOICES: dict[str, tuple[object, ...]] = {
    "block": get_args(Block),
    "stem": get_args(Stem),
    "preact": (False, True),
    "shortcut": get_args(Shortcut),
    "shortcut_padding": get_args(ShortcutPadding),
    "stride_at": get_args(Stride),
    "stride_block": get_args(StrideBlock),
    "stride_stages": get_args(StrideStages),
    "stem_stride": (0, 1, 2),
    "pool": get_args(Pool),
    "antialias": get_args(Antialias),
    "padding": get_args(Padding),
    "stem_padding": get_args(Padding),
    "pool_padding": get_args(PoolPadding),
    "shortcut_norm": (False, True),
    "input_norm": (False, True),
    "preact_stem": get_args(PreactStem),
    "preact_shortcut": get_args(PreactShortcut),
    "final_norm": (False, True),
}
BIASED = ("stem", "conv1", "conv2", "conv3", "shortcut")
