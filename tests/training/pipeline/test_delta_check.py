"""The check of the served lineage's deltas: its exit code, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.lineage import Lineage
from training.pipeline import delta_check


def test_deltas_that_keep_their_contract_pass_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["--log", str(tmp_path / "log"), "--docs", str(tmp_path / "docs"), "--docs-at", "http://docs"]
    assert delta_check.main(command) == 2
    assert "no lineage serves: there is nothing to publish" in caplog.text

    lineage = Lineage(tmp_path / "log", keys=100).serve()
    assert delta_check.main(command) == 0
    nothing = {"lineage": lineage.name, "deltas": 0, "expectations": 0, "failed": 0, "docs": ""}
    assert json.loads(capsys.readouterr().out) == nothing

    for _ in range(2):
        lineage.delta()
    assert delta_check.main(command) == 0
    passed = json.loads(capsys.readouterr().out)
    page = f"deltas-{lineage.name}/index.html"
    assert (passed["deltas"], passed["failed"], passed["docs"]) == (2, 0, f"http://docs/{page}")
    assert passed["expectations"] == 10 and "kept" in (tmp_path / "docs" / page).read_text()

    lineage.delta(learned_until_ms=1)  # event time goes back
    lineage.writer.close()
    assert delta_check.main(command) == 2
    refused = json.loads(capsys.readouterr().out)
    assert (refused["deltas"], refused["failed"]) == (3, 1)
    assert f"{lineage.name} is refused: deltas: expect_column_values_to_be_between of moved_ms: seen" in caplog.text
    assert "moved_ms" in (tmp_path / "docs" / page).read_text()
