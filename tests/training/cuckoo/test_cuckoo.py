"""The table through its ops: against a dict and Keras, from threads, across export and import, given nonsense."""

import gc
import math
import re
import subprocess
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.support import PROJECT
from training.cuckoo import FTRL, Adagrad, Constant, Normal, Segment, Table, Uniform, Zeros, library

EDGES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1]
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def initial(key: int, dim: int, *, kind: str, scale: float, zero_prefix: int, seed: int, name: str) -> list[float]:
    """A new row by row.h's formula, in plain Python: what the order of inserts must not change."""
    state = mix((key + GOLDEN & MASK) ^ mix(seed ^ zlib.crc32(name.encode())))
    u = [(mix(state + (i + 1) * GOLDEN & MASK) >> 11) * 2.0**-53 for i in range(dim + 1)]
    if kind == "uniform":
        row = [scale * (2 * x - 1) for x in u[:dim]]
    else:
        row = []
        for p in range(0, dim, 2):
            radius, angle = scale * math.sqrt(-2 * math.log(1 - u[p])), 2 * math.pi * u[p + 1]
            row += [radius * math.cos(angle), radius * math.sin(angle)]
    return [0.0] * zero_prefix + row[zero_prefix:dim]


def prefixed(dim: int, kind: str, scale: float) -> list[Segment]:
    """A zero, then dim - 1 weights of `kind`."""
    vector = Normal(scale) if kind == "normal" else Uniform(scale)
    return [Segment(1, initializer=Zeros()), *([Segment(dim - 1, initializer=vector)] if dim > 1 else [])]


def dump(table: Table, since: int = 0) -> dict[int, tuple[bytes, bytes, int]]:
    keys, rows, slots, ticks = (x.numpy() for x in table.export_since(since))
    assert len(set(keys.tolist())) == len(keys)
    parts = zip(keys.tolist(), rows, slots, ticks.tolist(), strict=True)
    return {k: (r.tobytes(), s.tobytes(), t) for k, r, s, t in parts}


@pytest.mark.parametrize(("seed", "dim", "expected_rows"), [(1, 1, 1), (2, 5, 100_000), (3, 17, 10_000_000)])
def test_random_operations_equal_a_dict(seed: int, dim: int, expected_rows: int) -> None:
    rng = np.random.default_rng(seed)
    table = Table(prefixed(dim, "normal", 0.1), "t", seed=seed, expected_rows=expected_rows)
    model: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    tick = 1
    for _ in range(300):
        n = int(rng.choice([0, 1, 7, 60, 600]))
        keys = np.where(rng.random(n) < 0.1, rng.choice(EDGES, n), rng.integers(-300, 300, n))
        values = rng.normal(size=(n, dim)).astype(np.float32)
        verb = rng.choice(["lookup", "find", "apply", "import", "remove", "tick"])
        if verb == "lookup":
            got = table.lookup(keys).numpy()
            for key in keys.tolist():
                if key not in model:
                    row = np.float32(initial(key, dim, kind="normal", scale=0.1, zero_prefix=1, seed=seed, name="t"))
                    model[key] = (row, np.full(dim, 0.1, np.float32), tick)
            want = np.reshape([model[key][0] for key in keys.tolist()], (n, dim))
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
        elif verb == "find":
            zeros = np.zeros(dim, np.float32)
            want = [model[key][0] if key in model else zeros for key in keys.tolist()]
            np.testing.assert_allclose(table.find(keys).numpy(), np.reshape(want, (n, dim)), rtol=2e-5, atol=1e-6)
        elif verb == "apply":
            summed: dict[int, np.ndarray] = {}
            for key, g in zip(keys.tolist(), values, strict=True):
                summed[key] = summed.get(key, np.float32(0)) + g
            assert int(table.apply(keys, values, 0.05)) == sum(key in model for key in summed)
            for key, g in summed.items():
                if key in model:
                    a = model[key][1] + g * g
                    model[key] = (model[key][0] - np.float32(0.05) * g / np.sqrt(a + np.float32(1e-7)), a, tick)
        elif verb == "import":
            ticks = rng.integers(0, tick + 2, n)
            table.import_rows(keys, values, values**2, ticks)
            for key, row, t in zip(keys.tolist(), values, ticks.tolist(), strict=True):
                model[key] = (row, row**2, t)
            tick = max([tick, *ticks.tolist()])
        elif verb == "remove":
            removed = table.remove(keys).numpy()
            assert removed.tolist() == [model.pop(key, None) is not None for key in keys.tolist()]
        else:
            tick += 1
            table.set_tick(tick)
        assert table.stats()["size"] == len(model)
        assert int(table.tick()) == tick
        since = int(rng.integers(0, tick + 1))
        exported = table.export_since(since)
        keys = exported.keys.numpy().tolist()
        assert sorted(keys) == sorted(k for k, (_, _, t) in model.items() if since == 0 or t > since)
        if keys:
            rows, slots, ticks = zip(*(model[key] for key in keys), strict=True)
            np.testing.assert_allclose(exported.rows, rows, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(exported.slots, slots, rtol=2e-5, atol=1e-6)
            assert exported.ticks.numpy().tolist() == list(ticks)


def test_eight_threads_lose_nothing() -> None:
    table = Table(4, optimizer=Adagrad(start=0), initializer=Zeros(), expected_rows=50_000)
    threads, rounds = 8, 60
    steps = [0] * threads
    failures: list[BaseException] = []

    def work(me: int) -> None:
        rng = np.random.default_rng(me)
        try:
            for i in range(rounds):
                keys = np.unique(rng.integers(0, 200 * (i + 1), 2000))  # grows while all write
                rows = table.lookup(keys).numpy()
                assert (rows == rows[:, :1]).all(), "a row was read half written"
                assert int(table.apply(keys, np.ones((len(keys), 4), np.float32), 0.1)) == len(keys)
                table.export_since(int(table.tick()))
                steps[me] += len(keys)
        except BaseException as e:
            failures.append(e)

    running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failures, failures[0]
    keys, _, slots, _ = (x.numpy() for x in table.export_since(0))
    assert len(keys) == len(np.unique(keys)) == table.stats()["size"]
    assert slots[:, 0].sum(dtype=np.float64) == sum(steps)  # gradient 1: the accumulator counts the steps


def test_export_since_is_the_difference_of_two_dumps() -> None:
    rng = np.random.default_rng(5)
    table = Table(6, name="t")
    table.lookup(np.arange(5000))
    for tick in range(2, 12):
        before = dump(table)
        table.set_tick(tick)
        changed = rng.choice(6000, 300, replace=False)  # some new, some known, some only ever applied to in vain
        table.lookup(changed[:150])
        table.apply(changed[100:], rng.normal(size=(200, 6)).astype(np.float32), 0.1)
        table.remove(changed[:10])
        after = dump(table)
        assert dump(table, tick - 1) == {k: v for k, v in after.items() if before.get(k) != v}
        assert dump(table, tick) == {}


def test_deltas_cut_while_four_threads_write_add_up_to_the_table() -> None:
    table, copy = (Table(2, optimizer=Adagrad(start=0), initializer=Zeros()) for _ in range(2))
    done = threading.Event()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            keys = np.unique(rng.integers(0, 5000, 500))
            table.lookup(keys)
            table.apply(keys, np.ones((len(keys), 2), np.float32), 0.1)

    running = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in running:
        thread.start()
    committed = 0
    try:
        for _ in range(100):
            tick = int(table.tick())
            table.set_tick(tick + 1)
            copy.import_rows(*table.export_since(committed))
            committed = tick
    finally:
        done.set()
        for thread in running:
            thread.join()
    copy.import_rows(*table.export_since(committed))
    assert dump(copy) == dump(table) != {}


def test_import_of_an_export_is_equal_bit_by_bit() -> None:
    table = Table(3, name="t", optimizer=FTRL(), expected_rows=100_000)
    special = np.float32([-0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38])
    rng = np.random.default_rng(6)
    keys = np.array([*EDGES, *range(100, 20_000)])
    rows, slots = rng.choice(special, (len(keys), 3)), rng.choice(special, (len(keys), 6))
    table.import_rows(keys, rows, slots, rng.integers(1, 2**32, len(keys)))
    copy = Table(3, name="other", optimizer=FTRL(), expected_rows=10)  # other shards and seed: rows are what they are
    copy.import_rows(*table.export_since(0))
    assert dump(copy) == dump(table)
    assert len(dump(copy)) == len(keys)
    assert int(copy.tick()) == int(table.tick()) == table.export_since(0).ticks.numpy().max()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_row_begins_the_same_whatever_the_order(kind: str) -> None:
    segments = prefixed(7, kind, 0.2)
    keys = np.array([*EDGES, *range(2, 3000)])
    forward, backward, threaded = (Table(segments, "t", seed=3, expected_rows=n) for n in (1, 10_000, 5_000_000))
    rows = forward.lookup(keys).numpy()
    for key in keys[::-1]:
        backward.lookup([key])
    parts = [threading.Thread(target=threaded.lookup, args=(keys[i::3],)) for i in range(3)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert rows.tobytes() == backward.find(keys).numpy().tobytes() == threaded.find(keys).numpy().tobytes()
    want = [initial(int(k), 7, kind=kind, scale=0.2, zero_prefix=1, seed=3, name="t") for k in keys]
    np.testing.assert_allclose(rows, want, rtol=1e-6, atol=1e-8)
    other_name = Table(segments, "u", seed=3).lookup(keys).numpy()
    assert not (other_name[:, 1:] == rows[:, 1:]).any()


def test_every_int64_is_a_key() -> None:
    table = Table(2)
    assert not table.find(EDGES).numpy().any()
    rows = table.lookup(EDGES).numpy()
    assert len(np.unique(rows, axis=0)) == len(EDGES) == table.stats()["size"]
    assert table.remove([-1, -1]).numpy().tolist() == [True, False]
    assert not table.find([-1]).numpy().any()
    assert (table.find(EDGES[:2]).numpy() == rows[:2]).all()


def test_empty_batches() -> None:
    table = Table(3)
    none, rows = np.empty(0, np.int64), np.empty((0, 3), np.float32)
    assert table.lookup(none).shape == table.find(none).shape == (0, 3)
    assert int(table.apply(none, rows, 0.1)) == 0
    table.import_rows(none, rows, rows, none)
    assert table.remove(none).shape == (0,)
    exported = table.export_since(0)
    assert [x.shape for x in exported] == [(0,), (0, 3), (0, 3), (0,)]
    assert table.stats()["size"] == 0


def test_wrong_input_is_named_and_changes_nothing() -> None:
    table = Table(3, name="t")
    table.lookup([1, 2])
    before = dump(table)
    row = [[1.0, 1.0, 1.0]]
    cases = {
        "keys has shape [1,1], allowed is [n]": lambda: table.lookup([[7]]),
        "keys has shape [], allowed is [n]": lambda: table.find(7),
        "gradients has shape [1,2], allowed is [1,3]": lambda: table.apply([1], [[1.0, 2.0]], 0.1),
        "gradients has shape [1,3], allowed is [2,3]": lambda: table.apply([1, 2], row, 0.1),
        "learning_rates has shape [2], allowed is [1]: a rate a segment": lambda: table.apply([1], row, [0.1, 0.1]),
        "table t: learning_rates holds -1, allowed is a finite number >= 0": lambda: table.apply([1], row, -1.0),
        "table t: learning_rates holds inf, allowed is": lambda: table.apply([1], row, math.inf),
        "rows has shape [1,1], allowed is [1,3]": lambda: table.import_rows([7], [[1.0]], row, [1]),
        "slots has shape [2,3], allowed is [1,3]": lambda: table.import_rows([7], row, row * 2, [1]),
        "ticks has shape [2], allowed is [1]": lambda: table.import_rows([7], row, row, [1, 1]),
        "ticks holds -1, allowed is 0 to 4294967295": lambda: table.import_rows([7], row, row, [-1]),
        "tick holds 4294967296, allowed is 0 to 4294967295": lambda: table.export_since(2**32),
        "tick is 0, allowed is the present one (1) or a later one": lambda: table.set_tick(0),
    }
    for message, call in cases.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            call()
        assert message in error.value.message
    assert dump(table) == before
    for message, wrong in {
        "dim is 0, allowed is dim >= 1": {"segments": 0},
        "table t: 0 segments": {"segments": []},
        "table t: 1 segments, expected_rows=0": {"expected_rows": 0},
        "whose optimizers and initializers are their own": {"segments": [Segment(3)], "initializer": Zeros()},
        "initializer is 'ones', allowed are Zeros, Constant, Uniform, Normal": {"initializer": "ones"},
        "initializer is Constant(value=nan), allowed is a finite number": {"initializer": Constant(math.nan)},
        "optimizer is 'adam', allowed are SGD, Momentum, Adagrad, Adam, FTRL": {"optimizer": "adam"},
        "table t: nonfinite is 'clip', allowed are refuse, zero": {"nonfinite": "clip"},
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            Table(**{"segments": 3, "name": "t", **wrong})


def test_inside_a_function_shapes_are_known_and_order_is_kept() -> None:
    table = Table(5, name="t")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def twice(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        before = table.find(ids)
        assert before.shape.as_list() == [None, 5]
        first = table.lookup(ids)
        table.apply(ids, tf.ones_like(first), 0.1)
        return before, first, table.find(ids)

    before, first, after = twice([3, 4])
    assert not before.numpy().any()
    np.testing.assert_allclose(after, first - 0.1 / np.sqrt(1.1), rtol=1e-5)


def test_a_table_is_its_objects_own_unless_it_has_a_shared_name() -> None:
    Table(2, name="t", shared_name="shared").lookup([1, 2, 3])
    gc.collect()
    again = Table(2, name="t", shared_name="shared")
    assert again.stats()["size"] == 3
    with pytest.raises(tf.errors.InvalidArgumentError, match="shared is there already with other segments"):
        Table(3, name="t", shared_name="shared")
    own = Table(2, name="t")
    assert own.stats()["size"] == 0
    handle = own.resource_handle
    own.lookup([1])
    del own
    gc.collect()
    with pytest.raises(tf.errors.NotFoundError):  # its memory went with it
        library.ops().cuckoo_tick(handle)


def test_the_library_is_refused_when_missing_or_built_for_another_tensorflow(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="is not built: run `make setup`"):
        library.check(tmp_path / "_cuckoo.so", tf.__version__)
    library.check(library.PATH, tf.__version__)
    with pytest.raises(
        ImportError, match=f"was built for TensorFlow {tf.__version__}, this is 9.9.9: run `make setup`"
    ):
        library.check(library.PATH, "9.9.9")
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF")
    with pytest.raises(ImportError, match="was built for TensorFlow unknown"):
        library.check(other, tf.__version__)


def test_without_tensorflow_the_build_says_what_to_do(tmp_path: Path) -> None:
    command = ["make", "-f", "training/cuckoo/build.mk", f"VENV={tmp_path}", f"CUCKOO_BUILD={tmp_path}", "cuckoo"]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert f"no TensorFlow in {tmp_path}: run make setup" in run.stderr


@pytest.mark.timeout(900)
def test_the_core_without_tensorflow() -> None:
    """The C++ tests, plain and under sanitizers. `make test` ran them before: then make has nothing to do."""
    command = ["make", "-f", "training/cuckoo/build.mk", "cuckoo-tests"]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=850)
    assert run.returncode == 0, run.stdout + run.stderr
    tests = sorted(Path(__file__).parent.glob("*_test.cc"))
    assert len(tests) == 6
    for test in tests:
        threads = test.stem in ("admission_test", "core_test", "stress_test")
        for kind in ("", "_address", *(["_thread"] if threads else [])):
            output = (PROJECT / "build" / "cuckoo" / f"{test.stem}{kind}.passed").read_text()
            assert output == f"{test.stem.removesuffix('_test')}: all passed\n"
