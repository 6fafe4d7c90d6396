"""The examples that a lineage learns: which ones, and in what order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from delta_log.log import Log
from delta_log.manifest import LogError
from streaming.source import load
from tests.support import archived
from training.learn import batch_pass
from training.learn.growth import continued
from training.pipeline import warm_start
from training.pipeline.train import base_to_begin_from, select, sha256_of


def test_positives_whose_negatives_stand_behind_are_not_learned_last() -> None:
    # One each ms, every other one positive, a negative written 2 s later; two partitions, cut at 10 s.
    event_ms = np.arange(20_000)
    positive = event_ms % 2 == 0
    partition = event_ms % 3 % 2
    written = np.lexsort((event_ms, event_ms + np.where(positive, 0, 2000), partition))
    offset = np.empty(20_000, np.int64)
    for p in range(2):
        mine = written[partition[written] == p]
        offset[mine] = np.arange(len(mine))
    ends = {str(p): int(offset[(partition == p) & (event_ms >= 10_000)].min()) for p in range(2)}
    early = event_ms < 10_000
    columns = {"event_ms": event_ms, "partition": partition, "offset": offset, "positive": positive}
    table = pa.table({name: values[early] for name, values in columns.items()})
    data = select(table, {"offsets": ends, "topic_id": "t"}, 10_000, None)
    assert (data.behind, data.until_ms, data.table.num_rows) == (999, 8002, 9001)
    times, kinds = data.table["event_ms"].to_numpy(), data.table["positive"].to_numpy()
    tail = times > data.until_ms
    assert kinds[tail].all() and (np.diff(times[tail]) > 0).all() and (np.diff(times[~tail]) > 0).all()
    # Evenly between the others: no part of the pass has more positives than another.
    assert max(abs(part.mean() - kinds.mean()) for part in np.array_split(kinds, 10)) < 0.01


def test_without_a_served_lineage_there_is_no_base_to_begin_from(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no lineage serves yet: use --from none"):
        base_to_begin_from(Log(tmp_path), pa.table({}))


def test_a_partition_without_a_position_is_refused() -> None:
    table = pa.table({"partition": [0, 3], "offset": [0, 0]})
    with pytest.raises(ValueError, match=r"examples are of partition 3; the archive's positions are of \[0, 1\]"):
        select(table, {"offsets": {"0": 5, "1": 5}, "topic_id": "t"}, 1, None)


def test_the_hash_is_of_the_values_whatever_their_layout() -> None:
    columns = {"id": pa.array([1, None, 3]), "name": ["a", "bc", None], "tags": [[1, 2], [], [3]]}
    table = pa.table(columns)
    assert sha256_of(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == sha256_of(table)
    for name, values in {"id": [1, 0, 3], "name": ["ab", "c", None], "tags": [[1], [2], [3]]}.items():
        assert sha256_of(pa.table(columns | {name: values})) != sha256_of(table)


GROWN = """
from dataclasses import replace
from streaming.declaration import Feature
from streaming.sources.simulator import configure as simulator

before = simulator(seed=7, minutes=60, history_minutes=1, rate=5)
more = (Feature("hits", "number", default=0.5), Feature("brand", "id", default=9))
declaration = replace(
    before.declaration, features=(*more, *before.declaration.features), tasks=(*before.declaration.tasks, "share")
)
history, live = before.history, before.live
"""


def test_a_source_that_grew_warm_starts_from_days_before_and_from_the_served_lineage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, log = tmp_path / "grown.py", Log(tmp_path / "log")
    source.write_text(GROWN)
    archive = archived.archive(tmp_path / "archive", 2)
    old = ["--source", archived.SOURCE, "--log", str(log.path)]
    assert batch_pass.main([*old, "--untrained", "--model", "deepfm?dim=4&hidden=8"]) == 0
    continued(log, log.serving() or "", str(source), load(str(source)).declaration, "", 5)
    begin_ms, middle_ms, end_ms = (archived.BEGIN_MS + k * archived.MINUTE_MS for k in range(3))
    common = ["--source", str(source), "--log", str(log.path), "--archive", str(archive)]
    days = ["--begin", str(begin_ms), "--end", str(middle_ms)]
    later = ["--begin", str(middle_ms), "--end", str(end_ms)]
    for begin_from in ("none", "serving"):
        capsys.readouterr()
        assert warm_start.main(["train", *common, *days, "--from", begin_from]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["rows"] > 200 and record["from"].startswith("none" if begin_from == "none" else log.serving())
        base = log.manifest(record["lineage"], "base", 0)
        assert base.tables["brand"].total == 1 and base.tables["viewer"].total > 50
        assert warm_start.main(["evaluate", *common, *later, "--lineage", record["lineage"]]) == 0
        assert json.loads(capsys.readouterr().out)["examples"] > 200
