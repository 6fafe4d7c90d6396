"""Examples in, checkpoints out: the cuckoo table, the model, batch and online training, the delta log."""

import os

from common.tensorflow_start import lean

# TensorFlow reads these while it is imported, so they are set before any module of this package imports it. Its notices
# say nothing about training; without oneDNN a result does not depend on which kernels the machine's CPU gets.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
lean()
