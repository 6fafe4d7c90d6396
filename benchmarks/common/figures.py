"""Sums up figures: median, p10 and p90 of rounds, and ratios as medians of the ratios of single rounds."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """The median, p10 and p90 of the values."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": round(float(median), digits), "p10": round(float(p10), digits), "p90": round(float(p90), digits)}


def rates(seconds: Sequence[float], keys: int) -> dict[str, float]:
    """The spread of M keys/s. One batch in ten is slower than p10."""
    return spread([keys / s / 1e6 for s in seconds])


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The spread of theirs / ours, of the seconds of each round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def timed(do: Callable[[], Any], clock: Callable[[], float]) -> float:
    begin = clock()
    do()
    return clock() - begin


def preempted() -> int:
    """The number of times that this thread was preempted."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def commit(checkout: Path = ROOT) -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "huge_pages": huge.read_text().split("[")[1].split("]")[0] if huge.exists() else "none",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
