"""Which of a checkpoint's entries are the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from models.interchange.pytorch.pickles import Refused

State = Mapping[str, Any]
# Averages over training steps, which are what people evaluate and publish.
AVERAGED = re.compile(r"(?:^|[._-])(?:ema|swa|averag\w*|polyak)(?:$|[._-])|EMA")
# Entries that hold tensors in the shapes of weights, and are none.
TRAINING = re.compile(r"opt(?:im(?:i[sz]ers?)?)?(?:_states?|_state_dict)?|.*optimi[sz]er.*|scaler")
MOST_LEVELS = 5


def choose(content: Any, key: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in what a file holds, and what the user should know of the choice.

    `key`: the entry that the user names; dots separate those of nested dictionaries.

    Raises:
        Refused: there is none, or several; the message lists them.
    """
    states = dict(_states(content, _has_weights)) or dict(_states(content, _has_tensors))
    if key is not None:
        states = _under(key, states)
    if not states:
        entries = ", ".join(map(repr, content)) if isinstance(content, dict) else ""
        raise Refused("holds no state dict" + (f"; its entries are {entries}" if entries else ""))
    name, notes = _preferred(_distinct(states))
    return _tensors(states[name]), notes


def _states(
    content: Any, test: Callable[[State], bool], at: str = "", level: int = 0
) -> Iterator[tuple[str, State]]:
    """Every state dict in nested dictionaries, with the path to it."""
    if not isinstance(content, dict) or level > MOST_LEVELS:
        return
    if test(content):
        yield at, content
        return
    for name, value in content.items():
        if isinstance(name, str) and not TRAINING.fullmatch(name):
            yield from _states(value, test, f"{at}.{name}" if at else name, level + 1)


def _has_weights(content: State) -> bool:
    return any(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and (value.ndim == 4 or (value.ndim > 1 and name.endswith("weight")))
        for name, value in content.items()
    )


def _has_tensors(content: State) -> bool:
    return any(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items())


def _under(key: str, states: dict[str, State]) -> dict[str, State]:
    found = {name: state for name, state in states.items() if f"{name}.".startswith(f"{key}.")}
    if not found:
        names = (
            ", ".join(name for name in states if name) or "none; the file itself is a state dict"
        )
        raise Refused(f"no entry {key!r} holds tensors; entries that do: {names}")
    return found


def _distinct(states: Mapping[str, State]) -> dict[str, State]:
    distinct: dict[str, State] = {}
    for name, state in states.items():
        if not any(equal(state, other) for other in distinct.values()):
            distinct[name] = state
    return distinct


def equal(state: State, other: State) -> bool:
    """Whether two state dicts have equal names and tensors."""
    return state.keys() == other.keys() and all(
        torch.equal(value, other[name])
        if isinstance(value, Tensor) and isinstance(other[name], Tensor)
        else value is other[name]
        for name, value in state.items()
    )


def _preferred(states: Mapping[str, State]) -> tuple[str, tuple[str, ...]]:
    names = list(states)
    if len(names) == 1:
        return names[0], ()
    averaged = [name for name in names if AVERAGED.search(name)]
    raw = [name for name in names if name not in averaged]
    if len(averaged) != 1 or len(raw) != 1:
        raise Refused(
            f"holds several state dicts: {', '.join(names)}; choose one with --key, as in "
            f"--key {names[-1]}"
        )
    if _has_statistics(states[raw[0]]) and not _has_statistics(states[averaged[0]]):
        return raw[0], (
            f"took {raw[0]}: the averaged weights {averaged[0]} lack the statistics of the norms",
        )
    return averaged[0], (
        f"took the averaged weights {averaged[0]}; --key {raw[0]} takes the others",
    )


def _has_statistics(state: State) -> bool:
    return any(name.endswith("running_mean") for name in state)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if "_packed_params" in str(name) or (isinstance(value, Tensor) and value.is_quantized):
            raise Refused(
                "has quantised weights, which no network here has; convert the float network "
                "that was quantised"
            )
        if value is None or str(name).endswith("_extra_state"):
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"holds {name!r}, which is not a tensor")
        tensors[name] = (value.float() if value.is_floating_point() else value).detach()
    return tensors
