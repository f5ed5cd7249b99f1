"""The promise to be checked, as a file: `loadtest/slo.toml`."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

DEFAULT_SLO: Final = Path(__file__).with_name("slo.toml")
Millis = Annotated[float, Field(gt=0, le=600_000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class SloRefused(ValueError):
    """A file that cannot be a promise; `violations` holds pairs of a field and what is wrong with it."""

    def __init__(self, *violations: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {what}" for field, what in violations))
        self.violations = violations


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Limits(_Table):
    """Beyond these the generator was the bottleneck."""

    lag_p50_ms: Millis = 2.0
    lag_p99_ms: Millis = 10.0
    busy: Share = 0.9
    sent: Share = 0.99


class Slo(_Table):
    """Bounds; None is not judged. What each means is told in `slo.toml`."""

    rate: Rate
    p50_ms: Millis | None = None
    p99_ms: Millis | None = None
    p999_ms: Millis | None = None
    errors: Share | None = None
    refused: Share | None = None
    degraded: Share | None = None
    thin: Share | None = None
    thin_shelves: Annotated[int, Field(ge=0, le=50)] = 2
    thin_items: Annotated[int, Field(ge=0, le=1000)] = 12
    goodput: Rate | None = None
    refused_p99_ms: Millis | None = None
    generator: Limits = Limits()


def load_slo(path: Path = DEFAULT_SLO) -> Slo:
    """Reads a promise.

    Raises:
        SloRefused: the file cannot be read, is no TOML, or a field is wrong, unknown or missing.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SloRefused((str(path), "cannot be read")) from error
    except tomllib.TOMLDecodeError as error:
        raise SloRefused((str(path), f"is no TOML: {error}")) from error
    return parse_slo(content)


def parse_slo(content: dict[str, Any]) -> Slo:
    """A promise from a file's content.

    Raises:
        SloRefused: a field is wrong, unknown or missing.
    """
    try:
        return Slo.model_validate(content)
    except ValidationError as error:
        told = ((".".join(map(str, one["loc"])), one["msg"].lower()) for one in error.errors())
        raise SloRefused(*told) from error
