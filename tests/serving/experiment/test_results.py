"""The results of an experiment: counted from the archive, equal to a count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.errors import InputError
from serving.experiment.arms import arm_of, arms_of
from serving.experiment.results import results
from streaming.archive.archive import Archive
from streaming.topics import ACTIONS, IMPRESSIONS
from tests.support.archived import BEGIN_MS, MINUTE_MS, archive, exposures, simulator

ARMS = arms_of("served:50,frozen:50")
MINUTES, BEGIN = 6, BEGIN_MS + 2 * MINUTE_MS
END = BEGIN_MS + (MINUTES - 1) * MINUTE_MS


def with_arms(day: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """From BEGIN on each user has an arm, before all have `served`. Each action is there twice, and once too late."""
    shown, actions = day[IMPRESSIONS], day[ACTIONS]
    names = [
        arm_of(user, ARMS) if ts >= BEGIN else "served"
        for user, ts in zip(shown["user_id"].to_pylist(), shown["ts_ms"].to_pylist(), strict=True)
    ]
    arm = shown.schema.get_field_index("arm")
    late = actions.set_column(
        actions.schema.get_field_index("ts_ms"), "ts_ms", pa.array(actions["ts_ms"].to_numpy() + 10 * MINUTE_MS)
    )
    return {
        **day,
        IMPRESSIONS: shown.set_column(arm, "arm", pa.array(names)),
        ACTIONS: pa.concat_tables([actions, actions, late.slice(0, 20)]),
    }


def by_hand(task: str) -> dict[str, tuple[int, int, float]]:
    """Arm -> users, impressions, rate."""
    shown = [e for e in exposures(simulator(), BEGIN, END)]
    found: dict[str, tuple[int, int, float]] = {}
    for arm in ARMS:
        own = [e for e in shown if arm_of(e.user_id, ARMS) == arm.name]
        hits = [task in e.outcomes for e in own]
        found[arm.name] = (len({e.user_id for e in own}), len(own), float(np.mean(hits)))
    return found


def test_the_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    made = Archive(archive(tmp_path, MINUTES, with_arms), simulator().declaration)
    by_default = results(made, simulator().declaration, ARMS).interval
    assert BEGIN <= by_default.begin_ms < BEGIN + 10_000 and by_default.end_ms == END
    found = results(made, simulator().declaration, ARMS, BEGIN)
    assert not found.changed
    for task in ("watch", "save"):
        for arm, (users, impressions, rate) in by_hand(task).items():
            assert (found.users[arm], found.impressions[arm]) == (users, impressions)
            assert found.rates[arm][task] == pytest.approx(rate)
    effect = found.differences["frozen"]["watch"]
    assert effect.low < found.rates["frozen"]["watch"] - found.rates["served"]["watch"] < effect.high
    assert effect.variance_left < 1, "the minutes before tell something"
    assert found.as_json()["arms"][1]["users"] == found.users["frozen"] and found.mismatch_p > 0.001


def test_users_of_several_arms_are_left_out_and_counted(tmp_path: Path) -> None:
    made = Archive(archive(tmp_path, MINUTES, with_arms), simulator().declaration)
    found = results(made, simulator().declaration, ARMS, BEGIN_MS, END)
    assert found.changed and "were in several arms" in found.warnings[-1]
    assert found.mismatch_p < 0.001 and "not split as asked" in found.warnings[0], "all earlier users were served"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    def plain(day: dict[str, pa.Table]) -> dict[str, pa.Table]:
        return day

    made = Archive(archive(tmp_path, MINUTES, plain), simulator().declaration)
    arguments: list[Any] = [simulator().declaration, ARMS]
    with pytest.raises(InputError, match="no impression of another arm than 'served'; the others are frozen"):
        results(made, *arguments)
    with pytest.raises(InputError, match="closed in the archive yet"):
        results(Archive(tmp_path / "none"), *arguments)
