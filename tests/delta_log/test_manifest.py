"""A manifest, and the files it lists, are whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from delta_log.manifest import LogBroken
from delta_log.verification import verify
from tests.support.log_oracle import begun

FILES = ["rows-0.arrow", "slots-0.arrow", "removed.arrow", "admission.arrow", "dense.arrow", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_is_seen_in_each_file(tmp_path: Path, file: str) -> None:
    log, lineage, _ = begun(tmp_path, 3)
    path = tmp_path / lineage / "delta-000000002" / file
    good = path.read_bytes()
    for at in np.linspace(0, len(good) - 1, 24).astype(int):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(LogBroken, match=r"delta-00000000[23]"):
            log.chain(lineage)
        assert verify(log, lineage)
    path.write_bytes(good)
    log.chain(lineage)


def test_a_broken_manifest_says_what_was_found(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 1)
    path = tmp_path / lineage / "delta-000000001" / "manifest.json"
    good = json.loads(path.read_text())
    for wrong, text in (
        ({**good, "seq": "1"}, "field seq is '1', expected int"),
        ({k: v for k, v in good.items() if k != "tick"}, "field tick is None"),
        ({**good, "format": 1}, "another format than 4"),
        ([], "a list, expected an object"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(LogBroken, match=text):
            log.chain(lineage)
    path.write_text("{")
    with pytest.raises(LogBroken, match="not a manifest"):
        log.chain(lineage)
