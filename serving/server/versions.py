"""The models of a server and their versions: which there are, by config and labels, and which one answers a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common import process
from serving.server.config import Labels, check_config, labels_of
from serving.server.loading import Following, Model
from serving.server.runtime.servable import LoadOptions, RequestError, Servable, invalid

log = process.logger("serving.server.versions")


class Models:
    """All models of a config; RequestError if it is wrong."""

    def __init__(self, config: ModelServerConfig, following: Following, options: LoadOptions) -> None:
        self._following, self._options = following, options
        self._models: dict[str, Model] = {}
        self._labels: Labels = {}
        self._removed: list[Model] = []
        self._lock = threading.Condition()
        self._changed, self._stop = threading.Event(), threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._take(config)

    def start(self) -> None:
        self._poller.start()

    def close(self) -> None:
        """Waits for the load that is running, then unloads all versions."""
        self._stop.set()
        self._changed.set()
        self._poller.join()
        for model in [*self._removed, *self._models.values()]:
            model.unload_all()

    def reload(self, config: ModelServerConfig) -> None:
        """Serves the models of `config`, and no others. Returns when each new one is available, or has not loaded."""
        new = self._take(config)
        self._changed.set()
        with self._lock:
            self._lock.wait_for(lambda: self._stop.is_set() or all(model.decided() for model in self._still(new)))
            failed = [model for model in self._still(new) if not model.servables()]
        if failed:
            errors = "".join(model.errors() for model in failed)
            text = f"{len(failed)} model(s) did not become available: {{{errors}}}"
            raise RequestError(grpc.StatusCode.UNKNOWN, text)

    def _still(self, models: list[Model]) -> list[Model]:
        """Those that no other reload has removed."""
        return [model for model in models if self._models.get(model.name) is model]

    def _take(self, config: ModelServerConfig) -> list[Model]:
        """Takes over the list of models; returns those that are new."""
        check_config(config)
        wanted = {model.name: model for model in config.model_config_list.config}
        with self._lock:
            before = self._models
            self._labels = labels_of(wanted.values(), self._available, self._labels, self._following.unavailable_labels)
            self._removed += [model for name, model in before.items() if name not in wanted]
            self._models = {
                name: before.get(name) or Model(model, self._following, self._options, self._lock)
                for name, model in wanted.items()
            }
            for name, model in self._models.items():
                model.config = wanted[name]
            return [model for name, model in self._models.items() if name not in before]

    def _available(self, name: str, number: int) -> bool:
        return name in self._models and self._models[name].available(number)

    # -- the poller's thread ---------------------------------------------------------------------------------------

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            with self._lock:
                models, removed, self._removed = list(self._models.values()), self._removed, []
            for model in removed:
                model.unload_all()
            for model in models if self._following.poll_s >= 0 else ():
                try:
                    model.follow()
                except Exception:  # an unreadable folder: the next poll reads it again
                    log.exception("model %s: cannot follow %s", model.name, model.config.base_path)
            self._changed.wait(self._pause(models))

    def _pause(self, models: list[Model]) -> float | None:
        """The time until the next look at the folders; None: until the config changes."""
        poll_s, retries = self._following.poll_s, any(model.retries() for model in models)
        if poll_s > 0:
            return poll_s
        return max(self._following.retry_s, 0.01) if retries and poll_s == 0 else None

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
            number = self._number(spec)
            loaded = model.servables() if model else {}
        servable = loaded.get(number if number is not None else max(loaded, default=-1))
        if servable is None:
            request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")
        return servable

    def _number(self, spec: Any) -> int | None:
        """The version that a ModelSpec names, by its number or by a label; None: the latest one."""
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return int(spec.version.value)
        if choice == "version_label":
            labels = self._labels.get(spec.name, {})
            if spec.version_label not in labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return labels[spec.version_label]
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
            wanted = self._number(spec)
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
            return all(model.servables() for model in self._models.values())
