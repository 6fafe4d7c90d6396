"""The page in a real chromium: it sends a click, and shows the delta that served it and how the list changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.tools.screenshots import chromium
from tests.support.app import ITEMS, app
from tests.support.wait import until


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    with app(tmp_path) as running:
        answer = httpx.get(f"{running.url}/")
    assert answer.status_code == 200 and "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "//" not in answer.text.replace("// An int64", "") and "src=" not in answer.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on PATH")
def test_a_click_is_followed_until_the_list_has_changed(tmp_path: Path) -> None:
    with app(tmp_path) as running, chromium() as browser:

        def shows(part: str, text: str) -> None:
            script = f"document.getElementById('{part}').innerText"
            until(lambda: text in browser.eval(script), f"{part} shows {text}", 30)

        browser.call("Page.navigate", url=f"{running.url}/?user=7")
        until(lambda: browser.eval("document.querySelectorAll('.card').length") == 12, "the cards", 30)
        browser.eval("document.querySelector('.card button').click()")
        shows("steps", "in Kafka")
        (action,), shown = running.topics.of("actions"), running.topics.of("impressions")
        assert len(shown) == 12 and action["impression_id"] == shown[0]["impression_id"] and action["action"] == "buy"

        before = running.models.score

        def learned(rows: Sequence[Mapping[str, Any]]) -> Any:
            scores, state = before(rows)
            return {"buy": [1 - p for p in scores["buy"]]}, state._replace(seq=13)

        running.models.score = learned
        shows("steps", "served by delta 13")
        assert browser.eval("[...document.querySelectorAll('.now')].map(e => e.innerText)") == list(
            map(str, ITEMS[:12])
        )
        shows("freshness", "of 1 clicks")
        assert browser.eval("document.getElementById('problem').innerText") == ""
        assert len(running.topics.of("impressions")) == 12, "a look logs nothing"
