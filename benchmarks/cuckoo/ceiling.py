"""Calls the two ceilings of ceiling.cc by ctypes. Compiles the file when it has changed; tunes prefetch distances."""

from __future__ import annotations

import ctypes
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("ceiling.cc")
LIBRARY = SOURCE.parents[2] / "build" / "benchmarks" / "ceiling.so"
FLAGS = ["-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra"]
"""-march=native: a ceiling may use all instructions of this machine."""
PER_LINE = 4 * 0.93
AHEAD = (4, 8, 12, 16, 24, 32, 48)


def build() -> Path:
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["g++", *FLAGS, str(SOURCE), "-o", str(LIBRARY)], check=True)
    return LIBRARY


class Ceiling:
    """`n` rows of `dim` floats, `stride` apart, and an index line for each 3.72 of them."""

    def __init__(self, n: int, dim: int, stride: int) -> None:
        self._library = ctypes.CDLL(str(build()))
        self._library.ceiling_new.restype = ctypes.c_void_p
        self._library.ceiling_new.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_double]
        for f in (self._library.ceiling_row_copy, self._library.ceiling_index_line):
            f.restype = None
            f.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2 + [ctypes.c_void_p]
        self._rows = self._library.ceiling_new(n, dim, stride, PER_LINE)
        if not self._rows:
            raise MemoryError(f"no memory for the ceiling's {n} rows")
        self.dim = dim
        self.ahead = {"row_copy": 16, "index_line": 16}

    def row_copy(self, places: NDArray[np.int64]) -> Any:
        return self._call(self._library.ceiling_row_copy, places, self.ahead["row_copy"])

    def index_line(self, keys: NDArray[np.int64]) -> Any:
        return self._call(self._library.ceiling_index_line, keys, self.ahead["index_line"])

    def tune(self, places: list[NDArray[np.int64]], keys: list[NDArray[np.int64]]) -> dict[str, int]:
        """Sets each one's prefetch distance to the fastest on these batches."""
        for name, batches in (("row_copy", places), ("index_line", keys)):
            took: dict[int, float] = {}
            for ahead in AHEAD * 3:  # in turn, so that a slow moment does not fall on one distance
                self.ahead[name] = ahead
                for batch in batches:
                    begin = time.perf_counter()
                    getattr(self, name)(batch)
                    took.setdefault(ahead, 0.0)
                    took[ahead] += time.perf_counter() - begin
            self.ahead[name] = min(took, key=lambda a: took[a])
        return dict(self.ahead)

    def _call(self, function: Any, batch: NDArray[np.int64], ahead: int) -> Any:
        out = np.empty((len(batch), self.dim), np.float32)  # allocated by the call, as an op's output is
        function(self._rows, batch.ctypes.data, len(batch), ahead, out.ctypes.data)
        return out
