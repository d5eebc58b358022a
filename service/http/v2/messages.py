"""What the protocol's clients send as JSON; fields and parameters that are unknown are ignored."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)

# Of an input or output list, and of a shape: more than any request has use for.
MOST_TENSORS = 16
MOST_DIMENSIONS = 8
LONGEST_MICROSECONDS = 3_600_000_000
QUOTED = 200  # characters of a caller's words that a refusal repeats

Dimension = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Lenient(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class InputParameters(Lenient):
    """`binary_data_size`: bytes of the tensor behind the JSON; None: it is in `data`."""

    binary_data_size: int | None = Field(None, ge=0)
    shared_memory_region: Any = None


class Input(Lenient):
    name: str = Field(max_length=QUOTED)
    datatype: str = Field(max_length=QUOTED)
    shape: list[Dimension] = Field(min_length=1, max_length=MOST_DIMENSIONS)
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(Lenient):
    """`classification`: how many classes to tell instead of the tensor; None: the tensor."""

    classification: int | None = Field(None, ge=1)
    binary_data: bool | None = None
    shared_memory_region: Any = None


class Output(Lenient):
    name: str = Field(max_length=QUOTED)
    parameters: OutputParameters = OutputParameters()


class Parameters(Lenient):
    """`timeout`: microseconds, 0 for the service's default; `priority`: 1 is the highest, 0 is the
    default."""

    timeout: int = Field(0, ge=0, le=LONGEST_MICROSECONDS)
    priority: int = Field(0, ge=0, le=2**63 - 1)
    binary_data_output: bool = False
    sequence_id: int | str = 0


class InferenceRequest(Lenient):
    id: str | None = None
    inputs: list[Input] = Field(max_length=MOST_TENSORS)
    outputs: list[Output] = Field([], max_length=MOST_TENSORS)
    parameters: Parameters = Parameters()


class RepositoryIndex(Lenient):
    ready: bool = False


class RepositoryChange(Lenient):
    parameters: dict[str, Any] = {}


def parse(kind: type[M], text: bytes) -> M:
    """A message of a kind.

    Raises:
        InvalidInput: it is not JSON, or a field cannot be.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = f"{place}: {first['msg']}" if place else str(first["msg"])
        raise InvalidInput(said[: 2 * QUOTED]) from None
