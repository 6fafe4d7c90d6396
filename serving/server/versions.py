"""Loads and unloads the versions of each model: polls its folder, and follows TensorFlow Serving's version policy.

A new version is loaded and warmed up before the old one is unloaded, so one is always AVAILABLE. If a version cannot be
loaded, its status has the error, the load is tried a few times again, and the old version still serves. A new folder in
its place is loaded at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from common import process
from common.errors import InputError
from serving.server.servable import RequestError, Servable, invalid, request_error

log = process.logger("serving.server.versions")

RETRIES, RETRY_S = 5, 60.0
"""TensorFlow Serving's --max_num_load_retries and --load_retry_interval_micros."""


@dataclass
class Version:
    """One version. Its state is START, LOADING, AVAILABLE, UNLOADING or END."""

    state: int = ModelVersionStatus.START
    error: RequestError | None = None
    servable: Servable | None = None
    folder: tuple[int, int] | None = None
    tries: int = 0
    next_try: float = 0.0


@dataclass
class Model:
    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)


def read_config(path: Path) -> ModelServerConfig:
    """Reads the text proto of --model_config_file."""
    config = ModelServerConfig()
    try:
        text_format.Parse(path.read_text(), config)
    except (OSError, text_format.ParseError) as e:
        raise InputError(f"--model_config_file {path}: {e}") from e
    names = [model.name for model in config.model_config_list.config]
    error = "" if names else "no model in its model_config_list"
    for model in config.model_config_list.config:
        if not model.name or not model.base_path:
            error = "a model needs a name and a base_path"
        elif model.model_platform not in ("", "tensorflow"):
            error = f"{model.name}: model_platform must be tensorflow"
        elif names.count(model.name) > 1:
            error = f"{model.name} is named twice"
    if error:
        raise InputError(f"--model_config_file {path}: {error}")
    return config


def _folder(model: Model, number: int) -> Path:
    return Path(model.config.base_path) / str(number)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Differs between a folder and another one that takes its place."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


class Models:
    """All models of a config. `threads` are the intra op and inter op threads of each session."""

    def __init__(self, config: ModelServerConfig, poll_s: float, threads: tuple[int, int] = (1, 2)) -> None:
        self._models = {m.name: Model(m) for m in config.model_config_list.config}
        self._poll_s, self._threads = poll_s, threads
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versions", daemon=True)

    def start(self) -> None:
        self._poller.start()

    def close(self) -> None:
        """Waits for the load that is running, then unloads all versions."""
        self._stop.set()
        self._poller.join()
        for name, model in self._models.items():
            for number, version in list(model.versions.items()):
                if version.servable is not None:
                    self._unload(name, number, version)

    def _poll(self) -> None:
        while not self._stop.is_set():
            for name, model in self._models.items():
                try:
                    self._follow(name, model)
                except Exception:  # an unreadable folder: the next poll reads it again
                    log.exception("model %s: cannot follow %s", name, model.config.base_path)
            self._stop.wait(self._poll_s)

    def _follow(self, name: str, model: Model) -> None:
        aspired = self._aspired(model)
        if not aspired:
            return  # an empty folder unloads nothing
        now = time.monotonic()
        for number in aspired:
            version = model.versions.get(number, Version())
            if version.error is not None and version.folder != _identity(_folder(model, number)):
                version = Version()
                with self._lock:
                    model.versions[number] = version
            unloaded = version.state == ModelVersionStatus.END and version.error is None  # and is the newest again
            retry = version.error is not None and version.tries <= RETRIES and version.next_try <= now
            if version.state == ModelVersionStatus.START or unloaded or retry:
                self._load(name, model, number)
        available = {n for n, v in model.versions.items() if v.state == ModelVersionStatus.AVAILABLE}
        if available & set(aspired):
            for number in available - set(aspired):
                self._unload(name, number, model.versions[number])

    @staticmethod
    def _aspired(model: Model) -> list[int]:
        base, policy = Path(model.config.base_path), model.config.model_version_policy
        numbers = sorted(int(p.name) for p in base.iterdir() if p.name.isdecimal()) if base.is_dir() else []
        if policy.HasField("all"):
            return numbers
        if policy.HasField("specific"):
            return [n for n in numbers if n in policy.specific.versions]
        return numbers[-(policy.latest.num_versions or 1) :]

    def _load(self, name: str, model: Model, number: int) -> None:
        with self._lock:
            version = model.versions.setdefault(number, Version())
            version.state = ModelVersionStatus.LOADING
        began, folder = time.monotonic(), _folder(model, number)
        version.folder = _identity(folder)
        try:
            servable = Servable(name, number, folder, self._threads)
        except Exception as e:
            error = request_error(e)
            with self._lock:
                version.state, version.error, version.tries = ModelVersionStatus.END, error, version.tries + 1
                version.next_try = time.monotonic() + RETRY_S
            log.error("model %s version %d: not loaded: %s", name, number, error.text)
            return
        with self._lock:
            version.servable, version.error, version.state = servable, None, ModelVersionStatus.AVAILABLE
        log.info("model %s version %d: AVAILABLE after %.1f s", name, number, time.monotonic() - began)

    def _unload(self, name: str, number: int, version: Version) -> None:
        with self._lock:
            servable, version.servable, version.state = version.servable, None, ModelVersionStatus.UNLOADING
        if servable is not None:
            servable.close()
        with self._lock:
            version.state = ModelVersionStatus.END
        log.info("model %s version %d: unloaded", name, number)

    # -- for requests ----------------------------------------------------------------------------------------------

    def label(self, name: str) -> str:
        """The model's name for a metric, "" for an unknown one: a client could send endless names."""
        return name if name in self._models else ""

    @contextmanager
    def use(self, spec: Any) -> Iterator[Servable]:
        """Keeps the version that a ModelSpec names loaded within the block; RequestError if there is none."""
        while True:
            servable = self._find(spec)
            with servable.use() as usable:
                if usable:
                    yield servable
                    return

    def _find(self, spec: Any) -> Servable:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        with self._lock:
            model = self._models.get(spec.name)
            number = self._number(model, spec)
            loaded = {n: v.servable for n, v in model.versions.items() if v.servable is not None} if model else {}
        servable = loaded.get(number if number is not None else max(loaded, default=-1))
        if servable is None:
            request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")
        return servable

    @staticmethod
    def _number(model: Model | None, spec: Any) -> int | None:
        """The version that a ModelSpec names, by its number or by a label; None: the latest one."""
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return int(spec.version.value)
        if choice == "version_label" and spec.version_label:
            if model is None or spec.version_label not in model.config.version_labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return int(model.config.version_labels[spec.version_label])
        return None

    def metadata(self, request: Any) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a version."""
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        reply = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.use(request.model_spec) as servable:
            servable.name_in(reply.model_spec)
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
            reply.metadata["signature_def"].Pack(signatures)
        return reply

    def status(self, spec: Any) -> list[ModelVersionStatus]:
        """The status of the versions that a ModelSpec names, newest first; RequestError if there is none."""
        with self._lock:
            model = self._models.get(spec.name)
            wanted = self._number(model, spec)
            statuses = []
            for number, version in sorted(model.versions.items(), reverse=True) if model else ():
                status = ModelVersionStatus(version=number, state=version.state)
                status.status.error_code = version.error.code.value[0] if version.error else 0
                status.status.error_message = version.error.text if version.error else ""
                if wanted is None or wanted == number:
                    statuses.append(status)
        if not statuses:
            versions = "any versions" if wanted is None else f"version {wanted}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {versions} of model {spec.name}")
        return statuses

    def serving(self) -> bool:
        """True if every model has a version that is AVAILABLE."""
        with self._lock:
            return all(any(v.servable for v in m.versions.values()) for m in self._models.values())
