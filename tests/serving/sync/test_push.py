"""The calls of one delta: no row is lost, no call is too large, and every call has all inputs."""

import time
from pathlib import Path

import numpy as np
import pytest

from delta_log.changes import Changes, TableChanges, no_changes
from serving.sync.push import chunks, push
from tests.support.lineage import Lineage


def table(first: int, keys: int, removed: int) -> TableChanges:
    ids = np.arange(first, first + keys + removed)
    return TableChanges(ids[:keys], np.repeat(ids[:keys, None], 2, 1).astype("f4"), ids[keys:])


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 4), (4, 0), (3, 2), (9, 7)])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_calls_hold_each_row_once(sizes: tuple[int, int], rows: int) -> None:
    tables = {"user": table(0, *sizes), "empty": no_changes(2), "item": table(1000, *reversed(sizes))}
    calls = list(chunks(tables, rows))
    inputs = {f"{name}_{kind}" for name in tables for kind in ("keys", "rows", "removed")}
    assert all(set(call) == inputs for call in calls)
    counts = [sum(len(v) for name, v in call.items() if not name.endswith("rows")) for call in calls]
    assert len(calls) == max(1, -(-2 * sum(sizes) // rows)) and all(n == rows for n in counts[:-1])
    for name, changes in tables.items():
        for kind, expected in zip(("keys", "rows", "removed"), changes, strict=True):
            np.testing.assert_array_equal(np.concatenate([call[f"{name}_{kind}"] for call in calls]), expected)


def test_a_pause_follows_each_chunk_but_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses, took = [0.0], [], iter([0.004, 5.0, 0.01])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", pauses.append)

    class Slow:
        def call(self, version: int, signature: str, arrays: dict) -> None:
            now[0] += next(took) if signature == "apply_delta" else 7.0

    lineage = Lineage(tmp_path)
    manifest = lineage.delta()
    lineage.writer.close()
    push(Changes(manifest, {"user": table(0, 10_001, 0)}, {}), Slow(), 7, "secret")
    assert pauses == pytest.approx([0.0, 0.036, 0.05])


def test_dense_weights_go_first_and_every_call_names_the_delta(tmp_path) -> None:
    class Recorder:
        calls: list[tuple[int, str, dict]] = []

        def call(self, version: int, signature: str, arrays: dict) -> None:
            self.calls.append((version, signature, arrays))

    lineage = Lineage(tmp_path)
    manifest = lineage.delta()
    lineage.writer.close()
    delta, replica = Changes(manifest, {"user": table(0, 10_001, 0)}, {"heads/bias": np.zeros(2, "f4")}), Recorder()
    assert push(delta, replica, 7, "secret") == 3
    assert [(version, signature) for version, signature, _ in replica.calls] == [
        (7, "apply_dense"), *[(7, "apply_delta")] * 3
    ]  # fmt: skip
    for _, _, arrays in replica.calls:
        assert (arrays["lineage"], arrays["seq"], arrays["token"]) == (lineage.name, 1, "secret")
    assert "heads_bias" in replica.calls[0][2]
    assert [(c["chunk"], c["chunks"], len(c["user_keys"])) for _, _, c in replica.calls[1:]] == [
        (0, 3, 5000), (1, 3, 5000), (2, 3, 1)
    ]  # fmt: skip
