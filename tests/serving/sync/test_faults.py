"""Faults: logged and counted when they begin, logged when they end."""

import pytest
from prometheus_client import CollectorRegistry

from serving.sync.faults import Faults
from serving.sync.metrics import Metrics


def test_a_fault_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    faults = Faults(Metrics(registry).errors, "ranker")
    faults.clear("replica")
    for _ in range(3):
        faults.report("replica", "nobody answers")
    faults.report("chain", "a gap")
    assert faults.text() == "replica: nobody answers; chain: a gap"
    faults.report("chain", "another gap")
    faults.report("replica", "")
    assert faults.text() == "chain: another gap"
    faults.clear("chain", "replica")
    assert faults.text() == ""
    assert [record.message for record in caplog.records] == [
        "replica: nobody answers", "chain: a gap", "chain: another gap", "replica: over", "chain: over"
    ]  # fmt: skip
    for reason, count in (("replica", 1), ("chain", 2)):
        labels = {"model": "ranker", "reason": reason}
        assert registry.get_sample_value("minutehand_sync_errors_total", labels) == count
