"""The predictions in the guide for GPU hosts follow from the formula that it states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[1] / "docs/guides/gpu-host.md").read_text("utf-8")
ROWS = re.findall(
    r"^\| ([^|]+) \| (\d+\.\d) \| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) to ([\d,]+) \|$",
    GUIDE,
    re.MULTILINE,
)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def stated(pattern: str) -> float:
    (found,) = re.findall(pattern, " ".join(GUIDE.split()))
    return float(found)


def test_there_is_a_row_for_each_card() -> None:
    cards = [name.split()[0].removesuffix(",") for name, *_ in ROWS]
    assert cards == ["V100", "T4", "A10", "L4", "A100", "H100", "H200", "B200"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_follows_from_the_formula(row: tuple[str, ...]) -> None:
    _, capability, precision, bandwidth, tflops, least, most = row
    assert precision == ("bf16" if float(capability) >= 8 else "fp16")
    moved = stated(r"An image moves (\d+) MB") * 1e6
    computed = stated(r"takes ([\d.]+) GFLOP") * 1e9
    memory = moved / (stated(r"(\d+) % of the memory bandwidth") / 100 * number(bandwidth) * 1e9)
    arithmetic = computed / (stated(r"(\d+) % of the arithmetic") / 100 * number(tflops) * 1e12)
    assert number(least) == rounded(1 / (memory + arithmetic))
    best = stated(r"the upper is (\d+) % of") / 100
    assert number(most) == rounded(best / max(memory, arithmetic))
