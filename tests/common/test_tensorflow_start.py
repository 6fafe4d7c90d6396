"""TensorFlow starts without the libraries that Keras only looks for; a process that asks for one itself has it. The
garbage collector leaves TensorFlow's own objects out, and works for all others."""

from __future__ import annotations

import subprocess
import sys

from tests.support import PROJECT

CHILD = """
import gc, sys
import serving.graph
assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
assert "keras" in sys.modules
print(*sorted({"matplotlib", "pandas", "sklearn"} & set(sys.modules)))
import matplotlib.pyplot, sklearn.metrics
"""


def test_it_leaves_out_what_nobody_asks_for() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, "\n"), child.stderr
