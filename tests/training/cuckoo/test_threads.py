"""Large batches are shared by TensorFlow's threads: the same bits as with one, whatever their number."""

import hashlib
import os
import subprocess
import sys

import numpy as np

from tests.support import PROJECT
from training.cuckoo import Adam, Normal, Table

BATCH = 30_000


def learned(size: int) -> str:
    """Digest of what a table holds and answered after a few steps of BATCH, looked up and found `size` at a time."""
    rng = np.random.default_rng(8)
    table = Table(7, "t", optimizer=Adam(clip_norm=0.5), initializer=Normal(0.1), expected_rows=3_000_000)
    digest = hashlib.sha256()
    for _ in range(3):
        ids = rng.zipf(1.1, BATCH) % 2**60  # many are there more than once, in each part of the batch
        gradients = rng.normal(size=(BATCH, 7)).astype(np.float32)
        for begin in range(0, BATCH, size):
            digest.update(table.lookup(ids[begin : begin + size]).numpy().tobytes())
        assert int(table.apply(ids, gradients)) == len(np.unique(ids))
        for begin in range(0, BATCH, size):
            digest.update(table.find(ids[begin : begin + size]).numpy().tobytes())
    rows = [x.numpy() for x in table.export_since(0)]
    order = np.argsort(rows[0])
    for part in rows:
        digest.update(part[order].tobytes())
    return digest.hexdigest()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    found = {learned(BATCH), learned(1000)}  # 1000 are below what is shared
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TF_NUM_INTRAOP_THREADS": "5", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found.add(run.stdout.strip())
    assert len(found) == 1, found


if __name__ == "__main__":
    print(learned(BATCH))
