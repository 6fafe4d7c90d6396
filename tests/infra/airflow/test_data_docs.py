"""Data Docs over HTTP: what the platform runs serves its folder, and nothing beside it."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from infra import layout, services
from infra.airflow import services as airflow
from infra.settings import PORTS, Settings
from tests.support.ports import resolved
from tests.support.process import Child
from tests.support.wait import until


def test_pages_are_served_from_their_folder_and_from_nowhere_else(tmp_path: Path) -> None:
    settings = Settings().with_(var=str(tmp_path), **dict.fromkeys(PORTS, 0))
    chosen, at = resolved(settings), layout.Layout(settings)
    where = layout.addresses(settings, chosen)
    hidden = dict.fromkeys(("MINUTEHAND_WRITE_TOKEN", *airflow.KEYS), "x")
    service = {s.name: s for s in services.declare(services.Site(settings, chosen, where, hidden), "{}")}["data-docs"]
    at.make(settings)
    (at.folder / "token").write_text("secret")
    (at.data_docs / "day").mkdir()
    (at.data_docs / "day" / "index.html").write_text("<p>kept</p>")
    with Child(tmp_path / "log", *service.command) as server:
        until(lambda: not service.ready(), "the server is ready", process=server)
        with urllib.request.urlopen(f"{where['data-docs']}/day/index.html", timeout=30) as answer:
            assert (answer.headers.get_content_type(), answer.read()) == ("text/html", b"<p>kept</p>")
        for path in ("/../token", "/%2e%2e/token", "/day/../../token"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(where["data-docs"] + path, timeout=30)


def test_without_airflow_there_are_none() -> None:
    settings = Settings().with_(airflow=False)
    assert "data-docs" not in layout.addresses(settings, resolved(settings))
