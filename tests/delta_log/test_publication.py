"""What is asked of trainer and sync is read whole or named, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from delta_log.log import Log
from delta_log.manifest import LogBroken
from delta_log.publication import NAME, Publication


def test_the_newest_request_is_read_and_a_broken_one_is_named(tmp_path: Path) -> None:
    log = Log(tmp_path)
    assert Publication.read(log) is None
    Publication("000001-00000000", 3).write(log)
    Publication("000001-00000000", 4, (2, 3)).write(log)
    assert Publication.read(log) == Publication("000001-00000000", 4, (2, 3))
    for broken in (b"", b"{", b"[]", b'{"lineage": "a", "seq": "x", "refused": []}', b'{"lineage": "a"}'):
        (tmp_path / NAME).write_bytes(broken)
        with pytest.raises(LogBroken, match=f"{NAME}: not a publication"):
            Publication.read(log)
