"""A lineage is listed and explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from delta_log.manifest import LogError
from delta_log.verification import explain, listing
from tests.support.log_oracle import begun


def test_explaining_and_listing(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 2)
    rows = listing(log, lineage)
    assert [r["name"] for r in rows] == ["base-000000000", "delta-000000001", "delta-000000002"]
    assert rows[2]["auc"] == pytest.approx(0.53)
    facts = explain(log, lineage, 2)
    assert facts["examples"] == {"positive": 3, "negative": 0}
    assert (facts["dense"], facts["dense_seq"]) == ({"w": [2, 3], "b": []}, 0)
    assert facts["tables"]["user"]["total"] == len(oracle.tables["user"])
    item = facts["tables"]["item"]
    assert (item["admission"], item["lines"], facts["tables"]["user"]["admission"]) == ("count 1x512", 9, "")
    assert facts["previous"] == log.manifest(lineage, "delta", 1).sha256
    assert json.loads(json.dumps(facts)) == facts
    with pytest.raises(LogError, match="no delta 3"):
        explain(log, lineage, 3)
