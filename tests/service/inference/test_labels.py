"""Long lists of labels are shown on request only."""

from __future__ import annotations

from service.inference.labels import MOST_SHOWN, shown_labels


def test_up_to_a_thousand_labels_are_shown_unless_they_are_unwanted() -> None:
    most, more = ["x"] * MOST_SHOWN, ["x"] * (MOST_SHOWN + 1)
    assert MOST_SHOWN == 1000
    assert shown_labels(most, None) is most
    assert shown_labels(more, None) is None
    assert shown_labels(more, True) is more
    assert shown_labels(most, False) is None


def test_a_model_without_classes_has_an_empty_list() -> None:
    assert shown_labels([], None) == []
