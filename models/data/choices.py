"""The values of what a recipe and an augmentation both have, without torch."""

from __future__ import annotations

from typing import Literal

CropKind = Literal["padded", "resized", "scaled"]
PaddingMode = Literal["zeros", "reflect"]
AutoAugment = Literal["none", "rand", "trivial"]
LastBatch = Literal["drop", "keep"]
Balance = Literal["none", "loss", "sampling"]
