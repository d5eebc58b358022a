"""Random values that no other thread can change."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from models.draws import DrawsFrom


def weights() -> list[Tensor]:
    layers = nn.Conv2d(3, 4, 3), nn.Linear(5, 2)
    nn.init.kaiming_normal_(layers[0].weight)
    return [value.detach() for layer in layers for value in layer.parameters()]


def in_thread(drawn: list[Tensor]) -> None:
    thread = threading.Thread(target=lambda: drawn.append(torch.empty(3).normal_()))
    thread.start()
    thread.join()


def test_other_threads_and_this_one_afterwards_draw_what_they_would_have() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = [*weights(), *weights()]
        torch.manual_seed(1)
        others = [torch.empty(3).normal_(), torch.empty(3).normal_()]
        torch.manual_seed(1)
        drawn: list[Tensor] = []
        with DrawsFrom(torch.Generator().manual_seed(0)):
            found = weights()
            in_thread(drawn)
            found += weights()
        drawn.append(torch.empty(3).normal_())
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, drawn, others))
