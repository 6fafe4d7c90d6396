"""The models that a server has: the text proto of --model_config_file, or the message of a reload."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from common import process
from common.errors import InputError
from serving.server.runtime.servable import RequestError, invalid

log = process.logger("serving.server.config")

_NUMBER = re.compile("[0-9]+")
_M = TypeVar("_M", bound=Message)

Labels = dict[str, dict[str, int]]
"""Model -> label -> version."""


def read_proto(flag: str, path: Path, message: _M) -> _M:
    """Reads the text proto in the file of a flag into `message`, and returns it."""
    try:
        text_format.Parse(path.read_text(), message)
    except (OSError, ValueError, text_format.ParseError) as e:
        raise InputError(f"--{flag}: Invalid protobuf file: '{path}': {e}") from e
    return message


def read_config(path: Path) -> ModelServerConfig:
    """Reads --model_config_file."""
    config = read_proto("model_config_file", path, ModelServerConfig())
    try:
        check_config(config)
    except RequestError as e:
        raise InputError(f"--model_config_file {path}: {e}") from e
    return config


def check_config(config: ModelServerConfig) -> None:
    """Raises RequestError if a config has no list of models, or a wrong one."""
    if not config.HasField("model_config_list"):
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    models = config.model_config_list.config
    names = [model.name for model in models]
    for model in models:
        if not model.name or not model.base_path:
            raise invalid("a model needs a name and a base_path")
        if model.model_platform not in ("", "tensorflow"):
            raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")
        if names.count(model.name) > 1:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def labels_of(
    models: Iterable[ModelConfig], available: Callable[[str, int], bool], before: Labels, unavailable: str
) -> Labels:
    """The labels of a config; RequestError if one names a version that is not available.

    `unavailable` lists which labels may name such a version: `none`, `new` ones and those that stay, or `all`.
    """
    labels: Labels = {}
    for model in models:
        labels[model.name] = dict(model.version_labels)
        for label, version in sorted(model.version_labels.items()):
            moved = before.get(model.name, {}).get(label, version) != version
            allowed = unavailable == "all" or (unavailable == "new" and not moved)
            if not allowed and not available(model.name, version):
                text = "which is not currently available for inference"
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, {text}",
                )
    return labels


def aspired(config: ModelConfig) -> dict[int, Path]:
    """The versions that the policy of a model asks for, and their folders, in the order of their numbers.

    A number may have zeros before it. If two folders have one number, the last one by name is taken.
    """
    base, policy = Path(config.base_path), config.model_version_policy
    names = sorted(p.name for p in base.iterdir() if _NUMBER.fullmatch(p.name)) if base.is_dir() else []
    folders = {int(name): base / name for name in names if int(name) < 2**63}
    numbers = sorted(folders)
    if policy.HasField("specific"):
        numbers = [n for n in numbers if n in policy.specific.versions]
    elif not policy.HasField("all"):
        numbers = numbers[-(policy.latest.num_versions or 1) :]
    return {n: folders[n] for n in numbers}


class ConfigFile:
    """Reads --model_config_file again and again, and hands it to `reload` when it has changed."""

    def __init__(self, path: Path, poll_s: float, reload: Callable[[ModelServerConfig], None]) -> None:
        self._path, self._poll_s, self._reload = path, poll_s, reload
        self._text, self._stop = path.read_text(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="config", daemon=True)

    def start(self) -> None:
        if self._poll_s > 0:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                text = self._path.read_text()
                if text != self._text:
                    self._reload(read_config(self._path))
                    self._text = text
            except (OSError, InputError, RequestError) as e:
                log.error("%s is not taken: %s", self._path, e)
