"""Collects the tensors of our network from the steps of a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.interchange.imported import float_tensor
from models.interchange.onnx.graph import Array, Step, misfit


@dataclass(frozen=True, slots=True)
class Unit:
    """A convolution, the norm that follows it, if any, and what subsamples behind its ReLU."""

    conv: Step
    norm: Step | None
    antialias: Step | None = None


class Layers:
    """Our network's tensors, layer by layer. A norm that was folded into a convolution becomes one
    that only adds the bias."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.tensors: dict[str, Tensor] = {}
        self.paddings: dict[str, set[str]] = {}
        self.biased: dict[str, list[str]] = {}

    def put(self, name: str, value: Array) -> None:
        self.tensors[name] = float_tensor(value)

    def norm(self, name: str, step: Step | None, bias: Array | None = None, width: int = 0) -> None:
        """A norm that absorbs `bias` of the layer before; without `step`, of `width` channels."""
        if step is None:
            ones, zeros = np.ones(width), np.zeros(width)
            values = {"weight": ones, "bias": zeros if bias is None else bias, "mean": zeros}
            var = ones - self.eps
        else:
            values = dict(step.settings)
            var = values["var"]
            if values["eps"] != self.eps:
                var = var.astype(np.float64) + (values["eps"] - self.eps)
            if bias is not None:
                values["mean"] = values["mean"].astype(np.float64) - bias
        self.put(f"{name}.weight", values["weight"])
        self.put(f"{name}.bias", values["bias"])
        self.put(f"{name}.running_mean", values["mean"])
        self.put(f"{name}.running_var", var)

    def convolution(self, name: str, role: str, step: Step, *, bias: bool) -> None:
        """`role`: the name in `Architecture.biases`; `bias`: no norm absorbs the bias."""
        self.put(f"{name}.weight", step.settings["weight"])
        if step.settings["weight"].shape[-1] > 1 and step.settings["stride"] > 1:
            where = "stem" if role == "stem" else "blocks"
            allowed = set(step.settings["paddings"])
            self.paddings[where] = self.paddings.get(where, allowed) & allowed
            if not self.paddings[where]:
                raise misfit(step.label, "is padded differently from the convolutions before it")
        if bias:
            self.biased.setdefault(role, []).append(name)
            if step.settings["bias"] is not None:
                self.put(f"{name}.bias", step.settings["bias"])

    def normed(self, conv: str, norm: str, role: str, unit: Unit) -> None:
        """A convolution and the norm that follows it."""
        self.convolution(conv, role, unit.conv, bias=False)
        width = len(unit.conv.settings["weight"])
        self.norm(norm, unit.norm, unit.conv.settings["bias"], width)

    def finish(self) -> dict[str, Tensor]:
        """All tensors; if one convolution of a role has a bias, all of that role get one."""
        for names in self.biased.values():
            if any(f"{name}.bias" in self.tensors for name in names):
                for name in names:
                    width = len(self.tensors[f"{name}.weight"])
                    self.tensors.setdefault(f"{name}.bias", torch.zeros(width))
        return self.tensors

    def padding(self, where: str) -> str:
        allowed = self.paddings.get(where, {"symmetric"})
        return "symmetric" if "symmetric" in allowed else "same"
