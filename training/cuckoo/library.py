"""Loads the op library `_cuckoo.so` once, after a check that it was built for this TensorFlow."""

from __future__ import annotations

import functools
import mmap
import re
from pathlib import Path
from typing import Any

import tensorflow as tf

PATH = Path(__file__).with_name("_cuckoo.so")
BUILT_FOR = re.compile(rb"CUCKOO_BUILT_FOR_TENSORFLOW=([^;]{1,40});")


def check(path: Path, version: str) -> None:
    """Raises ImportError unless `path` is there and was built for TensorFlow `version`.

    The version is read from the file's bytes: loading an op library into another TensorFlow may crash the process.
    """
    if not path.is_file():
        raise ImportError(f"the table op {path} is not built: run `make setup`")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = BUILT_FOR.search(content)
        built_for = match[1].decode() if match else "unknown"
    if built_for != version:
        raise ImportError(
            f"the table op {path} was built for TensorFlow {built_for}, this is {version}: run `make setup`"
        )


@functools.cache
def ops() -> Any:
    """Returns the module of the ops: `cuckoo_lookup` and so on."""
    check(PATH, tf.__version__)
    return tf.load_op_library(str(PATH))
