"""The settings of one platform, with types and defaults. A file, the environment and flags set them; later ones win.

`minutehand.toml` shows them all. `MINUTEHAND_<NAME>` in the environment and `--set name=value` set one for one run.
A port that nobody set moves to the next free one if it is taken. A port that somebody set is then an error.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from common.errors import InputError
from infra.models import ServedModel, models_of
from serving.experiment.arms import SERVED, Arm, arms_of
from streaming import topics
from streaming.contract.schema import MAX_SUBTASKS
from streaming.event_time import MAX_DISORDER_MS
from training.models import names

PROJECT = Path(__file__).resolve().parents[1]
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"k": 2**10, "m": 2**20, "g": 2**30}
PREFIX = "MINUTEHAND_"
PROFILES = f"{PREFIX}PROFILES"
"""The variable of the setting `profiles`; features/online.py reads it."""


class SettingError(InputError):
    """A setting has a wrong value; the message names the setting, its value, and what is allowed."""


class Kind(NamedTuple):
    """The parts of an error: the values that are allowed, how to write a limit, and how to show a value."""

    allowed: str
    limit: Callable[[float], str] = "{:g}".format
    shown: Callable[[Any], Any] = lambda value: value


def seconds(value: Any) -> float:
    """A duration written '500ms', '60s', '5m', '2h' or '7d'; a number is in seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ms|s|m|h|d)", str(value).strip())
    if not match:
        raise ValueError("not a duration")
    return float(match[1]) * SECONDS[match[2]]


def _bytes(value: Any) -> int:
    """A size written '512k', '256m' or '2g'; a number is in bytes."""
    match = re.fullmatch(r"([0-9]+)([kmg])", str(value).strip().lower())
    if type(value) is not int and not match:
        raise ValueError("not a size")
    return int(match[1]) * BYTES[match[2]] if match else int(value)


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _or_source(read: Callable[[str], float], least: float) -> Callable[[Any], str]:
    """Checks a text that is `source`, or a number of at least `least`."""

    def checked(value: Any) -> str:
        if value != "source" and not least <= read(str(value)) < math.inf:
            raise ValueError("too small")
        return str(value)

    return checked


def _model_server(value: str) -> str:
    if value in ("auto", "own") or (os.access(value, os.X_OK) and Path(value).is_file()):
        return value
    raise ValueError("not executable")


def _file(value: str) -> str:
    path = Path(value).absolute()
    if value and not (path.is_file() and os.access(path, os.R_OK)):
        raise ValueError("not readable")
    return str(path) if value else ""


def without_password(address: Any) -> str:
    """A database's address without its password, even if the address is malformed."""
    text = str(address)
    login = re.match(r"((?:[a-z0-9+]*://)?[^\s:/@]*)(.*)@", text, re.S)
    if login and login[2]:
        text = f"{login[1]}:***{text[login.end() - 1 :]}"
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


# Special characters must be written as %40 and so on. Else programs read different addresses from the same text.
POSTGRESQL = (
    r"postgresql://(?:(?:[^\s:/?#@%]|%[0-9A-Fa-f]{2})+(?::(?:[^\s:/?#@%]|%[0-9A-Fa-f]{2})*)?@)?[^\s/?#@]*/[^\s/?#@]+"
    r"(\?\S*)?"
)
DURATION = "a duration such as 500ms, 60s, 5m or 2h"

Text = Annotated[str, Field(pattern=r"\S"), Kind("a text that is not empty")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$"), Kind("1 to 41 letters, digits, - and _")]
Switch = Annotated[bool, Kind("true or false")]
Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False), Kind("a number")]
Whole = Annotated[int, BeforeValidator(_no_switch), Kind("a whole number")]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Field(allow_inf_nan=False),
    Kind(DURATION, lambda s: f"{s:g}s" if s >= 1 else f"{s * 1000:g}ms"),
]
Size = Annotated[
    int,
    BeforeValidator(_bytes),
    Kind("a size such as 512k, 256m or 2g", lambda n: f"{n / 2**20:g}m" if n >= 2**20 else f"{n / 2**10:g}k"),
]
ModelServer = Annotated[
    str, AfterValidator(_model_server), Kind("auto, own, or the path of an executable tensorflow_model_server")
]
File = Annotated[str, AfterValidator(_file), Kind("the path of a file that can be read, or empty for none")]
ModelSpecs = Annotated[
    str,
    AfterValidator(lambda value: models_of(value) and value),
    Kind(f"one of {', '.join(names())}, or several with commas, as in deepfm?dim=8,other=logistic"),
]
Arms = Annotated[
    str,
    AfterValidator(lambda value: arms_of(value) and value),
    Kind("a name and its weight, or several with commas, as in served:50,frozen:50"),
]
FeaturesFrom = Annotated[Literal["source", "feast"], Kind("source or feast")]
EventTimeOf = Annotated[Literal["live", "replay"], Kind("live or replay")]
DenseRate = Annotated[
    str, BeforeValidator(_or_source(float, 0)), Kind("source (what the source declares), or a number, at least 0")
]
DenseEvery = Annotated[
    str, BeforeValidator(_or_source(int, 1)), Kind("source (what the source declares), or a whole number, at least 1")
]
AirflowDb = Annotated[
    str,
    Field(pattern=f"^(sqlite|{POSTGRESQL})$"),
    Kind(
        "sqlite, or postgresql://user:password@host:port/database (special characters of the password as in %40)",
        shown=without_password,
    ),
]

ProfilesAt = Annotated[
    str,
    Field(pattern=r"^(rediss?://[^\s/?#]+/[0-9]+)?$"),
    Kind("empty, or redis://user:password@host:port/number", shown=without_password),
]


class Settings(BaseSettings):
    """All settings. `Settings(...)` takes values from its caller alone; `load` reads file, environment and flags."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    name: Name = Field("local", description="the platform's name: its state lies in <var>/<name>")
    var: Text = Field("var", description="the folder of all state; may be deleted while nothing runs")
    source: Text = Field("simulator", description="whose events: kuairand, simulator, a module or a path to a .py file")
    model: ModelSpecs = Field(
        "deepfm", description="which model: a module of training/models, or several: deepfm,logistic?rate=0.1"
    )
    sync_every: Duration = Field(60.0, ge=0.1, description="a delta to the served model each; other intervals follow")
    dense_rate: DenseRate = Field(
        "source", description="how dense weights learn online: so many times their own rate; 0 holds them"
    )
    dense_every: DenseEvery = Field("source", description="dense weights are served with each so many deltas")
    event_time: EventTimeOf = Field(
        "live", description="whose clock event time follows: live (the broker's), or replay (one replay's)"
    )
    max_disorder: Duration = Field(
        MAX_DISORDER_MS / 1000,
        ge=0,
        le=7 * 86400,
        description="how far clocks may be apart, how late a record may come",
    )
    pi: Number = Field(1.0, ge=1e-6, le=1, description="share of negatives that is learned from")
    salt: Text = Field("minutehand", description="names the draw that keeps a negative")
    replicas: Whole = Field(1, ge=1, le=64, description="model servers, one sync each")
    model_server: ModelServer = Field(
        "auto", description="auto (tensorflow_model_server if on PATH, else own), own, a path"
    )
    ssl_config_file: File = Field("", description="the model servers' key and certificate: gRPC is encrypted; see tls")
    tls: File = Field("", description="who signed the model servers' certificate (PEM); empty: gRPC is not encrypted")
    tls_certificate: File = Field("", description="the clients' own certificate (PEM), if the servers ask for one")
    tls_key: File = Field("", description="the private key of tls_certificate (PEM)")
    mlflow: Switch = Field(True, description="start the MLflow server and keep the record there")
    archive: Switch = Field(True, description="keep what the topics held as Parquet, for the DAGs")
    feast: Switch = Field(True, description="push features into Feast's stores, for recommend and the DAGs")
    profiles: ProfilesAt = Field(
        "", description="a Redis that also holds the profiles, redis://host:port/number, for readers of other machines"
    )
    features_from: FeaturesFrom = Field("feast", description="a replay's features: of the store, or of the source")
    app: Switch = Field(True, description="start the service that apps talk to; it needs feast")
    arms: Arms = Field(f"{SERVED}:100", description="an experiment: which part of the users each model answers")
    airflow: Switch = Field(True, description="start Airflow with the DAGs of dags/")
    airflow_db: AirflowDb = Field(
        "sqlite", description="Airflow's database: sqlite, or postgresql://..., which backfills need"
    )
    host: Text = Field("127.0.0.1", description="where services listen; all but loopback is open to others")
    kafka_port: Port = Field(
        9092, description="Kafka. Each port: one that is not set moves when taken; 0 is any free one"
    )
    kafka_controller_port: Port = Field(9093, description="Kafka's controller")
    flink_port: Port = Field(8081, description="Flink's page and REST of the join")
    mlflow_port: Port = Field(5000, description="MLflow's page")
    airflow_port: Port = Field(8080, description="Airflow's page and REST")
    grpc_port: Port = Field(8500, description="gRPC of the first replica; replica i: + 10 i")
    rest_port: Port = Field(8501, description="REST of the first replica; replica i: + 10 i")
    trainer_port: Port = Field(8600, description="health and metrics of the trainer")
    sync_port: Port = Field(8601, description="health and metrics of the first replica's sync; replica i: + i")
    archive_port: Port = Field(8590, description="health and metrics of the archive")
    features_port: Port = Field(8591, description="health and metrics of the feature push")
    clock_port: Port = Field(8593, description="health and metrics of the live clock")
    app_port: Port = Field(8700, description="the service that apps talk to")
    docs_port: Port = Field(8592, description="Data Docs, for a browser")
    partitions: Whole = Field(topics.PARTITIONS, ge=1, le=256, description="partitions of each topic")
    kafka_memory: Size = Field(512 << 20, ge=128 << 20, description="heap of Kafka")
    kafka_retention: Duration = Field(topics.RETENTION_MS / 1000, ge=60, description="how long a topic keeps a record")
    kafka_retention_bytes: Size = Field(topics.RETENTION_BYTES, ge=8 << 20, description="how much a partition keeps")
    join_memory: Size = Field(
        1 << 30, ge=256 << 20, description="heap of the join; its RocksDB takes up to 512 MB more"
    )
    join_parallelism: Whole = Field(1, ge=1, le=MAX_SUBTASKS, description="parallel subtasks of the join")
    keep_bases: Whole = Field(2, ge=1, le=1000, description="bases the delta log keeps, with all later deltas")
    base_every: Whole = Field(60, ge=1, le=1_000_000, description="a new base each so many deltas")
    digest: Switch = Field(False, description="each delta carries the digest of all tables, and each sync compares it")
    gate_tolerance: Number = Field(0.01, ge=0, le=1, description="a warm start may have an AUC lower by less than this")
    gate_calibration: Number = Field(
        1.25, ge=1, le=1000, description="a warm start's mean score / rate may be up to this, down to 1 / this"
    )
    log_bytes: Size = Field(
        8 << 20, ge=64 << 10, description="a log is cut at this size; the last cut is kept as <name>.log.1"
    )
    start_within: Duration = Field(
        180.0, ge=1, description="a service that starts and reports nothing new for so long is started again"
    )
    stop_within: Duration = Field(15.0, ge=0.1, description="what ignores TERM for this long is killed")

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **others: Any) -> Any:
        return (init_settings,)

    @property
    def given(self) -> set[str]:
        """The names of the settings that somebody set. A port among them does not move."""
        return self.model_fields_set

    @property
    def folder(self) -> Path:
        return (Path.cwd() / self.var / self.name).resolve()

    @property
    def models(self) -> list[ServedModel]:
        """The models of the setting `model`; the first is served as `ranker`."""
        return models_of(self.model)

    @property
    def experiment(self) -> list[Arm]:
        """The arms of the setting `arms`."""
        return arms_of(self.arms)

    @property
    def sync_every_ms(self) -> int:
        return round(self.sync_every * 1000)

    @property
    def max_disorder_ms(self) -> int:
        return round(self.max_disorder * 1000)

    @property
    def checkpoint_ms(self) -> int:
        """The interval at which the join commits: a fifth of sync_every, within 0.2 to 1 s."""
        return max(200, min(1000, self.sync_every_ms // 5))

    @property
    def push_ms(self) -> int:
        """The interval at which the feature push commits: that of the join, but 0.8 s at most."""
        return min(800, self.checkpoint_ms)

    def tls_environment(self) -> dict[str, str]:
        """The variables by which a client of the model servers finds its files (serving/tls.py)."""
        names = ("tls", "tls_certificate", "tls_key")
        return {f"{PREFIX}{name.upper()}": value for name in names if (value := getattr(self, name))}

    def with_(self, **values: Any) -> Self:
        """A copy with `values`, each parsed as if somebody had set it."""
        parsed = _read({"": values})
        return self.model_copy(update={name: getattr(parsed, name) for name in values})

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return self.model_dump() | {"given": sorted(self.given)}

    def shown(self) -> dict[str, Any]:
        """Plain values without secrets, for platform.json."""
        return self.as_dict() | {name: kind(name).shown(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        named = {name: values[name] for name in FIELDS if name in values}
        return cls.model_construct(_fields_set=set(values.get("given", ())), **named)


FIELDS = Settings.model_fields
PORTS = tuple(name for name in FIELDS if name.endswith("_port"))


def kind(name: str) -> Kind:
    return next(part for part in FIELDS[name].metadata if isinstance(part, Kind))


def allowed(name: str) -> str:
    """Describes the values that a setting may have."""
    words, limits = kind(name), (("ge", "at least"), ("le", "at most"))
    bounds = [(word, getattr(part, limit, None)) for limit, word in limits for part in FIELDS[name].metadata]
    return words.allowed + "".join(f", {word} {words.limit(value)}" for word, value in bounds if value is not None)


def _read(sources: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings of `sources` (name -> values); later ones win. An error begins with the name of its source."""
    values = {name: (where, value) for where, source in sources.items() for name, value in source.items()}
    for name in values.keys() - FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(FIELDS)}"
        raise SettingError(f"{values[name][0]}there is no setting {name!r}: {hint}")
    try:
        settings = Settings(**{name: value for name, (_, value) in values.items()})
        if settings.ssl_config_file and not settings.tls:
            raise SettingError(
                f"tls is '' and ssl_config_file is {settings.ssl_config_file!r}; allowed are both or none"
            )
        _check_arms(settings)
        return settings
    except ValidationError as e:
        name = str(e.errors()[0]["loc"][0])
    where, value = values[name]
    raise SettingError(f"{where}{name} is {kind(name).shown(value)!r}; allowed is {allowed(name)}")


def _check_arms(settings: Settings) -> None:
    """Raises SettingError for an arm that no model of the platform answers."""
    try:
        arms_of(settings.arms, [model.name for model in settings.models])
    except ValueError as e:
        raise SettingError(f"arms is {settings.arms!r}: {e}") from None


def _flags(flags: Sequence[str]) -> dict[str, str]:
    """The values of `--set name=value`. Refuses a password."""
    values: dict[str, str] = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals:
            raise SettingError(f"--set is {flag!r}; allowed is name=value")
        values[name := name.strip()] = value
        if name in FIELDS and kind(name).shown(value) != value:
            raise SettingError(
                f"--set: {name} holds a password, and everybody can read a command line; allowed is the settings file,"
                f" or {PREFIX}{name.upper()} in the environment"
            )
    return values


def load(file: str | Path | None = None, flags: Sequence[str] = ()) -> Settings:
    """The settings: defaults, then the file, then MINUTEHAND_<NAME>, then `flags` ("name=value"). Later ones win.

    Without `file`, it reads minutehand.toml of the working directory, or else the project's own.
    """
    own = [folder / "minutehand.toml" for folder in (Path.cwd(), PROJECT)]
    path = Path(file) if file else next((p for p in own if p.is_file()), None)
    sources: dict[str, Mapping[str, Any]] = {}
    if path is not None:
        try:
            with path.open("rb"):  # the source takes a missing file for an empty one
                sources[f"{path}: "] = TomlConfigSettingsSource(Settings, path)()
        except OSError as e:
            raise SettingError(f"the settings file {path} cannot be read: {e.strerror}") from None
        except ValueError as e:  # bytes that are not UTF-8, too
            raise SettingError(f"{path} is not TOML: {e}") from None
    return _read(sources | {"environment: ": EnvSettingsSource(Settings)(), "--set: ": _flags(flags)})
