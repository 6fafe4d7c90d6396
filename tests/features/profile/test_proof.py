"""The proof of docs/profiles.md in small: equal to the raw events beside writers and compaction, and after kills."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.process import Process


def test_the_proof_in_small(tmp_path: Path) -> None:
    proof = Process(tmp_path / "log", "benchmarks.profile_proof", "--samples", "600", "--kills", "8")
    assert proof.wait() == 0, proof.tail()
    equality, kills = (json.loads(line) for line in proof.text().splitlines())
    assert equality["equality"]["not_empty"] > 50
    assert kills["kills"]["events"] > 0
