"""platform.json of a platform that has folders and nothing else, for tests of what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import archived

DOCS = "http://127.0.0.1:18592"
FOLDERS = ("archive", "samples", "data_docs", "features", "models")


def write_platform(folder: Path, addresses: dict[str, str] | None = None, **settings: Any) -> Path:
    defaults = {"source": archived.SOURCE, "replicas": 1, "sync_every": 60.0}
    facts = {
        "settings": defaults | {"gate_tolerance": 0.01, "gate_calibration": 1.25} | settings,
        "addresses": {"data-docs": DOCS} | (addresses or {}),
        "folders": {name: str(folder / name) for name in FOLDERS},
        "models": {"ranker": {"model": "deepfm", "log": str(folder / "log")}},
    }
    (folder / "platform.json").write_text(json.dumps(facts))
    return folder / "platform.json"
