"""Changes that are folded one after another equal the plain dicts."""

from __future__ import annotations

from pathlib import Path

from delta_log.changes import fold, no_changes, read_changes
from tests.support.log_oracle import DIMS, begun


def test_folded_changes_equal_the_plain_dicts(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 6)
    base, deltas = log.chain(lineage)
    for name, (dim, _) in DIMS.items():
        start = read_changes(base).tables[name]
        every = no_changes(dim)
        for delta in deltas:
            every = fold(every, read_changes(delta).tables[name])
            assert not set(every.keys.tolist()) & set(every.removed.tolist())
        whole = fold(start, every)
        expected = {key: row for key, (row, _, _) in oracle.tables[name].items()}
        assert dict(zip(whole.keys.tolist(), whole.rows.tolist(), strict=True)) == expected
        assert set(every.removed.tolist()) == set(whole.removed.tolist()) and len(every.removed)
