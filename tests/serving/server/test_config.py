"""Which models, versions and labels a server has, by its config, by a reload and by a file that is polled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common.errors import InputError
from serving.client import array, tensor
from serving.server.config import ConfigFile, aspired, read_config
from serving.server.loading import Following
from serving.server.metrics import ServerMetrics
from serving.server.model_server import GrpcOptions, grpc_server
from serving.server.runtime.servable import LoadOptions, RequestError
from serving.server.versions import Models
from tests.support import saved_model
from tests.support.wait import until

LABELLED = """model_version_policy { specific { versions: 1 versions: 123 } }
    version_labels { key: "stable" value: %d } version_labels { key: "canary" value: %d }"""


def config(folder: Path, *names: str, more: str = "") -> ModelServerConfig:
    models = "".join(f'config {{ name: "{name}" base_path: "{folder / name}" {more} }}' for name in names)
    return text_format.Parse(f"model_config_list {{ {models} }}", ModelServerConfig())


class Server:
    """A server in this process, called over a UNIX socket."""

    def __init__(self, folder: Path, models: Models) -> None:
        self.models = models
        socket = str(folder / "socket")
        self._server = grpc_server(models, ServerMetrics(), "", 0, 2, GrpcOptions(content=True, socket=socket))
        models.start()
        self._server.start()
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()
        self._server.stop(0).wait()
        self.models.close()

    def ask(self, model: str, label: str | None = None) -> int:
        """The version that answers."""
        r = predict_pb2.PredictRequest(inputs={"x": tensor(np.float32([1, 2]))})
        r.model_spec.name = model
        if label is not None:
            r.model_spec.version_label = label
        reply = self._predict.Predict(r, timeout=30)
        assert array(reply.outputs["y"]).tolist() == [2.5, 3.0] and reply.outputs["y"].tensor_content
        return int(reply.model_spec.version.value)

    def status(self, model: str) -> dict[int, int]:
        r = get_model_status_pb2.GetModelStatusRequest()
        r.model_spec.name = model
        try:
            return {v.version: v.state for v in self._models.GetModelStatus(r, timeout=30).model_version_status}
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.NOT_FOUND
            return {}

    def reload(self, config: ModelServerConfig) -> int:
        r = model_management_pb2.ReloadConfigRequest(config=config)
        return int(self._models.HandleReloadConfigRequest(r, timeout=30).status.error_code)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model `half` with the versions 1 and 123, and the model `other`."""
    for path in ("half/1", "half/00000123", "other/7"):
        saved_model.write(tmp_path / path)
    (tmp_path / "half" / "new").mkdir()
    return tmp_path


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the model `half`."""
    servers: list[Server] = []

    def start(following: Following | None = None, more: str = "") -> Server:
        models = Models(config(folder, "half", more=more), following or Following(0.05), LoadOptions())
        servers.append(Server(folder, models))
        return servers[0]

    yield start
    for server in servers:
        server.close()


def available(server: Server, model: str = "half", version: int = 123) -> Callable[[], bool]:
    return lambda: server.status(model).get(version) == 30


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return f"{error.value.code().name}: {error.value.details()}"


def test_a_reload_replaces_the_list_of_models(folder: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    until(available(server), "version 00000123")
    assert server.ask("half") == 123
    assert server.reload(config(folder, "other")) == 0 and server.ask("other") == 7  # available when the call returns
    assert refused(lambda: server.ask("half")) == "NOT_FOUND: Servable not found for request: Latest(half)"
    server.reload(config(folder, "half", "other"))
    assert (server.ask("half"), server.ask("other")) == (123, 7)
    (folder / "broken" / "5").mkdir(parents=True)
    error = refused(lambda: server.reload(config(folder, "half", "broken")))
    assert error.startswith(
        "UNKNOWN: 1 model(s) did not become available: {{{name: broken version: 5} due to error: NOT_"
    )
    assert server.ask("half") == 123 and server.status("broken") == {5: 50}
    for wrong, says in (
        (ModelServerConfig(), "INVALID_ARGUMENT: ServerModelConfig type not supported by HandleReloadConfigRequest"),
        (config(folder, "half", "half"), "INVALID_ARGUMENT: Illegal to list model half multiple times in config list"),
        (config(Path("here"), "half"), "INVALID_ARGUMENT: Expected model half to have an absolute path"),
    ):
        assert refused(lambda wrong=wrong: server.reload(wrong)).startswith(says)  # type: ignore[misc]
    assert server.ask("half") == 123
    assert server.reload(config(folder)) == 0  # an empty list is a list
    assert "NOT_FOUND" in refused(lambda: server.ask("half"))


def test_labels_name_versions_that_are_available(folder: Path, serve: Callable[..., Server]) -> None:
    with pytest.raises(
        RequestError, match="assign label to version 123 of model half, which is not currently available"
    ):
        serve(more=LABELLED % (1, 123))
    server = serve(Following(0.05, unavailable_labels="new"), LABELLED % (1, 123))
    until(lambda: available(server)() and available(server, version=1)(), "both versions")
    assert (server.ask("half", "stable"), server.ask("half", "canary")) == (1, 123)
    server.reload(config(folder, "half", more=LABELLED % (123, 123)))
    assert server.ask("half", "stable") == 123
    error = refused(lambda: server.reload(config(folder, "half", more=LABELLED % (9, 123))))
    assert error.startswith("FAILED_PRECONDITION: Request to assign label to version 9 of model half")
    assert server.ask("half", "stable") == 123
    assert refused(lambda: server.ask("half", "")) == "INVALID_ARGUMENT: Unrecognized servable version label: "
    server.reload(config(folder, "half"))
    assert "Unrecognized servable version label: stable" in refused(lambda: server.ask("half", "stable"))


def test_a_file_is_polled(folder: Path, serve: Callable[..., Server]) -> None:
    server, path = serve(), folder / "models.config"
    path.write_text(str(config(folder, "half")))
    file = ConfigFile(path, 0.05, server.models.reload)
    file.start()
    path.write_text("model_config_list {")
    path.write_text(str(config(folder, "half", "other")))
    until(available(server, "other", 7), "the model that the file names now")
    file.close()


def test_folders_are_read_once_at_a_pause_of_0(folder: Path, serve: Callable[..., Server]) -> None:
    (folder / "half" / "00000123").rename(folder / "aside")
    saved_model.write(folder / "half" / "123", "")  # a load that fails is tried again, all the same
    server = serve(Following(0, retries=1000, retry_s=0))
    until(lambda: server.status("half") == {123: 50}, "a broken version")
    (folder / "half" / "123" / "saved_model.pb").write_bytes((folder / "aside" / "saved_model.pb").read_bytes())
    until(available(server), "version 123")
    saved_model.write(folder / "half" / "124")
    server.reload(config(folder, "other", "half"))  # a reload reads them again
    until(available(server, version=124), "version 124")


@pytest.mark.parametrize("retries", [0, 1000])
def test_a_load_is_tried_again(folder: Path, serve: Callable[..., Server], retries: int) -> None:
    broken = saved_model.write(folder / "half" / "200") / "saved_model.pb"
    good = broken.read_bytes()
    broken.write_bytes(b"no model")
    server = serve(Following(0.02, retries, retry_s=0.02))
    until(lambda: server.status("half").get(200) == 50, "version 200 at END")
    broken.write_bytes(good)  # the folder itself is the same
    if retries:
        until(available(server, version=200), "version 200")
    else:
        saved_model.write(folder / "half" / "201")
        until(available(server, version=201), "the version that came later")
        assert server.status("half")[200] == 50


def test_names_of_version_folders(tmp_path: Path) -> None:
    names = ("2", "10", "010", "0000009", "x3", "-4", "1.5", "٣", str(2**63), "9 ")
    for name in names:
        (tmp_path / name).mkdir()
    model = config(tmp_path.parent, tmp_path.name).model_config_list.config[0]
    assert aspired(model) == {10: tmp_path / "10"}
    model.model_version_policy.latest.num_versions = 2
    assert aspired(model) == {9: tmp_path / "0000009", 10: tmp_path / "10"}
    model.model_version_policy.all.SetInParent()
    assert list(aspired(model)) == [2, 9, 10]
    model.model_version_policy.specific.versions.extend([9, 3])
    assert list(aspired(model)) == [9]
    model.base_path = str(tmp_path / "missing")
    assert aspired(model) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_config_list {", "Invalid protobuf file: '.*models.config'"),
        ("", "ModelConfigList"),
        ('model_config_list { config { name: "a" } }', "base_path"),
        (
            'model_config_list { config { name: "a" base_path: "/b" model_platform: "torch" } }',
            "Model a requests unsupported platform torch",
        ),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_config(path)
