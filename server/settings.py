"""Settings of the process: from flags, then `MANTEL_*` environment variables, then a TOML file."""

import os
import ssl
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, FilePath, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from features.errors import InvalidInput

_SCHEMES = frozenset({"redis", "rediss", "unix"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """What a process runs with. Every field is also `MANTEL_<FIELD>`, and a key of the TOML file."""

    model_config = SettingsConfigDict(env_prefix="MANTEL_", frozen=True, extra="forbid", allow_inf_nan=False)

    state: Path = Field(default=Path(".mantel"), description="directory of all state")
    redis: str = Field(default="", description="URL of a Redis; empty: the embedded one")
    prefix: str = Field(default="mantel", pattern=r"^[a-z0-9-]{1,32}$", description="prefix of every Redis key")
    host: str = Field(default="127.0.0.1", description="address of the data and control ports")
    port: int = Field(default=50051, ge=0, le=65535, description="data port; 0: any free one")
    control_port: int = Field(default=50052, ge=0, le=65535, description="control port")
    metrics_host: str = Field(default="127.0.0.1", description="address of the Prometheus port")
    metrics_port: int = Field(default=9464, ge=0, le=65535, description="Prometheus port")
    workers: int = Field(default=1, ge=1, le=256, description="processes that serve")
    surfaces: Path | None = Field(default=None, description="surfaces file; none: the one that ships")
    preset: str = Field(
        default="", description="preset in place of every surface's own: plain or full, as the file says"
    )
    batch_cap: int = Field(default=16, ge=1, le=64, description="most requests in one batch")
    batch_ms: float = Field(
        default=8.0,
        gt=0,
        description="processor time that one batch may use, as predicted from those before; one request always goes",
    )
    redis_timeout_ms: float = Field(
        default=20.0, gt=0, description="wait for plans of later pages; then none are offered, or turned"
    )
    read_budget_ms: float = Field(
        default=3.0,
        gt=0,
        description="wait of a batch for its listeners, without what the worker computes meanwhile; then its pages are"
        " made without them (LISTENER_LATE)",
    )
    event_timeout_ms: float = Field(default=1000.0, gt=0, description="wait for events to reach the store's disk")
    event_stream_max: int = Field(
        default=100_000, ge=500, description="most events in each of 64 streams; beyond, events are refused"
    )
    plan_bytes_max: int = Field(
        default=256 * 2**20,
        ge=0,
        description="most bytes that one worker keeps for later pages; beyond, none is offered",
    )
    tracking: bool = Field(default=True, description="whether items carry tracking tokens")
    signing_keys: Path | None = Field(
        default=None, description="file of the keys that sign tokens, shared by all machines; none: one in the state"
    )
    recent_days: float = Field(default=30.0, gt=0, description="days that recent events are kept after the last one")
    default_deadline_ms: float = Field(default=1000.0, gt=0, description="deadline of calls that bring none")
    snapshot_max_age_h: float = Field(default=168.0, gt=0, description="hours after which a snapshot counts as stale")
    experiments_max_age_s: float = Field(
        default=300.0, gt=0, description="seconds without a look at the experiment book's pointer, then pages say so"
    )
    promotions_max_age_s: float = Field(
        default=3600.0,
        gt=0,
        description="seconds without a look at the promotion book's pointer, then none is promoted",
    )
    placements_flush_s: float = Field(default=3.0, gt=0, description="seconds between sending counts of placements")
    admission_limit: int = Field(
        default=0, ge=0, le=2048, description="calls for pages under way at once in a worker; 0: found by their latency"
    )
    admission_least: int = Field(default=4, ge=1, le=2048, description="the least that a found limit may be")
    admission_most: int = Field(default=512, ge=1, le=2048, description="the most that a found limit may be")
    admission_target_ms: float = Field(
        default=8.0, gt=0, description="mean latency of pages that the limit settles at under overload"
    )
    drill_work_ms: float = Field(
        default=0.0, ge=0, le=1000, description="for tests and drills: processor time that each page costs more"
    )
    drill_sleep_ms: float = Field(
        default=0.0, ge=0, le=1000, description="for tests and drills: how much longer each batch of pages takes"
    )
    poll_s: float = Field(default=1.0, gt=0, description="seconds between looks at the pointers")
    drain_s: float = Field(default=0.3, ge=0, description="seconds between NOT_SERVING and closing the port")
    grace_s: float = Field(default=5.0, ge=0, description="seconds that calls in flight may take at the end")
    reflection: Literal["auto", "on", "off"] = Field(default="auto", description="auto: on loopback only")
    tls_cert: FilePath | None = Field(default=None, description="certificate chain, PEM")
    tls_key: FilePath | None = Field(default=None, description="private key, PEM")
    tls_client_ca: FilePath | None = Field(
        default=None, description="CA of client certificates; set: they are required"
    )
    insecure: bool = Field(default=False, description="allow other addresses than loopback without TLS")
    log_sample: float = Field(default=0.01, ge=0, le=1, description="share of requests that are logged")
    served_log_bytes_max: int = Field(
        default=2_000_000_000, ge=0, description="most bytes of undrained served pages; 0: none are logged"
    )
    served_log_age_s: float = Field(
        default=60.0, gt=0, description="seconds after which a file of served pages is closed, to be drained"
    )
    replay_sample: float = Field(default=0.01, ge=0, le=1, description="share of served pages kept for replay")
    replay_bytes_max: int = Field(default=256_000_000, ge=0, description="most bytes of pages kept for replay")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # named by pydantic
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # named by pydantic
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file that MANTEL_CONFIG names."""
        file = os.environ.get("MANTEL_CONFIG")
        if not file:
            return init_settings, env_settings
        if not Path(file).is_file():  # pydantic passes over a file that is not there
            raise InvalidInput(("MANTEL_CONFIG", f"no file {file}"))
        try:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(file))
        except (OSError, ValueError) as error:
            raise InvalidInput((file, f"is no readable TOML: {error}")) from error

    @field_validator("redis")
    @classmethod
    def _names_a_redis(cls, url: str) -> str:
        parts = urlsplit(url)
        if (url and parts.scheme not in _SCHEMES) or parts.port == 0:  # a port that is no number raises
            raise ValueError("must be redis://HOST:PORT, rediss://HOST:PORT or unix://PATH")
        return url

    @field_validator("admission_most")
    @classmethod
    def _is_not_below_the_least(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("admission_least", most):
            raise ValueError("must not be below admission_least")
        return most

    @property
    def drills(self) -> tuple[str, ...]:
        """The drills that are on, by name."""
        return tuple(name for name in ("drill_work_ms", "drill_sleep_ms") if getattr(self, name))

    @property
    def on_loopback(self) -> bool:
        """Whether the ports can be reached from this machine only."""
        return self.host in _LOOPBACK

    @property
    def reflects(self) -> bool:
        """Whether reflection is on."""
        return self.reflection == "on" or (self.reflection == "auto" and self.on_loopback)


def load_settings(**flags: Any) -> Settings:
    """The settings in force; flags that are None were not given.

    Raises:
        InvalidInput: naming each wrong field, or TLS files that cannot be used.
    """
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise InvalidInput(*((".".join(map(str, one["loc"])), one["msg"]) for one in error.errors())) from error
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidInput(("tls_key", "a certificate and its key go together: give --tls-cert and --tls-key"))
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise InvalidInput(("tls_client_ca", "client certificates need --tls-cert and --tls-key too"))
    if not settings.on_loopback and settings.tls_cert is None and not settings.insecure:
        raise InvalidInput(("host", f"{settings.host} without TLS: give --tls-cert and --tls-key, or --insecure"))
    if settings.drills and not settings.on_loopback:
        raise InvalidInput(*((name, f"is for loopback only, not for {settings.host}") for name in settings.drills))
    _try_certificates(settings)
    return settings


def _try_certificates(settings: Settings) -> None:
    """Refuses TLS files that no server could start with: each of its children would die of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if settings.tls_cert is not None:
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")  # never asks for one
    except (OSError, ValueError) as error:
        raise InvalidInput(("tls_key", f"does not go with the certificate, or one is no PEM: {error}")) from error
    try:
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
    except (OSError, ValueError) as error:
        raise InvalidInput(("tls_client_ca", f"holds no certificates: {error}")) from error
