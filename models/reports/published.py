"""Top-1 errors that the papers and torch-resnet published, to stand beside one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DataSet = Literal["CIFAR-10", "CIFAR-100", "ImageNet"]

HE_2015 = "He 2015, table 6; depth 110: mean of 5 runs, the best has 6.43"
HE_2016 = "He 2016, tables 2, 3 and 4"
HE_2016_BATCH_64 = "He 2016's authors' own code, batches of 64"
HE_2016_320 = "He 2016, table 5: single crop of 320 x 320 pixels"
HE_2016_ASPECT = f"{HE_2016_320}, trained with scale and aspect ratio augmentation"
HE_CAFFE = "He 2015's authors' published weights, single crop"
FB_TORCH = "fb.resnet.torch's published weights, single crop"
WRN_4 = "Zagoruyko 2016, table 4: whitened images"
WRN_5 = "Zagoruyko 2016, table 5: mean and deviation normalised, no dropout"
WRN_6 = "Zagoruyko 2016, table 6: mean and deviation normalised"
WRN_7 = "Zagoruyko 2016, table 7: single crop"
WRN_8 = "Zagoruyko 2016, table 8: single crop"
WRN_9 = "Zagoruyko 2016, table 9"
TR_LAST = (
    "torch-resnet's README: mixed precision, last epoch, before it corrected its initialisation"
)
TR_SHORTCUTS = "torch-resnet's README, on shortcuts: the epoch best on the test images"
TR_INIT = "torch-resnet's README, on initialisation: the epoch best on the test images"
TR_ZERO_INIT = f"{TR_INIT}, residual branches begin at zero"


@dataclass(frozen=True, slots=True)
class Published:
    """`error`: per cent of the test images of `data`, a mean where there is a `deviation`.

    `shortcut`, `dropout`: as in `Architecture`.
    """

    variant: str
    shortcut: str
    data: DataSet
    error: float
    deviation: float | None
    source: str
    dropout: float = 0.0

    @property
    def by_torch_resnet(self) -> bool:
        return self.source.startswith("torch-resnet")


# Failed trainings are not listed, nor what was measured with ten crops.
PUBLISHED = (
    Published("resnet20", "A", "CIFAR-10", 8.75, None, HE_2015),
    Published("resnet32", "A", "CIFAR-10", 7.51, None, HE_2015),
    Published("resnet44", "A", "CIFAR-10", 7.17, None, HE_2015),
    Published("resnet56", "A", "CIFAR-10", 6.97, None, HE_2015),
    Published("resnet110", "A", "CIFAR-10", 6.61, 0.16, HE_2015),
    Published("resnet1202", "A", "CIFAR-10", 7.93, None, HE_2015),
    Published("preact_resnet110", "A", "CIFAR-10", 6.37, None, HE_2016),
    Published("resnet164", "B", "CIFAR-10", 5.93, None, HE_2016),
    Published("resnet164", "B", "CIFAR-100", 25.16, None, HE_2016),
    Published("resnet1001", "B", "CIFAR-10", 7.61, None, HE_2016),
    Published("resnet1001", "B", "CIFAR-100", 27.82, None, HE_2016),
    Published("preact_resnet164", "B", "CIFAR-10", 5.46, None, HE_2016),
    Published("preact_resnet164", "B", "CIFAR-100", 24.33, None, HE_2016),
    Published("preact_resnet1001", "B", "CIFAR-10", 4.89, 0.14, HE_2016),
    Published("preact_resnet1001", "B", "CIFAR-100", 22.68, 0.22, HE_2016),
    Published("preact_resnet1001", "B", "CIFAR-10", 4.62, None, HE_2016_BATCH_64),
    Published("preact_wide_resnet40_1", "B", "CIFAR-10", 6.85, None, WRN_4),
    Published("preact_wide_resnet40_1", "B", "CIFAR-100", 30.89, None, WRN_4),
    Published("preact_wide_resnet40_2", "B", "CIFAR-10", 5.33, None, WRN_4),
    Published("preact_wide_resnet40_2", "B", "CIFAR-100", 26.04, None, WRN_4),
    Published("preact_wide_resnet40_4", "B", "CIFAR-10", 4.97, None, WRN_4),
    Published("preact_wide_resnet40_4", "B", "CIFAR-100", 22.89, None, WRN_4),
    Published("preact_wide_resnet40_8", "B", "CIFAR-10", 4.66, None, WRN_4),
    Published("preact_wide_resnet28_10", "B", "CIFAR-10", 4.17, None, WRN_4),
    Published("preact_wide_resnet28_10", "B", "CIFAR-100", 20.5, None, WRN_4),
    Published("preact_wide_resnet28_12", "B", "CIFAR-10", 4.33, None, WRN_4),
    Published("preact_wide_resnet28_12", "B", "CIFAR-100", 20.43, None, WRN_4),
    Published("preact_wide_resnet22_8", "B", "CIFAR-10", 4.38, None, WRN_4),
    Published("preact_wide_resnet22_8", "B", "CIFAR-100", 21.22, None, WRN_4),
    Published("preact_wide_resnet22_10", "B", "CIFAR-10", 4.44, None, WRN_4),
    Published("preact_wide_resnet22_10", "B", "CIFAR-100", 20.75, None, WRN_4),
    Published("preact_wide_resnet16_8", "B", "CIFAR-10", 4.81, None, WRN_4),
    Published("preact_wide_resnet16_8", "B", "CIFAR-100", 22.07, None, WRN_4),
    Published("preact_wide_resnet16_10", "B", "CIFAR-10", 4.56, None, WRN_4),
    Published("preact_wide_resnet16_10", "B", "CIFAR-100", 21.59, None, WRN_4),
    Published("preact_wide_resnet40_4", "B", "CIFAR-10", 4.53, None, WRN_5),
    Published("preact_wide_resnet40_4", "B", "CIFAR-100", 21.18, None, WRN_5),
    Published("preact_wide_resnet16_8", "B", "CIFAR-10", 4.27, None, WRN_5),
    Published("preact_wide_resnet16_8", "B", "CIFAR-100", 20.43, None, WRN_5),
    Published("preact_wide_resnet28_10", "B", "CIFAR-10", 4.0, None, WRN_5),
    Published("preact_wide_resnet28_10", "B", "CIFAR-100", 19.25, None, WRN_5),
    Published("preact_wide_resnet16_4", "B", "CIFAR-10", 5.02, None, WRN_6),
    Published("preact_wide_resnet16_4", "B", "CIFAR-100", 24.03, None, WRN_6),
    Published("preact_wide_resnet16_4", "B", "CIFAR-10", 5.24, None, WRN_6, dropout=0.3),
    Published("preact_wide_resnet16_4", "B", "CIFAR-100", 23.91, None, WRN_6, dropout=0.3),
    Published("preact_wide_resnet28_10", "B", "CIFAR-10", 3.89, None, WRN_6, dropout=0.3),
    Published("preact_wide_resnet28_10", "B", "CIFAR-100", 18.85, None, WRN_6, dropout=0.3),
    Published("preact_wide_resnet40_10", "B", "CIFAR-10", 3.8, None, WRN_9, dropout=0.3),
    Published("preact_wide_resnet40_10", "B", "CIFAR-100", 18.3, None, WRN_9, dropout=0.3),
    Published("resnet50", "B", "ImageNet", 24.7, None, HE_CAFFE),
    Published("resnet101", "B", "ImageNet", 23.6, None, HE_CAFFE),
    Published("resnet152", "B", "ImageNet", 23.0, None, HE_CAFFE),
    Published("resnet18", "B", "ImageNet", 30.43, None, FB_TORCH),
    Published("resnet34", "B", "ImageNet", 26.73, None, FB_TORCH),
    Published("resnet50", "B", "ImageNet", 24.01, None, FB_TORCH),
    Published("resnet101", "B", "ImageNet", 22.44, None, FB_TORCH),
    Published("resnet152", "B", "ImageNet", 22.16, None, FB_TORCH),
    Published("resnet152", "B", "ImageNet", 21.3, None, HE_2016_320),
    Published("resnet200", "B", "ImageNet", 21.8, None, HE_2016_320),
    Published("preact_resnet152", "B", "ImageNet", 21.1, None, HE_2016_320),
    Published("preact_resnet200", "B", "ImageNet", 20.7, None, HE_2016_320),
    Published("preact_resnet200", "B", "ImageNet", 20.1, None, HE_2016_ASPECT),
    Published("resnet18", "B", "ImageNet", 30.4, None, WRN_7),
    Published("resnet34", "B", "ImageNet", 26.77, None, WRN_7),
    Published("wide_resnet50_2", "B", "ImageNet", 21.9, None, WRN_8),
    Published("resnet20", "B", "CIFAR-10", 8.64, 0.16, TR_LAST),
    Published("resnet20", "B", "CIFAR-100", 33.23, 0.32, TR_LAST),
    Published("resnet32", "B", "CIFAR-10", 7.64, 0.23, TR_LAST),
    Published("resnet32", "B", "CIFAR-100", 31.64, 0.54, TR_LAST),
    Published("resnet44", "B", "CIFAR-10", 7.47, 0.19, TR_LAST),
    Published("resnet44", "B", "CIFAR-100", 30.88, 0.22, TR_LAST),
    Published("resnet56", "B", "CIFAR-10", 7.04, 0.26, TR_LAST),
    Published("resnet56", "B", "CIFAR-100", 30.15, 0.29, TR_LAST),
    Published("resnet110", "B", "CIFAR-10", 6.6, 0.09, TR_LAST),
    Published("resnet110", "B", "CIFAR-100", 28.99, 0.22, TR_LAST),
    Published("resnet164", "B", "CIFAR-10", 5.97, 0.2, TR_LAST),
    Published("resnet164", "B", "CIFAR-100", 25.79, 0.51, TR_LAST),
    Published("resnet1001", "B", "CIFAR-10", 7.95, None, TR_LAST),
    Published("resnet1001", "B", "CIFAR-100", 29.94, None, TR_LAST),
    Published("resnet1202", "B", "CIFAR-10", 7.9, None, TR_LAST),
    Published("resnet1202", "B", "CIFAR-100", 33.2, None, TR_LAST),
    Published("preact_resnet20", "B", "CIFAR-10", 8.61, 0.23, TR_LAST),
    Published("preact_resnet20", "B", "CIFAR-100", 33.4, 0.3, TR_LAST),
    Published("preact_resnet32", "B", "CIFAR-10", 7.76, 0.1, TR_LAST),
    Published("preact_resnet32", "B", "CIFAR-100", 32.02, 0.27, TR_LAST),
    Published("preact_resnet44", "B", "CIFAR-10", 7.63, 0.1, TR_LAST),
    Published("preact_resnet44", "B", "CIFAR-100", 30.78, 0.17, TR_LAST),
    Published("preact_resnet56", "B", "CIFAR-10", 7.42, 0.13, TR_LAST),
    Published("preact_resnet56", "B", "CIFAR-100", 30.18, 0.39, TR_LAST),
    Published("preact_resnet110", "B", "CIFAR-10", 6.79, 0.12, TR_LAST),
    Published("preact_resnet110", "B", "CIFAR-100", 28.45, 0.25, TR_LAST),
    Published("preact_resnet164", "B", "CIFAR-10", 5.61, 0.16, TR_LAST),
    Published("preact_resnet164", "B", "CIFAR-100", 25.23, 0.21, TR_LAST),
    Published("preact_resnet1001", "B", "CIFAR-10", 4.92, None, TR_LAST),
    Published("preact_resnet1001", "B", "CIFAR-100", 23.18, None, TR_LAST),
    Published("preact_resnet1202", "B", "CIFAR-10", 6.66, None, TR_LAST),
    Published("preact_resnet1202", "B", "CIFAR-100", 27.65, None, TR_LAST),
    Published("resnet18_small", "B", "CIFAR-10", 5.88, 0.15, TR_LAST),
    Published("resnet18_small", "B", "CIFAR-100", 26.74, 0.42, TR_LAST),
    Published("resnet34_small", "B", "CIFAR-10", 5.5, 0.17, TR_LAST),
    Published("resnet34_small", "B", "CIFAR-100", 25.34, 0.29, TR_LAST),
    Published("resnet50_small", "B", "CIFAR-10", 5.86, 0.3, TR_LAST),
    Published("resnet50_small", "B", "CIFAR-100", 25.2, 0.89, TR_LAST),
    Published("resnet101_small", "B", "CIFAR-10", 5.45, 0.14, TR_LAST),
    Published("resnet101_small", "B", "CIFAR-100", 23.93, 0.56, TR_LAST),
    Published("preact_resnet18_small", "B", "CIFAR-10", 5.65, 0.12, TR_LAST),
    Published("preact_resnet18_small", "B", "CIFAR-100", 25.46, 0.34, TR_LAST),
    Published("preact_resnet34_small", "B", "CIFAR-10", 5.29, 0.17, TR_LAST),
    Published("preact_resnet34_small", "B", "CIFAR-100", 24.75, 0.31, TR_LAST),
    Published("preact_resnet50_small", "B", "CIFAR-10", 5.83, 0.47, TR_LAST),
    Published("preact_resnet50_small", "B", "CIFAR-100", 23.97, 0.36, TR_LAST),
    Published("preact_resnet101_small", "B", "CIFAR-10", 5.18, 0.11, TR_LAST),
    Published("preact_resnet101_small", "B", "CIFAR-100", 23.69, 0.41, TR_LAST),
    Published("resnet20", "B", "CIFAR-10", 8.6, 0.18, TR_SHORTCUTS),
    Published("resnet20", "A", "CIFAR-10", 8.65, 0.08, TR_SHORTCUTS),
    Published("resnet20", "C", "CIFAR-10", 8.22, 0.14, TR_SHORTCUTS),
    Published("resnet20", "conv", "CIFAR-10", 8.41, 0.19, TR_SHORTCUTS),
    Published("preact_resnet164", "A", "CIFAR-10", 5.52, 0.14, TR_SHORTCUTS),
    Published("preact_resnet164", "A", "CIFAR-100", 24.71, 0.12, TR_SHORTCUTS),
    Published("preact_resnet164", "conv", "CIFAR-10", 5.55, 0.18, TR_SHORTCUTS),
    Published("preact_resnet164", "conv", "CIFAR-100", 23.86, 0.16, TR_SHORTCUTS),
    Published("resnet110", "B", "CIFAR-10", 6.61, 0.13, TR_INIT),
    Published("resnet110", "B", "CIFAR-100", 28.16, 0.23, TR_INIT),
    Published("resnet110", "B", "CIFAR-10", 6.46, 0.17, TR_ZERO_INIT),
    Published("resnet110", "B", "CIFAR-100", 28.01, 0.26, TR_ZERO_INIT),
    Published("resnet164", "B", "CIFAR-10", 5.94, 0.18, TR_INIT),
    Published("resnet164", "B", "CIFAR-100", 25.51, 0.16, TR_INIT),
    Published("resnet164", "B", "CIFAR-10", 5.58, 0.12, TR_ZERO_INIT),
    Published("resnet164", "B", "CIFAR-100", 24.96, 0.15, TR_ZERO_INIT),
    Published("resnet164", "A", "CIFAR-10", 6.08, 0.12, TR_INIT),
    Published("resnet164", "A", "CIFAR-100", 25.86, 0.28, TR_INIT),
    Published("resnet164", "A", "CIFAR-10", 7.51, 0.07, TR_ZERO_INIT),
    Published("resnet164", "A", "CIFAR-100", 33.51, 0.32, TR_ZERO_INIT),
    Published("preact_resnet110", "B", "CIFAR-10", 6.56, 0.2, TR_INIT),
    Published("preact_resnet110", "B", "CIFAR-100", 28.19, 0.12, TR_INIT),
    Published("preact_resnet110", "B", "CIFAR-10", 6.58, 0.17, TR_ZERO_INIT),
    Published("preact_resnet110", "B", "CIFAR-100", 27.91, 0.24, TR_ZERO_INIT),
    Published("preact_resnet164", "B", "CIFAR-10", 5.6, 0.19, TR_INIT),
    Published("preact_resnet164", "B", "CIFAR-100", 24.81, 0.28, TR_INIT),
    Published("preact_resnet164", "B", "CIFAR-10", 5.39, 0.12, TR_ZERO_INIT),
    Published("preact_resnet164", "B", "CIFAR-100", 24.42, 0.18, TR_ZERO_INIT),
    Published("preact_resnet164", "A", "CIFAR-10", 5.62, 0.12, TR_INIT),
    Published("preact_resnet164", "A", "CIFAR-100", 24.42, 0.2, TR_INIT),
    Published("preact_resnet164", "A", "CIFAR-10", 7.32, 0.08, TR_ZERO_INIT),
    Published("preact_resnet164", "A", "CIFAR-100", 33.67, 0.25, TR_ZERO_INIT),
    Published("preact_resnet1001", "B", "CIFAR-100", 23.3, 0.31, TR_INIT),
    Published("preact_resnet1001", "B", "CIFAR-100", 22.03, 0.22, TR_ZERO_INIT),
    Published("preact_resnet1001", "A", "CIFAR-100", 21.64, 0.31, TR_INIT),
)


def find(
    variant: str, shortcut: str, data: str, dropout: float, *, by_torch_resnet: bool
) -> list[Published]:
    """The rows of this network and data set; with other shortcuts only if none has this one."""
    rows = [
        row
        for row in PUBLISHED
        if (row.variant, row.data, row.dropout) == (variant, data, dropout)
        and row.by_torch_resnet == by_torch_resnet
    ]
    return [row for row in rows if row.shortcut == shortcut] or rows
