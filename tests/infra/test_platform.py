"""The platform: how long another process waits for a state, what its log keeps, what its services do not get."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import platform as platforms
from infra.platform import Platform, PlatformError
from infra.settings import Settings


class Starting(Platform):
    """A platform whose sync exports: its reason is a new one at each of the first five looks."""

    looks = 0

    def state(self) -> dict[str, Any]:
        self.looks += 1
        return {"services": {"sync-0": {"state": "starting", "reason": f"exporting: step {min(self.looks, 5)}"}}}


def test_a_wait_goes_on_while_a_service_that_starts_reports_progress(tmp_path: Path) -> None:
    platform = Starting(Settings().with_(var=str(tmp_path)))
    with pytest.raises(PlatformError, match="waited 0.1 s for: all ready; sync-0 is starting: exporting: step 5"):
        platform.wait(lambda: False, 0.1, "all ready")
    assert platform.looks >= 6


def test_the_log_keeps_what_an_earlier_start_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    platform = Platform(Settings().with_(var=str(tmp_path), name="twice"))
    for _ in range(2):
        with pytest.raises(PlatformError, match="`up` ended with exit code 0"):
            platform.start()
    assert (platform.folder / "logs/supervisor.log").read_text().count("-m infra.cli.main up") == 2


def test_no_service_gets_a_setting_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is a password."""
    monkeypatch.setenv("MINUTEHAND_AIRFLOW_DB", "postgresql://airflow:secret@127.0.0.1:1/airflow")
    monkeypatch.setenv("MINUTEHAND_DATA", "/data")  # no setting
    monkeypatch.setattr(platforms, "supervise", lambda folder, prepare: 0)
    assert Platform(Settings().with_(var=str(tmp_path))).run() == 0
    assert "MINUTEHAND_AIRFLOW_DB" not in os.environ and os.environ["MINUTEHAND_DATA"] == "/data"
