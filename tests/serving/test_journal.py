"""The journal in NumPy: folding against dicts, and the file there and back."""

import numpy as np
import pytest

from delta_log.changes import TableChanges, fold, no_changes
from serving.journal import Journal, JournalError, decode, encode, version_of


def changes(rng: np.random.Generator) -> TableChanges:
    keys = rng.permutation(40)[: rng.integers(0, 20)]
    n = rng.integers(0, len(keys) + 1)
    return TableChanges(keys[:n], rng.normal(size=(n, 3)).astype("f4"), keys[n:])


def test_folding_is_what_dicts_make_of_it() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        parts = [changes(rng) for _ in range(rng.integers(1, 6))]
        whole, rows, gone = no_changes(3), {}, set()
        for part in parts:
            whole = fold(whole, part)
            for key in part.removed.tolist():
                rows.pop(key, None)
                gone.add(key)
            for key, row in zip(part.keys.tolist(), part.rows.tolist(), strict=True):
                rows[key] = row
                gone.discard(key)
        assert dict(zip(whole.keys.tolist(), whole.rows.tolist(), strict=True)) == rows
        assert set(whole.removed.tolist()) == gone and len(whole.removed) == len(gone)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_there_and_back(n: int) -> None:
    rng = np.random.default_rng(n)
    tables = {
        "b": TableChanges(np.arange(n), rng.normal(size=(n, 3)).astype("f4"), np.arange(n) + 100),
        "a": TableChanges(-np.arange(n), rng.normal(size=(n, 5)).astype("f4"), np.empty(0, np.int64)),
    }
    dense = {"w": rng.normal(size=(2, 3)).astype("f4"), "bias": np.float32([1.5])}
    journal = decode(
        encode(Journal("000001-0a1b2c3d", 3, 9, 77, tables, dense, 8)), {"b": 3, "a": 5}, {"w": (2, 3), "bias": (1,)}
    )
    assert journal[:4] == ("000001-0a1b2c3d", 3, 9, 77) and journal.dense_seq == 8
    assert list(journal.tables) == ["b", "a"]
    for name, table in tables.items():
        for expected, value in zip(table, journal.tables[name], strict=True):
            np.testing.assert_array_equal(value, expected)
    for name, weight in dense.items():
        np.testing.assert_array_equal(journal.dense[name], weight)


def test_every_flipped_byte_is_seen() -> None:
    data = encode(
        Journal(
            "000001-0a1b2c3d", 0, 1, 5, {"t": TableChanges(np.array([4]), np.ones((1, 2), "f4"), np.array([5]))}, {}, 1
        )
    )
    for place in range(len(data)):
        with pytest.raises(JournalError):
            decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], {"t": 2}, {})


def test_records_are_folded_and_a_torn_one_is_left_out() -> None:
    def record(start: int, key: int, value: float) -> bytes:
        rows = TableChanges(np.array([key, 9]), np.full((2, 2), value, "f4"), np.array([key - 1]))
        return encode(Journal("000001-0a1b2c3d", start, start + 1, start, {"t": rows}, {}, start))

    data = record(0, 4, 1.0) + record(1, 5, 2.0)
    for torn in (b"", record(2, 6, 3.0)[:-1], record(2, 6, 3.0)[:100], bytes(7)):
        journal = decode(data + torn, {"t": 2}, {})
        assert (journal.start, journal.to, journal.learned_until_ms) == (0, 2, 1)
        assert journal.tables["t"].keys.tolist() == [5, 9] and journal.tables["t"].removed.tolist() == [3, 4]
    for wrong in (record(3, 6, 3.0), record(1, 5, 2.0), bytes(128)):
        with pytest.raises(JournalError):
            decode(data + wrong, {"t": 2}, {})


def test_a_later_lineage_has_the_greater_version() -> None:
    assert version_of("000002-00000000", 0) > version_of("000001-ffffffff", 999_999_999) > version_of("000001-a", 5)
