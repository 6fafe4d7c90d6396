"""Runs parts of the table's benchmark in a process of their own, with the threads set before TensorFlow starts.

python -m benchmarks.cuckoo.part '{"memory-10M-16": ["memory", {"keys": 10000000, "dim": 16}]}' result.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    parts, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf

    # Saving and restoring use all threads of the device. All other parts measure one thread.
    threads = os.cpu_count() if all(module == "files" for module, _ in parts.values()) else 1
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    results = {}
    for name, (module, options) in parts.items():
        begin = time.monotonic()
        result = importlib.import_module(f"benchmarks.cuckoo.{module}").measure(**options)
        seconds = {"seconds": round(time.monotonic() - begin, 1), "load_average": round(os.getloadavg()[0], 1)}
        results[name] = {"tensorflow": tf.__version__, "threads": threads, **seconds, **result}
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
