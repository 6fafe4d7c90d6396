"""Our model server as a process, over real gRPC and REST: TensorFlow Serving's answers, codes and texts."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client import Scorer, array, tensor
from serving.server.model_server import main
from tests.support import saved_model
from tests.support.lineage import ROW_DIM, D, Lineage, request
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.rig import BASE, export
from tests.support.wait import until

CONFIG = """
model_config_list {{
  config {{ name: "ranker" base_path: "{served}" model_platform: "tensorflow"
           version_labels {{ key: "stable" value: {base} }} }}
  config {{ name: "frozen" base_path: "{frozen}" model_platform: "tensorflow" }}
  config {{ name: "half" base_path: "{half}" model_platform: "tensorflow" }}
}}
"""


@dataclass
class Server:
    """One server with both models, for all cases that change nothing."""

    port: int
    rest_port: int
    lineage: Lineage

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.predict = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def call(self, inputs: dict[str, Any], model: str = "ranker", signature: str = "", **spec: Any) -> Any:
        r = predict_pb2.PredictRequest(inputs={n: tensor(v) for n, v in inputs.items()})
        r.model_spec.name, r.model_spec.signature_name = model, signature
        r.output_filter.extend(spec.get("outputs", []))
        if "version" in spec:
            r.model_spec.version.value = spec["version"]
        if "label" in spec:
            r.model_spec.version_label = spec["label"]
        return self.predict.Predict(r, timeout=30)

    def rest(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        url = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data, headers or {})
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                text = reply.read()
                return reply.status, json.loads(text) if "json" in reply.headers["Content-Type"] else text.decode()
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())


@pytest.fixture(scope="module")
def server(prepared: tuple[Path, Lineage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    source, lineage = prepared
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(source / "models" / "ranker" / "served", folder / "served")
    export(source / "log", folder / "frozen", "--frozen", "--model", "frozen")
    config = folder / "models.config"
    saved_model.write(folder / "half" / "00000123")
    paths = {name: folder / name for name in ("served", "frozen", "half")}
    config.write_text(CONFIG.format(base=BASE, **paths))
    made = Server(free_port(), free_port(), lineage)
    process = Process(
        folder / "log", "serving.server.model_server", f"--port={made.port}", f"--rest_api_port={made.rest_port}",
        f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models",
    )  # fmt: skip
    up = "the server is up"
    until(lambda: made.call({}, "frozen", "status") and made.call({}, "ranker", "status"), up, 90)
    yield made
    assert process.end() == 0
    assert "Traceback" not in process.text()


def arrays(reply: Any) -> dict[str, np.ndarray]:
    return {n: array(t) for n, t in reply.outputs.items()}


def test_predict(server: Server) -> None:
    x = request(server.lineage)
    expected = server.lineage.scores(x)
    for reply in (
        server.call(x),
        server.call(x, version=BASE),
        server.call(x, label="stable"),
        server.call(x, "frozen"),
    ):
        assert reply.model_spec.version.value == BASE and reply.model_spec.signature_name == "serving_default"
        for task in D.tasks:
            assert len(reply.outputs[task].float_val) == 20  # where clients of TensorFlow Serving look
            np.testing.assert_allclose(arrays(reply)[task], expected[task], atol=1e-6)
    assert list(server.call(x, outputs=["like"]).outputs) == ["like"]


def test_the_tutorials_model(server: Server) -> None:
    reply = server.call({"x": np.float32([1, 2])}, "half")  # the signature's shape is [-1, 1]
    assert reply.model_spec.version.value == 123 and list(reply.outputs["y"].float_val) == [2.5, 3.0]
    assert server.rest("/v1/models/half:predict", {"instances": [1.0, 2.0]}) == (200, {"predictions": [2.5, 3.0]})


def test_numbers_as_lists_are_understood(server: Server) -> None:
    x = request(server.lineage, 3)
    r = predict_pb2.PredictRequest()
    r.model_spec.name = "ranker"
    for name, value in x.items():
        proto = r.inputs[name]
        proto.CopyFrom(tensor(value))
        proto.tensor_content = b""
        (proto.float_val if value.dtype == np.float32 else proto.int64_val).extend(value.ravel().tolist())
    np.testing.assert_array_equal(arrays(server.predict.Predict(r))["click"], arrays(server.call(x))["click"])


def test_the_small_client(server: Server) -> None:
    scorer = Scorer([f"127.0.0.1:{server.port}"], "ranker", D)
    x = {
        "user": sorted(server.lineage.tables["user"])[0],
        "item": 7,
        "tags": [1, 2],
        "seen": [],
        "price": 0.5,
        "hour": 2.0,
    }
    scores, seq = scorer.score([x])
    wide = {"user": [x["user"]], "item": [7], "tags": [[1, 2]], "seen": [[-(2**63)]], "price": [0.5], "hour": [2.0]}
    expected = server.lineage.scores({n: np.array(v) for n, v in wide.items()})
    assert seq == 0 and scores["click"][0] == pytest.approx(expected["click"][0], abs=1e-6)
    scorer.close()


@dataclass
class Case:
    code: str
    says: list[str]
    inputs: dict[str, Any] = field(default_factory=dict)
    without: str = ""
    spec: dict[str, Any] = field(default_factory=dict)


CASES = {
    "no such model": Case("NOT_FOUND", ["Servable not found for request: Latest(nobody)"], spec={"model": "nobody"}),
    "no such version": Case("NOT_FOUND", ["Servable not found for request: Specific(ranker, 7)"], spec={"version": 7}),
    "no name": Case("INVALID_ARGUMENT", ["ModelSpec has no name specified."], spec={"model": ""}),
    "no such label": Case("INVALID_ARGUMENT", ["Unrecognized servable version label: new"], spec={"label": "new"}),
    "no such signature": Case("FAILED_PRECONDITION", ['"nothing" not found'], spec={"signature": "nothing"}),
    "frozen has no writes": Case(
        "FAILED_PRECONDITION", ['"apply_file" not found'], spec={"signature": "apply_file", "model": "frozen"}
    ),
    "an input too many": Case("INVALID_ARGUMENT", ["input size does not match", "Sent extra: {shoe}"], {"shoe": [1]}),
    "an input too few": Case("INVALID_ARGUMENT", ["input size does not match", "required: {price}"], without="price"),
    "an input of another name": Case("INVALID_ARGUMENT", ["alias not found", "shoe"], {"shoe": [1]}, without="price"),
    "another dtype": Case("INVALID_ARGUMENT", ["float", "int64"], {"user": np.zeros(20, "f4")}),
    "another rank": Case("INVALID_ARGUMENT", ["dimension"], {"tags": np.zeros(20, np.int64)}),
    "another number of rows": Case("INVALID_ARGUMENT", [""], {"user": np.zeros(3, np.int64)}),
    "no such output": Case("INVALID_ARGUMENT", ["output tensor alias", "buy"], spec={"outputs": ["buy"]}),
    "an output twice": Case("INVALID_ARGUMENT", ["duplicate", "like"], spec={"outputs": ["like", "like"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_and_texts(server: Server, name: str) -> None:
    case = CASES[name]
    x = request(server.lineage) | case.inputs
    x.pop(case.without, None)
    if "signature" in case.spec:
        x = {}
    with pytest.raises(grpc.RpcError) as refused:
        server.call(x, **case.spec)
    assert refused.value.code().name == case.code
    assert all(word in refused.value.details() for word in case.says), refused.value.details()


def test_tensors_that_are_none(server: Server) -> None:
    for wrong in (
        {"dtype": 9, "tensor_shape": {"dim": [{"size": 10**12}]}, "int64_val": [1]},  # a bomb
        {"dtype": 9, "tensor_shape": {"dim": [{"size": 20}]}, "tensor_content": b"abc"},
        {"dtype": 99, "tensor_shape": {"dim": [{"size": 20}]}},
        {"dtype": 9, "tensor_shape": {"dim": [{"size": -1}]}},
    ):
        r = predict_pb2.PredictRequest(inputs={n: tensor(v) for n, v in request(server.lineage).items()})
        r.model_spec.name = "ranker"
        r.inputs["user"].CopyFrom(type(r.inputs["user"])(**wrong))
        with pytest.raises(grpc.RpcError) as refused:
            server.predict.Predict(r, timeout=30)
        assert (
            refused.value.code().name == "INVALID_ARGUMENT" and "tensor parsing error: user" in refused.value.details()
        )


def test_writes_need_the_token(server: Server) -> None:
    """As exported the token is empty, and empty refuses all: over REST, too."""
    call = {"lineage": server.lineage.name, "seq": 1, "token": "", "chunk": 0, "chunks": 1, "learned_until_ms": 1}
    call |= {"dense_seq": 0}
    empty = {f"{t}_{k}": np.empty(0, np.int64) for t in D.tables for k in ("keys", "removed")}
    empty |= {f"{t}_rows": np.empty((0, ROW_DIM), "f4") for t in D.tables}
    with pytest.raises(grpc.RpcError) as refused:
        server.call(call | empty, signature="apply_delta")
    assert refused.value.code().name == "INVALID_ARGUMENT" and "write token" in refused.value.details()
    body = {"signature_name": "apply_delta", "inputs": call | {n: v.tolist() for n, v in empty.items()}}
    code, reply = server.rest("/v1/models/ranker:predict", body)
    assert code == 400 and "write token" in reply["error"]


def test_status_and_metadata(server: Server) -> None:
    r = get_model_status_pb2.GetModelStatusRequest()
    r.model_spec.name = "ranker"
    (version,) = server.models.GetModelStatus(r).model_version_status
    assert (version.version, version.state, version.status.error_code) == (BASE, 30, 0)
    r.model_spec.name = "nobody"
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model nobody"):
        server.models.GetModelStatus(r)
    with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
        server.models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())

    m = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    m.model_spec.name = "ranker"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    reply = server.predict.GetModelMetadata(m)
    reply.metadata["signature_def"].Unpack(signatures)
    assert reply.model_spec.version.value == BASE
    assert {"serving_default", "apply_dense", "apply_delta", "apply_file", "status", "digest"} <= set(
        signatures.signature_def
    )
    m.metadata_field[:] = ["weights"]
    with pytest.raises(grpc.RpcError, match="weights is not supported"):
        server.predict.GetModelMetadata(m)


def test_health(server: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    assert health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest()).status == 1


def plain(x: dict[str, np.ndarray]) -> dict[str, Any]:
    return {n: v.tolist() for n, v in x.items()}


def test_rest_predicts_by_rows_and_by_columns(server: Server) -> None:
    x = request(server.lineage)
    expected = arrays(server.call(x))
    rows = [{n: v[i] for n, v in plain(x).items()} for i in range(20)]
    for path in ("ranker", f"ranker/versions/{BASE}", "ranker/labels/stable", "frozen"):
        code, reply = server.rest(f"/v1/models/{path}:predict", {"instances": rows})
        assert code == 200, reply
        assert [r["seq"] for r in reply["predictions"]] == [0] * 20
        np.testing.assert_array_equal(np.float32([r["click"] for r in reply["predictions"]]), expected["click"])
    code, reply = server.rest("/v1/models/ranker:predict", {"signature_name": "serving_default", "inputs": plain(x)})
    assert code == 200
    np.testing.assert_array_equal(np.float32(reply["outputs"]["like"]), expected["like"])
    code, reply = server.rest("/v1/models/ranker:predict", {"signature_name": "status", "inputs": {"unused": 0}})
    assert code == 200 and (reply["outputs"]["lineage"], reply["outputs"]["seq"]) == (server.lineage.name, 0)


ROW = {"user": 1, "item": 2, "tags": [3], "seen": [4, 5], "price": 0.5, "hour": 1}


def test_rest_refuses(server: Server) -> None:
    lists = {"instances": [ROW, ROW | {"tags": 1}]}
    for body, text in (
        (lists, "key: tags"),
        ({"signature_name": "status", "inputs": {}}, "Missing named input: unused"),
    ):
        code, reply = server.rest("/v1/models/ranker:predict", body)
        assert code == 400 and text in reply["error"], reply


def test_rest_paths(server: Server) -> None:
    code, reply = server.rest("/v1/models/ranker")
    assert code == 200 and reply["model_version_status"] == [
        {"version": str(BASE), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    assert server.rest("/V1/Models/ranker")[0] == 200
    code, reply = server.rest("/v1/models/ranker/metadata")
    assert code == 200 and "apply_delta" in reply["metadata"]["signature_def"]["signature_def"]
    assert server.rest("/v1/models/nobody")[0] == 404
    assert server.rest("/v1/models/nobody:predict", {"instances": [ROW]})[0] == 404
    assert server.rest("/v1/models")[0] == 400
    assert server.rest("/nothing")[0] == 404
    assert server.rest("/v1/models/ranker:predict", {}, {"Content-Length": str(1 << 30)})[0] == 400
    # The metrics carry TensorFlow Serving's names.
    text = server.rest("/monitoring/prometheus/metrics")[1]
    assert ':tensorflow:serving:request_count{model_name="ranker",status="OK"}' in text
    assert ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST",model_name="ranker"}' in text


def test_eight_threads(server: Server) -> None:
    x = request(server.lineage)
    expected, wrong = arrays(server.call(x))["click"], []

    def ask() -> None:
        for _ in range(25):
            if not np.array_equal(arrays(server.call(x))["click"], expected):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_port_that_is_taken_is_reported_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--model_base_path", str(tmp_path)]) == 2
    (record,) = caplog.records
    assert f"--port {port}" in record.message and record.exc_info is None
