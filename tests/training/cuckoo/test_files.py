"""Big tables: a folder of shard files and back; an export that holds one copy; every int64 a key all the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.support import PROJECT
from training.cuckoo import FTRL, Adam, Normal, Segment, Table, Zeros
from training.cuckoo.admission import Admission

EDGES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1]


def a_table(rows: int = 0, admission: Admission | None = None, **changed: object) -> Table:
    segments = [Segment(1, FTRL(0.1), Zeros()), Segment(5, Adam(), Normal())]
    table = Table(segments, "user", expected_rows=200_000, admission=admission, **changed)
    if rows:
        keys = np.concatenate([EDGES, np.random.default_rng(1).integers(-(2**63), 2**63 - 1, rows)])
        for tick in (3, 7):
            table.set_tick(tick)
            table.lookup(keys[::2] if tick == 7 else keys)
            table.apply(keys, np.random.default_rng(tick).normal(size=(len(keys), 6)).astype(np.float32))
        table.set_tick(12)
    return table


def dump(table: Table) -> list[bytes]:
    rows = [x.numpy() for x in table.export_since(0)]
    order = np.argsort(rows[0])
    return [int(table.tick()).to_bytes(8, "big"), *(x[order].tobytes() for x in rows)]


def test_a_folder_brings_back_every_row_and_more_rows_go_on(tmp_path: Path) -> None:
    table = a_table(30_000)
    table.save(tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / "manifest.json").read_text())
    assert len(manifest["files"]) == 16 and all("shard-" in name for name in manifest["files"])
    restored = a_table()
    restored.restore(tmp_path / "saved")
    assert dump(restored) == dump(table)
    assert (restored.find(EDGES).numpy() == table.find(EDGES).numpy()).all()
    more = np.arange(50_000)
    for t in (table, restored):  # an index that was restored grows as any
        t.lookup(more)
        t.apply(more, np.ones((50_000, 6), np.float32))
        t.remove(more[::3])
    assert dump(restored) == dump(table)
    with pytest.raises(FileExistsError):
        table.save(tmp_path / "saved")


def test_a_folder_carries_the_admission_filter(tmp_path: Path) -> None:
    policy = Admission(after=3, pending=1000)
    table = a_table(admission=policy)
    table.lookup([5, 6])
    table.lookup([5])
    table.save(tmp_path / "saved")
    saved = tf.train.Checkpoint(table=table).write(str(tmp_path / "checkpoint"))
    by_file, by_checkpoint = a_table(admission=policy), a_table(admission=policy)
    by_file.restore(tmp_path / "saved")
    by_checkpoint.lookup([6, 7])  # forgotten: the checkpoint's filter takes its place
    tf.train.Checkpoint(table=by_checkpoint).read(saved).assert_consumed()
    for t in (table, by_file, by_checkpoint):
        t.lookup([5, 6])
        assert t.find([5]).numpy().any() and not t.find([6]).numpy().any()
        t.lookup([6, 7])
        assert t.find([6]).numpy().any() and not t.find([7]).numpy().any()


def test_what_is_not_whole_or_of_another_table_is_refused_and_leaves_the_table_empty(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    a_table(3000).save(saved)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table user holds 506 rows, allowed is an empty one"):
        a_table(500).restore(saved)
    with pytest.raises(ValueError, match="holds another table: seed .*, expected"):
        a_table(seed=1).restore(saved)
    with pytest.raises(ValueError, match="holds another table: segments .*Adam"):
        Table(6, "user", expected_rows=200_000).restore(saved)
    shard = saved / "shard-004.table"
    content = shard.read_bytes()
    table = a_table()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for wrong, why in ((bytes(flipped), "damaged"), (content[:-100], "cut short"), (b"x" * 200, "not a shard")):
        shard.write_bytes(wrong)
        with pytest.raises(tf.errors.DataLossError, match=f"table user: shard 4: .*{why}"):
            table.restore(saved)
        assert table.stats()["size"] == 0
    shard.unlink()
    with pytest.raises(tf.errors.DataLossError, match="shard 4: open .*No such file"):
        table.restore(saved)
    shard.write_bytes(content)
    table.restore(saved)
    assert table.stats()["size"] == 3006
    (saved / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="manifest.json is not there: the table in this folder is not whole"):
        a_table().restore(saved)


PEAK = """
import sys
import time
import numpy as np
import tensorflow as tf
from training.cuckoo import Table, Zeros

def peak(reset):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def settle():  # until the thread that takes a table's pages has taken them
    now, last = resident(), ""
    while now != last:
        time.sleep(0.2)
        now, last = resident(), now

def resident():
    return next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))

rows, dim = 400_000, 64
def a_first_time():  # so that what TensorFlow loads and keeps is not counted
    first = Table(dim, "first", initializer=Zeros())
    first.lookup(np.arange(20_000))
    first.save(sys.argv[1] + "-first")
    Table(dim, "first", initializer=Zeros()).restore(sys.argv[1] + "-first")

a_first_time()
before = peak(True)
table = Table(dim, "t", initializer=Zeros(), expected_rows=rows)
for at in range(0, rows, 20_000):
    table.lookup(np.arange(at, at + 20_000))
payload = rows * dim * 8
settle()
print("table", (peak(False) - before) / payload)
table.export_since(int(table.tick()))
before = peak(True)
exported = table.export_since(0)
assert len(exported.keys) == rows
print("export", (peak(True) - before) / payload)
del exported
before = peak(True)
table.save(sys.argv[1])
print("save", (peak(True) - before) / payload)
copy = Table(dim, "t", initializer=Zeros(), expected_rows=rows)
before = peak(True)
copy.restore(sys.argv[1])
settle()
print("restore", (peak(True) - before) / payload)
"""


def test_an_export_holds_one_copy_and_files_hardly_any(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "saved")],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    peaks = {name: float(value) for name, value in (line.split() for line in run.stdout.splitlines())}
    assert 0.9 < peaks["export"] < 1.3
    assert peaks["save"] < 0.1  # a buffer of 2 MB a thread; what it holds beside the table is some 200 MB
    assert 0.9 < peaks["restore"] < 1.1 * peaks["table"]  # itself, and less than a tenth beside it
