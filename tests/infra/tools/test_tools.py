"""The maintainers' tools: their help teaches, and a wrong argument or a missing platform is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.tools import dags_test, lock_guard, screenshots


@pytest.mark.parametrize("main", [dags_test.main, lock_guard.main, screenshots.main])
def test_the_help_has_a_command(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "python -m infra.tools." in capsys.readouterr().out


@pytest.mark.parametrize("main", [dags_test.main, screenshots.main])
def test_without_a_platform_the_input_is_wrong(
    main: Callable[[list[str]], int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["--name", "none", "--set", f"var={tmp_path}"]) == 2
    assert caplog.messages == [f"the platform is not running ({tmp_path}/none); start it with: minutehand up"]
    assert not list(tmp_path.iterdir())


def test_a_dag_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        dags_test.main(["watch"])
    assert end.value.code == 2 and "is 'watch', allowed are sample_examples, batch_warm" in capsys.readouterr().err
    assert dags_test.dag_and_form('watch_platform={"drift": 1}') == ("watch_platform", '{"drift": 1}')
