"""Which of a model's labels a description of it shows."""

from __future__ import annotations

from collections.abc import Sequence

MOST_SHOWN = 1000  # labels that are shown without being asked for


def shown_labels(labels: Sequence[str], wanted: bool | None) -> Sequence[str] | None:
    """The labels in class order, none of a model without classes; None: they are left out.

    `wanted` is what the client asked for; None: nothing, and a long list is left out.
    """
    if wanted is None:
        wanted = len(labels) <= MOST_SHOWN
    return labels if wanted else None
