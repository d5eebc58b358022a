from __future__ import annotations

import pytest

from models.suggestions import first_few, hint, nearest
from service.errors import UnknownModel

MANY = [f"model-{number}" for number in range(60)]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("opnvino", ["auto", "openvino"], "did you mean openvino?"),
        ("OPENVINO", ["auto", "openvino"], "did you mean openvino?"),
        ("Imagenet1k_v1", ["IMAGENET1K_V1"], "did you mean IMAGENET1K_V1?"),
        ("x", ["auto", "openvino"], "use one of auto, openvino"),
        ("", ["auto"], "use auto"),
    ],
)
def test_the_nearest_name_is_offered_else_all(name: str, known: list[str], said: str) -> None:
    assert hint(name, known) == said


def test_a_long_list_is_not_recited() -> None:
    assert hint("zzz", MANY, "`list` has them") == "`list` has them"
    assert hint("zzz", MANY[:3], "`list` has them") == "use one of model-0, model-1, model-2"
    assert nearest("model-1", MANY, 3)[0] == "model-1"
    assert "GET /v1/models" in str(UnknownModel.called("zzz", MANY))
    assert str(UnknownModel.called("modl-7", MANY)).endswith("did you mean model-7?")


def test_of_many_names_the_first_few_are_shown_and_the_rest_counted() -> None:
    assert first_few(MANY[:5]) == "model-0, model-1, model-2, model-3, model-4"
    assert first_few(MANY[:6]) == "model-0, model-1, model-2, model-3, model-4 and 1 more"
