"""What an experimenter writes: layers, holdouts, experiments. Each field is checked here, their sum in `rules.py`."""

from typing import Annotated, Final

from pydantic import Field, PlainValidator, StringConstraints, ValidationError

from features.errors import InvalidInput
from ranking.params import Value
from ranking.written import Locale, Market, Name, Segment, Written, violations

BUCKETS: Final = 1_000_000  # of each layer
MAX_JSON: Final = 1 << 20  # bytes, of a spec and of a book
ACCOUNT_SALT: Final = "mantel"


def _value(value: object) -> Value:
    """A number or a choice's name; a union of pydantic's would put the name of its branch into the path."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number, or the name of a choice")  # noqa: TRY004  # pydantic tells of ValueError
    return value if isinstance(value, str) else float(value)


Salt = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  # no ":", which only our own salts hold
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
_Share = Annotated[float, Field(gt=0, le=1)]
_Device = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Values = dict[str, Annotated[Value, PlainValidator(_value)]]


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

    markets: tuple[Market, ...] = ()
    segments: tuple[Segment, ...] = ()
    devices: tuple[_Device, ...] = ()
    locales: tuple[Locale, ...] = ()  # "en" admits en-GB too


class Arm(Written):
    """One way to serve: its params in place of the layer's defaults."""

    key: Name
    weight: int = Field(default=1, ge=1, le=10_000)
    params: _Values = Field(default_factory=dict)


class Experiment(Written):
    """One experiment."""

    key: Name
    iteration: int = Field(default=1, ge=1, le=1_000_000)
    layer: Name
    targeting: Targeting = Targeting()
    reserved: _Share  # of the layer's buckets
    ramp: float = Field(default=0.0, ge=0, le=1)  # of the reservation, how much is served
    concluded: bool = False
    allow_list: dict[UserId, Name] = Field(default_factory=dict)  # user_id -> arm
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
