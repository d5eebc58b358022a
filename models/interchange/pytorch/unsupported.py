"""What tensors reveal of networks and files that are not supported, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from models.bundle import BundleError
from models.interchange.pytorch import heads

# Tensor names under a library's own names, with what they are and what to do.
CLUES = (
    (
        r"(?:.*\.)?(?:lora_[AB]|lora_embedding_[AB]|modules_to_save)\.",
        "has adapters of peft (LoRA) beside its weights; where the network is at hand, run "
        "model.merge_and_unload() and save its state_dict()",
    ),
    (
        r"(?:.*\.)?_?flat_param",
        "has weights that FSDP has flattened; save the whole ones, with "
        "FSDP.set_state_dict_type(model, StateDictType.FULL_STATE_DICT)",
    ),
    (
        r"(?:.*\.)?(?:\w*_fake_quant|\w*fake_quant\w*|activation_post_process)\.",
        "has the simulated quantisation of training (QAT); save the float network's state_dict()",
    ),
    (
        r"(?:.*\.)?res2\.0\.conv1\.norm\.",
        "has Detectron2's names, which do not say where it strides nor the order of its channels; "
        "rename its tensors as torchvision's, and give --set stride_at, --channels, --mean, --std",
    ),
    (
        r"(?:.*\.)?res2_0_branch2a_w",
        "has Caffe2's names; rename its tensors as torchvision's, and give --set stride_at, "
        "--channels, --mean, --std",
    ),
    (
        r"(?:.*\.)?attnpool\.",
        "has an attention pool (CLIP), which no network here has",
    ),
    (
        r"(?:.*\.)?\w*pool\w*\.p$|(?:.*\.)?gem\.p$",
        "has a generalised mean as its pool (GeM), and the networks here only average",
    ),
)
DEEP_STEM = re.compile(r"(?:.*\.)?stem\.\d\.weight")
# Behind the backbone of a network that labels pixels.
SEGMENTS = re.compile(
    r"(?:.*\.)?(?:(?:aux_)?classifier|decode_head|auxiliary_head|aspp|decoder)\.(?:.*\.)?weight"
)


def refuse(names: Iterable[str]) -> None:
    """Refuses what the names of a file's or a network's tensors reveal.

    Raises:
        BundleError: the message says what it is and what to do.
    """
    for name in names:
        for pattern, what in CLUES:
            if re.match(pattern, name):
                raise BundleError(what)


def refuse_deep_stem(names: Iterable[str]) -> None:
    """The same for a stem of several convolutions instead of `conv1`."""
    if any(map(DEEP_STEM.match, names)):
        raise BundleError("has a deep stem (ResNet-C, -D, -S or -T), which no network here has")


def refuse_values(tensors: Mapping[str, Tensor]) -> None:
    """Refuses a network's tensors that are no weights: without values, complex, or whole numbers.

    Raises:
        BundleError: the message names the tensor.
    """
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.is_meta:
            raise BundleError(f"{name} is a meta tensor, which has no values; save loaded weights")
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise BundleError(f"{name} has values of type {kind}, which are no weights")


def refuse_segmentation(tensors: Mapping[str, Tensor], *, dilation_said: bool) -> None:
    """Refuses a backbone that was part of a network for segmentation, unless the user says whether
    it dilates: those of most libraries do, and no tensor shows it."""
    if dilation_said:
        return
    for name, value in tensors.items():
        if SEGMENTS.fullmatch(name) and value.ndim == 4 and value.shape[-1] > 1:
            raise BundleError(
                f"{name} is of a network for segmentation, whose backbone may dilate, and the file "
                "does not say; to take the backbone give --set num_classes=0 and --set "
                "dilation=[2,3], [3] or []"
            )


def refuse_behind_head(left: Mapping[str, Tensor], outputs: int) -> None:
    """Refuses a head whose outputs go into a layer that is left out: they are no classes.

    Raises:
        BundleError: the message names the layer.
    """
    for name, value in left.items():
        if _takes(name, value, outputs):
            raise BundleError(
                f"{name} {list(value.shape)} takes the {outputs} outputs of its head: they are an "
                f"embedding, not classes, or else delete that tensor; {heads.WITHOUT}"
            )
        if name.rpartition(".")[2] == "logit_scale":
            raise BundleError(
                f"{name} scales the outputs of its head, as in one of cosines, which no network "
                f"here has; {heads.WITHOUT}"
            )


def refuse_unnamed_head(left: Mapping[str, Tensor], features: int) -> None:
    """Refuses a network without a head if a layer that is left out takes its features.

    Raises:
        BundleError: the message names the layer.
    """
    for name, value in left.items():
        if _takes(name, value, features):
            layer = name.rpartition(".")[0] or name
            raise BundleError(
                f"has no head of a known name, and {layer} takes the network's {features} "
                "features; if it is the linear layer that gives the classes, rename it to fc, else "
                f"{heads.WITHOUT}"
            )


def _takes(name: str, value: Tensor, inputs: int) -> bool:
    """Whether a tensor may be the weight of a layer with so many inputs, in either order."""
    leaf = name.rpartition(".")[2]
    if value.ndim != 2 or not value.is_floating_point():
        return False
    if leaf in ("kernel", "W") or leaf.startswith("queue"):
        return value.shape[0] == inputs
    return leaf.startswith("weight") and value.shape[1] == inputs
