"""The settings of one platform: typed, with defaults, from one file, the environment and flags, in that rising order.

`minutehand.toml` shows them all; `MINUTEHAND_<NAME>` in the environment and `--set name=value` say the same for once.
A port that nobody set moves to the next free one when it is taken; one that somebody set is an error by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infra.models import ServedModel, models_of
from training.models import names

PROJECT = Path(__file__).resolve().parents[1]
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"k": 2**10, "m": 2**20, "g": 2**30}


class SettingError(ValueError):
    """A wrong setting: names it, what was given and what is allowed."""


class Kind(NamedTuple):
    """How one kind of setting is read; `allowed` is what an error says, `shown` a value without its secret."""

    parse: Callable[[Any], Any]
    allowed: str
    shown: Callable[[Any], Any] = lambda value: value


def _duration(given: Any) -> float:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ms|s|m|h|d)", str(given).strip())
    if not match:
        raise ValueError
    return float(match[1]) * SECONDS[match[2]]


def duration(least: str) -> Kind:
    """Seconds as a float, written '500ms', '60s', '5m', '2h', '7d'."""

    def parse(given: Any) -> float:
        if (seconds := _duration(given)) < _duration(least):
            raise ValueError
        return seconds

    return Kind(parse, f"a duration such as 500ms, 60s, 5m or 2h, at least {least}")


def size(least: str) -> Kind:
    """Bytes, written '512k', '256m', '2g'."""

    def read(given: Any) -> int:
        match = re.fullmatch(r"([0-9]+)([kmg])", str(given).strip().lower())
        if not match:
            raise ValueError
        return int(match[1]) * BYTES[match[2]]

    def parse(given: Any) -> int:
        if (n := given if type(given) is int else read(given)) < read(least):
            raise ValueError
        return n

    return Kind(parse, f"a size such as 512k, 256m or 2g, at least {least}")


def number(low: float, high: float, whole: bool = False) -> Kind:
    def parse(given: Any) -> float | int:
        value = int(str(given)) if whole else float(given)
        if isinstance(given, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(parse, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")


def _switch(given: Any) -> bool:
    return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[str(given).lower()]


def _text(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError
    return given


def _name(given: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", str(given)):
        raise ValueError
    return str(given)


def _model_server(given: Any) -> str:
    if given in ("auto", "own") or (isinstance(given, str) and os.access(given, os.X_OK) and Path(given).is_file()):
        return str(given)
    raise ValueError


# What is special must be written %40 and so on: else the address says another thing to each that reads it.
POSTGRESQL = re.compile(
    r"postgresql://(?:(?:[^\s:/?#@%]|%[0-9A-Fa-f]{2})+(?::(?:[^\s:/?#@%]|%[0-9A-Fa-f]{2})*)?@)?[^\s/?#@]*/[^\s/?#@]+(\?\S*)?"
)


def _airflow_db(given: Any) -> str:
    if given == "sqlite" or POSTGRESQL.fullmatch(str(given)):
        return str(given)
    raise ValueError


def without_password(address: Any) -> str:
    """A database's address as it may be seen, whatever is wrong with it."""
    text = str(address)
    found = re.match(r"((?:[a-z0-9+]*://)?[^\s:/@]*)(.*)@", text, re.S)
    if found and found[2]:
        text = f"{found[1]}:***{text[found.end() - 1 :]}"
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def _model(given: Any) -> str:
    models_of(given)
    return str(given)


def _features_from(given: Any) -> str:
    if given in ("source", "feast"):
        return str(given)
    raise ValueError


TEXT = Kind(_text, "a text that is not empty")
NAME = Kind(_name, "1 to 41 letters, digits, - and _")
SWITCH = Kind(_switch, "true or false")
PORT = number(0, 65535, whole=True)
FEATURES_FROM = Kind(_features_from, "source or feast")
MODEL = Kind(_model, f"one of {', '.join(names())}, or several with commas, as in deepfm?dim=8,other=logistic")
AIRFLOW_DB = Kind(
    _airflow_db,
    "sqlite, or postgresql://user:password@host:port/database (what is special in the password as in %40)",
    without_password,
)
MODEL_SERVER = Kind(_model_server, "auto, own, or the path of an executable tensorflow_model_server")


def setting(default: Any, kind: Kind, doc: str) -> Any:
    """A field of Settings; `default` as a person writes it. A port is recognised by its kind."""
    return field(default=kind.parse(default), metadata={"kind": kind, "doc": doc, "default": default})


@dataclass(frozen=True)
class Settings:
    """All settings. `given` holds the names somebody set: these are taken as they are."""

    name: str = setting("local", NAME, "the platform's name: its state lies in <var>/<name>")
    var: str = setting("var", TEXT, "the folder of all state; may be deleted while nothing runs")
    source: str = setting("simulator", TEXT, "whose events: kuairand, simulator, a module or a path to a .py file")
    model: str = setting(
        "deepfm", MODEL, "which model: a module of training/models, or several: deepfm,logistic?rate=0.1"
    )
    sync_every: float = setting("60s", duration("100ms"), "a delta to the served model each; other intervals follow")
    pi: float = setting(1.0, number(1e-6, 1), "share of negatives that is learned from")
    salt: str = setting("minutehand", TEXT, "names the draw that keeps a negative")
    replicas: int = setting(1, number(1, 64, whole=True), "model servers, one sync each")
    model_server: str = setting(
        "auto", MODEL_SERVER, "auto (tensorflow_model_server if on PATH, else own), own, a path"
    )
    mlflow: bool = setting(True, SWITCH, "start the MLflow server and keep the record there")
    archive: bool = setting(True, SWITCH, "keep what the topics held as Parquet, for the DAGs")
    feast: bool = setting(True, SWITCH, "push features into Feast's stores, for recommend and the DAGs")
    features_from: str = setting("source", FEATURES_FROM, "a replay's features: of the source, or read from Feast")
    airflow: bool = setting(True, SWITCH, "start Airflow with the DAGs of dags/")
    airflow_db: str = setting(
        "sqlite", AIRFLOW_DB, "Airflow's database: sqlite, or postgresql://..., which backfills need"
    )
    host: str = setting("127.0.0.1", TEXT, "where services listen; all but loopback is open to others")
    kafka_port: int = setting(9092, PORT, "Kafka. Each port: one that is not set moves when taken; 0 is any free one")
    kafka_controller_port: int = setting(9093, PORT, "Kafka's controller")
    flink_port: int = setting(8081, PORT, "Flink's page and REST of the join")
    mlflow_port: int = setting(5000, PORT, "MLflow's page")
    airflow_port: int = setting(8080, PORT, "Airflow's page and REST")
    grpc_port: int = setting(8500, PORT, "gRPC of the first replica; replica i: + 10 i")
    rest_port: int = setting(8501, PORT, "REST of the first replica; replica i: + 10 i")
    trainer_port: int = setting(8600, PORT, "health and metrics of the trainer")
    sync_port: int = setting(8601, PORT, "health and metrics of the first replica's sync; replica i: + i")
    archive_port: int = setting(8590, PORT, "health and metrics of the archive")
    features_port: int = setting(8591, PORT, "health and metrics of the feature push")
    docs_port: int = setting(8592, PORT, "Data Docs, for a browser")
    partitions: int = setting(2, number(1, 256, whole=True), "partitions of each topic")
    kafka_memory: int = setting("512m", size("128m"), "heap of Kafka")
    kafka_retention: float = setting("7d", duration("1m"), "how long a topic keeps a record")
    kafka_retention_bytes: int = setting("1g", size("8m"), "how much a partition keeps")
    join_memory: int = setting("1g", size("256m"), "heap of the join; its RocksDB takes up to 512 MB more")
    join_parallelism: int = setting(1, number(1, 64, whole=True), "parallel subtasks of the join")
    keep_bases: int = setting(2, number(1, 1000, whole=True), "bases the delta log keeps, with all later deltas")
    base_every: int = setting(60, number(1, 1_000_000, whole=True), "a new base each so many deltas")
    digest: bool = setting(False, SWITCH, "each delta carries the digest of all tables, and each sync compares it")
    gate_tolerance: float = setting(0.01, number(0, 1), "a warm start may have an AUC lower by less than this")
    gate_calibration: float = setting(
        1.25, number(1, 1000), "a warm start's mean score / rate may be up to this, down to 1 / this"
    )
    log_bytes: int = setting("8m", size("64k"), "a log is cut at this size; the last cut is kept as <name>.log.1")
    start_within: float = setting("180s", duration("1s"), "a service not ready by then is started again")
    stop_within: float = setting("15s", duration("100ms"), "what ignores TERM for this long is killed")
    given: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        return (Path.cwd() / self.var / self.name).resolve()

    @property
    def models(self) -> list[ServedModel]:
        """The models of the setting `model`; the first is served as `ranker`."""
        return models_of(self.model)

    @property
    def sync_every_ms(self) -> int:
        return round(self.sync_every * 1000)

    @property
    def checkpoint_ms(self) -> int:
        """How often the join commits: a fifth of sync_every, within 0.2 to 1 s."""
        return max(200, min(1000, self.sync_every_ms // 5))

    def with_(self, **values: Any) -> Settings:
        """The same with `values`, each read as if somebody had set it."""
        return self.merge(values, "")

    def merge(self, values: Mapping[str, Any], where: str) -> Settings:
        """The same with `values` from `where` (said in errors)."""
        read: dict[str, Any] = {}
        for name, given in values.items():
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(FIELDS)}"
                raise SettingError(f"{where}there is no setting {name!r}: {hint}")
            kind: Kind = FIELDS[name].metadata["kind"]
            try:
                read[name] = kind.parse(given)
            except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
                raise SettingError(f"{where}{name} is {kind.shown(given)!r}; allowed is {kind.allowed}") from None
        return dataclasses.replace(self, **read, given=self.given | set(read))

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return {**{name: getattr(self, name) for name in FIELDS}, "given": sorted(self.given)}

    def shown(self) -> dict[str, Any]:
        """The same without secrets, for platform.json."""
        return self.as_dict() | {n: f.metadata["kind"].shown(getattr(self, n)) for n, f in FIELDS.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        known = {name: values[name] for name in FIELDS if name in values}
        return cls(**known, given=frozenset(values.get("given", ())))


FIELDS = {f.name: f for f in dataclasses.fields(Settings) if f.metadata}
PORTS = tuple(name for name, f in FIELDS.items() if f.metadata["kind"] is PORT)


def load(
    file: str | Path | None = None, flags: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings: defaults, then the file, then MINUTEHAND_<NAME>, then `flags` ("name=value").

    Without `file`: minutehand.toml of the working directory, else the project's own.
    """
    settings = Settings()
    own = [folder / "minutehand.toml" for folder in (Path.cwd(), PROJECT)]
    path = Path(file) if file else next((p for p in own if p.is_file()), None)
    if path is not None:
        try:
            settings = settings.merge(tomllib.loads(path.read_text()), f"{path}: ")
        except OSError as e:
            raise SettingError(f"the settings file {path} cannot be read: {e.strerror}") from None
        except tomllib.TOMLDecodeError as e:
            raise SettingError(f"{path} is not TOML: {e}") from None
    named = {name: environ[key] for name in FIELDS if (key := f"MINUTEHAND_{name.upper()}") in environ}
    settings = settings.merge(named, "environment: ")
    pairs: dict[str, str] = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals:
            raise SettingError(f"--set is {flag!r}; allowed is name=value")
        pairs[name := name.strip()] = value
        if name in FIELDS and FIELDS[name].metadata["kind"].shown(value) != value:
            raise SettingError(
                f"--set: {name} holds a password, and everybody can read a command line; allowed is the settings file,"
                f" or MINUTEHAND_{name.upper()} in the environment"
            )
    return settings.merge(pairs, "--set: ")
