"""The platform of a process that is not its supervisor: how long it waits for a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
