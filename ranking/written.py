"""What people write of live configuration: strict, and every mistake with the path of its field."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from features.errors import BookRefused
from features.markets import ISO_3166

MOST_TOLD: Final = 8  # mistakes of a book that a refusal names
Violation = tuple[str, str]  # the path of a field, and what is wrong with it


def _market(value: str) -> str:
    if value not in ISO_3166:
        raise ValueError("must be an ISO 3166-1 alpha-2 code in upper case, such as GB")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Market = Annotated[str, AfterValidator(_market)]
Segment = Annotated[int, Field(ge=0, le=31)]
Locale = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}$")]


class Written(BaseModel):
    """What is read from outside: nothing is converted, nothing unknown passes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def violations(error: ValidationError) -> list[Violation]:
    """What pydantic found, each with its path, such as experiments[2].arms[1].params.mmr_lambda."""
    found = [(path_of(one["loc"]) or "spec", one["type"], one["msg"]) for one in error.errors()]
    return [
        (path, what.removeprefix("Value error, "))
        for path, kind, what in found
        if kind != "too_short" or not any(other.startswith(f"{path}[") for other, _, _ in found)
    ]  # a list counts as too short where an entry of it is wrong


def path_of(place: Sequence[str | int]) -> str:
    """The path of a field."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place if step != "[key]")
    return "".join(steps).lstrip(".")


def refused(wrong: Iterable[Violation]) -> BookRefused:
    """The refusal of a book for its mistakes, of which it names the first."""
    told = list(wrong)
    shown = "; ".join(f"{path}: {what}" if path else what for path, what in told[:MOST_TOLD])
    return BookRefused(shown if len(told) <= MOST_TOLD else f"{shown}; and {len(told) - MOST_TOLD} more")
