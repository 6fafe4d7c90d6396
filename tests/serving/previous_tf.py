"""Run by test_export_previous_tf.py in an environment of its own: every signature, by both loaders.

python previous_tf.py <version folder> <calls.npz>; prints a JSON object loader -> [what each call answered]. On stderr,
TensorFlow's log has a line for each graph that it optimises, and `<loader>, call <signature>` stands before each call.
"""

import json
import os
import sys

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "meta_optimizer=1"}
import numpy as np
import tensorflow as tf

folder, calls = sys.argv[1:]
arrays = dict(np.load(calls))
names = list(dict.fromkeys(name.split("|")[0] for name in arrays))


def inputs(call):
    """`<place> <signature>|<input>` in the file; an input `|` alone marks a call without any."""
    values = {name.split("|")[1]: value for name, value in arrays.items() if name.split("|")[0] == call}
    return {name: value.astype(object) if value.dtype.kind == "U" else value for name, value in values.items() if name}


def plain(value):
    value = np.asarray(value)
    return value.item().decode() if value.dtype.kind in "OS" else value.tolist()


def say(loader, call):
    print(f"{loader}, call {call.split()[1]}", file=sys.stderr, flush=True)


by_object = tf.saved_model.load(folder).signatures
answers = {"tf": tf.__version__, "object": [], "session": []}
for call in names:
    say("object", call)
    out = by_object[call.split()[1]](**{n: tf.constant(v) for n, v in inputs(call).items()})
    answers["object"].append({n: plain(v.numpy()) for n, v in out.items()})

with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    for call in names:
        say("session", call)
        signature = graph.signature_def[call.split()[1]]
        feeds = {signature.inputs[n].name: v for n, v in inputs(call).items()}
        out = session.run({n: i.name for n, i in signature.outputs.items()}, feeds)
        answers["session"].append({n: plain(v) for n, v in out.items()})
print(json.dumps(answers))
