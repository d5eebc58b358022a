"""A model's description in the metrics."""

from __future__ import annotations

import time

from service.metrics import Metrics


class ModelInfo:
    """A model's series of `model_info`, `load_seconds` and, on GPUs, of `gpu_graphs`: one of each
    per device, which exist while it is shown.

    `began`: when it began to be opened, by `time.perf_counter`.
    """

    def __init__(
        self, metrics: Metrics, name: str, architecture: str, sha256: str, began: float
    ) -> None:
        self._metrics = metrics
        self._began = began
        self._seconds: dict[str, float] = {}
        self._name, self._architecture, self._sha256 = name, architecture, sha256
        self._series: dict[str, tuple[str, ...]] = {}
        self._graphs: dict[str, int] = {}
        self._shown = False

    def announce(self, device: str, precision: str, engine: str, graphs: int) -> None:
        """Records what serves on a device from now on; called from engine threads."""
        previous = self._series.get(device)
        labels = (self._name, self._architecture, device, precision, engine, self._sha256)
        if device != "cpu":
            self._graphs[device] = graphs
        self._seconds.setdefault(device, time.perf_counter() - self._began)
        self._series[device] = labels
        if self._shown:
            if previous is not None and previous != labels:
                self._metrics.drop(self._metrics.model_info, *previous)
            self._set(device)

    def show(self) -> None:
        self._shown = True
        for device in [*self._series]:
            self._set(device)

    def hide(self) -> None:
        self._shown = False
        for device, labels in self._series.items():
            self._metrics.drop(self._metrics.model_info, *labels)
            self._metrics.drop(self._metrics.load_seconds, self._name, device)
        for device in self._graphs:
            self._metrics.drop(self._metrics.gpu_graphs, self._name, device)

    def _set(self, device: str) -> None:
        self._metrics.model_info.labels(*self._series[device]).set(1)
        self._metrics.load_seconds.labels(self._name, device).set(self._seconds[device])
        if device in self._graphs:
            self._metrics.gpu_graphs.labels(self._name, device).set(self._graphs[device])
