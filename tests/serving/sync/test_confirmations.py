"""sync.jsonl: one line for each delta, also after a kill; its metrics."""

import json
from pathlib import Path

from prometheus_client import CollectorRegistry

from delta_log.manifest import Manifest
from serving.sync.confirmations import Confirmations
from serving.sync.metrics import Metrics
from tests.support.lineage import Lineage


def opened(path: Path) -> tuple[Confirmations, CollectorRegistry]:
    registry = CollectorRegistry()
    return Confirmations(path, Metrics(registry), "ranker"), registry


def confirm(confirmations: Confirmations, manifest: Manifest) -> None:
    confirmations.confirm(manifest, 2, 12.3456, manifest.created_ms / 1000 + 5, True)
    confirmations.write()


def test_each_delta_is_confirmed_once_and_counted(tmp_path: Path) -> None:
    lineage, path = Lineage(tmp_path / "log"), tmp_path / "sync.jsonl"
    first, second = lineage.delta(), lineage.delta()
    lineage.writer.close()
    confirmations, registry = opened(path)
    assert confirmations.last(lineage.name, 0) == 0
    for manifest in (first, first, second):
        confirm(confirmations, manifest)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["lineage"], e["seq"], e["apply_ms"]) for e in entries] == [(lineage.name, s, 12.346) for s in (1, 2)]
    value = registry.get_sample_value
    assert value("minutehand_sync_deltas_total", {"model": "ranker"}) == 2
    assert value("minutehand_sync_bytes_total", {"model": "ranker"}) == first.bytes + second.bytes
    kinds = {"positive": 2 * 3, "negative": 2 * 4}
    for kind, events in kinds.items():
        labels = {"model": "ranker", "kind": kind}
        assert value("minutehand_freshness_seconds_count", labels) == events
        assert value("minutehand_freshness_seconds_bucket", labels | {"le": "3.0"}) == 0
        assert value("minutehand_freshness_seconds_bucket", labels | {"le": "10.0"}) == events


def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path: Path) -> None:
    lineage, path = Lineage(tmp_path / "log"), tmp_path / "sync.jsonl"
    first, second = lineage.delta(), lineage.delta()
    lineage.writer.close()
    confirmations, _ = opened(path)
    confirm(confirmations, first)
    confirm(confirmations, second)
    path.write_bytes(path.read_bytes()[:-7])
    confirmations, _ = opened(path)
    assert confirmations.last(lineage.name, 0) == 1 and confirmations.last(lineage.name, 5) == 5
    confirm(confirmations, second)
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]
