"""A SavedModel of TensorFlow 1's kind, as TensorFlow Serving's tutorials have it: y = x / 2 + 2, and y2 = x / 2 + 3.

Its signatures take tf.Examples with a feature `x` (regress_x_to_y, regress_x_to_y2, classify_x_to_y), or `x` itself
(serving_default). Some more are wrong, each in one way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"


def write(folder: Path) -> None:
    """Writes a version of the model."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        half, two, three = (v1.get_variable(n, initializer=v) for n, v in (("a", 0.5), ("b", 2.0), ("c", 3.0)))
        examples, other = (v1.placeholder(tf.string, name=name) for name in ("tf_example", "other_example"))
        x = tf.identity(tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"], "x")
        y, y2 = half * x + two, half * x + three
        labels = tf.fill(tf.shape(y), "half plus two")
        session.run(v1.global_variables_initializer())

        def signature(method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> SignatureDef:
            infos = [{a: v1.saved_model.build_tensor_info(t) for a, t in ts.items()} for ts in (inputs, outputs)]
            return v1.saved_model.build_signature_def(*infos, method_name=method)

        taken = {"inputs": examples}
        signatures = {
            "serving_default": signature(PREDICT, {"x": x}, {"y": y}),
            "regress_x_to_y": signature(REGRESS, taken, {"outputs": y}),
            "regress_x_to_y2": signature(REGRESS, taken, {"outputs": y2}),
            "classify_x_to_y": signature(CLASSIFY, taken, {"scores": y}),
            "classify_with_labels": signature(CLASSIFY, taken, {"scores": y, "classes": labels}),
            "regress_other": signature(REGRESS, {"inputs": other}, {"outputs": tf.strings.length(other)}),
            "regress_integers": signature(REGRESS, taken, {"outputs": tf.cast(y, tf.int32)}),
            "regress_pairs": signature(REGRESS, taken, {"outputs": tf.concat([y, y], 1)}),
            "regress_sum": signature(REGRESS, taken, {"outputs": tf.reduce_sum(y, 0)}),
            "classify_flat": signature(CLASSIFY, taken, {"scores": tf.reshape(y, [-1])}),
            "three_outputs": signature(PREDICT, taken, {"a": y, "b": y, "c": y}),
        }
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
