"""Classify, Regress and MultiInference as TensorFlow Serving answers them, by its own stubs and over REST."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from tests.support import half_plus_two
from tests.support.half_plus_two import CLASSIFY, REGRESS
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.wait import until

VERSION = 123


class Server:
    def __init__(self, port: int, rest_port: int) -> None:
        self.stub, self._rest_port = PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}")), rest_port

    def classify(self, signature: str = "classify_x_to_y", *xs: float, **fields: Any) -> Any:
        r = ClassificationRequest(**{"input": examples(*xs), **fields})
        r.model_spec.name, r.model_spec.signature_name = "half", signature
        return self.stub.Classify(r, timeout=30)

    def regress(self, signature: str = "regress_x_to_y", *xs: float, **fields: Any) -> Any:
        r = RegressionRequest(**{"input": examples(*xs), **fields})
        r.model_spec.name, r.model_spec.signature_name = "half", signature
        return self.stub.Regress(r, timeout=30)

    def infer(self, *tasks: tuple[str, str], models: tuple[str, ...] = ("half", "half"), xs: tuple[float, ...]) -> Any:
        r = MultiInferenceRequest(input=examples(*xs))
        for (signature, method), model in zip(tasks, models, strict=False):
            task = r.tasks.add(method_name=method)
            task.model_spec.name, task.model_spec.signature_name = model, signature
        return self.stub.MultiInference(r, timeout=30)

    def rest(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._rest_port}{path}", data, 30) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())


def example(**features: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def examples(*xs: float) -> Input:
    made = Input()
    made.example_list.examples.extend(example(x=x) for x in xs)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port, rest_port = tmp_path_factory.mktemp("half"), free_port(), free_port()
    half_plus_two.write(folder / "half" / str(VERSION))
    process = Process(
        folder / "log", "serving.server.model_server", f"--port={port}", f"--rest_api_port={rest_port}",
        "--model_name=half", f"--model_base_path={folder / 'half'}",
    )  # fmt: skip
    made = Server(port, rest_port)
    until(lambda: made.regress("regress_x_to_y", 1.0), "the model is served", 60, process)
    yield made
    assert process.end() == 0
    assert "Traceback" not in process.text()


def test_classify(server: Server) -> None:
    reply = server.classify("classify_x_to_y", 2.0, 20.0)
    assert [[(c.label, c.score) for c in row.classes] for row in reply.result.classifications] == [
        [("", 3.0)], [("", 12.0)]
    ]  # fmt: skip
    assert (reply.model_spec.name, reply.model_spec.signature_name) == ("half", "classify_x_to_y")
    assert reply.model_spec.version.value == VERSION
    (row,) = server.classify("classify_with_labels", 2.0).result.classifications
    assert [(c.label, c.score) for c in row.classes] == [("half plus two", 3.0)]


def test_regress(server: Server) -> None:
    reply = server.regress("regress_x_to_y", 80.0, 2.0)
    assert [r.value for r in reply.result.regressions] == [42.0, 3.0]
    assert (reply.model_spec.signature_name, reply.model_spec.version.value) == ("regress_x_to_y", VERSION)


def test_a_context_holds_for_all_examples(server: Server) -> None:
    given = Input()
    given.example_list_with_context.context.CopyFrom(example(x=2.0))
    given.example_list_with_context.examples.extend([example(), example(x=6.0)])
    assert [r.value for r in server.regress(input=given).result.regressions] == [3.0, 5.0]


def test_multi_inference(server: Server) -> None:
    reply = server.infer(("regress_x_to_y", REGRESS), ("classify_x_to_y", CLASSIFY), xs=(2.0,))
    regressed, classified = reply.results
    assert regressed.regression_result.regressions[0].value == 3.0
    assert classified.classification_result.classifications[0].classes[0].score == 3.0
    specs = [(r.model_spec.signature_name, r.model_spec.version.value) for r in reply.results]
    assert specs == [("regress_x_to_y", VERSION), ("classify_x_to_y", VERSION)]


REFUSED_CALLS: dict[str, tuple[str, tuple[Any, ...], str, str]] = {
    "no such signature": ("classify", ("no", 1.0), "INVALID_ARGUMENT", "No signature was found with the name: no"),
    "no such regression": ("regress", ("no", 1.0), "INVALID_ARGUMENT", "No signature was found with the name: no"),
    "no examples": ("classify", (), "INVALID_ARGUMENT", "Input is empty"),
    "too many outputs": ("classify", ("three_outputs", 1.0), "INVALID_ARGUMENT", "one or two output Tensors, found 3"),
    "a predict signature": ("classify", ("serving_default", 1.0), "FAILED_PRECONDITION", "No classification inputs"),
    "no scores": ("classify", ("regress_x_to_y", 1.0), "FAILED_PRECONDITION", '"classes" or "scores"'),
    "flat scores": ("classify", ("classify_flat", 1.0), "INVALID_ARGUMENT", "Expected Tensor shape: [batch_size num_"),
    "a classification": ("regress", ("classify_x_to_y", 1.0), "FAILED_PRECONDITION", "No regression outputs"),
    "two outputs": ("regress", ("classify_with_labels", 1.0), "INVALID_ARGUMENT", "Expected one output Tensor."),
    "integers": ("regress", ("regress_integers", 1.0), "INVALID_ARGUMENT", "Expected output Tensor of DT_FLOAT"),
    "pairs": ("regress", ("regress_pairs", 1.0), "INVALID_ARGUMENT", "either [batch_size] or [batch_size, 1]"),
    "one for all": ("regress", ("regress_sum", 1.0, 2.0), "INVALID_ARGUMENT", "Input batch size did not match"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_a_wrong_call_is_refused(server: Server, name: str) -> None:
    method, arguments, code, text = REFUSED_CALLS[name]
    with pytest.raises(grpc.RpcError) as refused:
        getattr(server, method)(*arguments)
    assert refused.value.code().name == code and text in refused.value.details(), refused.value.details()


REFUSED_TASKS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...], str, str]] = {
    "no task": ((), (), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    "no model": ((("a", REGRESS),), ("",), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    "a nameless one": (
        (("regress_x_to_y", REGRESS), ("a", REGRESS)), ("half", ""), "INVALID_ARGUMENT", "an empty model name"
    ),
    "two models": (
        (("regress_x_to_y", REGRESS), ("a", REGRESS)), ("half", "b"), "INVALID_ARGUMENT", "access the same model name"
    ),
    "twice": (
        (("regress_x_to_y", REGRESS),) * 2, ("half", "half"), "INVALID_ARGUMENT", "Duplicate evaluation of signature"
    ),
    "no signature": ((("no", REGRESS),), ("half",), "INVALID_ARGUMENT", "Requested signature not found in model graph"),
    "predict": ((("serving_default", "p"),), ("half",), "UNIMPLEMENTED", "Unsupported signature method_name: p"),
    "two inputs": (
        (("regress_x_to_y", REGRESS), ("regress_other", REGRESS)), ("half",) * 2, "INVALID_ARGUMENT",
        "Input tensor must be the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_TASKS)
def test_wrong_tasks_are_refused(server: Server, name: str) -> None:
    tasks, models, code, text = REFUSED_TASKS[name]
    with pytest.raises(grpc.RpcError) as refused:
        server.infer(*tasks, models=models, xs=(1.0,))
    assert refused.value.code().name == code and text in refused.value.details(), refused.value.details()


def test_a_call_without_a_model_is_refused(server: Server) -> None:
    with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
        server.stub.Regress(RegressionRequest(input=examples(1.0)), timeout=30)


def test_rest(server: Server) -> None:
    regress = {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}, {"x": [2.0]}]}
    classify = {"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}
    context = {"signature_name": "regress_x_to_y2", "context": {"x": 2.0}, "examples": [{}]}
    model = "/v1/models/half"
    for path in (model, f"{model}/versions/{VERSION}"):
        assert server.rest(f"{path}:regress", regress) == (200, {"results": [42.0, 3.0]})
        assert server.rest(f"{path}:classify", classify) == (200, {"results": [[["", 12.0]]]})
        assert server.rest(f"{path}:regress", context) == (200, {"results": [4.0]})
    labelled = server.rest(f"{model}:classify", classify | {"signature_name": "classify_with_labels"})
    assert labelled == (200, {"results": [[["half plus two", 12.0]]]})
    code, reply = server.rest(f"{model}:regress", {"examples": [{"x": 1.0}]})
    assert code == 400 and "No regression inputs found" in reply["error"]
    code, reply = server.rest("/v1/models/nobody:regress", {"examples": [{"x": 1.0}]})
    assert code == 404 and "Servable not found" in reply["error"]


def test_predict_over_rest(server: Server) -> None:
    path = "/v1/models/half:predict"
    assert server.rest(path, {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
    assert server.rest(path, {"instances": [{"x": [1.0]}, {"x": [2]}]}) == (200, {"predictions": [[2.5], [3.0]]})
    assert server.rest(path, {"inputs": [[3.0, 4.0]]}) == (200, {"outputs": [[3.5, 4.0]]})
    assert server.rest(path, {"inputs": {"x": 3.0}, "signature_name": ""}) == (200, {"outputs": 3.5})
    by_bytes = {"signature_name": "regress_x_to_y", "inputs": {"inputs": [{"b64": "Cg0KCwoBeBIGEgQKAgAA"}]}}
    code, reply = server.rest(path, by_bytes)  # a predict call may name any signature; this is no tf.Example
    assert code == 400 and "parse" in reply["error"].lower(), reply


def test_metadata_over_rest(server: Server) -> None:
    code, reply = server.rest("/v1/models/half/metadata")
    assert code == 200 and list(reply) == ["model_spec", "metadata"]
    assert reply["model_spec"] == {"name": "half", "signature_name": "", "version": str(VERSION)}
    assert list(reply["metadata"]) == ["signature_def"] and list(reply["metadata"]["signature_def"]) == [
        "signature_def"
    ]
    regression = reply["metadata"]["signature_def"]["signature_def"]["regress_x_to_y"]
    assert regression["inputs"] == {
        "inputs": {"dtype": "DT_STRING", "tensor_shape": {"dim": [], "unknown_rank": True}, "name": "tf_example:0"}
    }
    assert regression["method_name"] == REGRESS
