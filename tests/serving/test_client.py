"""The light client: its messages are TensorFlow's, and a call without an answer ends in time."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.client import PADDING, PredictionFailed, Scorer, array, inputs, pad, tensor
from streaming.declaration import Declaration, Feature
from streaming.sources.simulator import declaration
from tests.support import PROJECT
from tests.support.ports import free_port


def test_lists_are_padded_with_the_reserved_id():
    assert pad([[1, 2], [], [3]]).tolist() == [[1, 2], [PADDING, PADDING], [3, PADDING]]
    assert pad([[], []]).shape == (2, 1) and pad([]).shape == (0, 1)


def test_rows_become_columns_with_defaults():
    made = inputs([{"viewer": 7, "topics": [1, 2], "age": 0.5}, {}], declaration)
    assert list(made) == [f.name for f in declaration.features]
    assert made["viewer"].tolist() == [7, 0] and made["viewer"].dtype == np.int64
    assert made["topics"].tolist() == [[1, 2], [PADDING, PADDING]]
    assert made["age"].tolist() == [0.5, 0] and made["age"].dtype == np.float32


@pytest.mark.parametrize(
    "value",
    [np.arange(6).reshape(2, 3), np.float32([[0.5]]), np.int32(4), np.array([True, False]), np.zeros((0, 3), np.int64)],
)
def test_tensors_are_tensorflows(value):
    from tensorflow import make_ndarray, make_tensor_proto

    mine = tensor(value)
    assert np.array_equal(make_ndarray(mine), value) and make_ndarray(mine).dtype == value.dtype
    # And what TensorFlow writes is read, in its list form (a repeated value is written once) and as bytes.
    for proto in (make_tensor_proto(value), make_tensor_proto(np.full((3, 2), 7.5, np.float32))):
        assert np.array_equal(array(proto), make_ndarray(proto))


def test_strings_and_what_has_no_type():
    assert array(tensor("lineage")).item() == b"lineage"
    with pytest.raises(TypeError, match="allowed are float32, float64, int32, int64, bool"):
        tensor(np.uint8(1))


def test_without_an_answer_it_fails_in_time_and_names_each_replica():
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    scorer = Scorer(addresses, "ranker", declaration, timeout=1)
    begun = time.monotonic()
    with pytest.raises(PredictionFailed) as e:
        scorer.score([{"viewer": 1}])
    assert 0.9 < time.monotonic() - begun < 10
    assert all(f"{address} UNAVAILABLE" in str(e.value) for address in addresses)
    scorer.close()
    with pytest.raises(ValueError, match="serving is empty"):
        Scorer([], "ranker", declaration)


@pytest.fixture
def small_server():
    """A model of two features and a task, which refuses other inputs as TensorFlow Serving does."""
    import grpc
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2 as metadata
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Model(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            if set(request.inputs) != {"user", "brand", "seen"}:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "input size does not match signature")
            sums = sum(array(request.inputs[name]).astype(np.float32).ravel() for name in ("user", "brand"))
            assert (array(request.inputs["seen"]) == PADDING).all()
            return predict_pb2.PredictResponse(outputs={"click": tensor(sums), "seq": tensor(np.full(2, 7))})

        def GetModelMetadata(self, request, context):
            reply, signatures = metadata.GetModelMetadataResponse(), metadata.SignatureDefMap()
            for name, dims in (("user", 1), ("brand", 1), ("seen", 2)):
                shape = {"dim": [{"size": -1}] * dims}
                info = meta_graph_pb2.TensorInfo(dtype=9, tensor_shape=shape)
                signatures.signature_def["serving_default"].inputs[name].CopyFrom(info)
            reply.metadata["signature_def"].Pack(signatures)
            return reply

    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Model(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_an_app_of_the_declaration_before_or_after_the_models_is_answered(small_server):
    user, price = Feature("user", "id"), Feature("price", "number")
    for features, tasks in (((user,), ("click",)), ((user, price), ("click", "like"))):
        scorer = Scorer([small_server], "ranker", Declaration("shop", features, tasks, "click", 1))
        assert scorer.score([{"user": 3}, {"user": 4}]) == ({"click": [3.0, 4.0]}, 7)
        scorer.close()


def test_light_leaves_tensorflow_out():
    code = (
        "import sys; from serving.client import light; light()\n"
        "from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc\n"
        "from serving.client import tensor; tensor(1.0)\n"
        "import tensorflow; print(hasattr(tensorflow, 'function'), 'tensorflow.python' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
