"""What an experimenter writes: layers, holdouts, experiments. Each field is checked here, their sum in `rules.py`."""

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, ValidationError

from features.errors import InvalidInput
from features.markets import ISO_3166
from ranking.params import Value

BUCKETS: Final = 1_000_000  # of each layer
MAX_JSON: Final = 1 << 20  # bytes, of a spec and of a book
ACCOUNT_SALT: Final = "mantel"
Violation = tuple[str, str]  # the path of a field, and what is wrong with it


def _market(value: str) -> str:
    if value not in ISO_3166:
        raise ValueError("must be an ISO 3166-1 alpha-2 code in upper case, such as GB")
    return value


def _value(value: object) -> Value:
    """A number or a choice's name; a union of pydantic's would put the name of its branch into the path."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number, or the name of a choice")  # noqa: TRY004  # pydantic tells of ValueError
    return value if isinstance(value, str) else float(value)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Salt = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  # no ":", which only our own salts hold
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
_Share = Annotated[float, Field(gt=0, le=1)]
_Market = Annotated[str, AfterValidator(_market)]
_Segment = Annotated[int, Field(ge=0, le=31)]
_Device = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Locale = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}$")]
_Values = dict[str, Annotated[Value, PlainValidator(_value)]]


class Written(BaseModel):
    """What is read from outside: nothing is converted, nothing unknown passes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Layer(Written):
    """Of a layer's experiments a listener is in one at most; a param belongs to one layer."""

    id: Name
    salt: Salt | None = None  # none: the account's
    params: tuple[str, ...] = Field(min_length=1)


class Holdout(Written):
    """Listeners who are in no experiment of some layers."""

    id: Name
    layers: tuple[Name, ...] = ()  # none: all
    share: _Share


class Targeting(Written):
    """Whom an experiment is for; what is empty admits everybody."""

    markets: tuple[_Market, ...] = ()
    segments: tuple[_Segment, ...] = ()
    devices: tuple[_Device, ...] = ()
    locales: tuple[_Locale, ...] = ()  # "en" admits en-GB too


class Arm(Written):
    """One way to serve: its params in place of the layer's defaults."""

    key: Name
    weight: int = Field(default=1, ge=1, le=10_000)
    params: _Values = {}


class Experiment(Written):
    """One experiment."""

    key: Name
    iteration: int = Field(default=1, ge=1, le=1_000_000)
    layer: Name
    targeting: Targeting = Targeting()
    reserved: _Share  # of the layer's buckets
    ramp: float = Field(default=0.0, ge=0, le=1)  # of the reservation, how much is served
    concluded: bool = False
    allow_list: dict[UserId, Name] = {}  # user_id -> arm
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=16)

    @property
    def salt(self) -> str:
        """What arms are drawn by: another iteration draws anew."""
        return f"{self.key}:{self.iteration}"

    @property
    def reserved_buckets(self) -> int:
        """How many buckets it holds."""
        return max(1, round(self.reserved * BUCKETS))

    @property
    def live_buckets(self) -> int:
        """How many of them are served."""
        return round(self.ramp * self.reserved_buckets)


class Spec(Written):
    """All that is to run."""

    salt: Salt = ACCOUNT_SALT
    layers: tuple[Layer, ...] = Field(default=(), max_length=64)
    holdouts: tuple[Holdout, ...] = Field(default=(), max_length=16)
    experiments: tuple[Experiment, ...] = Field(default=(), max_length=1000)

    @property
    def running(self) -> dict[str, Experiment]:
        """The experiments that are not concluded, by key."""
        return {one.key: one for one in self.experiments if not one.concluded}

    def salt_of(self, layer: Layer) -> str:
        """What a layer's buckets are drawn by."""
        return layer.salt or self.salt


def read_spec(raw: bytes | str) -> Spec:
    """A spec from its JSON.

    Raises:
        InvalidInput: naming every field that is wrong by itself.
    """
    if len(raw) > MAX_JSON:
        raise InvalidInput(("spec", f"must be at most {MAX_JSON:,} bytes of JSON"))
    try:
        return Spec.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidInput(*violations(error)) from error


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
