"""`minutehand source` names each change of a source, by the state that its platform has on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.cli.main import main
from infra.layout import Layout
from infra.settings import load
from streaming.archive.commits import Writer
from streaming.declaration import Declaration, Feature
from streaming.growth import Declarations
from tests.support import shop
from tests.support.lineage import Lineage

OLD = shop.declaration
NEW = replace(OLD, features=(*OLD.features, Feature("hits", "number", default=0.5)), tasks=(*OLD.tasks, "share"))
MODULE = (
    "from streaming.declaration import Declaration\ndeclaration = Declaration.from_json({!r})\nhistory = live = list\n"
)


class Platform:
    """The folder of a platform that ran under OLD, and the file of its source."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "shop.py"
        self.flags = ["--set", f"var={folder / 'var'}", "--set", f"source={self.source}"]
        self.layout = Layout(load(None, [f"var={folder / 'var'}"]))

    def write_state(self) -> None:
        job = self.layout.join / "state" / "job.json"
        job.parent.mkdir(parents=True)
        job.write_text(json.dumps({"cluster": "c", "declaration": json.loads(OLD.to_json())}))
        with Writer(self.layout.archive, "shop", OLD) as writer:
            writer.commit({}, {}, {}, {})
        lineage = Lineage(self.layout.log(), keys=3).serve()
        lineage.writer.close()
        Declarations(self.layout.log()).keep(OLD)

    def compare(self, declaration: Declaration) -> int:
        self.source.write_text(MODULE.format(declaration.to_json()))
        return main(["source", *self.flags])


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def test_each_change_is_named_before_anything_happens(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert platform.compare(OLD) == 0
    assert "no state was written yet" in capsys.readouterr().out
    platform.write_state()
    assert platform.compare(OLD) == 0
    assert "nothing has changed since join, archive, trainer wrote their state" in capsys.readouterr().out

    assert platform.compare(NEW) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["+ feature hits (number) is added, with default 0.5", "+ task share is added"]
    assert [line.split(":")[0] for line in lines[2:5]] == ["join", "archive", "trainer"] and "000001-0a1b2c3d" in lines[
        4
    ]
    assert lines[5] == f"to do it: minutehand up {' '.join(platform.flags)}"

    assert platform.compare(replace(NEW, features=NEW.features[1:], window_ms=5)) == 2
    out = capsys.readouterr().out
    assert (
        "! join, archive, trainer: feature user is removed\n! join, archive, trainer: window_ms is 5, was 60000" in out
    )
    assert "not allowed: allowed are new features, and new tasks at the end" in out
    up = subprocess.run([sys.executable, "-m", "infra.cli.main", "up", *platform.flags], capture_output=True, text=True)
    assert up.returncode == 2 and len(up.stderr.splitlines()) == 1
    lines = "join, archive, trainer: feature user is removed; join, archive, trainer: window_ms is 5"
    assert f"has changed: {lines}" in up.stderr and not (platform.layout.folder / "platform.json").exists()


def test_a_state_that_does_not_hold_its_declaration_is_named(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.write_state()
    for file in (platform.layout.log() / "declarations").iterdir():
        file.unlink()
    assert platform.compare(NEW) == 2
    assert f"! trainer: was written under declaration {OLD.sha256[:12]}, which it does not" in capsys.readouterr().out
