"""Where in a state dict the network is, and what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architecture import Architecture
from models.bundle import BundleError
from models.interchange.imported import NORMALISATION, Said
from models.interchange.pytorch import heads, states, unsupported
from models.interchange.pytorch.checkpoint import Checkpoint
from models.interchange.pytorch.layout import Layout, Ours, find, printable, shown, to_ours
from models.preprocess import BY_COUNT, InputSpec, PerChannel

# Modules and buffers that only training reads, or that prepare images.
BESIDE = re.compile(
    r"(?:n_averaged|(?:\w*_)?(?:criterion|loss|loss_fn|losses)|queue\w*|mean|std|\w*_(?:mean|std)"
    r"|normali[sz]er?|normali[sz]ation|normalize_layer|data_preprocessor|preprocess\w*"
    r"|(?:\w*_)?(?:projector|projection\w*|predictor)|proj_head|prediction_head|prototypes"
    r"|temperature|logit_scale|(?:\w*_)?(?:class|pos|loss)_weights?"
    r"|\w*(?:metrics?|_acc|accuracy|auroc|_f1|confmat|confusion_matrix))(?:\.|$)"
)
MEAN = re.compile(r"((?:.*\.)?)((?:new_|image_|pixel_|_)?)mean")
MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Located:
    """A network in a checkpoint, before renaming.

    `tensors`: without the prefix of the file; those of a head beside the network begin with
        `head.`.
    `normalisation`: mean and deviation, on [0, 1], of a normalisation that the file contains.
    `left`: what is no part of it, nor of another network in the checkpoint, under its full name.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    path: Path
    notes: tuple[str, ...]
    normalisation: tuple[PerChannel, PerChannel] | None = None
    left: Mapping[str, Tensor] = field(default_factory=dict)

    def to_ours(self, said: Said, **numerics: Any) -> Ours:
        """See `layout.to_ours`; `numerics` are what the file says.

        Raises:
            BundleError: the network is not supported, or how its shortcuts pad is unknown.
        """
        ours = to_ours(self.layout, self.tensors, self.path, **numerics)
        try:
            self._refuse_left(ours.architecture, said)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from None
        known = {*self.layout.numerics, *numerics, *said.numerics}
        if ours.architecture.shortcut == "A" and "shortcut_padding" not in known:
            raise BundleError(
                f"{self.path}: option A, but its layout does not say on which side it pads; give "
                "--set shortcut_padding=both or --set shortcut_padding=end"
            )
        return ours._replace(notes=(*self.notes, *ours.notes))

    def _refuse_left(self, architecture: Architecture, said: Said) -> None:
        unsupported.refuse_segmentation(self.left, dilation_said="dilation" in said.numerics)
        if architecture.num_classes:
            unsupported.refuse(self.left)
            unsupported.refuse_behind_head(self.left, architecture.num_classes)
        elif said.numerics.get("num_classes") != 0:
            unnamed = {name: value for name, value in self.left.items() if not _is_beside(name)}
            unsupported.refuse_unnamed_head(unnamed, architecture.out_channels)

    def prepared(self, spec: InputSpec) -> tuple[InputSpec, frozenset[str]]:
        """`spec` with the normalisation that the file contains, and the fields that it said."""
        if self.normalisation is None:
            return spec, frozenset()
        mean, std = self.normalisation
        channels: Any = BY_COUNT[len(mean)] if len(mean) != len(spec.mean) else spec.channels
        return replace(spec, mean=mean, std=std, channels=channels), NORMALISATION


def locate(
    layouts: Sequence[Layout], checkpoint: Checkpoint, path: Path, said: Said, what: str
) -> Located:
    """The network of one of `layouts`, wherever in the checkpoint it is.

    `said.prefix` chooses one of several. The head may stand beside the network. `what` it should
    be is for the message if there is none.

    Raises:
        BundleError: there is none, or several; or several heads.
    """
    tensors = checkpoint.tensors
    prefixes = _prefixes(layouts, tensors)
    prefix, notes = _chosen(prefixes, tensors, path, said.prefix)
    inside = _under(prefix, prefixes, tensors) if prefix is not None else {}
    layout = find(layouts, inside)
    if prefix is None or layout is None:
        try:
            unsupported.refuse(tensors)
            unsupported.refuse_deep_stem(inside)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        raise BundleError(f"{path}: {what}; its first tensors: {shown(tensors)}")
    skipped = {name for name in inside if BESIDE.match(name)}
    # A backbone is wanted: whatever heads there are stay behind.
    headless = said.numerics.get("num_classes") == 0
    own_head = {name for name in inside if _is_head(name, layout)}
    beside = _beside(prefix, prefixes, tensors)
    if headless:
        skipped |= own_head
    elif own_head and beside:
        heads_of = f"{prefix}{_root(min(own_head))} and {_root(min(beside))}"
        raise BundleError(
            f"{path}: has two heads, {heads_of}, and does not say which one answers; delete the "
            f"other one's tensors, or {heads.WITHOUT}"
        )
    kept = {name: value for name, value in inside.items() if name not in skipped}
    if not headless and not own_head:
        kept |= {f"head.{name}": tensors[full] for full, name in beside.items()}
        if beside:
            _refuse_between(prefix, prefixes, beside, tensors, path)
    used = {prefix + name for name in inside if name not in skipped}
    used |= set() if headless or own_head else set(beside)
    normalisation, said_by = _normalisation(prefix, tensors.keys() - used, tensors)
    left = [name for name in tensors if name not in used and name not in said_by]
    others = tuple(other for other in prefixes if other != prefix)
    if normalisation:
        named = " and ".join(sorted(said_by))
        notes = (
            *notes,
            f"the file has a normalisation ({named}): mean and std are its, unless you or a config "
            "say others",
        )
    if left:
        notes = (*notes, f"left out, as no part of the network: {_grouped(left, prefix)}")
    return Located(
        layout=layout,
        tensors=kept,
        path=path,
        notes=(*checkpoint.notes, *notes),
        normalisation=normalisation,
        left={name: tensors[name] for name in left if not _within(name, others)},
    )


def _prefixes(layouts: Iterable[Layout], names: Iterable[str]) -> list[str]:
    """What precedes the first block of every network, the shortest first."""
    pattern = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(layout.body for layout in layouts)})")
    found = [name[: match.start()] for name in names for match in pattern.finditer(name)]
    return sorted(dict.fromkeys(found), key=len)


def _chosen(
    prefixes: list[str], tensors: Mapping[str, Tensor], path: Path, given: str | None
) -> tuple[str | None, tuple[str, ...]]:
    choices = prefixes
    if given is not None:
        given = states.TRANSPARENT.sub("", given)
        wanted = given if given.endswith(".") or not given else f"{given}."
        choices = [prefix for prefix in prefixes if prefix == wanted]
        choices = choices or [prefix for prefix in prefixes if wanted and prefix.startswith(wanted)]
        if not choices:
            known = ", ".join(map(_quoted, prefixes)) or "none"
            raise BundleError(
                f"{path}: no network is under the prefix {wanted}; prefixes of networks: {known}; "
                f"its first tensors: {shown(tensors)}"
            )
    distinct: dict[str, dict[str, Tensor]] = {}
    for prefix in choices:
        state = _under(prefix, prefixes, tensors)
        if not any(states.equal(state, other) for other in distinct.values()):
            distinct[prefix] = state
    choices = list(distinct)
    if len(choices) < 2:
        return (choices[0] if choices else None), ()
    averaged = [prefix for prefix in choices if states.AVERAGED.search(prefix)]
    # A head beside two networks may be of either.
    own = [any(map(heads.NAMES.match, state)) for state in distinct.values()]
    if (
        len(averaged) == 1
        and len(choices) == 2
        and (all(own) or not _beside(choices[0], prefixes, tensors))
    ):
        (raw,) = (prefix for prefix in choices if prefix not in averaged)
        return averaged[0], (
            f"took the averaged weights {averaged[0]}; --prefix {_quoted(raw)} takes the others",
        )
    names = ", ".join(map(_quoted, choices))
    raise BundleError(
        f"{path}: holds {len(choices)} networks, under the prefixes {names}; choose one with "
        f"--prefix {_quoted(choices[0])}"
    )


def _is_beside(name: str) -> bool:
    """Whether a module on the way to a tensor is one of those that stand beside networks."""
    parts = name.split(".")
    return any(BESIDE.match(".".join(parts[start:])) for start in range(len(parts)))


def _quoted(prefix: str) -> str:
    return prefix or '""'


def _under(
    prefix: str, prefixes: Iterable[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors under a prefix, without it, and without those of other networks."""
    others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and not (others and name.startswith(others))
    }


def _is_head(name: str, layout: Layout) -> bool:
    if heads.NAMES.match(name):
        return True
    # In a sequence of modules, what comes behind the four stages.
    number = name.partition(".")[0]
    return layout.body[0].isdigit() and number.isdigit() and int(number) > 7


def _parents(prefix: str) -> list[str]:
    """The prefixes of the modules around a network, the innermost first."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:count]) for count in reversed(range(len(parts)))]


def _beside(prefix: str, prefixes: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of a head beside the network, in the file and within the module that has both."""
    networks = tuple(prefixes)
    for parent in _parents(prefix):
        position = prefix.removeprefix(parent).partition(".")[0]
        found: dict[str, str] = {}
        for full in tensors:
            name = full.removeprefix(parent)
            if not full.startswith(parent) or _within(full, networks):
                continue
            number = name.partition(".")[0]
            follows = position.isdigit() and number.isdigit() and int(number) > int(position)
            if heads.NAMES.match(name) or follows:
                found[full] = name
        if found:
            return found
    return {}


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(prefix and name.startswith(prefix) for prefix in prefixes)


def _refuse_between(
    prefix: str,
    prefixes: Iterable[str],
    beside: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    path: Path,
) -> None:
    """Refuses modules beside the network that may stand between it and its head."""
    full, name = next(iter(beside.items()))
    parent = full.removesuffix(name)
    networks = tuple(prefixes)
    for other in tensors:
        rest = other.removeprefix(parent)
        # What a module on the way to the network holds: `a.x` for the network `a.b.`.
        for around in _parents(prefix):
            rest = min(rest, other.removeprefix(around), key=len)
        if (
            other.startswith(parent)
            and other not in beside
            and not _within(other, networks)
            and not BESIDE.match(rest)
        ):
            raise BundleError(
                f"{path}: its head {_root(full)} stands beside the network, and "
                f"{other} may stand between them; {heads.WITHOUT}"
            )


def _root(name: str) -> str:
    return name.rpartition(".")[0]


def _grouped(names: Iterable[str], prefix: str) -> str:
    """Names by the module that has them: `queue, criterion (2 tensors)`."""
    groups: dict[str, int] = {}
    for name in names:
        parts, shared = name.split("."), 0
        for part, other in zip(parts[:-1], prefix.split("."), strict=False):
            if part != other:
                break
            shared += 1
        group = printable(".".join(parts[: shared + 1]))
        groups[group] = groups.get(group, 0) + 1
    described = [
        f"{group} ({count} tensors)" if count > 1 else group for group, count in groups.items()
    ]
    more = [f"{len(described) - MOST_SHOWN} more"] if len(described) > MOST_SHOWN else []
    return ", ".join(described[:MOST_SHOWN] + more)


def _normalisation(
    prefix: str, unused: Iterable[str], tensors: Mapping[str, Tensor]
) -> tuple[tuple[PerChannel, PerChannel] | None, set[str]]:
    """Mean and deviation of the normalisation in a module around the network, and their names."""
    found: dict[tuple[PerChannel, PerChannel], set[str]] = {}
    around = (prefix, *_parents(prefix))
    for name in sorted(unused):
        match = MEAN.fullmatch(name)
        if match is None or not any(name.startswith(parent) for parent in around):
            continue
        other = f"{match[1]}{match[2]}std"
        values = _on_unit(tensors[name], tensors.get(other))
        if values:
            found.setdefault(values, set()).update((name, other))
    if len(found) != 1:
        return None, set()
    return next(iter(found.items()))


def _on_unit(mean: Tensor, std: Tensor | None) -> tuple[PerChannel, PerChannel] | None:
    """Values for pixels from 0 to 1, of those for pixels from 0 to 1 or to 255."""
    if std is None or mean.shape != std.shape or mean.numel() not in BY_COUNT:
        return None
    both = torch.stack([mean.flatten(), std.flatten()]).double()
    if not both.isfinite().all() or both[1].min() <= 0 or both.min() < 0:
        return None
    if both.max() > 1:
        if both[1].max() < 2 or both.max() > 255:
            return None
        both = both / 255
    values = [tuple(round(value, 7) for value in row) for row in both.tolist()]
    return values[0], values[1]
