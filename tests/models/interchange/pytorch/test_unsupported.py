"""What looks like a classifier and is none is refused by name; odd tensors are read or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.interchange.pytorch.pickles import SAVE
from tests.support import libraries
from tests.support.checkpoints import (
    LEFT,
    WITHOUT,
    changed,
    converted,
    network,
    notes,
    refusal,
    renamed,
    state,
    under,
)

KNOWN = dict(renamed(state(), fc="head.fc", other="backbone."))
BACKBONE = {name: value for name, value in under("net.").items() if ".fc." not in name}
LAYER = torch.ones(9, 7)


def with_value(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {**state(), name: change(state()[name])}


def first(value: torch.Tensor, number: float) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[0] = number
    return value


EQUAL: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "mmengine's EMA, which is the usual entry": (
        lambda: {
            "state_dict": KNOWN,
            "ema_state_dict": {
                "steps": torch.tensor(3),
                **{f"module.{name}": value + 1 for name, value in KNOWN.items()},
            },
        },
        [
            "took state_dict: mmengine saves the averaged weights (EMA) there, and the others as "
            "ema_state_dict; --key ema_state_dict takes those"
        ],
    ),
    "mmcv's EMA, which has the usual names": (
        lambda: {**KNOWN, **{f"ema_{k.replace('.', '_')}": v + 1 for k, v in KNOWN.items()}},
        [
            f"left out the {len(KNOWN)} buffers ema_*: a checkpoint that mmcv saves after an epoch "
            "has the averaged weights (EMA) under the usual names"
        ],
    ),
    "a tuple": (lambda: (state(), 93.1), []),
    "numbers as keys": (lambda: {0: state(), 1: "text"}, []),
    "weights of the loss": (
        lambda: {**state(), "class_weights": torch.ones(7), "confmat.confmat": torch.ones(7, 7)},
        [f"{LEFT}class_weights, confmat"],
    ),
    "a name on two lines": (
        lambda: {**under("net."), "a\nb\x1b.c": torch.ones(1)},
        [rf"{LEFT}a\nb\x1b"],
    ),
    "compiled layers": (
        lambda: {name.replace("layer2.", "layer2._orig_mod."): v for name, v in state().items()},
        [],
    ),
    "checkpointed layers": (
        lambda: {
            name.replace("layer1.0.", "layer1.0._checkpoint_wrapped_module."): value
            for name, value in state().items()
        },
        [],
    ),
    "sparse": (lambda: with_value("fc.weight", torch.Tensor.to_sparse), []),
    "counters of another type": (
        lambda: {k: v.float().view(1) if "tracked" in k else v for k, v in state().items()},
        [],
    ),
    "counters as numbers": (
        lambda: {k: 3 if "tracked" in k else v for k, v in state().items()},
        [],
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_what_is_a_network_is_read(tmp_path: Path, case: str) -> None:
    content, expected = EQUAL[case]
    made = converted(content(), tmp_path / "r.pth")
    assert libraries.difference(made.network(), network(), 64) == 0
    assert notes(made) == expected


FINITE = (
    "has values that are not finite (NaN, infinite, or too large for float32): its training "
    "diverged, or the file is damaged; convert an earlier one"
)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "MoCo's queue": (
        lambda: {**under("encoder_q."), "queue": torch.ones(7, 9)},
        "queue [7, 9] takes the 7 outputs of its head: they are an embedding, not classes, or else "
        f"delete that tensor; {WITHOUT}",
    ),
    "SimSiam's predictor": (
        lambda: {**under("encoder."), "predictor.0.weight": LAYER},
        "predictor.0.weight [9, 7] takes the 7 outputs of its head: they are an embedding, not "
        f"classes, or else delete that tensor; {WITHOUT}",
    ),
    "a metric loss": (
        lambda: {**under("net."), "loss.W": LAYER.T},
        "loss.W [7, 9] takes the 7 outputs of its head: they are an embedding, not classes, or "
        f"else delete that tensor; {WITHOUT}",
    ),
    "ArcFace beside": (
        lambda: {**BACKBONE, "arcface.weight": torch.ones(7, 512)},
        "has no head of a known name, and arcface takes the network's 512 features; if it is the "
        f"linear layer that gives the classes, rename it to fc, else {WITHOUT}",
    ),
    "normalised rows": (
        lambda: {
            **{name: value for name, value in state().items() if name != "fc.bias"},
            "fc.weight": torch.nn.functional.normalize(state()["fc.weight"]),
        },
        "its head's head has no bias and rows of length 1, as layers of cosines have (ArcFace, "
        f"CosFace), which no network here has; {WITHOUT}",
    ),
    "a scale of the logits": (
        lambda: {**under("net."), "logit_scale": torch.tensor(4.6)},
        "logit_scale scales the outputs of its head, as in one of cosines, which no network here "
        f"has; {WITHOUT}",
    ),
    "a norm of unknown place": (
        lambda: {
            **{f"{name}": value for name, value in state().items() if not name.startswith("fc.")},
            "fc.fc1.weight": torch.ones(8, 512),
            "fc.bn.running_mean": torch.ones(8),
            "fc.bn.running_var": torch.ones(8),
            "fc.fc2.weight": torch.ones(7, 8),
        },
        "its head's head.bn is before or behind an activation, and names without numbers do not "
        f"say which; name the layers by their places, as in fc.0, fc.1, fc.3, or {WITHOUT}",
    ),
    "LoRA": (
        lambda: {**state(), "fc.lora_A.default.weight": torch.ones(4, 512)},
        "has adapters of peft (LoRA) beside its weights; where the network is at hand, run "
        "model.merge_and_unload() and save its state_dict()",
    ),
    "FSDP": (
        lambda: {"_fsdp_wrapped_module._flat_param": torch.ones(9, 9, 1, 1)},
        "has weights that FSDP has flattened; save the whole ones, with "
        "FSDP.set_state_dict_type(model, StateDictType.FULL_STATE_DICT)",
    ),
    "QAT": (
        lambda: {**state(), "conv1.weight_fake_quant.scale": torch.ones(1)},
        "has the simulated quantisation of training (QAT); save the float network's state_dict()",
    ),
    "Detectron2": (
        lambda: {"res2.0.conv1.norm.weight": torch.ones(4), "stem.conv1.weight": LAYER},
        "has Detectron2's names, which do not say where it strides nor the order of its channels; "
        "rename its tensors as torchvision's, and give --set stride_at, --channels, --mean, --std",
    ),
    "CLIP": (
        lambda: {**under("visual."), "visual.attnpool.q_proj.weight": torch.ones(4, 4)},
        "has an attention pool (CLIP), which no network here has",
    ),
    "GeM": (
        lambda: {**state(), "avgpool.p": torch.ones(1)},
        "has a generalised mean as its pool (GeM), and the networks here only average",
    ),
    "a stem of mmpretrain's V1d": (
        lambda: {
            **{name: v for name, v in under("b.").items() if not name.startswith("b.conv1")},
            "b.stem.0.weight": torch.ones(4, 3, 3, 3),
        },
        "has a deep stem (ResNet-C, -D, -S or -T), which no network here has",
    ),
    "CBAM": (
        lambda: {**state(), "layer1.0.ca.fc.0.weight": torch.ones(4, 64, 1, 1)},
        "has attention within its blocks (SE, ECA, CBAM, non-local), which no network here has",
    ),
    "NaN": (
        lambda: with_value("fc.weight", lambda value: first(value, float("nan"))),
        f"head.weight {FINITE}",
    ),
    "too large": (
        lambda: with_value("conv1.weight", lambda value: first(value.double(), 1e300)),
        f"stem.conv.weight {FINITE}",
    ),
    "a negative variance": (
        lambda: with_value("bn1.running_var", torch.neg),
        "stem.norm.running_var has negative variances: the file is damaged",
    ),
    "whole numbers": (
        lambda: with_value("conv1.weight", torch.Tensor.char),
        "conv1.weight has values of type int8, which are no weights",
    ),
    "truth values": (
        lambda: with_value("fc.weight", torch.Tensor.bool),
        "fc.weight has values of type bool, which are no weights",
    ),
    "complex": (
        lambda: with_value("bn1.running_mean", lambda value: value.to(torch.complex64)),
        "bn1.running_mean has values of type complex64, which are no weights",
    ),
    "meta": (
        lambda: with_value("conv1.weight", lambda value: value.to("meta")),
        "conv1.weight is a meta tensor, which has no values; save loaded weights",
    ),
    "an empty head": (
        lambda: {**state(), "fc.weight": torch.ones(0, 512)},
        "its head's head is empty: a weight of [0, 512]",
    ),
    "folds": (
        lambda: [state(), changed()],
        "holds several state dicts: 0, 1; choose one with --key, as in --key 1",
    ),
    "NumPy's arrays": (
        lambda: {name: value.numpy() for name, value in list(state().items())[:2]},
        "holds no state dict; its entries are 'conv1.weight', 'bn1.weight', and none holds "
        f"tensors; save the weights: {SAVE}",
    ),
    "a head beside two networks": (
        lambda: (
            {**KNOWN, **{f"ema_{name}": v for name, v in KNOWN.items() if "head" not in name}}
            | {"ema_backbone.bn1.bias": torch.ones(64)}
        ),
        "holds 2 networks, under the prefixes backbone., ema_backbone.; choose one with --prefix "
        "backbone.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_classifier_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, expected = REFUSED[case]
    assert refusal(content(), tmp_path / "r.pth") == expected


def test_a_backbone_of_segmentation_is_asked_whether_it_dilates(tmp_path: Path) -> None:
    tensors = {**BACKBONE, "classifier.0.weight": torch.ones(5, 512, 3, 3)}
    path = tmp_path / "r.pth"
    headless = {"num_classes": 0}
    assert refusal(tensors, path, numerics=headless) == (
        "classifier.0.weight is of a network for segmentation, whose backbone may dilate, and the "
        "file does not say; to take the backbone give --set num_classes=0 and --set "
        "dilation=[2,3], [3] or []"
    )
    made = converted(tensors, path, numerics={**headless, "dilation": [2, 3]})
    assert made.architecture.dilation == (2, 3)


def test_norms_without_scale_and_shift_are_read(tmp_path: Path) -> None:
    tensors = {k: v for k, v in state().items() if k not in ("bn1.weight", "bn1.bias")}
    expected = {**state(), "bn1.weight": torch.ones(64), "bn1.bias": torch.zeros(64)}
    made, plain = (converted(each, tmp_path / "r.pth").tensors for each in (tensors, expected))
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    from models import bundle

    tensors = state()
    tensors["bn1.running_var"] = tensors["bn1.bias"] = torch.ones(64)
    made = converted(tensors, tmp_path / "r.pth")
    bundle.write(made, tmp_path / "r.safetensors")
    assert bundle.read(tmp_path / "r.safetensors").tensors.keys() == made.tensors.keys()


def test_a_checkpoint_of_torch_may_have_any_suffix(tmp_path: Path) -> None:
    made = converted(state(), tmp_path / "r.safetensors")
    assert libraries.difference(made.network(), network(), 64) == 0
