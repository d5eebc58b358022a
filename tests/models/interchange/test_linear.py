from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.interchange.linear import Affine, head_tensors, normalisation

RANDOM = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


DENSE, WIDE = Affine(drawn(5, 3), drawn(5)), Affine(drawn(3, 5), drawn(3))
SCALE, OTHER = Affine(drawn(5), drawn(5)), Affine(drawn(5), drawn(5))


def applied(function: Affine, x: np.ndarray) -> np.ndarray:
    product = function.weight * x if function.is_scale else function.weight @ x
    return np.asarray(product + function.bias)


@pytest.mark.parametrize(
    ("first", "second"),
    [(DENSE, WIDE), (DENSE, SCALE), (SCALE, WIDE), (SCALE, OTHER)],
    ids=["matrices", "matrix, scale", "scale, matrix", "scales"],
)
def test_a_composition_computes_one_function_after_the_other(first: Affine, second: Affine) -> None:
    x, both = drawn(first.inputs), first.then(second)
    np.testing.assert_allclose(applied(both, x), applied(second, applied(first, x)), rtol=1e-5)
    assert (both.inputs, both.outputs) == (first.inputs, second.outputs)


def test_a_normalisation_is_that_of_torch_and_a_head_may_consist_of_it() -> None:
    norm = nn.BatchNorm1d(4, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2)
    state = {name: tensor.detach().numpy() for name, tensor in norm.state_dict().items()}
    found = normalisation(
        state["running_mean"], state["running_var"], norm.eps, state["weight"], state["bias"]
    )
    x = torch.randn(2, 4)
    tensors = head_tensors([found])
    torch.testing.assert_close(nn.functional.linear(x, *tensors.values()), norm(x))


def test_layers_are_named_as_in_a_network() -> None:
    assert list(head_tensors([DENSE])) == ["head.weight", "head.bias"]
    names = ["head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]
    assert list(head_tensors([DENSE, WIDE])) == names
    assert head_tensors([]) == {}
