"""A command that cannot do what it was asked says so in one line, which names the thing and what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.cli.main import main

NOBODY = 65534


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("up --set var=/proc/x", 1, "/proc/x: No such file or directory"),
        ("up --detach --set var=/proc/x", 1, "/proc/x: No such file or directory"),
        ("down --set var=/proc/x", 1, "/proc/x: No such file or directory"),
        ("up --set var={file}", 1, "{file}/local: Not a directory"),
        ("status --set var={file}", 1, "{file}/local/state.json: Not a directory"),
        ("demo --source simulator --set var={file}", 1, "{file}: File exists"),
        ("up --settings {latin}", 2, "{latin} is not TOML: "),
        ("up --settings {nan}", 2, "{nan}: sync_every is nan; allowed is a duration"),
        ("up --settings {inf}", 2, "{inf}: sync_every is inf; allowed is a duration"),
        ("up --settings {none}", 2, "the settings file {none} cannot be read: No such file or directory"),
        ("restart kafka --set var={none}", 2, "there is no service 'kafka'; allowed are none: it is not up"),
    ],
)
def test_what_cannot_be_done(
    words: str, code: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / name for name in ("file", "latin", "nan", "inf", "none")}
    paths["file"].touch()
    paths["latin"].write_bytes(b'source = "caf\xe9"\n')
    for name in ("nan", "inf"):
        paths[name].write_text(f"sync_every = {name}\n")
    assert main(words.format(**paths).split()) == code
    error = capsys.readouterr().err
    assert f"minutehand: {reason.format(**paths)}" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("words", ["status", "up", "up --detach", "down", "deltas", "demo --source simulator"])
def test_the_platform_of_another_user(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    folder = tmp_path / "local"
    folder.mkdir(mode=0o700)
    (tmp_path / "demo").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        code = main([*words.split(), "--set", f"var={tmp_path}"])
    finally:
        os.seteuid(0)
    error = capsys.readouterr().err
    assert code in (1, 2) and f"{tmp_path}" in error and "Permission denied" in error and len(error.splitlines()) == 1
