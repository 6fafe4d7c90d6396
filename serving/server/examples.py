"""Classify, Regress and MultiInference: the calls that take tf.Example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tensorflow_serving.apis.classification_pb2 import ClassificationResponse, ClassificationResult
from tensorflow_serving.apis.inference_pb2 import MultiInferenceResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionResponse, RegressionResult

from serving.server.runtime.servable import RequestError, Servable, Signature, invalid
from serving.server.versions import Models

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
"""The method names of a task of MultiInference."""

_Reply = TypeVar("_Reply", ClassificationResponse, RegressionResponse)


def classify(models: Models, request: Any) -> ClassificationResponse:
    """Answers a ClassificationRequest."""
    return _answered(models, request, ClassificationResponse(), _check_classification, _classified)


def regress(models: Models, request: Any) -> RegressionResponse:
    """Answers a RegressionRequest."""
    return _answered(models, request, RegressionResponse(), _check_regression, _regressed)


def _answered(
    models: Models, request: Any, reply: _Reply, check: Callable[[Signature], None],
    infer: Callable[[Servable, str, npt.NDArray[np.object_]], Any],
) -> _Reply:  # fmt: skip
    with models.use(_spec_of(request)) as servable:
        name = request.model_spec.signature_name or "serving_default"
        check(_signature(servable, name))
        reply.result.CopyFrom(infer(servable, name, _serialized(request.input)))
        servable.name_in(reply.model_spec, name)
    return reply


def multi_inference(models: Models, request: Any) -> MultiInferenceResponse:
    """Answers a MultiInferenceRequest: several signatures of one model on the same input."""
    reply = MultiInferenceResponse()
    with models.use(request.tasks[0].model_spec if request.tasks else ModelSpec()) as servable:
        signatures = _signatures_of(servable, request.tasks)
        examples = _serialized(request.input)
        for signature, task in zip(signatures, request.tasks, strict=True):
            result = reply.results.add()
            if task.method_name == CLASSIFY:
                result.classification_result.CopyFrom(_classified(servable, signature, examples))
            else:
                result.regression_result.CopyFrom(_regressed(servable, signature, examples))
            servable.name_in(result.model_spec, signature)
    return reply


def _spec_of(request: Any) -> ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def _signature(servable: Servable, name: str) -> Signature:
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def _signatures_of(servable: Servable, tasks: Sequence[Any]) -> list[str]:
    """The names of the tasks' signatures; RequestError if they are not of one model with one input."""
    names: list[str] = []
    for task in tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or "serving_default"
        if name in names:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        checks = {CLASSIFY: _check_classification, REGRESS: _check_regression}
        if task.method_name not in checks:
            text = f"Unsupported signature method_name: {task.method_name}"
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, text)
        checks[task.method_name](servable.signatures[name])
        names.append(name)
    if len({servable.signatures[name].inputs["inputs"].name for name in names}) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    return names


def _check_classification(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    _need("inputs", signature.inputs, "No classification inputs found in SignatureDef")
    if not signature.outputs.keys() & {"classes", "scores"}:
        text = 'Expected classification signature outputs to contain at least one of "classes" or "scores"'
        _need("classes", signature.outputs, text)


def _check_regression(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    _need("inputs", signature.inputs, "No regression inputs found in SignatureDef")
    _need("outputs", signature.outputs, "No regression outputs found in SignatureDef")


def _need(alias: str, tensors: Mapping[str, Any], text: str) -> None:
    if alias not in tensors:
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f"{text}: {', '.join(sorted(tensors))}")


def _serialized(request: Any) -> npt.NDArray[np.object_]:
    """The examples of an Input as bytes: that of the context, if there is one, before each example's own."""
    listed = getattr(request, request.WhichOneof("kind") or "example_list")
    context = listed.context.SerializeToString() if hasattr(listed, "context") else b""
    if not listed.examples:
        raise invalid("Input is empty.")
    return np.array([context + example.SerializeToString() for example in listed.examples], np.object_)


def _classified(servable: Servable, signature: str, examples: npt.NDArray[np.object_]) -> ClassificationResult:
    aliases = sorted(servable.signatures[signature].outputs.keys() & {"classes", "scores"})
    outputs = servable.run(signature, {"inputs": examples}, aliases)
    for alias, array in outputs.items():
        dtype = "DT_STRING" if alias == "classes" else "DT_FLOAT"
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if (array.dtype != np.float32) if alias == "scores" else (array.dtype.kind not in "OS"):
            raise invalid(f"Expected {alias} Tensor of {dtype}. Got: {array.dtype}")
        if len(array) != len(examples):
            raise invalid(f"Expected {alias} output batch size of {len(examples)}. Got: {len(array)}")
    sizes = [outputs[alias].shape[1] for alias in aliases]
    if len(set(sizes)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {sizes[0]} vs. {sizes[1]}")
    labels = outputs.get("classes", np.full((len(examples), sizes[0]), b"", np.object_)).tolist()
    scores = outputs.get("scores", np.zeros((len(examples), sizes[0]), np.float32)).tolist()
    result = ClassificationResult()
    for row_labels, row_scores in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row_labels, row_scores, strict=True):
            classes.add(label=label.decode(errors="replace"), score=score)
    return result


def _regressed(servable: Servable, signature: str, examples: npt.NDArray[np.object_]) -> RegressionResult:
    array = servable.run(signature, {"inputs": examples}, ["outputs"])["outputs"]
    if array.ndim != 1 and (array.ndim != 2 or array.shape[1] != 1):
        shapes = "either [batch_size] or [batch_size, 1]"
        raise invalid(f"Expected output Tensor shape to be {shapes} but got {_shape(array)}")
    if len(array) != len(examples):
        raise invalid(f"Input batch size did not match output batch size: {len(examples)} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {array.dtype}")
    result = RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _shape(array: npt.NDArray[Any]) -> str:
    return f"[{','.join(map(str, array.shape))}]"
