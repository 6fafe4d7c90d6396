"""Small SavedModels, written as messages: no TensorFlow is needed to make one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

HALF_PLUS_TWO = """
meta_graphs {
  meta_info_def { tags: "serve" }
  graph_def {
    node { name: "x" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } }
    node { name: "half" op: "Const" attr { key: "dtype" value { type: DT_FLOAT } }
           attr { key: "value" value { tensor { dtype: DT_FLOAT tensor_shape {} float_val: 0.5 } } } }
    node { name: "two" op: "Const" attr { key: "dtype" value { type: DT_FLOAT } }
           attr { key: "value" value { tensor { dtype: DT_FLOAT tensor_shape {} float_val: 2 } } } }
    node { name: "mul" op: "Mul" input: "x" input: "half" attr { key: "T" value { type: DT_FLOAT } } }
    node { name: "y" op: "AddV2" input: "mul" input: "two" attr { key: "T" value { type: DT_FLOAT } } }
  }
  signature_def { key: "serving_default" value {
    inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT tensor_shape { dim { size: -1 } dim { size: 1 } } } }
    outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT tensor_shape { dim { size: -1 } dim { size: 1 } } } }
    method_name: "tensorflow/serving/predict"
  } }
}
"""
"""The model of TensorFlow Serving's tutorial: y = x / 2 + 2. Its signature has shape [-1, 1]."""


def write(folder: Path, model: str = HALF_PLUS_TWO) -> Path:
    """Writes a SavedModel, complete at once, and returns its folder."""
    aside = folder.parent / f"{folder.name}.aside"
    aside.mkdir(parents=True)
    message = text_format.Parse(model, saved_model_pb2.SavedModel())
    (aside / "saved_model.pb").write_bytes(message.SerializeToString())
    return aside.rename(folder)


def identity(dtypes: Mapping[str, str]) -> str:
    """A model whose signature NAME answers its input: NAME -> name of a DataType."""
    nodes = [
        f"""
        node {{ name: "{name}_x" op: "Placeholder" attr {{ key: "dtype" value {{ type: {dtype} }} }} }}
        node {{ name: "{name}_y" op: "Identity" input: "{name}_x" attr {{ key: "T" value {{ type: {dtype} }} }} }}"""
        for name, dtype in dtypes.items()
    ]
    signatures = [
        f"""signature_def {{ key: "{name}" value {{
              inputs {{ key: "x" value {{ name: "{name}_x:0" dtype: {dtype} }} }}
              outputs {{ key: "y" value {{ name: "{name}_y:0" dtype: {dtype} }} }} }} }}"""
        for name, dtype in dtypes.items()
    ]
    graph = f"graph_def {{ {' '.join(nodes)} }}"
    return f'meta_graphs {{ meta_info_def {{ tags: "serve" }} {graph} {" ".join(signatures)} }}'
