"""One model's versions: follows its folder by TensorFlow Serving's version policy, loads and unloads.

A new version is loaded and warmed up before the old one is unloaded, so one is always AVAILABLE. If a version cannot be
loaded, its status has the error, the load is tried a few times again, and the old version still serves. A new folder in
its place is loaded at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from common import process
from serving.server.config import aspired
from serving.server.runtime.servable import LoadOptions, RequestError, Servable, request_error

log = process.logger("serving.server.loading")


@dataclass(frozen=True)
class Following:
    """How the models' folders are followed.

    `poll_s` is the pause between two looks at them; 0: one look, less: none. A load that failed is tried `retries`
    times again, after `retry_s` each. `unavailable_labels` is that of config.labels_of.
    """

    poll_s: float = 1.0
    retries: int = 5
    retry_s: float = 60.0
    unavailable_labels: str = "none"


@dataclass
class Version:
    """One version. Its state is START, LOADING, AVAILABLE, UNLOADING or END."""

    state: int = ModelVersionStatus.START
    error: RequestError | None = None
    servable: Servable | None = None
    folder: tuple[int, int] | None = None
    tries: int = 0
    next_try: float = 0.0


def _identity(folder: Path) -> tuple[int, int] | None:
    """Differs between a folder and another one that takes its place."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


class Model:
    """The model of a config. Its versions change in one thread only, under `lock`, which is notified then."""

    def __init__(self, config: ModelConfig, following: Following, options: LoadOptions, lock: threading.Condition):
        self.name, self.config = config.name, config
        self.versions: dict[int, Version] = {}
        self._following, self._options, self._lock = following, options, lock

    def available(self, number: int) -> bool:
        return number in self.versions and self.versions[number].state == ModelVersionStatus.AVAILABLE

    def servables(self) -> dict[int, Servable]:
        return {n: v.servable for n, v in self.versions.items() if v.servable is not None}

    def decided(self) -> bool:
        """True once a version is available, or could not be loaded."""
        return any(v.servable or v.error for v in self.versions.values())

    def errors(self) -> str:
        """The errors of its versions, as TensorFlow Serving shows them."""
        return "".join(
            f"{{{{name: {self.name} version: {number}}} due to error: {version.error.code.name}: {version.error}}}, "
            for number, version in sorted(self.versions.items())
            if version.error
        )

    def retries(self) -> bool:
        """True if a load is to be tried again."""
        return any(v.error is not None and v.tries <= self._following.retries for v in self.versions.values())

    def follow(self) -> None:
        """Looks at the folder, loads the versions that the policy asks for, then unloads the others."""
        folders = aspired(self.config)
        if not folders:
            return  # an empty folder unloads nothing
        now = time.monotonic()
        for number, folder in folders.items():
            version = self.versions.get(number, Version())
            if version.error is not None and version.folder != _identity(folder):
                version = Version()
                with self._lock:
                    self.versions[number] = version
            unloaded = version.state == ModelVersionStatus.END and version.error is None  # and is the newest again
            again = version.tries <= self._following.retries and version.next_try <= now
            if version.state == ModelVersionStatus.START or unloaded or (version.error is not None and again):
                self._load(number, folder)
        available = {n for n, v in self.versions.items() if v.state == ModelVersionStatus.AVAILABLE}
        if available & set(folders):
            for number in available - set(folders):
                self._unload(number, self.versions[number])

    def _load(self, number: int, folder: Path) -> None:
        with self._lock:
            version = self.versions.setdefault(number, Version())
            version.state = ModelVersionStatus.LOADING
        began = time.monotonic()
        version.folder = _identity(folder)
        try:
            servable = Servable(self.name, number, folder, self._options)
        except Exception as e:
            error = request_error(e)
            with self._lock:
                version.state, version.error, version.tries = ModelVersionStatus.END, error, version.tries + 1
                version.next_try = time.monotonic() + self._following.retry_s
                self._lock.notify_all()
            log.error("model %s version %d: not loaded: %s", self.name, number, error.text)
            return
        with self._lock:
            version.servable, version.error, version.state = servable, None, ModelVersionStatus.AVAILABLE
            self._lock.notify_all()
        log.info("model %s version %d: AVAILABLE after %.1f s", self.name, number, time.monotonic() - began)

    def unload_all(self) -> None:
        for number, version in list(self.versions.items()):
            if version.servable is not None:
                self._unload(number, version)

    def _unload(self, number: int, version: Version) -> None:
        with self._lock:
            servable, version.servable, version.state = version.servable, None, ModelVersionStatus.UNLOADING
        if servable is not None:
            servable.close()
        with self._lock:
            version.state = ModelVersionStatus.END
        log.info("model %s version %d: unloaded", self.name, number)
