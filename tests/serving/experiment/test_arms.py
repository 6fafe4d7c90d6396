"""Arms: each user has one, shares hold, and a wrong setting is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from serving.experiment.arms import Arm, arm_of, arms_of, places


def test_shares_hold_and_a_user_keeps_their_arm() -> None:
    arms = arms_of("served:60,frozen:40")
    assert arms == [Arm("served", 0.6), Arm("frozen", 0.4)] and [arm.model for arm in arms] == ["ranker", "frozen"]
    users = np.arange(-50_000, 50_000)
    of_users = places(users, arms)
    assert abs((of_users == 0).mean() - 0.6) < 0.005
    assert [arm_of(int(u), arms) for u in users[:20]] == [arms[p].name for p in of_users[:20]]
    assert abs(np.corrcoef(of_users[:-1], of_users[1:])[0, 1]) < 0.01, "neighbours are independent"


def test_who_moves_when_a_share_grows() -> None:
    before, after = (
        places(np.arange(20_000), arms_of(text)) for text in ("served:50,frozen:50", "served:60,frozen:40")
    )
    assert not ((before == 0) & (after == 1)).any() and 0.08 < (before != after).mean() < 0.12


def test_one_arm_takes_all() -> None:
    assert not places(np.arange(100), arms_of("served:1")).any()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "'' is no arm; allowed is name:weight"),
        ("served", "'served' is no arm"),
        ("served:0", "'served:0' is no arm"),
        ("served:nan", "is no arm"),
        ("served:50,served:50", "each name once"),
        ("served:50,other:50", "'other' is no arm; allowed are served, frozen, logistic"),
        ("ranker:50", "'ranker' is no arm; allowed are served, frozen, logistic"),
    ],
)
def test_a_wrong_setting_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        arms_of(text, ["ranker", "logistic"])


def test_models_may_be_arms() -> None:
    assert [arm.model for arm in arms_of("served:1, logistic:3", ["ranker", "logistic"])] == ["ranker", "logistic"]
