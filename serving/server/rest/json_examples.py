"""tf.Example as JSON, and the results of Classify and Regress: their requests and answers over REST."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example.example_pb2 import Example
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from serving.server.examples import classify, regress
from serving.server.rest.json_cells import FLOAT_MAX, bytes_of, is_base64, json_type
from serving.server.rest.json_text import shown, written
from serving.server.runtime.servable import invalid
from serving.server.versions import Models


def classify_json(models: Models, spec: ModelSpec, signature: str, body: Mapping[str, Any], most_rows: int) -> bytes:
    """The answer to a body of classify: for each example its pairs of label and score."""
    request = ClassificationRequest(model_spec=_named(spec, signature), input=input_of(body, most_rows))
    rows = [row.classes for row in classify(models, request).result.classifications]
    return _results([[[one.label, np.float32(one.score)] for one in row] for row in rows])


def regress_json(models: Models, spec: ModelSpec, signature: str, body: Mapping[str, Any], most_rows: int) -> bytes:
    """The answer to a body of regress: a number for each example."""
    request = RegressionRequest(model_spec=_named(spec, signature), input=input_of(body, most_rows))
    return _results([np.float32(one.value) for one in regress(models, request).result.regressions])


def _named(spec: ModelSpec, signature: str) -> ModelSpec:
    try:
        spec.signature_name = signature
    except ValueError:  # half a surrogate
        raise invalid(f"No signature was found with the name: {shown(signature)}") from None
    return spec


def _results(values: list[Any]) -> bytes:
    return written({"results": values})


def input_of(body: Mapping[str, Any], most_rows: int) -> Input:
    """The `examples` of a body, and its `context`; RequestError if they are no tf.Examples."""
    request = Input()
    listed = request.example_list_with_context if "context" in body else request.example_list
    if "context" in body:
        listed.context.CopyFrom(_example(body["context"]))
    if "examples" not in body:
        text = "When method is classify, key 'examples' is expected and was not found"
        raise invalid(f"JSON Value: {shown(body)} {text}")
    examples = body["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {shown(body)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {shown(body)} 'examples' value is an empty array")
    if len(examples) > most_rows:
        raise invalid(f"examples: {len(examples)} rows, allowed are {most_rows} (--rest_api_max_rows)")
    listed.examples.extend(map(_example, examples))
    return request


def _example(value: Any) -> Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_type(value)}")
    example = Example()
    for name, content in value.items():
        feature = example.features.feature[_key(name)]
        for cell in content if isinstance(content, list) else [content]:
            kind, converted = _cell(name, cell)
            first_kind = feature.WhichOneof("kind") or kind
            if kind != first_kind:
                text = f"Unexpected element type in feature: {name} expecting type: {first_kind.removesuffix('_list')}"
                raise invalid(text)
            getattr(feature, kind).value.append(converted)
    return example


def _key(name: str) -> str:
    bytes_of(name)
    return name


def _cell(name: str, cell: Any) -> tuple[str, Any]:
    """The list of a Feature that takes a cell, and the cell as it is there."""
    if isinstance(cell, float):
        if FLOAT_MAX < abs(cell) < math.inf:
            raise invalid(f"Cannot convert JSON value: {shown(cell)} to float without loss of precision.")
        return "float_list", cell
    if isinstance(cell, int):  # true and false, too
        if not -(2**63) <= cell < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", int(cell)
    if isinstance(cell, str) or is_base64(cell):
        return "bytes_list", bytes_of(cell)
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_type(cell)}")
