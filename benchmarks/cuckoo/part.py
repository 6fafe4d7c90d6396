"""One part of the table's benchmark, in a process of its own: threads are fixed before TensorFlow starts.

    python -m benchmarks.cuckoo.part speed '{"keys": 1000000, "dim": 16, ...}' result.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    module, options, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    begin = time.monotonic()
    result = importlib.import_module(f"benchmarks.cuckoo.{module}").measure(**options)
    result |= {"seconds": round(time.monotonic() - begin, 1), "load_average": os.getloadavg()[0]}
    result["tensorflow"] = tf.__version__
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
